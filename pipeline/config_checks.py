"""Checks that several parts of a recipe share; each names the key at fault."""

from __future__ import annotations

import math

from pipeline.views import ViewSpec

__all__ = [
    "average_decay",
    "fraction",
    "fresh_views",
    "live_crops",
    "not_negative",
    "one_length",
    "positive",
    "rates",
    "whole_epochs",
]


def positive(owner: str, values: dict[str, float | None]) -> None:
    """Refuse values that are not greater than 0 and finite; ``None`` passes.

    Raises:
        ValueError: Names the key.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{owner}.{name} must be greater than 0, got {value}")


def not_negative(owner: str, values: dict[str, float]) -> None:
    """Refuse values below 0, infinite or not a number.

    Raises:
        ValueError: Names the key.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{owner}.{name} must be 0 or more, got {value}")


def fraction(name: str, value: float) -> None:
    """Refuse what is no fraction of all steps.

    Raises:
        ValueError: Names the key.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} is a fraction of all steps in [0, 1), got {value}")


def average_decay(owner: str, ema: float | None) -> None:
    """Refuse what is no decay of an average of weights; ``None`` is no average.

    Raises:
        ValueError: Names the key.
    """
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"{owner}.ema is the decay of an average, between 0 and 1 as 0.999 is, or null, got {ema}")


def rates(owner: str, *, lr: float, start: float, end: float) -> None:
    """Refuse learning rates above the peak or below 0.

    Raises:
        ValueError: Names the key.
    """
    for name, value in (("start_lr", start), ("end_lr", end)):
        if not 0 <= value <= lr:
            raise ValueError(f"{owner}.{name} must be between 0 and {owner}.lr ({lr}), got {value}")


def one_length(owner: str, steps: int | None, epochs: float | None) -> None:
    """Refuse a stage with no length, or two.

    Raises:
        ValueError: Names the stage.
    """
    if (steps is None) == (epochs is None):
        raise ValueError(f"{owner}: give exactly one of steps and epochs, got steps={steps} epochs={epochs}")
    positive(owner, {"steps": steps, "epochs": epochs})


def live_crops(crops: str | ViewSpec | None, *, targets: str) -> None:
    """Refuse crops that the targets cannot follow.

    Raises:
        ValueError: Fresh crops without live teachers; crops of another kind, or recoloured ones of stored maps.
    """
    if crops is None:
        return
    if not isinstance(crops, ViewSpec):
        if targets != "online":
            raise ValueError(
                "distill.crops: fresh views are stored nowhere, so only live teachers know them; set targets to online,"
                " or store as many views as there are epochs (data.distill.views)"
            )
        return
    if crops.kind != "random_resized_crop":
        raise ValueError(f"distill.crops.kind: expected random_resized_crop, got {crops.kind}")
    if crops.photometric and targets == "cached":
        raise ValueError(
            "distill.crops.photometric: no stored map can follow new colours; drop it, or store such views"
        )


def fresh_views(owner: str, *, views: int, on_error: str) -> None:
    """Refuse what only stored views have, where none are stored.

    Raises:
        ValueError: Names the keys.
    """
    if views != 1 or on_error != "stop":
        raise ValueError(
            f"{owner}.crops: fresh stores no views, so data.{owner}.views and on_error mean nothing; drop them"
        )


def whole_epochs(owner: str, epochs: float | None, *, drop_last: bool) -> None:
    """Refuse to drop the last batch of each epoch where epochs are not whole, or not how the length is given.

    Raises:
        ValueError: Names the key.
    """
    if drop_last and (epochs is None or epochs != int(epochs)):
        raise ValueError(f"{owner}.drop_last needs {owner}.epochs, and whole ones, got {epochs}")
