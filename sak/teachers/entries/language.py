"""Teachers trained with text: CLIP of several makers, SigLIP, SigLIP 2, AIMv2, Perception Encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sak.teachers.constants import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    QUARTERS_12,
    QUARTERS_24,
    QUARTERS_27,
    QUARTERS_32,
    QUARTERS_50,
)
from sak.teachers.entry import TeacherEntry

__all__ = ["LANGUAGE"]


_OPENAI = TeacherEntry(
    timm="vit_base_patch16_clip_quickgelu_224.openai",
    levels=QUARTERS_12,
    prefix=1,
    size=224,
    cell=16,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    licence="MIT",
    source="https://github.com/openai/CLIP",
    files=("ViT-B-16.pt",),
    note="OpenAI's .pt files are programs, which are not run here: save their state dict, or take OpenCLIP's copy.",
)
_LAION = replace(
    _OPENAI,
    timm="vit_base_patch16_clip_224.laion2b",
    source="https://github.com/mlfoundations/open_clip",
    files=(),
    note="",
)
_DFN = replace(
    _LAION,
    timm="vit_base_patch16_clip_224.dfn2b",
    licence="Apple Sample Code License (apple-ascl)",
    source="https://huggingface.co/apple/DFN2B-CLIP-ViT-B-16",
)
# What the published SAK calls CLIP: fine-tuned with labels after LAION-2B.
_TIMM_CLIP = replace(
    _OPENAI,
    timm="vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
    size=384,
    licence="Apache-2.0",
    source="https://huggingface.co/timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
    files=(),
    note="The published SAK's CLIP: fine-tuned on labels of ImageNet-12k and 1k, not zero-shot any more.",
)
_SIGLIP = TeacherEntry(
    timm="vit_base_patch16_siglip_gap_384.webli",
    levels=QUARTERS_12,
    prefix=0,
    size=384,
    cell=16,
    mean=HALF,
    std=HALF,
    licence="Apache-2.0",
    source="https://huggingface.co/google/siglip-base-patch16-384",
    overrides=MappingProxyType({"act_layer": "gelu_tanh"}),
    note="GELU in its tanh form, as trained; timm's network of that name may have the exact one.",
)
_SIGLIP2 = replace(
    _SIGLIP,
    timm="vit_base_patch16_siglip_gap_384.v2_webli",
    source="https://huggingface.co/google/siglip2-base-patch16-384",
)
_AIMV2 = TeacherEntry(
    timm="aimv2_large_patch14_224.apple_pt",
    levels=QUARTERS_24,
    prefix=0,
    size=224,
    cell=14,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    licence="Apple Sample Code License (apple-ascl)",
    source="https://huggingface.co/apple/aimv2-large-patch14-224",
)
_PE = TeacherEntry(
    timm="vit_pe_core_base_patch16_224.fb",
    levels=QUARTERS_12,
    prefix=1,
    size=224,
    cell=16,
    mean=HALF,
    std=HALF,
    licence="Apache-2.0",
    source="https://github.com/facebookresearch/perception_models",
    note="Files in timm's layout only.",
)

LANGUAGE: Mapping[str, TeacherEntry] = MappingProxyType(
    {
        "clip_vitb16_openai": _OPENAI,
        "clip_vitl14_openai": replace(
            _OPENAI,
            timm="vit_large_patch14_clip_quickgelu_224.openai",
            levels=QUARTERS_24,
            cell=14,
            files=("ViT-L-14.pt",),
        ),
        "clip_vitl14_336_openai": replace(
            _OPENAI,
            timm="vit_large_patch14_clip_quickgelu_336.openai",
            levels=QUARTERS_24,
            size=336,
            cell=14,
            files=("ViT-L-14-336px.pt",),
        ),
        "clip_vitb16_openai_gelu": replace(
            _OPENAI,
            timm="vit_base_patch16_clip_224.openai",
            note="As the published SAK runs it: GELU, where OpenAI trained with QuickGELU (clip_vitb16_openai).",
        ),
        "clip_vitb16_laion2b": _LAION,
        "clip_vitl14_laion2b": replace(
            _LAION, timm="vit_large_patch14_clip_224.laion2b", levels=QUARTERS_24, cell=14, mean=HALF, std=HALF
        ),
        "clip_vith14_laion2b": replace(_LAION, timm="vit_huge_patch14_clip_224.laion2b", levels=QUARTERS_32, cell=14),
        "clip_vitb16_dfn": _DFN,
        "clip_vitl14_dfn": replace(
            _DFN,
            timm="vit_large_patch14_clip_quickgelu_224.dfn2b",
            levels=QUARTERS_24,
            cell=14,
            source="https://huggingface.co/apple/DFN2B-CLIP-ViT-L-14",
        ),
        "clip_vith14_dfn": replace(
            _DFN,
            timm="vit_huge_patch14_clip_quickgelu_224.dfn5b",
            levels=QUARTERS_32,
            cell=14,
            source="https://huggingface.co/apple/DFN5B-CLIP-ViT-H-14",
        ),
        "clip_vith14_378_dfn": replace(
            _DFN,
            timm="vit_huge_patch14_clip_quickgelu_378.dfn5b",
            levels=QUARTERS_32,
            size=378,
            cell=14,
            source="https://huggingface.co/apple/DFN5B-CLIP-ViT-H-14-378",
        ),
        "clip_vitb16_timm": _TIMM_CLIP,
        "clip_vitl14_timm": replace(
            _TIMM_CLIP,
            timm="vit_large_patch14_clip_336.laion2b_ft_in12k_in1k",
            levels=QUARTERS_24,
            size=336,
            cell=14,
            mean=HALF,
            std=HALF,
            source="https://huggingface.co/timm/vit_large_patch14_clip_336.laion2b_ft_in12k_in1k",
        ),
        "clip_vith14_timm": replace(
            _TIMM_CLIP,
            timm="vit_huge_patch14_clip_336.laion2b_ft_in12k_in1k",
            levels=QUARTERS_32,
            size=336,
            cell=14,
            source="https://huggingface.co/timm/vit_huge_patch14_clip_336.laion2b_ft_in12k_in1k",
        ),
        "siglip_vitb16": _SIGLIP,
        "siglip_vitl16": replace(
            _SIGLIP,
            timm="vit_large_patch16_siglip_gap_384.webli",
            levels=QUARTERS_24,
            source="https://huggingface.co/google/siglip-large-patch16-384",
        ),
        "siglip_so400m": replace(
            _SIGLIP,
            timm="vit_so400m_patch14_siglip_gap_384.webli",
            levels=QUARTERS_27,
            cell=14,
            source="https://huggingface.co/google/siglip-so400m-patch14-384",
        ),
        "siglip2_vitb16": _SIGLIP2,
        "siglip2_vitl16": replace(
            _SIGLIP2,
            timm="vit_large_patch16_siglip_gap_384.v2_webli",
            levels=QUARTERS_24,
            source="https://huggingface.co/google/siglip2-large-patch16-384",
        ),
        "siglip2_so400m": replace(
            _SIGLIP2,
            timm="vit_so400m_patch16_siglip_gap_384.v2_webli",
            levels=QUARTERS_27,
            source="https://huggingface.co/google/siglip2-so400m-patch16-384",
        ),
        "aimv2_large": _AIMV2,
        "aimv2_huge": replace(
            _AIMV2,
            timm="aimv2_huge_patch14_224.apple_pt",
            source="https://huggingface.co/apple/aimv2-huge-patch14-224",
        ),
        "pe_core_vitb16": _PE,
        "pe_core_vitl14": replace(_PE, timm="vit_pe_core_large_patch14_336.fb", levels=QUARTERS_24, size=336, cell=14),
        "pe_spatial_vitb16": replace(_PE, timm="vit_pe_spatial_base_patch16_512.fb", size=512),
        "pe_spatial_vitl14": replace(
            _PE, timm="vit_pe_spatial_large_patch14_448.fb", levels=QUARTERS_24, size=448, cell=14
        ),
        "pe_spatial_vitg14": replace(
            # Without a class token, unlike its smaller siblings.
            _PE,
            timm="vit_pe_spatial_gigantic_patch14_448.fb",
            levels=QUARTERS_50,
            prefix=0,
            size=448,
            cell=14,
        ),
    }
)
