"""Views survive the store's files; damaged, missing and hostile files are named, never opened on trust."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import BadImageError, DataError
from pipeline.images.sample import ImageSample
from pipeline.pixels import IMAGE_FILE, LABEL_FILES, MAX_PIXELS, decode_sample, encode_sample
from pipeline.tensors import to_tensors
from pipeline.transforms import Array

TASKS = tuple(LABEL_FILES)
FILES = (IMAGE_FILE, *LABEL_FILES.values())


def make_sample(seed: int = 0, *, height: int = 12, width: int = 18) -> ImageSample:
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((height, width, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[: height // 3] = 0
    depth = rng.uniform(1, 9, (height, width)).astype(np.float32)
    depth[:, : width // 3] = 255
    classes: dict[str, Array] = {
        task: rng.choice(np.array([0, 1, 255], np.uint8), (height, width))
        for task in ("semseg", "human_parts", "edge", "sal")
    }
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return ImageSample(
        key="k/1", image=image, labels={**classes, "normals": normals, "depth": depth, "disparity": 9 / depth}
    )


def png(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@given(seed=st.integers(0, 99), height=st.integers(1, 20), width=st.integers(1, 20))
def test_files_give_the_view_back(seed: int, height: int, width: int) -> None:
    sample = make_sample(seed, height=height, width=width)
    files = encode_sample(sample)
    assert set(files) == set(FILES)
    assert files == encode_sample(sample)
    got = decode_sample(files, key="k/1", tasks=TASKS)
    np.testing.assert_array_equal(got.image, sample.image)
    for task in TASKS:
        assert got.labels[task].dtype == sample.labels[task].dtype
        assert got.labels[task].shape == sample.labels[task].shape
        if task != "normals":
            np.testing.assert_array_equal(got.labels[task], sample.labels[task])
    normals = np.asarray(got.labels["normals"])
    np.testing.assert_allclose(normals, sample.labels["normals"], atol=5e-4)
    zero = (np.asarray(sample.labels["normals"]) == 0).all(-1)
    np.testing.assert_array_equal((normals == 0).all(-1), zero)
    np.testing.assert_allclose(np.linalg.norm(normals[~zero], axis=-1), 1, atol=1e-6)


def test_only_the_asked_labels_are_decoded() -> None:
    files = {**encode_sample(make_sample()), "semseg.png": b"damaged", "json": b"{}"}
    assert set(decode_sample(files, key="k", tasks=("depth",)).labels) == {"depth"}
    assert decode_sample(files, key="k", tasks=()).labels == {}


def test_other_software_reads_the_files() -> None:
    sample, files = make_sample(), encode_sample(make_sample())
    for task, dtype in (("normals", np.float16), ("depth", np.float32)):
        array = np.load(io.BytesIO(files[LABEL_FILES[task]]), allow_pickle=False)
        np.testing.assert_array_equal(array, np.asarray(sample.labels[task]).astype(dtype))
    with Image.open(io.BytesIO(files["semseg.png"])) as image:
        assert image.mode == "L"


def test_npy_bytes_are_frozen() -> None:
    files = encode_sample(
        replace(
            make_sample(),
            image=np.zeros((2, 3, 3), np.uint8),
            labels={
                "depth": np.arange(6, dtype=np.float32).reshape(2, 3),
                "normals": np.tile(np.float32([0, 0, 1]), (2, 3, 1)),
            },
        )
    )
    digest = hashlib.sha256(files["depth.npy"] + files["normals.npy"]).hexdigest()
    assert digest == "0b162b847878071f0440ee661d2b8601663127d891828aa1107edec1eb4ee716"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str) -> None:
    files = encode_sample(make_sample())
    del files[name]
    with pytest.raises(BadImageError, match=rf"k/1: expected a file '{name}'"):
        decode_sample(files, key="k/1", tasks=TASKS)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_damaged_file_is_named_or_still_of_the_right_shape(name: str, data: st.DataObject) -> None:
    files = encode_sample(make_sample())
    content = bytearray(files[name])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    reason = ""
    try:
        got = decode_sample({**files, name: bytes(content)}, key="k/1", tasks=TASKS)
    except BadImageError as error:
        reason = str(error)
    if reason:
        assert reason.startswith("k/1.")
    else:
        assert got.image.shape == (12, 18, 3)
        assert all(array.shape[:2] == (12, 18) for array in got.labels.values())


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_never_decodes(name: str) -> None:
    files = encode_sample(make_sample())
    with pytest.raises(BadImageError, match=rf"k/1\.{name}"):
        decode_sample({**files, name: files[name][: len(files[name]) // 2]}, key="k/1", tasks=TASKS)


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1), (0, 5)])
def test_absurd_sizes_are_refused_before_anything_is_allocated(width: int, height: int) -> None:
    with pytest.raises(BadImageError, match=r"k\.png: expected 1 to"):
        decode_sample({"png": png(width, height)}, key="k", tasks=())


def test_a_label_of_another_size_or_mode_is_refused() -> None:
    files, other = encode_sample(make_sample()), encode_sample(make_sample(width=19))
    for task, name in LABEL_FILES.items():
        with pytest.raises(BadImageError, match=rf"k\.{name}: expected .*as the image"):
            decode_sample({**files, name: other[name]}, key="k", tasks=(task,))
    with pytest.raises(BadImageError, match="expected mode L, got RGB"):
        decode_sample({**files, "edge.png": files["png"]}, key="k", tasks=("edge",))


def test_pickles_and_numbers_that_are_not_finite_are_refused() -> None:
    files, buffer = encode_sample(make_sample()), io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadImageError, match=r"depth\.npy"):
        decode_sample({**files, "depth.npy": buffer.getvalue()}, key="k", tasks=("depth",))
    broken = files["depth.npy"][:-4] + struct.pack("<f", float("nan"))
    with pytest.raises(BadImageError, match="finite"):
        decode_sample({**files, "depth.npy": broken}, key="k", tasks=("depth",))


@pytest.mark.parametrize(
    ("label", "array"),
    [
        ("flow", np.zeros((12, 18), np.float32)),
        ("semseg", np.zeros((12, 18), np.int64)),
        ("edge", np.zeros((12, 18, 1), np.uint8)),
        ("depth", np.zeros((12, 18), np.float64)),
        ("normals", np.zeros((12, 18), np.float32)),
    ],
)
def test_a_label_that_has_no_file_format_is_refused(label: str, array: Array) -> None:
    with pytest.raises(DataError, match=f"k/1, label '{label}'"):
        encode_sample(replace(make_sample(), labels={label: array}))


def test_an_unknown_task_is_refused_with_the_choices() -> None:
    with pytest.raises(DataError, match=r"semseg.*got 'flow'"):
        decode_sample(encode_sample(make_sample()), key="k", tasks=("flow",))


def test_tensors_keep_values_and_invalid_codes() -> None:
    samples = [make_sample(0), make_sample(1)]
    pixels, labels = to_tensors(samples)
    assert pixels.shape == (2, 3, 12, 18)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    np.testing.assert_array_equal(pixels[1, 2].numpy(), samples[1].image[..., 2])
    for task in TASKS:
        assert labels[task].shape == (2, 3 if task == "normals" else 1, 12, 18)
        assert labels[task].dtype == torch.float32
    np.testing.assert_array_equal(labels["normals"][1, 2].numpy(), np.asarray(samples[1].labels["normals"])[..., 2])
    np.testing.assert_array_equal(labels["depth"][0, 0].numpy(), samples[0].labels["depth"])
    assert (labels["depth"][:, :, :, :6] == 255).all()
    assert not labels["normals"][:, :, :4].any()


def test_samples_that_do_not_stack_are_named() -> None:
    with pytest.raises(DataError, match=r"k/1: expected \(12, 18, 3\)"):
        to_tensors([make_sample(), make_sample(width=19)])
    with pytest.raises(DataError, match="with"):
        to_tensors([make_sample(), replace(make_sample(), labels={})])
    with pytest.raises(DataError, match="at least one"):
        to_tensors([])
