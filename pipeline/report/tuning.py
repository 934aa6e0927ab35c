"""What ``sak store tune`` found, as a page: for each teacher a chart of bits against what they lose, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from pipeline.rates import METRICS, Rate, front
from pipeline.report.quantities import bytes_text
from pipeline.report.render import page_template, write_page
from pipeline.report.scatter import Dot, scatter_chart
from pipeline.tuning import HEADINGS, TeacherRates, Tuning, chosen, codec_text, rate_cells, verdict_lines

__all__ = ["render_tuning", "write_tuning"]

_SLOTS = ("fp32", "fp16", "bf16", "int8", "int4", "klt")
_LEAST = 1e-7  # what is lost by an exact codec, for a logarithmic scale


class _Row(NamedTuple):
    codec: str
    cells: tuple[str, ...]
    mark: str


class _Teacher(NamedTuple):
    name: str
    caption: str
    chart: Markup
    rows: tuple[_Row, ...]
    refused: tuple[tuple[str, str], ...]


def write_tuning(tuning: Tuning, path: Path, /, *, title: str) -> Path:
    """Write the page, replacing the file in one step.

    Raises:
        ReportError: The file cannot be written.
    """
    return write_page(render_tuning(tuning, title=title), path)


def render_tuning(tuning: Tuning, /, *, title: str) -> str:
    """Draw the page; equal measurements give equal text."""
    return page_template("tuning.html").render(
        title=title,
        device=tuning.device,
        finding=_finding(tuning),
        lines=verdict_lines(tuning),
        headings=HEADINGS,
        teachers=[_teacher(tuning, item) for item in tuning.teachers],
    )


def _finding(tuning: Tuning) -> str:
    found = [rate for rate in chosen(tuning).each.values() if rate is not None]
    if not found:
        return f"No codec reaches a {tuning.options.metric} of {tuning.options.asked:g}"
    values = sum(item.values for item in tuning.teachers)
    size = sum(rate.row_bytes for rate in found)
    return f"{bytes_text(size)} an image instead of {bytes_text(2 * values)} in fp16"


def _teacher(tuning: Tuning, item: TeacherRates) -> _Teacher:
    metric, choice = tuning.options.metric, chosen(tuning).each[item.teacher]
    on_front = front(item.rates, metric=metric)
    lost = f"1 - {metric}" if METRICS[metric] else metric
    chart = scatter_chart(
        [_dot(rate, metric=metric, joined=kept) for rate, kept in zip(item.rates, on_front, strict=True)],
        title=f"{item.teacher}: bits a value against {lost}",
        names=("bits a value, as stored", lost),
        limit=_lost(tuning.options.asked, metric=metric),
        size=(900, 420),
    )
    rows = tuple(
        _Row(codec_text(rate.codec), rate_cells(rate), "chosen" if rate is choice else "front" if kept else "")
        for rate, kept in zip(item.rates, on_front, strict=True)
    )
    fitted = f", codecs fitted to {item.fit_rows} others" if item.fit_rows else ""
    caption = f"{item.rows} held-out images{fitted}. Joined: what no other codec beats. Dashed: what was asked."
    return _Teacher(item.teacher, caption, chart, rows, tuple(item.refused.items()))


def _dot(rate: Rate, *, metric: str, joined: bool) -> Dot:
    slot = _SLOTS.index(rate.name) if rate.name in _SLOTS else len(_SLOTS)
    value, text = float(getattr(rate.measured, metric)), codec_text(rate.codec)
    label = " ".join([rate.name, *(str(rate.codec[key]) for key in ("error",) if key in rate.codec)])
    tip = f"{text}: {rate.bits:.2f} bits a value, {metric} {value:.6g}"
    return Dot(rate.bits, _lost(value, metric=metric), slot, label, tip, joined)


def _lost(value: float, *, metric: str) -> float:
    return max(_LEAST, 1 - value if METRICS[metric] else value)
