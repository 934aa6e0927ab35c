from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.boundary.files import decode_prediction
from pipeline.errors import BadImageError, PipelineError
from pipeline.predictions.formats import encode_map, format_of, png_of, read_map
from pipeline.report.palettes import class_palette
from sak.tasks import DATASETS, TASK_NAMES

CHANNELS = {"semseg": 21, "human_parts": 7, "sal": 2, "normals": 3, "edge": 1, "depth": 1}


def logits(task: str, seed: int = 0, *, size: tuple[int, int] = (5, 7)) -> torch.Tensor:
    draw = torch.randn(CHANNELS[task], *size, generator=torch.Generator().manual_seed(seed))
    return 3 + draw if task == "depth" else 2 * draw


def through_a_file(task: str, values_CHW: torch.Tensor, folder: Path) -> np.ndarray:
    path = folder / "x.png"
    path.write_bytes(png_of(task, encode_map(task, values_CHW), dataset="pascalcontext"))
    return read_map(task, path)


def test_every_task_has_a_format() -> None:
    modes = {task: format_of(task).mode for spec in DATASETS.values() for task in spec.tasks}
    assert {*modes} <= {*TASK_NAMES}
    assert {*modes.values()} == {"P", "L", "RGB", "I;16"}


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_what_is_read_back_is_what_was_predicted(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("maps")
    made = {task: logits(task, seed) for task in CHANNELS}
    read = {task: through_a_file(task, made[task], folder) for task in CHANNELS}
    for task in ("semseg", "human_parts"):
        np.testing.assert_array_equal(read[task], made[task].argmax(0).numpy())
    shares = {"sal": made["sal"].softmax(0)[1].numpy(), "edge": made["edge"][0].sigmoid().numpy()}
    for task, share in shares.items():
        assert (share - read[task] >= 0).all() or np.abs(share - read[task]).max() < 1e-6
        assert (share - read[task] < 1 / 255 + 1e-6).all()
    np.testing.assert_allclose(read["depth"], made["depth"][0].numpy().clip(0.001), rtol=0, atol=0.000501)
    unit = torch.nn.functional.normalize(made["normals"], dim=0).permute(1, 2, 0).numpy()
    degrees = np.degrees(np.arccos((unit * read["normals"]).sum(axis=2).clip(-1, 1)))
    assert degrees.max() < 0.5


def test_files_are_what_the_fields_tools_open(tmp_path: Path) -> None:
    modes = {}
    for task in CHANNELS:
        path = tmp_path / f"{task}.png"
        path.write_bytes(png_of(task, encode_map(task, logits(task)), dataset="nyud"))
        with Image.open(path) as image:
            modes[task] = image.mode
            if image.mode == "P":
                palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
                np.testing.assert_array_equal(palette, class_palette("nyud", task=task)[: len(palette)])
    assert modes == {task: format_of(task).mode for task in CHANNELS}
    data = (tmp_path / "edge.png").read_bytes()
    np.testing.assert_array_equal(decode_prediction(data, where="x.png"), encode_map("edge", logits("edge")))


def test_extremes_have_a_place(tmp_path: Path) -> None:
    metres = torch.tensor([-1.0, 0.0, 0.0004, 1.5, 65.535, 100.0, float("inf"), float("nan")]).view(1, 1, -1)
    assert encode_map("depth", metres).tolist() == [[1, 1, 1, 1500, 65535, 65535, 65535, 1]]
    assert through_a_file("depth", metres, tmp_path)[0, 3] == np.float32(1.5)
    assert encode_map("edge", torch.tensor([-99.0, 0.0, 99.0]).view(1, 1, -1)).tolist() == [[0, 127, 255]]
    normals = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]).T.reshape(3, 1, 2)
    assert encode_map("normals", normals).tolist() == [[[128, 128, 255], [128, 128, 128]]]
    assert through_a_file("normals", normals, tmp_path)[0, 1].tolist() == [0, 0, 0]


def test_what_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="got task 'poses'"):
        encode_map("poses", torch.zeros(1, 1, 1))
    path = tmp_path / "x.png"
    path.write_bytes(png_of("edge", encode_map("edge", logits("edge")), dataset="nyud"))
    with pytest.raises(BadImageError, match="expected mode P, got L"):
        read_map("semseg", path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadImageError, match="delete it and run the same command again"):
        read_map("edge", path)
