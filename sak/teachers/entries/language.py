"""Teachers trained with text: CLIP of several makers, SigLIP, SigLIP 2, AIMv2, Perception Encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sak.teachers.entry import TeacherEntry

__all__ = ["LANGUAGE"]

_L12 = (2, 5, 8, 11)
_L24 = (5, 11, 17, 23)
_L27 = (6, 13, 19, 26)
_L32 = (7, 15, 23, 31)
_L50 = (11, 24, 37, 49)
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_OPENAI = TeacherEntry(
    timm="vit_base_patch16_clip_quickgelu_224.openai",
    levels=_L12,
    prefix=1,
    size=224,
    cell=16,
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
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
    levels=_L12,
    prefix=0,
    size=384,
    cell=16,
    mean=_HALF,
    std=_HALF,
    licence="Apache-2.0",
    source="https://huggingface.co/google/siglip-base-patch16-384",
)
_SIGLIP2 = replace(
    _SIGLIP,
    timm="vit_base_patch16_siglip_gap_384.v2_webli",
    source="https://huggingface.co/google/siglip2-base-patch16-384",
)
_AIMV2 = TeacherEntry(
    timm="aimv2_large_patch14_224.apple_pt",
    levels=_L24,
    prefix=0,
    size=224,
    cell=14,
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
    licence="Apple Sample Code License (apple-ascl)",
    source="https://huggingface.co/apple/aimv2-large-patch14-224",
)
_PE = TeacherEntry(
    timm="vit_pe_core_base_patch16_224.fb",
    levels=_L12,
    prefix=1,
    size=224,
    cell=16,
    mean=_HALF,
    std=_HALF,
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
            levels=_L24,
            cell=14,
            files=("ViT-L-14.pt",),
        ),
        "clip_vitl14_336_openai": replace(
            _OPENAI,
            timm="vit_large_patch14_clip_quickgelu_336.openai",
            levels=_L24,
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
            _LAION, timm="vit_large_patch14_clip_224.laion2b", levels=_L24, cell=14, mean=_HALF, std=_HALF
        ),
        "clip_vith14_laion2b": replace(_LAION, timm="vit_huge_patch14_clip_224.laion2b", levels=_L32, cell=14),
        "clip_vitb16_dfn": _DFN,
        "clip_vitl14_dfn": replace(
            _DFN,
            timm="vit_large_patch14_clip_quickgelu_224.dfn2b",
            levels=_L24,
            cell=14,
            source="https://huggingface.co/apple/DFN2B-CLIP-ViT-L-14",
        ),
        "clip_vith14_dfn": replace(
            _DFN,
            timm="vit_huge_patch14_clip_quickgelu_224.dfn5b",
            levels=_L32,
            cell=14,
            source="https://huggingface.co/apple/DFN5B-CLIP-ViT-H-14",
        ),
        "clip_vith14_378_dfn": replace(
            _DFN,
            timm="vit_huge_patch14_clip_quickgelu_378.dfn5b",
            levels=_L32,
            size=378,
            cell=14,
            source="https://huggingface.co/apple/DFN5B-CLIP-ViT-H-14-378",
        ),
        "clip_vitb16_timm": _TIMM_CLIP,
        "clip_vitl14_timm": replace(
            _TIMM_CLIP,
            timm="vit_large_patch14_clip_336.laion2b_ft_in12k_in1k",
            levels=_L24,
            size=336,
            cell=14,
            mean=_HALF,
            std=_HALF,
            source="https://huggingface.co/timm/vit_large_patch14_clip_336.laion2b_ft_in12k_in1k",
        ),
        "clip_vith14_timm": replace(
            _TIMM_CLIP,
            timm="vit_huge_patch14_clip_336.laion2b_ft_in12k_in1k",
            levels=_L32,
            size=336,
            cell=14,
            source="https://huggingface.co/timm/vit_huge_patch14_clip_336.laion2b_ft_in12k_in1k",
        ),
        "siglip_vitb16": _SIGLIP,
        "siglip_vitl16": replace(
            _SIGLIP,
            timm="vit_large_patch16_siglip_gap_384.webli",
            levels=_L24,
            source="https://huggingface.co/google/siglip-large-patch16-384",
        ),
        "siglip_so400m": replace(
            _SIGLIP,
            timm="vit_so400m_patch14_siglip_gap_384.webli",
            levels=_L27,
            cell=14,
            source="https://huggingface.co/google/siglip-so400m-patch14-384",
        ),
        "siglip2_vitb16": _SIGLIP2,
        "siglip2_vitl16": replace(
            _SIGLIP2,
            timm="vit_large_patch16_siglip_gap_384.v2_webli",
            levels=_L24,
            source="https://huggingface.co/google/siglip2-large-patch16-384",
        ),
        "siglip2_so400m": replace(
            _SIGLIP2,
            timm="vit_so400m_patch16_siglip_gap_384.v2_webli",
            levels=_L27,
            source="https://huggingface.co/google/siglip2-so400m-patch16-384",
        ),
        "aimv2_large": _AIMV2,
        "aimv2_huge": replace(
            _AIMV2,
            timm="aimv2_huge_patch14_224.apple_pt",
            source="https://huggingface.co/apple/aimv2-huge-patch14-224",
        ),
        "pe_core_vitb16": _PE,
        "pe_core_vitl14": replace(_PE, timm="vit_pe_core_large_patch14_336.fb", levels=_L24, size=336, cell=14),
        "pe_spatial_vitb16": replace(_PE, timm="vit_pe_spatial_base_patch16_512.fb", size=512),
        "pe_spatial_vitl14": replace(_PE, timm="vit_pe_spatial_large_patch14_448.fb", levels=_L24, size=448, cell=14),
        "pe_spatial_vitg14": replace(
            # Without a class token, unlike its smaller siblings.
            _PE,
            timm="vit_pe_spatial_gigantic_patch14_448.fb",
            levels=_L50,
            prefix=0,
            size=448,
            cell=14,
        ),
    }
)
