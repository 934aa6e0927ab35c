"""The finding: headline, cards, the result table and the gain of each task."""

from __future__ import annotations

import math
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report.charts import Gain, gain_bars, swatch
from pipeline.report.data import MetricColumn, ReportData, RunRow, StoreUsage
from pipeline.report.quantities import (
    bytes_text,
    count_text,
    fixed_text,
    gain_symbol,
    gain_text,
    ratio_text,
    seconds_text,
)

__all__ = ["Card", "GainChart", "ResultTable", "cards", "gain_charts", "headline", "result_table"]


class Card(NamedTuple):
    """One key number; ``tone`` is ``up``, ``down`` or empty."""

    value: str
    label: str
    tone: str = ""


class Cell(NamedTuple):
    """One number of the result table."""

    text: str
    best: bool = False
    symbol: str = ""
    tone: str = ""


class ResultLine(NamedTuple):
    """One run in the result table."""

    name: str
    description: str
    mark: Markup
    values: tuple[Cell, ...]
    deltas: tuple[Cell, ...]
    parameters: str
    seconds: str


class ResultTable(NamedTuple):
    """The result table, ready to print; ``columns`` are the data's own."""

    columns: tuple[MetricColumn, ...]
    baselines: tuple[str, ...]
    lines: tuple[ResultLine, ...]


class GainChart(NamedTuple):
    """Gains of one run over one baseline, task by task."""

    baseline: str
    run: str
    svg: Markup


def _tone(percent: float) -> str:
    return "up" if round(percent, 2) > 0 else "down" if round(percent, 2) < 0 else ""


def _deltas(run: RunRow) -> dict[str, float]:
    return {name: value for name, value in run.delta.items() if math.isfinite(value)}


def headline(data: ReportData) -> str:
    """The summary that was given, or one sentence on the first run's gain over its first baseline."""
    if data.summary:
        return data.summary
    if not data.runs:
        return "No run has finished yet."
    lead = data.runs[0]
    for baseline, percent in _deltas(lead).items():
        verb = {"up": "beats", "down": "falls behind"}.get(_tone(percent), "equals")
        return f"{lead.name} {verb} {baseline} by Δm {gain_text(percent)} over {len(data.columns)} tasks."
    found = [(c.label, fixed_text(lead.values.get(c.task), digits=c.digits)) for c in data.columns]
    return f"{lead.name}: {', '.join(f'{label} {value}' for label, value in found) or 'no score yet'}."


def cards(data: ReportData) -> list[Card]:
    """The numbers to remember: gains of the first run, size of the store, time, parameters."""
    found: list[Card] = []
    for run in data.runs[:1]:
        for name, percent in _deltas(run).items():
            found.append(Card(gain_text(percent), f"Δm against {name}", _tone(percent)))
    found = found[:3]  # six cards fill one line
    stored, plain = sum(u.bytes_stored for u in data.store), sum(u.bytes_fp16 for u in data.store)
    if stored > 0:
        found.append(Card(ratio_text(plain / stored), "smaller than the same features in fp16"))
        teachers: dict[str, list[StoreUsage]] = {}
        for usage in data.store:
            teachers.setdefault(usage.column.rpartition("/")[2].strip(), []).append(usage)
        per_image = sum(sum(u.bytes_stored for u in own) / sum(u.rows for u in own) for own in teachers.values())
        found.append(Card(bytes_text(per_image), f"stored a view, {_plural(len(teachers), 'teacher')}"))
    if data.costs:
        found.append(Card(seconds_text(sum(c.seconds for c in data.costs)), "wall-clock, every stage of every run"))
    for run in data.runs[:1]:
        found.append(Card(count_text(run.parameters), f"parameters of {run.name}"))
    return found


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _best(data: ReportData, *, column: MetricColumn) -> str:
    """The best value as it is printed, so that two equal-looking numbers are both bold."""
    values = [v for run in data.runs if (v := run.values.get(column.task)) is not None and math.isfinite(v)]
    if not values:
        return ""
    return fixed_text(max(values) if column.higher_is_better else min(values), digits=column.digits)


def result_table(data: ReportData) -> ResultTable:
    """Cells of the result table, with the best of every column marked when there are several runs."""
    best = {column.task: _best(data, column=column) for column in data.columns}
    several = len(data.runs) > 1
    baselines = tuple(dict.fromkeys(name for run in data.runs for name in run.delta))
    lines = []
    for slot, run in enumerate(data.runs):
        values = []
        for column in data.columns:
            text = fixed_text(run.values.get(column.task), digits=column.digits)
            values.append(Cell(text, best=several and text == best[column.task]))
        deltas = []
        for name in baselines:
            percent = _deltas(run).get(name)
            tone = "" if percent is None else _tone(percent)
            text = "baseline" if percent is None and name == run.name else gain_text(percent)
            deltas.append(Cell(text, symbol=gain_symbol(percent), tone=tone))
        times = (count_text(run.parameters), seconds_text(run.seconds))
        lines.append(ResultLine(run.name, run.description, swatch(slot), tuple(values), tuple(deltas), *times))
    return ResultTable(data.columns, baselines, tuple(lines))


def _task_gain(column: MetricColumn, *, run: RunRow, baseline: RunRow) -> Gain | None:
    """Relative gain of one task in percent, positive when better; None where it has no meaning."""
    new, old = run.values.get(column.task, math.nan), baseline.values.get(column.task, math.nan)
    if not (math.isfinite(new) and math.isfinite(old)) or old == 0:
        return None
    percent = 100.0 * (new - old) / abs(old) * (1.0 if column.higher_is_better else -1.0)
    return Gain(column.label, percent, gain_text(percent))


def gain_charts(data: ReportData) -> list[GainChart]:
    """For each baseline of the first run: where the gain comes from."""
    by_name = {run.name: run for run in (*data.against, *data.runs)}
    charts = []
    for lead in data.runs[:1]:
        for name in lead.delta:
            if name not in by_name or name == lead.name:
                continue
            every = [_task_gain(column, run=lead, baseline=by_name[name]) for column in data.columns]
            gains = [gain for gain in every if gain is not None]
            if gains:
                title = f"Gain of {lead.name} over {name} by task"
                charts.append(GainChart(name, lead.name, gain_bars(gains, title=title, width=540)))
    return charts
