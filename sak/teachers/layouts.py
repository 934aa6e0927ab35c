"""The names under which weights are published, one entry each, recognised by a key that no other has.

Legend: B the leading 1 of a token parameter, N tokens, C channels, F values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from sak.teachers.layout import Layout, Rule, State

__all__ = ["LAYOUTS"]


def _with_axes(state: State, /) -> State:
    """Class token ``(C,)`` → ``(1, 1, C)``, positions ``(N, C)`` → ``(1, N, C)``."""
    tokens = {
        key: state[key].reshape(1, -1, state[key].shape[-1]) for key in ("cls_token", "pos_embed") if key in state
    }
    return state | tokens


def _registers(state: State, /) -> State:
    """With registers, timm keeps the class token's position in the token: neither is in its table of positions."""
    if "reg_token" not in state:
        return state
    pos_BNC = state["pos_embed"]
    return state | {"cls_token": state["cls_token"] + pos_BNC[:, :1], "pos_embed": pos_BNC[:, 1:]}


def _radio(state: State, /) -> State:
    """Split the tokens, lay positions out as a grid and patches channels-last, as timm's network of any size wants.

    C-RADIOv3 scales its residuals, RADIOv2.5 does not, which is a scale of one. Its first class token is timm's class
    token, the others are registers to timm; none is in a map.
    """
    tokens_NC, pos_BNC, proj_CF = state.pop("tokens"), state.pop("positions"), state.pop("patches")
    side, patch, width = round(pos_BNC.shape[1] ** 0.5), round((proj_CF.shape[1] / 3) ** 0.5), proj_CF.shape[0]
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    scales = {f"blocks.{block}.{name}.gamma": torch.ones(width) for block in blocks for name in ("ls1", "ls2")}
    return (
        scales
        | state
        | {
            "embeds.cls_token": tokens_NC[None, :1],
            "embeds.reg_token": tokens_NC[None, 1:],
            "embeds.pos_embed": pos_BNC.reshape(1, side, side, width),
            "embeds.proj.weight": proj_CF.reshape(width, 3, patch, patch).permute(0, 2, 3, 1).flatten(1),
            "embeds.proj.bias": torch.zeros(width),
        }
    )


def _gated(state: State, /) -> State:
    """A gated network's second projection is the first one of a plain network by name."""
    gates = {key for key in state if ".mlp.fc1_g." in key}
    return {
        key.replace(".mlp.fc1.", ".mlp.fc1_x.") if key.replace(".mlp.fc1.", ".mlp.fc1_g.") in gates else key: tensor
        for key, tensor in state.items()
    }


def _qkv(source: str, target: str, parts: tuple[str, str, str], /) -> tuple[Rule, ...]:
    """Rules for separate projections; ``{}`` in ``source`` stands for the part's name."""
    return tuple((source.format(name), rf"{target}[{part}]") for name, part in zip(parts, "qkv", strict=True))


