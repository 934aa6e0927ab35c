"""Numbers that several teachers share; imports nothing, so that recipes are checked without torch."""

from __future__ import annotations

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "HALF",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "QUARTERS_12",
    "QUARTERS_24",
    "QUARTERS_27",
    "QUARTERS_32",
    "QUARTERS_40",
    "QUARTERS_50",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# The last block of each quarter of a network of so many blocks.
QUARTERS_12 = (2, 5, 8, 11)
QUARTERS_24 = (5, 11, 17, 23)
QUARTERS_27 = (6, 13, 19, 26)
QUARTERS_32 = (7, 15, 23, 31)
QUARTERS_40 = (9, 19, 29, 39)
QUARTERS_50 = (11, 24, 37, 49)
