"""What timm's families of networks need told, so that nothing else asks which family a teacher is of."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import timm

from sak.errors import TeacherError, UnknownNameError
from sak.teachers.constants import IMAGENET_MEAN, IMAGENET_STD
from sak.teachers.spec import TeacherSpec

__all__ = ["FAMILIES", "OTHER", "Family", "Statistics", "default_levels", "family_of", "pretrained_tag", "statistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to build networks of one timm module and take maps out of them.

    Attributes:
        build: Arguments for ``timm.create_model``.
        extract: Arguments for ``forward_intermediates``.
        blocks: Whether levels count blocks; otherwise feature stages.
        any_size: Whether the network covers inputs of any size by itself, so that sizes need not fit its stride.
        unchecked: Whether the network interpolates its positions, so that its check of the input's size can go.
    """

    build: Mapping[str, bool] = field(default_factory=dict)
    extract: Mapping[str, bool] = field(default_factory=dict)
    blocks: bool = False
    any_size: bool = False
    unchecked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of 0..1 pixels, per colour."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_PLAIN = Family(build=MappingProxyType({"dynamic_img_size": True}), blocks=True)
_HIERA = Family(extract=MappingProxyType({"coarse": False}), blocks=True)
_CONVOLUTIONAL = Family(any_size=True)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "timm.models.beit": _PLAIN,
        "timm.models.deit": _PLAIN,
        "timm.models.eva": _PLAIN,
        "timm.models.vision_transformer": _PLAIN,
        "timm.models.vision_transformer_sam": Family(blocks=True, unchecked=True),
        "timm.models.naflexvit": Family(blocks=True),
        "timm.models.hiera": _HIERA,
        "timm.models.hieradet_sam2": _HIERA,
        "timm.models.convnext": _CONVOLUTIONAL,
        "timm.models.efficientnet": _CONVOLUTIONAL,
        "timm.models.mobilenetv3": _CONVOLUTIONAL,
        "timm.models.regnet": _CONVOLUTIONAL,
        "timm.models.resnet": _CONVOLUTIONAL,
    }
)

OTHER = Family()
"""Every other timm network: levels are its feature stages, sizes are made multiples of its stride."""


def family_of(model: str, /) -> Family:
    """The family of a timm model.

    Raises:
        UnknownNameError: timm has no such model; the message lists similar names.
    """
    if not timm.is_model(model):
        similar = difflib.get_close_matches(model, timm.list_models(), n=5) or ["timm.list_models()"]
        raise UnknownNameError(f"unknown timm model {model!r}: expected a timm name, perhaps {', '.join(similar)}")
    return FAMILIES.get(timm.model_entrypoint(model).__module__, OTHER)


def statistics(spec: TeacherSpec, /) -> Statistics:
    """The statistics that a teacher's pixels are normalised with, without building it.

    Raises:
        UnknownNameError: timm has no such model.
    """
    family_of(spec.timm)
    if spec.normalization == "reference":
        return Statistics(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if spec.mean is not None and spec.std is not None:
        return Statistics(mean=spec.mean, std=spec.std)
    config = timm.get_pretrained_cfg(spec.timm)
    # timm fills in ImageNet's for a model that was never trained.
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config is None else (config.mean, config.std)
    (red, green, blue), (red_std, green_std, blue_std) = map(float, mean), map(float, std)
    return Statistics(mean=(red, green, blue), std=(red_std, green_std, blue_std))


def pretrained_tag(model: str, /) -> str:
    """Which of timm's weights a name stands for, as ``architecture.tag``.

    Raises:
        UnknownNameError: timm has no such model.
        TeacherError: timm has no weights for it.
    """
    family_of(model)
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.has_weights:
        raise TeacherError(f"timm model {model!r} has no pretrained weights; give a checkpoint instead")
    return f"{config.architecture}.{config.tag}"


def default_levels(count: int, /, *, blocks: bool) -> tuple[int, ...]:
    """Levels of a spec that names none: the ends of four quarters of the blocks, or the last four stages."""
    if blocks:
        return tuple(round(count * quarter / 4) - 1 for quarter in (1, 2, 3, 4))
    return tuple(range(count - 4, count))
