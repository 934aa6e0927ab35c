"""Stems: what counts as a plain vision transformer, what is cut off, how weights come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from sak.errors import CheckpointError, SakError, UnknownNameError
from sak.student.stem import (
    StemWeights,
    build_stem,
    default_levels,
    load_stem,
    run_stem,
    stem_grid,
    stem_statistics,
    stem_width,
)
from sak.weights import save_weights
from tests.sak.student.tiny import GRID, IMAGE_SIZE, STAGE1, images
from tests.sak.teachers.sources import ClipVisual, dinov2_maps, dinov2_state

NAME = STAGE1.stem
TINY = dict(STAGE1.stem_overrides)


@pytest.mark.parametrize(
    ("depth", "levels"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (4, (0, 1, 2, 3)), (6, (0, 2, 3, 5))]
)
def test_default_levels(depth: int, levels: tuple[int, ...]) -> None:
    assert default_levels(depth) == levels


def test_too_shallow_a_stem_is_refused() -> None:
    with pytest.raises(SakError, match="depth 3"):
        default_levels(3)


def test_overrides_reach_timm_and_only_the_residual_stream_is_left() -> None:
    stem = build_stem(NAME, image_size=IMAGE_SIZE, overrides=TINY)
    assert stem_grid(stem) == GRID
    names = [name for name, _ in stem.named_parameters()]
    assert len(stem.blocks) == 5  # type: ignore[arg-type]
    assert all(name.startswith(("cls_token", "pos_embed", "patch_embed.", "blocks.")) for name in names)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (NAME, TINY),
        ("deit_tiny_distilled_patch16_224", TINY),
        ("vit_small_patch14_reg4_dinov2", {**TINY, "depth": 4}),
        ("vit_base_patch16_siglip_224", {**TINY, "depth": 4}),
        ("vit_base_patch16_clip_224.openai", {**TINY, "depth": 4}),
    ],
)
def test_stages_are_the_raw_block_outputs(name: str, overrides: dict[str, int]) -> None:
    stem: Any = build_stem(name, image_size=IMAGE_SIZE, overrides=overrides).eval()
    with torch.no_grad():
        stages = run_stem(stem, images())
        expected = stem.forward_intermediates(images(), output_fmt="NLC", intermediates_only=True)
    assert len(stages) == len(expected) + 1
    assert stages[0].shape == (2, 6, 32)
    for ours, timms in zip(stages[1:], expected, strict=True):
        torch.testing.assert_close(ours, timms)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "resnet18", "samvit_base_patch16", "vit_small_r26_s32_224"]
)
def test_other_architectures_are_refused(name: str) -> None:
    with pytest.raises(SakError, match="plain vision transformer"):
        build_stem(name, image_size=(224, 224))


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(UnknownNameError, match="vit_tiny_patch16_224"):
        build_stem("vit_tinny_patch16_224", image_size=(224, 224))


def test_an_image_size_off_the_patch_grid_is_refused() -> None:
    with pytest.raises(SakError, match=r"patch size \(8, 8\).*\(16, 20\)"):
        build_stem(NAME, image_size=(16, 20), overrides=TINY)


@pytest.mark.parametrize(
    "overrides",
    [{"embed_dimm": 32}, {"embed_dim": 32, "num_heads": 5}, {"num_heads": 0}, {"patch_size": -8}, {"mlp_ratio": -1}],
)
def test_overrides_that_timm_refuses_are_reported(overrides: dict[str, int]) -> None:
    with pytest.raises(SakError, match="correct the overrides"):
        build_stem(NAME, image_size=(224, 224), overrides={**overrides, "depth": 4})


def test_a_size_beyond_all_numbers_is_told_of_in_one_line() -> None:
    with pytest.raises(SakError, match="timm refuses") as caught:
        build_stem(NAME, image_size=(8 * 10**19, 8 * 10**19), overrides=TINY)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_error_says_how_to_give_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"no route to host.*checkpoint: PATH"):
        build_stem(NAME, image_size=IMAGE_SIZE, pretrained=True)


def started(path: Path) -> tuple[Any, StemWeights]:
    """The tiny stem from a file, and what that gave."""
    stem = build_stem(NAME, image_size=IMAGE_SIZE, overrides=TINY)
    return stem, load_stem(stem, path)


def timm_checkpoint(path: Path, size: tuple[int, int], **overrides: int) -> dict[str, torch.Tensor]:
    state = timm.create_model(NAME, img_size=size, num_classes=5, **(TINY | overrides)).state_dict()
    save_weights(path, state)
    return dict(state)


def test_a_timm_checkpoint_loads_without_its_norm_and_classifier(tmp_path: Path) -> None:
    state = timm_checkpoint(tmp_path / "w.safetensors", IMAGE_SIZE)
    stem, start = started(tmp_path / "w.safetensors")
    assert start == StemWeights("timm", len(stem.state_dict()), len(state), 0)
    loaded = stem.state_dict()
    assert loaded
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_a_checkpoint_of_another_size_has_its_position_embedding_resized(tmp_path: Path) -> None:
    timm_checkpoint(tmp_path / "w.safetensors", (32, 32))
    stem, start = started(tmp_path / "w.safetensors")
    assert stem.pos_embed.shape == (1, 7, 32)
    assert start.resized == 17
    assert start.summary().endswith("keys in timm layout; position embedding resized from 17 tokens")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    timm_checkpoint(tmp_path / "w.safetensors", IMAGE_SIZE, depth=4)
    with pytest.raises(CheckpointError, match=r"w\.safetensors.*blocks\.4\.norm1\.weight"):
        started(tmp_path / "w.safetensors")


def test_the_width_is_found_by_name_and_overrides() -> None:
    assert stem_width("vit_tiny_patch16_224", overrides={}) == 192
    assert stem_width("vit_tiny_patch16_224", overrides={"embed_dim": 48}) == 48
    with pytest.raises(UnknownNameError, match="vit_nope"):
        stem_width("vit_nope", overrides={})
    with pytest.raises(SakError, match="plain vision transformer"):
        stem_width("resnet18", overrides={"embed_dim": 48})


def clip_source(image_BCHW: torch.Tensor) -> Any:
    tower = ClipVisual(side=28, patch=14).eval()
    return {f"visual.{key}": value for key, value in tower.state_dict().items()}, tower.maps(image_BCHW)


def dinov2_source(image_BCHW: torch.Tensor) -> Any:
    options = {"side": 28, "patch": 14, "registers": 0, "swiglu": False}
    state = dinov2_state(**options)  # type: ignore[arg-type]
    return dinov2_state(**options, chunked=True), dinov2_maps(state, image_BCHW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "source", "layout"),
    [
        ("vit_base_patch16_clip_quickgelu_224", clip_source, "open_clip"),
        ("vit_base_patch14_dinov2", dinov2_source, "dinov2"),
    ],
)
def test_a_stem_starts_from_what_is_published(name: str, source: Any, layout: str, tmp_path: Path) -> None:
    """Under its publisher's names, and with the maps of the publisher's network; another grid is resized."""
    overrides = {"patch_size": 14, "embed_dim": 24, "depth": 4, "num_heads": 3}
    image_BCHW = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        weights, maps = source(image_BCHW)
    path = tmp_path / "published.safetensors"
    save_weights(path, weights)
    stem: Any = build_stem(name, image_size=(28, 28), overrides=overrides).eval()
    assert load_stem(stem, path) == StemWeights(layout, len(stem.state_dict()), len(weights), 0)
    with torch.no_grad():
        for ours, theirs in zip(run_stem(stem, image_BCHW)[1:], maps, strict=True):
            torch.testing.assert_close(ours, theirs.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
    larger = build_stem(name, image_size=(56, 28), overrides=overrides)
    assert load_stem(larger, path).resized == 5


def test_the_statistics_of_a_stem_are_timms() -> None:
    assert stem_statistics("vit_base_patch16_384") == ((0.5,) * 3, (0.5,) * 3)
    assert stem_statistics("vit_base_patch14_dinov2") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(UnknownNameError, match="vit_nope"):
        stem_statistics("vit_nope")
