"""The ``loader:`` section of a recipe."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from pipeline.config_checks import not_negative, positive
from pipeline.config_teachers import STRICT
from pipeline.readahead import Ahead

__all__ = ["LoaderConfig"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class LoaderConfig:
    """How batches are read ahead of training. Nothing here changes a result.

    Attributes:
        ahead_bytes: Of batches that wait, in each process; 0 reads every batch when it is needed. ``None`` is 2 GiB
            beside an accelerator and 0 on a CPU, unless ``readers`` is given.
        readers: Threads that read; ``None`` takes up to 4, as cores allow.
    """

    ahead_bytes: int | None = None
    readers: int | None = None

    def __post_init__(self) -> None:
        positive("loader", {"readers": self.readers})
        if self.ahead_bytes is not None:
            not_negative("loader", {"ahead_bytes": self.ahead_bytes})

    def ahead(self, usual: Ahead, /, *, on_cpu: bool) -> Ahead:
        """What this asks for; ``usual`` is what suits an accelerator of this machine."""
        if on_cpu and self.ahead_bytes is None and self.readers is None:
            return Ahead(0)
        nbytes = usual.nbytes if self.ahead_bytes is None else self.ahead_bytes
        return Ahead(nbytes, usual.readers if self.readers is None else self.readers)
