"""How the rows of a step are shared out: the batch is the global one, of all ranks and micro-batches together."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.distributed import ALONE, Ranks
from pipeline.errors import PipelineError
from sak.draws import Share

__all__ = ["Split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The arithmetic of a batch: ``batch = ranks x micro x accumulate``.

    Rank ``r`` has the ``r``-th of ``world`` equal runs of a step's rows, and goes through them in ``accumulate`` equal
    micro-batches, so that the ranks' rows one after another are the step's, whatever their number.

    Attributes:
        batch: Rows of a step, over all ranks.
        accumulate: Micro-batches whose gradients a rank adds up before a step.
        key: What the recipe calls the stage, for errors.

    Raises:
        PipelineError: The rows cannot be shared out equally.
    """

    batch: int
    ranks: Ranks = ALONE
    accumulate: int = 1
    key: str = "train"

    def __post_init__(self) -> None:
        parts = self.ranks.world * self.accumulate
        if self.batch % parts:
            near = " or ".join(str(parts * n) for n in (self.batch // parts, self.batch // parts + 1) if n)
            raise PipelineError(
                f"{self.key}.batch: expected rows that {self.ranks.world} ranks x {self.accumulate} micro-batches share"
                f" equally, got {self.batch}; take {near}, or other ranks or {self.key}.accumulate"
            )

    @property
    def micro(self) -> int:
        """Rows of one forward pass."""
        return self.batch // (self.ranks.world * self.accumulate)

    @property
    def whole(self) -> bool:
        """Whether one forward pass sees the whole batch."""
        return self.micro == self.batch

    def shares(self) -> tuple[Share, ...]:
        """This rank's micro-batches, in order: where in the step's rows each starts."""
        first = self.ranks.rank * self.micro * self.accumulate
        return tuple(Share(first + index * self.micro, self.batch) for index in range(self.accumulate))

    def __str__(self) -> str:
        if self.whole:
            return str(self.batch)
        parts = ((self.ranks.world, "ranks"), (self.micro, "images"), (self.accumulate, "micro-batches"))
        told = " x ".join(f"{count} {what}" for count, what in parts if count > 1 or what == "images")
        return f"{self.batch} ({told})"
