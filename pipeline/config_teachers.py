"""The part of a recipe that decides what is in a column: teachers, and how their features are extracted."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.config_checks import positive
from pipeline.sizes import parse_bytes
from sak.teachers.entry import Weights
from sak.teachers.published import published_teacher
from sak.teachers.registry import teacher_spec
from sak.teachers.spec import TeacherSpec
from store.codecs.registry import choice_json

__all__ = ["STRICT", "CodecValue", "ExtractConfig", "InputSize", "Precision", "Size", "TeacherConfig"]

STRICT = ConfigDict(extra="forbid")

Size: TypeAlias = int | tuple[int, int]
"""Height and width; one number for both."""

CodecValue: TypeAlias = str | dict[str, bool | int | float | str]
"""A codec: its name, or a mapping of ``name`` and options, ``{name: fp16, clip: true}``."""

InputSize: TypeAlias = Size | Literal["view", "native"]
"""What a teacher sees: a size, the view's own, or the one a published teacher was trained at."""

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

_AUTO_BATCH = 32

# What a teacher that names its own network takes beside that name.
_ARITHMETIC = ("precision", "channels_last", "compile")
_BUILTIN_TAKES = ("resize", "normalization", "alignment", "grid", "codec", *_ARITHMETIC)
_NAMED_LACKS = ("timm", "mean", "std")


