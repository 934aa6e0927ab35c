"""Teachers that were themselves distilled from several: RADIO, C-RADIO, Theia."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sak.teachers.constants import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    QUARTERS_12,
    QUARTERS_24,
    QUARTERS_32,
)
from sak.teachers.entry import TeacherEntry

__all__ = ["DISTILLED"]


_RADIO = TeacherEntry(
    timm="naflexvit_base_patch16_radio_v3",
    levels=QUARTERS_12,
    prefix=8,
    size=768,
    cell=16,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    licence="NSCLv1 (NVIDIA, non-commercial)",
    source="https://huggingface.co/nvidia/RADIO-B",
    overrides=MappingProxyType({"pos_embed_align_corners": True}),
    note="timm's C-RADIOv3 network, layer scale set to one; 4 class and 4 register tokens as its authors state. Built"
    " from the published code; not run against the published weights.",
)
_CRADIO = replace(
    _RADIO,
    timm="naflexvit_base_patch16_radio_v3.c_radio",
    size=512,
    licence="NVIDIA Open Model License",
    source="https://huggingface.co/nvidia/C-RADIOv3-B",
    overrides=MappingProxyType({}),
    note="",
)
_THEIA = TeacherEntry(
    timm="deit_base_patch16_224",
    levels=QUARTERS_12,
    prefix=1,
    size=224,
    cell=16,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    licence="The AI Institute License (research, non-commercial)",
    source="https://huggingface.co/theaiinstitute/theia-base-patch16-224-cddsv",
    note="A DeiT of the transformers package (LayerNorm epsilon 1e-12 there, 1e-6 here). Statistics are those of DeiT's"
    " processor; not run against the published weights.",
)

DISTILLED: Mapping[str, TeacherEntry] = MappingProxyType(
    {
        "radio_v2.5_vitb16": _RADIO,
        "radio_v2.5_vitl16": replace(
            _RADIO,
            timm="naflexvit_large_patch16_radio_v3",
            levels=QUARTERS_24,
            source="https://huggingface.co/nvidia/RADIO-L",
        ),
        "cradio_v3_vitb16": _CRADIO,
        "cradio_v3_vitl16": replace(
            _CRADIO,
            timm="naflexvit_large_patch16_radio_v3.c_radio",
            levels=QUARTERS_24,
            source="https://huggingface.co/nvidia/C-RADIOv3-L",
        ),
        "cradio_v3_vith16": replace(
            _CRADIO,
            timm="naflexvit_huge_patch16_radio_v3.c_radio",
            levels=QUARTERS_32,
            source="https://huggingface.co/nvidia/C-RADIOv3-H",
        ),
        "theia_vits16": replace(
            _THEIA,
            timm="deit_small_patch16_224",
            source="https://huggingface.co/theaiinstitute/theia-small-patch16-224-cddsv",
        ),
        "theia_vitb16": _THEIA,
    }
)
