"""Every published teacher builds as its entry says, costs what is known of it, and gives the raw residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from sak.errors import TeacherError, UnknownNameError
from sak.teachers.entry import Weights
from sak.teachers.families import OTHER, family_of, statistics
from sak.teachers.footprint import footprint
from sak.teachers.identity import teacher_identity
from sak.teachers.model import Teacher, load_teacher, meta_teacher
from sak.teachers.published import PUBLISHED, published_teacher
from sak.teachers.registry import TEACHERS
from sak.teachers.spec import TeacherSpec
from sak.weights import save_weights
from tests.golden_fill import fill

SHARED = Path(__file__).resolve().parents[3] / "../shared"
RANDOM = Weights(random=0)


def installed(name: str) -> str:
    """Skips where the installed timm is older than a network."""
    if not timm.is_model(PUBLISHED[name].timm.partition(".")[0]):
        pytest.skip(f"the installed timm has no {PUBLISHED[name].timm}")
    return name


@cache
def meta(name: str) -> Teacher:
    return meta_teacher(PUBLISHED[installed(name)].spec("t", weights=RANDOM))


def test_names_are_distinct() -> None:
    assert not PUBLISHED.keys() & TEACHERS.keys()
    assert len({entry.timm + str(entry.overrides) for entry in PUBLISHED.values()}) == len(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_entry_builds_as_declared(name: str) -> None:
    entry, teacher = PUBLISHED[name], meta(name)
    assert all(parameter.is_meta for parameter in teacher.network.parameters())
    assert teacher.levels == entry.levels
    assert len(teacher.widths) == 4
    assert getattr(teacher.network, "num_prefix_tokens", 0) == entry.prefix
    infos: list[dict[str, Any]] = list(teacher.network.feature_info)  # type: ignore[arg-type]
    cells = {
        info["reduction"]
        for info, level in zip(infos, range(len(infos)), strict=True)
        if info["num_chs"] in teacher.widths
    }
    assert min(cells) == entry.cell
    size = (entry.size, entry.size)
    assert teacher.fit(torch.empty((1, 3, *size), device="meta")).image_BCHW.shape[-1] > entry.size - entry.cell


@pytest.mark.parametrize("name", PUBLISHED)
def test_preprocessing_is_the_one_it_was_trained_with(name: str) -> None:
    """As timm records it of the same weights."""
    entry = PUBLISHED[installed(name)]
    config = timm.get_pretrained_cfg(entry.timm)
    assert entry.on_hub == ("." in entry.timm)
    assert entry.licence
    assert entry.source.startswith("https://")
    found = statistics(entry.spec("t", weights=RANDOM))
    assert (found.mean, found.std) == (tuple(config.mean), tuple(config.std))
    assert config.interpolation == "bicubic"
    if entry.on_hub:
        assert config.has_weights
        # SAM 2 is published at 1024 in all sizes, timm has the smaller ones at 896.
        assert entry.size == (1024 if name.startswith("sam2") else config.input_size[-1])


def smallest() -> Iterator[str]:
    """The first entry of every timm module and kind of input."""
    seen = set()
    for name, entry in PUBLISHED.items():
        kind = (timm.model_entrypoint(entry.timm.partition(".")[0]).__module__, entry.cell, entry.any_size)
        if timm.is_model(entry.timm.partition(".")[0]) and kind not in seen:
            seen.add(kind)
            yield name


@pytest.mark.parametrize("name", list(smallest()))
def test_maps_have_the_declared_grid(name: str) -> None:
    entry = PUBLISHED[name]
    found = footprint(entry.spec("t", weights=RANDOM), view=(entry.size, entry.size))
    assert found.maps[0][1:] == (found.input[0] // entry.cell, found.input[1] // entry.cell)
    assert tuple(shape[0] for shape in found.maps) == meta(name).widths
    assert found.values == sum(int(np.prod(shape)) for shape in found.maps)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_maps_of_every_entry_have_the_declared_grid(name: str) -> None:
    installed(name)
    test_maps_have_the_declared_grid(name)


@pytest.mark.parametrize(
    ("name", "gmac", "maps"),
    [
        ("dinov2_vitb14", 72.2, (768, 27, 27)),
        ("clip_vitb16_timm", 55.5, (768, 24, 24)),
        ("sam_vitb", 482.8, (768, 64, 64)),
    ],
)
def test_costs_at_384_are_those_measured_of_the_published_teachers(
    name: str, gmac: float, maps: tuple[int, int, int]
) -> None:
    found = footprint(PUBLISHED[name].spec("t", weights=RANDOM), view=(384, 384))
    assert found.macs / 1e9 == pytest.approx(gmac, abs=0.05)
    assert found.maps == (maps,) * 4


def test_the_giant_is_counted_without_memory() -> None:
    found = footprint(PUBLISHED["dinov2_vitg14"].spec("t", weights=RANDOM), view=(384, 384))
    assert found.parameters == 1_136_479_232
    assert found.maps == ((1536, 27, 27),) * 4


TINY: dict[str, dict[str, Any]] = {
    "dinov2_vitb14_reg": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 56},
    "dinov3_vitb16": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 64},
    "clip_vitb16_openai": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 64},
    "siglip_vitb16": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 64},
    "aimv2_large": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 56},
    "pe_core_vitb16": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 64},
    "radio_v2.5_vitb16": {"embed_dim": 24, "num_heads": 3, "depth": 4},
    "theia_vitb16": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 64},
    "sam_vitb": {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 64, "window_size": 3},
    "sam2_hiera_tiny": {"embed_dim": 16, "num_heads": 1},
    "swin_tiny": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4), "img_size": 64, "window_size": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_levels_are_the_raw_residual_stream(name: str) -> None:
    """What leaves each block or stage, as a hook on it sees, patches only: no norm, no neck, no class token."""
    entry = PUBLISHED[installed(name)]
    levels = entry.levels if "depth" not in TINY[name] else (0, 1, 2, 3)
    spec = replace(
        entry.spec("t", weights=RANDOM),
        levels=levels,
        overrides={**entry.overrides, **TINY[name]},
        input_size=None,
        resize="squash",
    )
    teacher = load_teacher(spec)
    seen: list[Tensor] = []
    parts = teacher.network.blocks if family_of(spec.timm) is not OTHER else teacher.network.layers
    for level in levels:
        parts[level].register_forward_hook(lambda _, __, output: seen.append(output))  # type: ignore[index, union-attr]
    side = 56 if entry.cell == 14 else 64
    maps = teacher.features(torch.randn(2, 3, side, side))
    for feat_BCHW, raw in zip(maps, seen, strict=True):
        rows, columns = feat_BCHW.shape[-2:]
        tokens = raw[:, entry.prefix :].unflatten(1, (rows, columns)) if raw.ndim == 3 else raw
        assert torch.equal(feat_BCHW, tokens.permute(0, 3, 1, 2))


def test_sam_runs_at_the_size_of_the_view_too() -> None:
    spec = PUBLISHED["sam_vitb"].spec("t", weights=RANDOM)
    overrides = {"embed_dim": 24, "num_heads": 3, "depth": 4, "window_size": 3}
    teacher = load_teacher(replace(spec, levels=(0, 1, 2, 3), overrides=overrides, input_size=None, resize="squash"))
    maps = teacher(torch.randint(0, 256, (1, 3, 96, 130), dtype=torch.uint8))
    assert [tuple(feat.shape) for feat in maps] == [(1, 24, 6, 8)] * 4


def test_what_the_hub_lacks_is_not_taken_from_a_namesake() -> None:
    """Theia's network is a DeiT, and timm's hub would give DeiT's weights."""
    for name in ("theia_vitb16", "radio_v2.5_vitb16"):
        with pytest.raises(
            TeacherError, match=r"'t': pretrained: timm's hub has no weights .*https://.*checkpoint: FILE"
        ):
            PUBLISHED[name].spec("t", weights=Weights(pretrained=True))