def _pair(size: Size | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TeacherConfig:
    """A teacher: a published one by ``name``, ``builtin`` by name, or any ``timm`` model.

    Weights of a published or timm teacher come from a file, the hub or a seed. A published one brings its levels, input
    size, resizing and statistics; ``levels``, ``input_size`` and ``resize`` take their places, and ``overrides`` add
    to its own. ``grid`` is what its maps are pooled to before they are stored or compared: ``native``, 24, or [24, 32].
    ``codec``, ``precision``, ``channels_last`` and ``compile`` take the places of ``extract``'s for this teacher.
    """

    name: str = ""
    builtin: str = ""
    timm: str = ""
    checkpoint: str | None = None
    pretrained: bool = False
    random: int | None = None
    levels: tuple[int, ...] = ()
    input_size: InputSize | None = None
    resize: Literal["squash", "long_side_pad"] | None = None
    normalization: Literal["native", "reference"] = "native"
    alignment: Literal["exact", "reference"] = "exact"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    grid: Literal["native"] | Size = "native"
    codec: CodecValue | None = None
    precision: Precision | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    overrides: dict[str, int | float | str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec("teacher")
        if self.codec is not None:
            choice_json(self.codec)

    def spec(self, name: str) -> TeacherSpec:
        """The model-side description of this teacher under the recipe's name for it.

        Raises:
            ValueError: A teacher that names its own network is given what it brings itself, or options contradict
                each other.
        """
        make = self._builtin if self.builtin else self._published if self.name else self._timm
        return dataclasses.replace(
            make(name),
            precision=self.precision or "fp32",
            channels_last=bool(self.channels_last),
            compiled=bool(self.compile),
        )

    def under(self, extract: ExtractConfig, /) -> TeacherConfig:
        """This teacher, computed as a recipe says for all of them where it says nothing of its own."""
        own = {key: getattr(self, key) for key in _ARITHMETIC}
        settled = {key: getattr(extract, key) if value is None else value for key, value in own.items()}
        return dataclasses.replace(self, **settled)

    def _builtin(self, name: str) -> TeacherSpec:
        others = [item.name for item in dataclasses.fields(self) if item.name not in ("builtin", *_BUILTIN_TAKES)]
        if any(getattr(self, other) for other in others):
            raise ValueError(f"teacher: builtin {self.builtin} is complete in itself; drop its other keys")
        return self._asked(dataclasses.replace(teacher_spec(self.builtin), name=name))

    def _published(self, name: str) -> TeacherSpec:
        extra = [key for key in _NAMED_LACKS if getattr(self, key)]
        if extra:
            raise ValueError(f"teacher: {self.name} brings its own {', '.join(extra)}; drop them, or give timm alone")
        entry = published_teacher(self.name)
        spec = entry.spec(name, weights=self._weights())
        size, resize = spec.input_size, self.resize or spec.resize
        if self.input_size == "native":
            size = (entry.size, entry.size)
        elif self.input_size == "view":
            size, resize = None, self.resize or "squash"
        elif self.input_size is not None:
            size = _pair(self.input_size)
        return self._asked(
            dataclasses.replace(
                spec,
                levels=self.levels or spec.levels,
                input_size=size,
                resize=resize,
                overrides={**spec.overrides, **self.overrides},
            )
        )

    def _timm(self, name: str) -> TeacherSpec:
        if self.input_size == "native":
            raise ValueError("teacher: input_size: native is for published teachers; give rows and columns")
        weights = self._weights()
        return TeacherSpec(
            name=name,
            timm=self.timm,
            checkpoint=weights.checkpoint,
            pretrained=weights.pretrained,
            random=weights.random,
            levels=self.levels,
            input_size=None if self.input_size == "view" else _pair(self.input_size),
            resize=self.resize or "squash",
            mean=self.mean,
            std=self.std,
            normalization=self.normalization,
            alignment=self.alignment,
            grid=self._grid(),
            overrides=self.overrides,
        )

    def _asked(self, spec: TeacherSpec) -> TeacherSpec:
        """A teacher with its own statistics, and what a recipe may ask of any."""
        native = self.normalization == "native"
        return dataclasses.replace(
            spec,
            resize=self.resize or spec.resize,
            normalization=self.normalization,
            alignment=self.alignment,
            grid=self._grid(),
            mean=spec.mean if native else None,
            std=spec.std if native else None,
        )

    def _grid(self) -> tuple[int, int] | None:
        return None if self.grid == "native" else _pair(self.grid)

    def _weights(self) -> Weights:
        checkpoint = Path(self.checkpoint) if self.checkpoint else None
        return Weights(checkpoint=checkpoint, pretrained=self.pretrained, random=self.random)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ExtractConfig:
    """How columns are made. ``codec``, ``precision``, ``channels_last`` and ``compile`` are part of its identity.

    ``precision`` is that of the teachers' networks, by autocast; ``channels_last`` their memory format; ``compile``
    runs them through ``torch.compile``. ``batch`` is how many rows a teacher sees at once; ``auto`` is 32, and fewer
    where memory does not hold so many.

    ``workers`` processes of this machine make shards. With engine ``process`` they decode and draw, and the teachers
    run in the command's own process; with ``dask`` each of them does all of it. ``scheduler`` names a Dask cluster that
    is used in place of own workers: its address, or its scheduler file. ``gpu_workers`` keeps teachers off its workers
    that do not declare the resource GPU, also when none has yet. ``max_disk`` and ``max_memory`` are budgets in bytes,
    ``2TB`` or ``16GB``: what may be added to the store, and taken by all processes here; where they are left out, what
    is free on a local store's disk and in this machine's memory. An extraction that needs more does not begin.
    """

    codec: CodecValue = "int8"
    batch: int | Literal["auto"] = 32
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    workers: int = 2
    engine: Literal["process", "dask"] = "process"
    scheduler: str | None = None
    gpu_workers: bool = False
    max_disk: int | float | str | None = None
    max_memory: int | float | str | None = None

    def __post_init__(self) -> None:
        for key, budget in (("extract.max_disk", self.max_disk), ("extract.max_memory", self.max_memory)):
            if budget is not None:
                parse_bytes(budget, key=key)
        positive("extract", {"batch": self.batch_rows, "workers": self.workers})
        choice_json(self.codec)
        if self.engine == "process" and self.scheduler is not None:
            raise ValueError("extract.scheduler is a Dask cluster's; it needs extract.engine: dask")
        if self.gpu_workers and self.scheduler is None:
            raise ValueError("extract.gpu_workers needs extract.scheduler: a cluster whose workers declare their GPUs")

    @property
    def batch_rows(self) -> int:
        """Rows of a batch, where memory holds them."""
        return _AUTO_BATCH if self.batch == "auto" else self.batch
