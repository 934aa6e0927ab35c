"""Weights under their publishers' names give the maps that their publishers' networks give, or are refused by key."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sak.errors import CheckpointError
from sak.teachers.conversion import convert, find_layout
from sak.teachers.entry import Weights
from sak.teachers.layouts import LAYOUTS
from sak.teachers.model import Teacher, load_teacher, meta_teacher
from sak.teachers.published import PUBLISHED
from sak.teachers.spec import TeacherSpec
from sak.weights import compare_state, rename_keys, save_weights
from tests.sak.teachers.sources import ClipVisual, dinov2_maps, dinov2_state, radio_maps, radio_state, random_state

Maps = list[Tensor]
SMALL: dict[str, Any] = {"embed_dim": 24, "num_heads": 3, "depth": 4}


def small(name: str, path: Path, **overrides: Any) -> TeacherSpec:
    """A published teacher's network in small, its four blocks the levels, weights from the file."""
    spec = PUBLISHED[name].spec("t", weights=Weights(checkpoint=path))
    return replace(spec, levels=(0, 1, 2, 3), overrides={**spec.overrides, **SMALL, **overrides})


def loaded(name: str, state: dict[str, Tensor], tmp_path: Path, **overrides: Any) -> Teacher:
    path = tmp_path / "published.safetensors"
    save_weights(path, state)
    return load_teacher(small(name, path, **overrides))


def image(rows: int, columns: int) -> Tensor:
    return torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(0))


def assert_same(got: Maps, wanted: Maps) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert other.std() > 0.05
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("text_prefix", ["", "text."])
def test_open_clip(tmp_path: Path, text_prefix: str) -> None:
    tower = ClipVisual(side=64, patch=16).eval()
    text = {
        f"{text_prefix}transformer.resblocks.0.ln_1.weight": torch.ones(3),
        f"{text_prefix}token_embedding.weight": torch.ones(3, 3),
        f"{text_prefix}positional_embedding": torch.ones(3, 3),
        f"{text_prefix}text_projection": torch.ones(3, 3),
        f"{text_prefix}ln_final.weight": torch.ones(3),
        "logit_scale": torch.ones(()),
    }
    state = {f"visual.{key}": value for key, value in tower.state_dict().items()} | text
    teacher = loaded("clip_vitb16_openai", state, tmp_path, img_size=64)
    assert_same(teacher.features(image(64, 64)), tower.maps(image(64, 64)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "registers", "swiglu", "chunked"),
    [
        ("dinov2_vitb14", 0, False, False),
        ("dinov2_vitb14", 0, False, True),
        ("dinov2_vitb14_reg", 4, False, False),
        ("dinov2_vitg14", 0, True, False),
        ("dinov2_vitg14_reg", 4, True, False),
    ],
)
def test_dinov2(tmp_path: Path, name: str, registers: int, swiglu: bool, chunked: bool) -> None:
    state = dinov2_state(side=56, patch=14, registers=registers, swiglu=swiglu)
    saved = dinov2_state(side=56, patch=14, registers=registers, swiglu=swiglu, chunked=chunked)
    teacher = loaded(name, saved, tmp_path, img_size=56)
    assert_same(teacher.features(image(56, 56)), dinov2_maps(state, image(56, 56)))