def test_an_unknown_name_lists_similar_ones() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown teacher 'dinov2_b14'.*sak teachers ls.*dinov2_vitb14.*timm: MODEL"
    ):
        published_teacher("dinov2_b14")
    assert published_teacher("sam_vitb") is PUBLISHED["sam_vitb"]


@pytest.mark.parametrize("name", ["dinov2_vitb14", "clip_vitb16_openai", "vit_base"])
def test_the_identity_records_the_normalisation(name: str) -> None:
    spec = PUBLISHED[name].spec("t", weights=RANDOM)
    native = teacher_identity(spec)
    reference = teacher_identity(replace(spec, normalization="reference", mean=None, std=None))
    assert reference["mean"] == [0.485, 0.456, 0.406]
    assert native["mean"] == list(PUBLISHED[name].mean)
    # ImageNet's own statistics are the reference's: the maps are the same, and so is the column.
    assert (native == reference) == (name == "dinov2_vitb14")


CASES = {
    "dinov2_small": "dinov2_vits14",
    "dinov2_base": "dinov2_vitb14",
    "openaiclip_base": "clip_vitb16_openai_gelu",
    "timmclip_base": "clip_vitb16_timm",
}


@pytest.mark.parametrize("case", CASES)
def test_published_maps_come_out_of_the_named_teachers(case: str, tmp_path: Path) -> None:
    """The published code's teachers, loaded by name from a file: maps to 1e-4."""
    file = SHARED / "golden" / "sak_reference_teachers.npz"
    if not file.is_file():
        pytest.skip("the full golden file is not here; tests/golden has a part of it")
    with np.load(file, allow_pickle=False) as golden:
        size = tuple(int(side) for side in golden[f"{case}/size"])
        wanted = [torch.from_numpy(golden[f"{case}/{level}"]) for level in range(4)]
    entry, path = PUBLISHED[CASES[case]], tmp_path / "w.safetensors"
    network = timm.create_model(entry.timm, num_classes=0, img_size=size)
    save_weights(path, {name: fill(name, tuple(value.shape)) for name, value in network.state_dict().items()})
    teacher = load_teacher(replace(entry.spec("t", weights=Weights(checkpoint=path)), overrides={"img_size": size}))
    image = torch.from_numpy(np.random.RandomState(21).standard_normal((1, 3, *size)).astype(np.float32))
    # Already normalised; what is left of preprocessing leaves it as it is.
    fitted = teacher.fit(image).image_BCHW
    assert torch.equal(fitted, image)
    for got, expected in zip(teacher.features(fitted), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_published_sam_input_comes_out_of_the_named_teacher() -> None:
    file = SHARED / "golden" / "sak_reference_teachers.npz"
    if not file.is_file():
        pytest.skip("the full golden file is not here; tests/golden has a part of it")
    with np.load(file, allow_pickle=False) as golden:
        image, wanted = (torch.from_numpy(golden[f"sam_preprocess/{key}"]) for key in ("in", "out128"))
    spec = replace(PUBLISHED["sam_vitb"].spec("t", weights=RANDOM), input_size=(128, 128))
    overrides = {"embed_dim": 24, "num_heads": 3, "depth": 4}
    teacher = load_teacher(replace(spec, levels=(0, 1, 2, 3), overrides=overrides))
    torch.testing.assert_close(teacher.fit(image).image_BCHW, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sam2_hiera_tiny"])
def test_real_weights_by_name(name: str) -> None:
    path = SHARED / "teachers" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip("needs a pretrained network, which is not part of the project")
    spec: TeacherSpec = replace(PUBLISHED[name].spec("t", weights=Weights(checkpoint=path)), input_size=(256, 256))
    maps = load_teacher(spec)(torch.randint(0, 256, (1, 3, 240, 320), dtype=torch.uint8))
    assert [tuple(feat.shape) for feat in maps] == [(1, 384, 16, 16)] * 4
    assert all(bool(feat.isfinite().all()) for feat in maps)
