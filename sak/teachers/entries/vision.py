"""Teachers trained on images alone, or on masks: DINOv2, DINOv3, plain ViT, Swin, SAM, SAM 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sak.teachers.constants import HALF, IMAGENET_MEAN, IMAGENET_STD, QUARTERS_12, QUARTERS_24, QUARTERS_32, QUARTERS_40
from sak.teachers.entry import TeacherEntry

__all__ = ["VISION"]


_DINOV2 = TeacherEntry(
    timm="vit_base_patch14_dinov2.lvd142m",
    levels=QUARTERS_12,
    prefix=1,
    size=518,
    cell=14,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    licence="Apache-2.0",
    source="https://github.com/facebookresearch/dinov2",
    files=("dinov2_vitb14_pretrain.pth",),
)
_DINOV2_REG = replace(
    _DINOV2, timm="vit_base_patch14_reg4_dinov2.lvd142m", prefix=5, files=("dinov2_vitb14_reg4_pretrain.pth",)
)
_DINOV3 = replace(
    _DINOV2,
    timm="vit_base_patch16_dinov3.lvd1689m",
    prefix=5,
    size=256,
    cell=16,
    licence="DINOv3 License (terms of use to be accepted)",
    source="https://github.com/facebookresearch/dinov3",
    files=(),
)
_VIT = TeacherEntry(
    timm="vit_base_patch16_384.augreg_in21k_ft_in1k",
    levels=QUARTERS_12,
    prefix=1,
    size=384,
    cell=16,
    mean=HALF,
    std=HALF,
    licence="Apache-2.0",
    source="https://github.com/google-research/vision_transformer",
)
_SWIN = TeacherEntry(
    timm="swin_tiny_patch4_window7_224.ms_in1k",
    levels=(0, 1, 2, 3),
    prefix=0,
    size=224,
    cell=4,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    licence="MIT",
    source="https://github.com/microsoft/Swin-Transformer",
    any_size=False,
)
_SAM = TeacherEntry(
    timm="samvit_base_patch16.sa1b",
    levels=QUARTERS_12,
    prefix=0,
    size=1024,
    cell=16,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    licence="Apache-2.0",
    source="https://github.com/facebookresearch/segment-anything",
    files=("sam_vit_b_01ec64.pth",),
    any_size=False,
    resize="long_side_pad",
    note="input_size: view runs it at the view's size with interpolated positions, at an eighth of the cost at 384.",
)
_SAM2 = replace(
    _SAM,
    timm="sam2_hiera_tiny.fb_r896_2pt1",
    levels=(3, 5, 7, 9),
    resize="squash",
    source="https://github.com/facebookresearch/sam2",
    files=("sam2.1_hiera_tiny.pt",),
    note="Levels in stage 3 (stride 16); levels: may name the stages' last blocks instead, for a pyramid.",
)

VISION: Mapping[str, TeacherEntry] = MappingProxyType(
    {
        "dinov2_vits14": replace(
            _DINOV2, timm="vit_small_patch14_dinov2.lvd142m", files=("dinov2_vits14_pretrain.pth",)
        ),
        "dinov2_vitb14": _DINOV2,
        "dinov2_vitl14": replace(
            _DINOV2, timm="vit_large_patch14_dinov2.lvd142m", levels=QUARTERS_24, files=("dinov2_vitl14_pretrain.pth",)
        ),
        "dinov2_vitg14": replace(
            _DINOV2, timm="vit_giant_patch14_dinov2.lvd142m", levels=QUARTERS_40, files=("dinov2_vitg14_pretrain.pth",)
        ),
        "dinov2_vits14_reg": replace(
            _DINOV2_REG, timm="vit_small_patch14_reg4_dinov2.lvd142m", files=("dinov2_vits14_reg4_pretrain.pth",)
        ),
        "dinov2_vitb14_reg": _DINOV2_REG,
        "dinov2_vitl14_reg": replace(
            _DINOV2_REG,
            timm="vit_large_patch14_reg4_dinov2.lvd142m",
            levels=QUARTERS_24,
            files=("dinov2_vitl14_reg4_pretrain.pth",),
        ),
        "dinov2_vitg14_reg": replace(
            _DINOV2_REG,
            timm="vit_giant_patch14_reg4_dinov2.lvd142m",
            levels=QUARTERS_40,
            files=("dinov2_vitg14_reg4_pretrain.pth",),
        ),
        "dinov3_vits16": replace(_DINOV3, timm="vit_small_patch16_dinov3.lvd1689m"),
        "dinov3_vitb16": _DINOV3,
        "dinov3_vitl16": replace(_DINOV3, timm="vit_large_patch16_dinov3.lvd1689m", levels=QUARTERS_24),
        "dinov3_vith16plus": replace(_DINOV3, timm="vit_huge_plus_patch16_dinov3.lvd1689m", levels=QUARTERS_32),
        "sam_vitb": _SAM,
        "sam_vitl": replace(
            _SAM, timm="samvit_large_patch16.sa1b", levels=QUARTERS_24, files=("sam_vit_l_0b3195.pth",)
        ),
        "sam_vith": replace(_SAM, timm="samvit_huge_patch16.sa1b", levels=QUARTERS_32, files=("sam_vit_h_4b8939.pth",)),
        "sam2_hiera_tiny": _SAM2,
        "sam2_hiera_small": replace(
            _SAM2, timm="sam2_hiera_small.fb_r896_2pt1", levels=(4, 7, 10, 13), files=("sam2.1_hiera_small.pt",)
        ),
        "sam2_hiera_base_plus": replace(
            _SAM2,
            timm="sam2_hiera_base_plus.fb_r896_2pt1",
            levels=(8, 12, 16, 20),
            files=("sam2.1_hiera_base_plus.pt",),
        ),
        "sam2_hiera_large": replace(
            _SAM2, timm="sam2_hiera_large.fb_r1024_2pt1", levels=(13, 23, 33, 43), files=("sam2.1_hiera_large.pt",)
        ),
        "swin_tiny": _SWIN,
        "swin_small": replace(_SWIN, timm="swin_small_patch4_window7_224.ms_in22k_ft_in1k"),
        "swin_base": replace(_SWIN, timm="swin_base_patch4_window12_384.ms_in22k_ft_in1k", size=384),
        "swin_large": replace(_SWIN, timm="swin_large_patch4_window12_384.ms_in22k_ft_in1k", size=384),
        "vit_small": replace(_VIT, timm="vit_small_patch16_384.augreg_in21k_ft_in1k"),
        "vit_base": _VIT,
        "vit_large": replace(_VIT, timm="vit_large_patch16_384.augreg_in21k_ft_in1k", levels=QUARTERS_24),
        "vit_huge": replace(_VIT, timm="vit_huge_patch14_224.orig_in21k", levels=QUARTERS_32, size=224, cell=14),
    }
)
