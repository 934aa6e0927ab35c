"""The teachers that are shipped with the package."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sak.errors import UnknownNameError
from sak.teachers.spec import TeacherSpec

__all__ = ["TEACHERS", "teacher_spec"]


def _scenes(bias: str) -> TeacherSpec:
    """A tiny ViT of patch size 8 trained on rendered scenes with one bias."""
    return TeacherSpec(
        name=f"scenes-{bias}",
        timm="vit_tiny_patch16_224",
        builtin=f"scenes-{bias}",
        levels=(2, 5, 8, 11),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        overrides={"img_size": 96, "patch_size": 8, "embed_dim": 96, "depth": 12, "num_heads": 3},
    )


TEACHERS: Mapping[str, TeacherSpec] = MappingProxyType(
    {
        "scenes-semantics": _scenes("semantics"),
        "scenes-geometry": _scenes("geometry"),
        "scenes-boundary": _scenes("boundary"),
    }
)


def teacher_spec(name: str, /) -> TeacherSpec:
    """The named built-in teacher.

    Raises:
        UnknownNameError: No such teacher; the message lists those there are.
    """
    if name not in TEACHERS:
        raise UnknownNameError(f"unknown built-in teacher {name!r}: expected one of {', '.join(TEACHERS)}")
    return TEACHERS[name]
