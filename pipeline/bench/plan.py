"""What to measure: validated settings of one benchmark of the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from pipeline.bench.contender import BenchError
from pipeline.bench.peers.registry import PEERS
from store.codecs.base import LevelSpec
from store.codecs.registry import CodecChoice, choice_json

__all__ = ["LEVELS", "BenchPlan", "Source", "parse_codec", "parse_peers", "parse_source"]

LEVELS = (LevelSpec(components=384, height=24, width=24),) * 4
"""Four blocks of a ViT-S, or a ViT-B at half its width, at the student's grid for 384 pixels."""


class Source(NamedTuple):
    """A column whose rows are to be measured, in place of made features."""

    store: str
    view_set: str
    column: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """Settings of ``sak bench store``.

    ``threads`` is how many our reader and its limits use; peers read in the calling thread, as their loaders do without
    workers. ``cold`` asks the system to drop cached pages before every pass.

    Raises:
        BenchError: A setting is out of range, or settings contradict each other.
    """

    rows: int = 512
    batch: int = 32
    columns: int = 1
    rounds: int = 5
    threads: int = 1
    seed: int = 0
    codec: CodecChoice = "int8"
    levels: tuple[LevelSpec, ...] = LEVELS
    source: Source | None = None
    peers: tuple[str, ...] = field(default=tuple(PEERS))
    folder: Path | None = None
    device: str | None = None
    cold: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "columns", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.rows < 2 * self.batch:
            raise BenchError(
                f"rows: expected at least two batches of {self.batch}, got {self.rows}; give more rows or a lower batch"
            )
        if self.source is not None and self.columns != 1:
            raise BenchError(
                f"columns: expected 1 with a column of one's own, got {self.columns}; leave one of them out"
            )
        choice_json(self.codec)


def parse_codec(text: str, /) -> CodecChoice:
    """A codec as YAML: a name, or ``{name: klt, ...}``.

    Raises:
        BenchError: It is neither.
        FormatError: There is no such codec or option.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BenchError(f"codec: expected a name or {{name: ..., option: ...}}, got {text!r}") from error
    if not isinstance(value, str | dict):
        raise BenchError(f"codec: expected a name or {{name: ..., option: ...}}, got {text!r}")
    choice_json(value)
    return value


def parse_peers(text: str | None, /) -> tuple[str, ...]:
    """Names separated by commas; all when absent, none of ``none``.

    Raises:
        BenchError: A name is unknown; lists those there are.
    """
    if text is None:
        return tuple(PEERS)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == ("none",):
        return ()
    unknown = [name for name in names if name not in PEERS]
    if unknown or not names:
        raise BenchError(f"peers: expected none or some of {', '.join(PEERS)}, got {text!r}")
    return names


def parse_source(text: str | None, /) -> Source | None:
    """``STORE/VIEW_SET/COLUMN`` as its three parts.

    Raises:
        BenchError: It has fewer.
    """
    if text is None:
        return None
    parts = text.rstrip("/").rsplit("/", 2)
    if len(parts) != 3 or not all(parts):
        raise BenchError(f"from: expected STORE/VIEW_SET/COLUMN, got {text!r}; sak store ls STORE lists the columns")
    return Source(*parts)
