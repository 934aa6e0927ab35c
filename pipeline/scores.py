"""Every metric of some runs, and every class: for a terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from pipeline.results import RunResult
from sak.tasks import METRICS, TASK_NAMES, metric_spec

__all__ = ["ScoreLine", "score_lines", "score_tables"]


class ScoreLine(NamedTuple):
    """One metric of one task, or of one of its classes.

    Attributes:
        of: The class's metric; empty for one of the whole task.
        name: The metric with the direction that is better, or the class.
        cells: The number as text, run by run; a dash where it does not exist.
    """

    task: str
    of: str
    name: str
    cells: tuple[str, ...]


def score_lines(results: Sequence[RunResult], /) -> list[ScoreLine]:
    """Tasks in the order of tables, each one's metrics before its classes; a metric that any run has."""
    found = {task for row in results for task in row.metrics}
    tasks = [*(task for task in TASK_NAMES if task in found), *sorted(found - {*TASK_NAMES})]
    return [line for task in tasks for line in sorted(_lines(task, results), key=lambda line: bool(line.of))]


def score_tables(results: Sequence[RunResult], /) -> list[Table]:
    """One table of metrics, and one of classes where there are any; a column a run."""
    lines = score_lines(results)
    tables = []
    for second, chosen in (("metric", [line for line in lines if not line.of]), ("class", [x for x in lines if x.of])):
        table = Table(title=None, header_style="bold")
        table.add_column("task")
        table.add_column(second)
        for row in results:
            table.add_column(row.name, justify="right")
        for line in chosen:
            table.add_row(f"{line.task} {line.of}".strip(), line.name, *line.cells)
        tables += [table] if chosen else []
    return tables


def _lines(task: str, results: Sequence[RunResult]) -> list[ScoreLine]:
    names = dict.fromkeys(name for row in results for name in row.metrics.get(task, {}))
    return [_line(task, name, [row.metrics.get(task, {}).get(name, math.nan) for row in results]) for name in names]


def _line(task: str, name: str, values: Sequence[float]) -> ScoreLine:
    of, _, item = name.partition("/")
    if of not in METRICS:  # a threshold: neither more nor less of it is better
        return ScoreLine(task, "", name, tuple("–" if math.isnan(value) else f"{value:g}" for value in values))
    spec = metric_spec(of)
    cells = tuple("–" if math.isnan(value) else f"{value:.{spec.decimals}f}{spec.unit}" for value in values)
    return ScoreLine(task, of if item else "", item or f"{name} {spec.arrow}", cells)