_HF_BLOCK = r"(?:vision_model\.)encoder\.layers\.(\d+)\."
_HF_CLIP_RULES: tuple[Rule, ...] = (
    (r"vision_model\.embeddings\.class_embedding", "cls_token"),
    (r"vision_model\.embeddings\.patch_embedding\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "pos_embed"),
    (r"vision_model\.pre_layrnorm\.(.+)", r"norm_pre.\1"),
    (r"vision_model\.post_layernorm\.(.+)", r"norm.\1"),
    *_qkv(_HF_BLOCK + r"self_attn\.{}_proj\.(.+)", r"blocks.\1.attn.qkv.\2", ("q", "k", "v")),
    (_HF_BLOCK + r"self_attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (_HF_BLOCK + r"layer_norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (_HF_BLOCK + r"mlp\.fc([12])\.(.+)", r"blocks.\1.mlp.fc\2.\3"),
)
_HF_CLIP_DROP = (
    r"text_model\..+",
    r"vision_model\.head\..+",
    r"(visual|text)_projection\.weight",
    r"(vision_model|text_model)\.embeddings\.position_ids",
    r"logit_(scale|bias)",
)
# The same network under a task head carries the model's name in front, and in Theia two more.
_HF_VIT = r"(?:backbone\.model\.|(?:vit|deit|dinov2|dinov2_with_registers)\.)?"
_HF_LAYER = _HF_VIT + r"encoder\.layer\.(\d+)\."
_HF_VIT_RULES: tuple[Rule, ...] = (
    (_HF_VIT + r"embeddings\.cls_token", "cls_token"),
    (_HF_VIT + r"embeddings\.register_tokens", "reg_token"),
    (_HF_VIT + r"embeddings\.position_embeddings", "pos_embed"),
    (_HF_VIT + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (_HF_VIT + r"layernorm\.(.+)", r"norm.\1"),
    *_qkv(_HF_LAYER + r"attention\.attention\.{}\.(.+)", r"blocks.\1.attn.qkv.\2", ("query", "key", "value")),
    (_HF_LAYER + r"attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
)
_HF_VIT_DROP = (_HF_VIT + r"embeddings\.mask_token", _HF_VIT + r"pooler\..+", r"classifier\..+", r"translator\..+")

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        # OpenAI's state dict and OpenCLIP's have the same names, beside a text tower in one of two places.
        "open_clip": Layout(
            marker=r"visual\.class_embedding",
            rules=(
                (r"visual\.class_embedding", "cls_token"),
                (r"visual\.positional_embedding", "pos_embed"),
                (r"visual\.conv1\.weight", "patch_embed.proj.weight"),
                (r"visual\.ln_pre\.(.+)", r"norm_pre.\1"),
                (r"visual\.ln_post\.(.+)", r"norm.\1"),
                (r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
                (r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
                (r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
                (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            ),
            drop=(
                r"visual\.proj",
                r"(text\.)?(transformer|token_embedding|ln_final)\..+",
                r"(text\.)?(positional_embedding|text_projection|attn_mask)",
                r"logit_(scale|bias)|input_resolution|context_length|vocab_size",
            ),
            finish=_with_axes,
        ),
        "transformers_clip": Layout(
            marker=r"vision_model\.embeddings\.class_embedding",
            rules=_HF_CLIP_RULES,
            drop=_HF_CLIP_DROP,
            finish=_with_axes,
        ),
        "transformers_siglip": Layout(
            marker=r"vision_model\.embeddings\.patch_embedding\.bias",
            rules=_HF_CLIP_RULES,
            drop=_HF_CLIP_DROP,
            finish=_with_axes,
            absent=("attn_pool.",),
        ),
        # OpenCLIP around a network of timm's, as it has SigLIP.
        "open_clip_timm": Layout(
            marker=r"visual\.trunk\.patch_embed\.proj\.weight",
            rules=((r"visual\.trunk\.(.+)", r"\1"),),
            drop=(r"visual\.head\..+", r"text\..+", r"logit_(scale|bias)"),
            absent=("attn_pool.",),
        ),
        # Before dinov2, whose mask token it has too. Its distilled networks' biases of query and value are zero.
        "dinov3": Layout(
            marker=r"storage_tokens",
            rules=(
                (r"cls_token|patch_embed\.proj\..+|norm\.(?:weight|bias)", r"\g<0>"),
                (r"storage_tokens", "reg_token"),
                (r"blocks\.(\d+)\.ls([12])\.gamma", r"blocks.\1.gamma_\2"),
                (r"blocks\.(\d+)\.mlp\.w1\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
                (r"blocks\.(\d+)\.mlp\.w2\.(.+)", r"blocks.\1.mlp.fc1_x.\2"),
                (r"blocks\.(\d+)\.mlp\.w3\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (r"blocks\.\d+\.(?:norm[12]|attn\.proj|mlp\.fc[12])\..+|blocks\.\d+\.attn\.qkv\.weight", r"\g<0>"),
            ),
            drop=(r"mask_token", r"rope_embed\.periods", r"blocks\.\d+\.attn\.qkv\.bias_mask", r"local_cls_norm\..+"),
            zero=(r"blocks\.\d+\.attn\.qkv\.bias",),
        ),
        # Training checkpoints number blocks within chunks: blocks.CHUNK.BLOCK.
        "dinov2": Layout(
            marker=r"mask_token",
            rules=(
                (r"cls_token|pos_embed|patch_embed\.proj\..+|norm\.(?:weight|bias)", r"\g<0>"),
                (r"register_tokens", "reg_token"),
                (r"blocks\.(?:\d+\.)?(\d+)\.mlp\.w12\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (r"blocks\.(?:\d+\.)?(\d+)\.mlp\.w3\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (r"blocks\.(?:\d+\.)?(\d+)\.((?:norm|attn|ls|mlp).+)", r"blocks.\1.\2"),
            ),
            drop=(r"mask_token",),
            finish=_registers,
        ),
        "transformers_dinov2": Layout(
            marker=_HF_LAYER + r"layer_scale1\.lambda1",
            rules=(
                *_HF_VIT_RULES,
                (_HF_LAYER + r"norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
                (_HF_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
                (_HF_LAYER + r"mlp\.(?:fc1|weights_in)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (_HF_LAYER + r"mlp\.(?:fc2|weights_out)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            ),
            drop=_HF_VIT_DROP,
            finish=_registers,
        ),
        "transformers_dinov3": Layout(
            marker=r"embeddings\.patch_embeddings\.weight",
            rules=(
                (r"embeddings\.cls_token", "cls_token"),
                (r"embeddings\.register_tokens", "reg_token"),
                (r"embeddings\.patch_embeddings\.(.+)", r"patch_embed.proj.\1"),
                (r"norm\.(.+)", r"norm.\1"),
                *_qkv(r"layer\.(\d+)\.attention\.{}_proj\.weight", r"blocks.\1.attn.qkv.weight", ("q", "k", "v")),
                (r"layer\.(\d+)\.attention\.o_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
                (r"layer\.(\d+)\.norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
                (r"layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
                (r"layer\.(\d+)\.mlp\.gate_proj\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
                (r"layer\.(\d+)\.mlp\.up_proj\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (r"layer\.(\d+)\.mlp\.down_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            ),
            drop=(r"embeddings\.mask_token",),
            zero=(r"layer\.\d+\.attention\.[qkv]_proj\.bias",),
            finish=_gated,
        ),
        # Plain ViT and DeiT; Theia's backbone is one.
        "transformers_vit": Layout(
            marker=_HF_LAYER + r"layernorm_before\.weight",
            rules=(
                *_HF_VIT_RULES,
                (_HF_LAYER + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
                (_HF_LAYER + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
                (_HF_LAYER + r"intermediate\.dense\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (_HF_LAYER + r"output\.dense\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            ),
            drop=_HF_VIT_DROP,
        ),
        "sam": Layout(
            marker=r"image_encoder\.patch_embed\.proj\.weight",
            rules=(
                (r"image_encoder\.blocks\.(\d+)\.mlp\.lin([12])\.(.+)", r"blocks.\1.mlp.fc\2.\3"),
                (r"image_encoder\.((?:pos_embed|patch_embed|blocks|neck).*)", r"\1"),
            ),
            drop=(r"(prompt_encoder|mask_decoder)\..+", r"pixel_(mean|std)"),
        ),
        "sam2": Layout(
            marker=r"image_encoder\.trunk\.patch_embed\.proj\.weight",
            rules=(
                (r"image_encoder\.trunk\.blocks\.(\d+)\.mlp\.layers\.0\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (r"image_encoder\.trunk\.blocks\.(\d+)\.mlp\.layers\.1\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (r"image_encoder\.trunk\.((?:pos_embed|patch_embed|blocks).*)", r"\1"),
            ),
            drop=(
                r"image_encoder\.neck\..+",
                r"(memory_|sam_|obj_ptr_|mask_downsample).*",
                r"(maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)",
            ),
            absent=("head.",),
        ),
        "radio": Layout(
            marker=r"radio_model\.model\.patch_generator\.embedder\.weight",
            rules=(
                (r"radio_model\.model\.patch_generator\.embedder\.weight", "patches"),
                (r"radio_model\.model\.patch_generator\.pos_embed", "positions"),
                (r"radio_model\.model\.patch_generator\.cls_token\.token", "tokens"),
                (r"radio_model\.model\.(blocks\.\d+\.ls[12])\.(?:grandma|gamma)", r"\1.gamma"),
                (r"radio_model\.model\.(blocks\.\d+\.(?:norm|attn|mlp).+)", r"\1"),
            ),
            # The final norm of RADIOv2.5 comes after the last level.
            drop=(
                r"radio_model\.model\.norm\.(weight|bias)",
                r"radio_model\.(input_conditioner|adaptors|feature_normalizer|inter_feature_normalizer)\..+",
                r"radio_model\.summary_idxs",
            ),
            finish=_radio,
        ),
        "aimv2": Layout(
            marker=r"preprocessor\.patchifier\.proj\.weight",
            rules=(
                (r"preprocessor\.patchifier\.(.+)", r"patch_embed.\1"),
                (r"preprocessor\.pos_embed", "pos_embed"),
                (r"trunk\.blocks\.(\d+)\.norm_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
                (r"trunk\.blocks\.(\d+)\.attn\.(.+)", r"blocks.\1.attn.\2"),
                (r"trunk\.blocks\.(\d+)\.mlp\.fc1\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
                (r"trunk\.blocks\.(\d+)\.mlp\.fc3\.(.+)", r"blocks.\1.mlp.fc1_x.\2"),
                (r"trunk\.blocks\.(\d+)\.mlp\.fc2\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (r"trunk\.post_trunk_norm\.(.+)", r"norm.\1"),
            ),
        ),
    }
)
