"""What a teacher is: a frozen description that validates itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sak.errors import TeacherError

__all__ = ["ALIGNMENTS", "NORMALIZATIONS", "PRECISIONS", "RESIZES", "TeacherSpec"]

RESIZES = ("squash", "long_side_pad")
"""``squash`` resizes both sides to the input size; ``long_side_pad`` keeps the aspect, pads right and bottom (SAM)."""

NORMALIZATIONS = ("native", "reference")
"""``native`` uses the statistics the network was trained with; ``reference`` ImageNet's for all, as published."""

ALIGNMENTS = ("exact", "reference")
"""``exact`` lets the map cover the whole view and nothing else. ``reference`` repeats two published faults: a patch
size that does not divide the input loses the right and bottom strip, and cells of padding stay in the map."""

PRECISIONS = ("fp32", "bf16", "fp16")
"""``fp32`` as the weights are; the others by autocast, which keeps what needs it in float32."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = frozenset({"checkpoint_path", "features_only", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """A frozen network whose maps at four depths are the targets.

    Weights come from exactly one of ``checkpoint``, ``pretrained``, ``builtin`` and ``random``.

    Attributes:
        name: The teacher's name in stores, students and reports.
        timm: timm model name, with or without a pretrained tag.
        checkpoint: Safetensors or weights-only torch file with the timm model's state dict.
        pretrained: Take timm's own weights; needs a network or timm's cache.
        builtin: Name of weights that are shipped with this package.
        random: Seed of random weights, for tests and benchmarks.
        levels: Four ascending indices: blocks of a transformer, feature stages of other networks; empty for evenly
            spaced blocks, or the last four stages.
        input_size: Rows and columns the network sees; None for the view's own.
        resize: One of ``RESIZES``.
        mean, std: Statistics of 0..1 pixels; None takes them from timm's table.
        normalization: One of ``NORMALIZATIONS``.
        alignment: One of ``ALIGNMENTS``.
        grid: Rows and columns that its maps are pooled to, none ever enlarged; None keeps each map's own.
        precision: One of ``PRECISIONS``, of the network alone: preprocessing and maps are float32.
        channels_last: Run the network in this memory format, which speeds up convolutions on a GPU.
        compiled: Run the network through ``torch.compile``.
        overrides: Arguments handed to timm over the named model's own, such as ``img_size`` or ``depth``.
    """

    name: str
    timm: str
    checkpoint: Path | None = None
    pretrained: bool = False
    builtin: str | None = None
    random: int | None = None
    levels: tuple[int, ...] = ()
    input_size: tuple[int, int] | None = None
    resize: str = "squash"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    normalization: str = "native"
    alignment: str = "exact"
    grid: tuple[int, int] | None = None
    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False
    overrides: Mapping[str, int | float | str | bool | tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields against each other; what only the network knows is checked when it is built.

        Raises:
            TeacherError: A field has a value that no teacher can have; every fault is listed.
        """
        faults = [*self._choice_faults(), *self._weight_faults(), *self._size_faults(), *self._statistics_faults()]
        if faults:
            raise TeacherError(f"teacher {self.name!r}: " + "; ".join(faults))

    def _choice_faults(self) -> list[str]:
        choices = (
            ("resize", self.resize, RESIZES),
            ("normalization", self.normalization, NORMALIZATIONS),
            ("alignment", self.alignment, ALIGNMENTS),
            ("precision", self.precision, PRECISIONS),
        )
        faults = [
            f"{key}: expected one of {', '.join(known)}, got {got!r}" for key, got, known in choices if got not in known
        ]
        # The name becomes a folder and part of a state-dict key.
        if not _NAME.fullmatch(self.name):
            faults.append(f"name: expected letters, digits, '_' or '-', got {self.name!r}")
        if reserved := sorted(_RESERVED & set(self.overrides)):
            faults.append(f"overrides: {', '.join(reserved)} cannot be set here; use checkpoint or pretrained")
        return faults

    def _weight_faults(self) -> list[str]:
        given = {
            "checkpoint": self.checkpoint is not None,
            "pretrained": self.pretrained,
            "builtin": self.builtin is not None,
            "random": self.random is not None,
        }
        named = [key for key, is_given in given.items() if is_given]
        if len(named) == 1:
            return []
        return [f"weights: expected exactly one of {', '.join(given)}, got {' and '.join(named) or 'none'}"]

    def _size_faults(self) -> list[str]:
        faults = []
        if self.levels and (
            len(self.levels) != 4 or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 0
        ):
            faults.append(f"levels: expected 4 ascending indices from 0, got {self.levels}")
        size = self.input_size
        if size is not None and (len(size) != 2 or min(size) < 1):
            faults.append(f"input_size: expected (rows, columns), both positive, got {size}")
        if self.resize == "long_side_pad" and (size is None or size[0] != size[-1]):
            faults.append(f"input_size: 'long_side_pad' needs a square one such as (1024, 1024), got {size}")
        return faults + self._grid_faults()

    def _grid_faults(self) -> list[str]:
        if self.grid is None:
            return []
        if len(self.grid) != 2 or min(self.grid) < 1:
            return [f"grid: expected native or (rows, columns), both positive, got {self.grid}"]
        # Pooled, the padding that this alignment keeps would be mixed into what the image shows.
        if self.alignment == "reference":
            return ["grid: alignment 'reference' keeps maps as published; leave grid native, or take 'exact'"]
        return []

    def _statistics_faults(self) -> list[str]:
        if (self.mean is None) != (self.std is None):
            return ["mean and std: expected both or neither"]
        if self.mean is None or self.std is None:
            return []
        if self.normalization == "reference":
            return ["mean and std: normalization 'reference' has its own; leave them out"]
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            return [f"mean and std: expected 3 numbers each and positive std, got {self.mean} and {self.std}"]
        return []
