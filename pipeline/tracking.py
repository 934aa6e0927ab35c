"""What a stage leaves for people to read: JSON lines, TensorBoard events and a progress bar.

``metrics.jsonl`` holds only what the recipe determines, so that a resumed run's file equals an uninterrupted one's;
speeds go to TensorBoard and to the progress bar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["CONSOLE", "MetricsLog", "progress_bar", "read_metrics"]

# No markup: paths and names may hold brackets. Lines are not folded: what a log is searched for must stay on one line.
CONSOLE = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def progress_bar(unit: str, /) -> Progress:
    """A bar with count, rate (``{task.fields[rate]}``), elapsed time and ETA; silent when output is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=CONSOLE,
        disable=not CONSOLE.is_terminal,
    )


class MetricsLog:
    """Appends to ``metrics.jsonl`` and, when asked, to TensorBoard events beside it.

    On resume at ``start`` the lines of later steps, which the killed run wrote after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, /, *, start: int, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= start]
            # By rename: a kill in the middle must not lose lines that no later step writes again.
            temporary = self._path.with_name(".metrics.jsonl.tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._writer = _event_writer(folder / "tensorboard", start=start) if tensorboard else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, values: Mapping[str, float], /, *, speeds: Mapping[str, float]) -> None:
        """Record one line: ``values`` in both places, ``speeds`` in TensorBoard alone."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in (*values.items(), *speeds.items()):
                self._writer.add_scalar(name, value, step)


def _event_writer(folder: Path, *, start: int) -> SummaryWriter:
    # Here because it costs a second and torch, which sak store ls and the extraction's workers do without.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=str(folder), purge_step=start + 1)


def read_metrics(path: Path, /) -> list[dict[str, float]]:
    """Lines of a ``metrics.jsonl``; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
