"""Teachers that were themselves distilled from several: RADIO, C-RADIO, Theia."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sak.preprocess import IMAGENET_MEAN, IMAGENET_STD
from sak.teachers.entry import TeacherEntry

__all__ = ["DISTILLED"]

_L12 = (2, 5, 8, 11)
_L24 = (5, 11, 17, 23)
_L32 = (7, 15, 23, 31)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_RADIO = TeacherEntry(
    timm="naflexvit_base_patch16_radio_v3",
    levels=_L12,
    prefix=8,
    size=768,
    cell=16,
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
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
    levels=_L12,
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
            levels=_L24,
            source="https://huggingface.co/nvidia/RADIO-L",
        ),
        "cradio_v3_vitb16": _CRADIO,
        "cradio_v3_vitl16": replace(
            _CRADIO,
            timm="naflexvit_large_patch16_radio_v3.c_radio",
            levels=_L24,
            source="https://huggingface.co/nvidia/C-RADIOv3-L",
        ),
        "cradio_v3_vith16": replace(
            _CRADIO,
            timm="naflexvit_huge_patch16_radio_v3.c_radio",
            levels=_L32,
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
