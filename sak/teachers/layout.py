"""What a publisher's names for weights are, and how they become timm's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

__all__ = ["Layout", "Rule", "State"]

State: TypeAlias = dict[str, Tensor]
Rule: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names of one publisher.

    Attributes:
        marker: Matches a key that only this layout has.
        rules: Pairs (regular expression of a whole key, its timm name). A timm name that ends in ``[q]``, ``[k]`` or
            ``[v]`` takes that third of a fused parameter.
        drop: Regular expressions of keys that the maps do not depend on: text towers, decoders, poolings.
        zero: Regular expressions of keys that timm's network lacks, and that may go because all they hold is zero.
        finish: What no renaming can do, on the renamed state: joining, splitting, adding axes.
        absent: Prefixes of timm's names that this layout lacks and the maps do not depend on.
    """

    marker: str
    rules: Sequence[Rule]
    drop: Sequence[str] = ()
    zero: Sequence[str] = ()
    finish: Callable[[State], State] = dict
    absent: tuple[str, ...] = ()