@torch.no_grad()
@pytest.mark.parametrize("scale", ["", "gamma", "grandma"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_radio(tmp_path: Path, scale: str, size: tuple[int, int]) -> None:
    """RADIOv2.5 has no layer scale, C-RADIOv3 has; positions follow the longer side."""
    state = radio_state(tokens=8, scale=scale)
    teacher = loaded("radio_v2.5_vitb16", state, tmp_path)
    assert_same(teacher.features(image(*size)), radio_maps(state, image(*size), scale=scale))


def hooked(layers: torch.nn.ModuleList, *, prefix: int, grid: tuple[int, int]) -> Maps:
    """Fills with the maps of every layer of a transformers network when it runs."""
    maps: Maps = []

    def keep(_: object, __: object, output: Any) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        tokens = tokens if tokens.ndim == 3 else tokens.flatten(1, 2)
        maps.append(tokens[:, prefix:].transpose(1, 2).unflatten(2, grid))

    for layer in layers:
        layer.register_forward_hook(keep)
    return maps


def randomised(network: torch.nn.Module) -> dict[str, Tensor]:
    state = random_state(
        {key: tuple(value.shape) for key, value in network.state_dict().items() if value.is_floating_point()}
    )
    network.load_state_dict(state, strict=False)
    network.eval()
    return {key: value for key, value in network.state_dict().items() if value.is_floating_point()}


HF: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
    "mlp_ratio": 4,
}
FUSED = {
    key: HF[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "config", "model", "prefix", "more"),
    [
        ("clip_vitb16_openai", "CLIPVisionConfig", "CLIPVisionModel", 1, {}),
        ("clip_vitb16_laion2b", "CLIPVisionConfig", "CLIPVisionModel", 1, {"hidden_act": "gelu"}),
        ("siglip_vitb16", "SiglipVisionConfig", "SiglipVisionModel", 0, {}),
        ("vit_base", "ViTConfig", "ViTModel", 1, {}),
        ("theia_vitb16", "ViTConfig", "ViTModel", 1, {}),
        ("dinov2_vitb14", "Dinov2Config", "Dinov2Model", 1, {}),
        ("dinov2_vitg14", "Dinov2Config", "Dinov2Model", 1, {"use_swiglu_ffn": True}),
        ("dinov2_vitb14_reg", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", 5, {}),
    ],
)
def test_transformers(tmp_path: Path, name: str, config: str, model: str, prefix: int, more: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    known = {key: value for key, value in HF.items() if key != "mlp_ratio" or config.startswith("Dino")}
    network = getattr(transformers, model)(getattr(transformers, config)(**known, **more))
    state = randomised(network)
    encoder = getattr(network, "vision_model", network).encoder
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    maps = hooked(layers, prefix=prefix, grid=(4, 4))
    network(image(64, 64))
    if name.startswith("theia"):
        state = {f"backbone.model.{key}": value for key, value in state.items()}
        state["translator.translator_heads.dino.0.weight"] = torch.ones(2, 2)
    teacher = loaded(name, state, tmp_path, img_size=64, patch_size=16)
    assert_same(teacher.features(image(64, 64)), maps)


def dinov3(transformers: Any, **more: Any) -> Any:
    """A small DINOv3 of the transformers package, its biases of query, key and value zero as published."""
    known = {key: value for key, value in HF.items() if key != "mlp_ratio"}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**known, num_register_tokens=4, **more))


@torch.no_grad()
@pytest.mark.parametrize(("name", "gated"), [("dinov3_vitb16", False), ("dinov3_vith16plus", True)])
def test_dinov3(tmp_path: Path, name: str, gated: bool) -> None:
    """Under the names of the transformers package, and those back in Meta's."""
    transformers = pytest.importorskip("transformers")
    network = dinov3(transformers, use_gated_mlp=gated, **({"hidden_act": "silu"} if gated else {}))
    state = randomised(network)
    for key, value in state.items():
        if re.search(r"[qkv]_proj\.bias", key):
            value.zero_()
    network.load_state_dict(state, strict=False)
    maps = hooked(network.layer, prefix=5, grid=(4, 4))
    network(image(64, 64))
    teacher = loaded(name, state, tmp_path)
    assert_same(teacher.features(image(64, 64)), maps)

    fused = {key.replace("_proj.", "_proj_"): value for key, value in state.items() if not key.endswith("mask_token")}
    meta = rename_keys(fused, META_DINOV3_GATED if gated else META_DINOV3)
    for block in range(4):
        parts = [meta.pop(f"{block}.{part}") for part in "qkv"]
        meta = {key: value for key, value in meta.items() if not re.fullmatch(rf"{block}\.[qkv]\.bias", key)}
        meta[f"blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
        meta[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(72)
        meta[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(72)
    meta |= {"mask_token": torch.ones(1, 24), "rope_embed.periods": torch.ones(4)}
    again = loaded(name, meta, tmp_path)
    assert_same(again.features(image(64, 64)), maps)

    meta["blocks.1.attn.qkv.bias"] = torch.ones(72)
    with pytest.raises(CheckpointError, match=r"expected zeros in blocks\.1\.attn\.qkv\.bias.*timm: MODEL"):
        loaded(name, meta, tmp_path)


META_COMMON = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "storage_tokens"),
    (r"embeddings\.patch_embeddings\.(.+)", r"patch_embed.proj.\1"),
    (r"layer\.(\d+)\.attention\.([qkv])_proj_weight", r"\1.\2"),
    (r"layer\.(\d+)\.attention\.([qkv])_proj_bias", r"\1.\2.bias"),
    (r"layer\.(\d+)\.attention\.o_proj_(.+)", r"blocks.\1.attn.proj.\2"),
    (r"layer\.(\d+)\.norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (r"layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
)
META_DINOV3 = (
    *META_COMMON,
    (r"layer\.(\d+)\.mlp\.up_proj_(.+)", r"blocks.\1.mlp.fc1.\2"),
    (r"layer\.(\d+)\.mlp\.down_proj_(.+)", r"blocks.\1.mlp.fc2.\2"),
)
META_DINOV3_GATED = (
    *META_COMMON,
    (r"layer\.(\d+)\.mlp\.gate_proj_(.+)", r"blocks.\1.mlp.w1.\2"),
    (r"layer\.(\d+)\.mlp\.up_proj_(.+)", r"blocks.\1.mlp.w2.\2"),
    (r"layer\.(\d+)\.mlp\.down_proj_(.+)", r"blocks.\1.mlp.w3.\2"),
)


@torch.no_grad()
def test_open_clip_around_timm(tmp_path: Path) -> None:
    """As OpenCLIP saves SigLIP: a timm network with a pooling that this one lacks."""
    spec = replace(PUBLISHED["siglip_vitb16"].spec("t", weights=Weights(random=1)), levels=(0, 1, 2, 3))
    teacher = load_teacher(replace(spec, overrides={**spec.overrides, **SMALL, "img_size": 64}))
    state = {f"visual.trunk.{key}": value for key, value in teacher.network.state_dict().items()}
    state |= {"visual.trunk.attn_pool.latent": torch.ones(1), "text.x": torch.ones(1), "logit_bias": torch.ones(1)}
    again = loaded("siglip_vitb16", state, tmp_path, img_size=64)
    assert all(
        torch.equal(a, b) for a, b in zip(teacher.features(image(64, 64)), again.features(image(64, 64)), strict=True)
    )


@torch.no_grad()
def test_sam(tmp_path: Path) -> None:
    """Windowed and global attention with relative positions, under Meta's names."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.SamVisionConfig(
        **FUSED, output_channels=16, mlp_dim=96, window_size=3, global_attn_indexes=[1, 3], num_pos_feats=12
    )
    network = transformers.SamVisionModel(settings)
    state = randomised(network)
    maps = hooked(network.vision_encoder.layers, prefix=0, grid=(4, 4))
    network(image(64, 64))
    names = {
        "vision_encoder.": "image_encoder.",
        "patch_embed.projection.": "patch_embed.proj.",
        "layers.": "blocks.",
        "layer_norm1.": "norm1.",
        "layer_norm2.": "norm2.",
        "neck.conv1.": "neck.0.",
        "neck.layer_norm1.": "neck.1.",
        "neck.conv2.": "neck.2.",
        "neck.layer_norm2.": "neck.3.",
        "neck.norm1.": "neck.1.",
        "neck.norm2.": "neck.3.",
    }
    meta = {}
    for key, value in state.items():
        for theirs, original in names.items():
            key = key.replace(theirs, original)
        meta[key] = value
    meta |= {"prompt_encoder.no_mask_embed.weight": torch.ones(1), "mask_decoder.iou_token.weight": torch.ones(1)}
    assert {key.split(".")[1] for key in meta if key.startswith("image")} == {
        "pos_embed",
        "patch_embed",
        "blocks",
        "neck",
    }
    path = tmp_path / "sam.safetensors"
    save_weights(path, meta)
    spec = small("sam_vitb", path, img_size=64, window_size=3, global_attn_indexes=[1, 3], neck_chans=16)
    teacher = load_teacher(replace(spec, input_size=None, resize="squash"))
    assert_same(teacher.features(image(64, 64)), maps)
    # Another size than its own: positions are interpolated.
    assert [tuple(feat.shape) for feat in teacher.features(image(32, 96))] == [(2, 24, 2, 6)] * 4


BACK = {
    "sam2_hiera_tiny": (
        (r"blocks\.(\d+)\.mlp\.fc1\.(.+)", r"image_encoder.trunk.blocks.\1.mlp.layers.0.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(.+)", r"image_encoder.trunk.blocks.\1.mlp.layers.1.\2"),
        (r"(?!head)(.+)", r"image_encoder.trunk.\1"),
    ),
    "aimv2_large": (
        (r"patch_embed\.(.+)", r"preprocessor.patchifier.\1"),
        (r"pos_embed", "preprocessor.pos_embed"),
        (r"blocks\.(\d+)\.norm([12])\.(.+)", r"trunk.blocks.\1.norm_\2.\3"),
        (r"blocks\.(\d+)\.mlp\.fc1_g\.(.+)", r"trunk.blocks.\1.mlp.fc1.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1_x\.(.+)", r"trunk.blocks.\1.mlp.fc3.\2"),
        (r"(blocks\..+)", r"trunk.\1"),
        (r"norm\.(.+)", r"trunk.post_trunk_norm.\1"),
    ),
}


@pytest.mark.parametrize(
    ("name", "overrides", "side"),
    [("sam2_hiera_tiny", {"embed_dim": 16, "num_heads": 1}, 64), ("aimv2_large", {**SMALL, "img_size": 56}, 56)],
)
def test_written_back_into_published_names_weights_load_as_themselves(
    tmp_path: Path, name: str, overrides: dict[str, Any], side: int
) -> None:
    spec = PUBLISHED[name].spec("t", weights=Weights(random=1))
    levels = spec.levels if name.startswith("sam2") else (0, 1, 2, 3)
    spec = replace(spec, levels=levels, overrides=overrides, input_size=None)
    teacher = load_teacher(spec)
    published = rename_keys(teacher.network.state_dict(), BACK[name])
    path = tmp_path / "published.safetensors"
    save_weights(path, {key: value for key, value in published.items() if not key.startswith("head.")})
    again = load_teacher(replace(spec, random=None, checkpoint=path))
    for one, other in zip(teacher.features(image(side, side)), again.features(image(side, side)), strict=True):
        assert torch.equal(one, other)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    state = dinov2_state(side=56, patch=14, registers=0, swiglu=False) | {
        "blocks.0.attn2.x": torch.ones(1),
        "y": torch.ones(1),
    }
    with pytest.raises(
        CheckpointError, match=r"teacher 't', .*: expected only keys of the dinov2 layout, got 2? ?.*y"
    ) as caught:
        loaded("dinov2_vitb14", state, tmp_path, img_size=56)
    assert len(str(caught.value).splitlines()) == 1


def test_a_lost_key_is_named(tmp_path: Path) -> None:
    state = dinov2_state(side=56, patch=14, registers=0, swiglu=False)
    del state["blocks.3.ls2.gamma"]
    with pytest.raises(CheckpointError, match=r"read as dinov2: .*1 missing: blocks\.3\.ls2\.gamma"):
        loaded("dinov2_vitb14", state, tmp_path, img_size=56)


def test_another_network_is_refused_by_shape(tmp_path: Path) -> None:
    state = dinov2_state(side=56, patch=14, registers=0, swiglu=False)
    with pytest.raises(CheckpointError, match=r"wrong shape: pos_embed \(expected \(1, 37, 24\), got \(1, 17, 24\)\)"):
        loaded("dinov2_vitb14", state, tmp_path, img_size=84)


def test_a_lost_part_of_a_fused_parameter_is_named() -> None:
    state = {
        "encoder.layer.0.layernorm_before.weight": torch.ones(2),
        "encoder.layer.0.attention.attention.query.weight": torch.ones(2, 2),
        "encoder.layer.0.attention.attention.value.weight": torch.ones(2, 2),
    }
    with pytest.raises(
        CheckpointError, match=r"here: expected query, key and value of blocks\.0\.attn\.qkv\.weight, found no .*\[k\]"
    ):
        convert(state, where="here")


def test_two_networks_in_a_file_are_refused() -> None:
    state = {
        "vit.encoder.layer.0.layernorm_before.weight": torch.ones(2),
        "encoder.layer.0.layernorm_before.weight": torch.ones(2),
    }
    with pytest.raises(CheckpointError, match=r"here: expected one key for blocks\.0\.norm1\.weight, got two"):
        convert(state, where="here")


def test_timm_names_pass_as_they_are() -> None:
    state = {"blocks.0.norm1.weight": torch.ones(2), "whatever": torch.ones(1)}
    assert find_layout(list(state)) == "timm"
    assert convert(state, where="here").state == state


EXAMPLES = {
    "open_clip": "visual.class_embedding",
    "transformers_clip": "vision_model.embeddings.class_embedding",
    "transformers_siglip": "vision_model.embeddings.patch_embedding.bias",
    "open_clip_timm": "visual.trunk.patch_embed.proj.weight",
    "dinov2": "mask_token",
    "dinov3": "storage_tokens",
    "transformers_dinov3": "embeddings.patch_embeddings.weight",
    "transformers_dinov2": "dinov2.encoder.layer.0.layer_scale1.lambda1",
    "transformers_vit": "backbone.model.encoder.layer.11.layernorm_before.weight",
    "sam": "image_encoder.patch_embed.proj.weight",
    "sam2": "image_encoder.trunk.patch_embed.proj.weight",
    "radio": "radio_model.model.patch_generator.embedder.weight",
    "aimv2": "preprocessor.patchifier.proj.weight",
}


def test_every_layout_is_told_from_all_others() -> None:
    assert EXAMPLES.keys() == LAYOUTS.keys()
    for name, key in EXAMPLES.items():
        assert [other for other, layout in LAYOUTS.items() if re.fullmatch(layout.marker, key)] == [name]


@pytest.mark.parametrize(
    ("name", "config", "model", "sizes"),
    [
        ("clip_vith14_laion2b", "CLIPVisionConfig", "CLIPVisionModel", (1280, 16, 32, 5120, 224, 14)),
        ("siglip_so400m", "SiglipVisionConfig", "SiglipVisionModel", (1152, 16, 27, 4304, 384, 14)),
        ("theia_vits16", "ViTConfig", "ViTModel", (384, 6, 12, 1536, 224, 16)),
        ("dinov2_vitl14", "Dinov2Config", "Dinov2Model", (1024, 16, 24, None, 518, 14)),
        ("dinov2_vitg14_reg", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", (1536, 24, 40, None, 518, 14)),
    ],
)
def test_published_sizes_fit_key_by_key(name: str, config: str, model: str, sizes: tuple[int | None, ...]) -> None:
    """At full size, without memory: every key of one side has its partner, of the same shape, on the other."""
    transformers = pytest.importorskip("transformers")
    keys = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "image_size", "patch_size")
    settings = {key: value for key, value in zip(keys, sizes, strict=True) if value is not None}
    swiglu = {"use_swiglu_ffn": True} if "vitg" in name else {}
    with torch.device("meta"):
        network = getattr(transformers, model)(getattr(transformers, config)(**settings, **swiglu))
    floating = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    wanted = meta_teacher(PUBLISHED[name].spec("t", weights=Weights(random=0))).network.state_dict()
    report = compare_state(wanted, convert(floating, where="here").state)
    assert report.fits, report.summary()
