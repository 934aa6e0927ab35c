"""Inline SVG: line charts, stacked bars, diverging bars. Colours are CSS classes, so a page can be light or dark.

Every text passes through ``Markup.format``, which escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.axes import Axis, Points, finite_runs, make_axis, thinned, tick_text
from pipeline.report.quantities import fixed_text

__all__ = [
    "SLOTS",
    "Frame",
    "Gain",
    "Segment",
    "Series",
    "axes_grid",
    "gain_bars",
    "join_markup",
    "line_chart",
    "share_bar",
    "stacked_bars",
    "svg_frame",
    "swatch",
]

SLOTS = 8  # colours s0..s7 in report.css; later ones start over
MARKS = 24  # points of a line that carry a tooltip


class Series(NamedTuple):
    """One line of a chart; ``slot`` picks its colour and dash."""

    name: str
    slot: int
    x: NDArray[np.generic]
    y: NDArray[np.generic]


class Segment(NamedTuple):
    """One piece of a bar; ``text`` is its tooltip, ``label`` is drawn inside when it fits."""

    value: float
    slot: int
    label: str
    text: str


class Gain(NamedTuple):
    """One diverging bar: a named signed percentage."""

    name: str
    percent: float
    text: str


class Frame(NamedTuple):
    """Plot area in user units: left, top, width, height."""

    left: float
    top: float
    width: float
    height: float


def join_markup(pieces: Iterable[Markup]) -> Markup:
    """Pieces one after the other."""
    return Markup("").join(pieces)


def svg_frame(body: Markup, *, size: tuple[int, int], title: str, description: str, kind: str) -> Markup:
    """A picture with a title and a description for those who cannot see it."""
    frame = (
        '<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}"><desc>{}</desc>{}</svg>'
    )
    return Markup(frame).format(kind, *size, *size, f"{title}. {description}", description, body)


def swatch(slot: int) -> Markup:
    """A small square in a series' colour."""
    frame = '<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><rect width="12" height="12" rx="3" {}/></svg>'
    return Markup(frame).format(Markup('class="f{}"').format(slot % SLOTS))


def axes_grid(x: Axis, y: Axis, *, frame: Frame) -> Markup:
    """Ticks, horizontal grid lines and the base line."""
    pieces = []
    for tick in y.ticks:
        at = frame.top + frame.height * (1.0 - y.place(tick))
        pieces.append(
            Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                frame.left, frame.left + frame.width, at, at
            )
        )
        pieces.append(
            Markup('<text class="tick end" x="{:.1f}" y="{:.1f}">{}</text>').format(
                frame.left - 8, at + 4, tick_text(tick)
            )
        )
    base = frame.top + frame.height
    for tick in x.ticks:
        at = frame.left + frame.width * x.place(tick)
        pieces.append(
            Markup('<text class="tick mid" x="{:.1f}" y="{:.1f}">{}</text>').format(at, base + 18, tick_text(tick))
        )
    pieces.append(
        Markup('<line class="base" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            frame.left, frame.left + frame.width, base, base
        )
    )
    return join_markup(pieces)


def _line(points: Points, *, series: Series, x: Axis, y: Axis, frame: Frame) -> Markup:
    """One series: a path broken at non-finite values, and invisible marks whose titles are the tooltips."""
    slot = series.slot % SLOTS
    place = [
        (
            frame.left + frame.width * x.place(a),
            frame.top + frame.height * (1.0 - y.place(b)) if np.isfinite(b) else 0.0,
        )
        for a, b in zip(points.x, points.y, strict=True)
    ]
    pieces = []
    for run in finite_runs(points):
        path = "M" + "L".join(f"{place[i][0]:.1f} {place[i][1]:.1f}" for i in run)
        pieces.append(Markup('<path class="line c{} d{}" d="{}"/>').format(slot, slot, path))
        for i in run[:: max(1, len(run) // MARKS)]:
            text = f"{series.name}: {points.y[i]:.4g} at step {points.x[i]:.0f}"
            pieces.append(
                Markup('<circle class="mark f{}" cx="{:.1f}" cy="{:.1f}" r="6"><title>{}</title></circle>').format(
                    slot, *place[i], text
                )
            )
    return join_markup(pieces)


def line_chart(series: Sequence[Series], *, title: str, size: tuple[int, int]) -> Markup:
    """Lines over steps, with a logarithmic y axis when the values span a factor of eight.

    Shapes:
        each series: ``(S,)``; long ones are averaged to at most 120 points.
    """
    drawn = [thinned(one.x, one.y) for one in series]
    x = make_axis([float(step) for one in series for step in (*one.x[:1], *one.x[-1:])], margin=0.0)
    y = make_axis([float(v) for points in drawn for v in points.y], allow_log=True)
    frame = Frame(46.0, 10.0, size[0] - 58.0, size[1] - 40.0)
    lines = join_markup(
        _line(points, series=one, x=x, y=y, frame=frame) for one, points in zip(series, drawn, strict=True)
    )
    ends = "; ".join(
        f"{one.name} from {points.y[0]:.4g} to {points.y[-1]:.4g}"
        for one, points in zip(series, drawn, strict=True)
        if len(points.y)
    )
    per_point = max((points.per_point for points in drawn), default=1)
    means = f" Each point is the mean of up to {per_point} steps." if per_point > 1 else ""
    description = f"Loss over steps{' on a logarithmic scale' if y.log else ''}: {ends}.{means}"
    return svg_frame(
        axes_grid(x, y, frame=frame) + lines, size=size, title=title, description=description, kind="chart"
    )


def _segments(segments: Sequence[Segment], *, frame: Frame, per_unit: float) -> Markup:
    pieces, left = [], frame.left
    for segment in segments:
        width = max(0.0, segment.value) * per_unit
        slot = segment.slot % SLOTS
        pieces.append(
            Markup(
                '<rect class="f{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(slot, left, frame.top, max(0.0, width - 1.0), frame.height, segment.text)
        )
        if segment.label and width > 7.2 * len(segment.label) + 8:
            middle = frame.top + frame.height / 2 + 4
            pieces.append(
                Markup('<text class="inside t{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
                    slot, left + width / 2, middle, segment.label
                )
            )
        left += width
    return join_markup(pieces)


def share_bar(segments: Sequence[Segment], *, title: str, size: tuple[int, int]) -> Markup:
    """One bar as wide as the picture, each segment its share of the sum."""
    total = sum(max(0.0, segment.value) for segment in segments)
    frame = Frame(0.0, 0.0, size[0], size[1])
    body = _segments(segments, frame=frame, per_unit=size[0] / total if total > 0 else 0.0)
    return svg_frame(body, size=size, title=title, description="; ".join(s.text for s in segments), kind="bar")


def stacked_bars(rows: Sequence[tuple[str, Sequence[Segment], str]], *, title: str, width: int) -> Markup:
    """Rows of (name, segments, total as text) on one scale."""
    height, left, right = 38, 190, 110
    longest = max((sum(s.value for s in segments) for _, segments, _ in rows), default=0.0)
    per_unit = (width - left - right) / longest if longest > 0 else 0.0
    pieces = []
    for index, (name, segments, total) in enumerate(rows):
        frame = Frame(left, index * height + 6.0, width - left - right, 26.0)
        end = left + per_unit * sum(s.value for s in segments) + 10
        pieces.append(
            Markup('<text class="name end" x="{}" y="{:.1f}">{}<title>{}</title></text>').format(
                left - 12, frame.top + 17, _short(name, most=26), name
            )
        )
        pieces.append(_segments(segments, frame=frame, per_unit=per_unit))
        pieces.append(Markup('<text class="name" x="{:.1f}" y="{:.1f}">{}</text>').format(end, frame.top + 17, total))
    description = "; ".join(f"{name}: {total}" for name, _, total in rows)
    return svg_frame(
        join_markup(pieces), size=(width, height * len(rows)), title=title, description=description, kind="chart"
    )


def _short(text: str, *, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def gain_bars(gains: Sequence[Gain], *, title: str, width: int) -> Markup:
    """Bars left and right of zero, one for each gain, with its signed number at the end."""
    height, left, room = 30, 150, 84
    low = min(0.0, *(gain.percent for gain in gains)) if gains else 0.0
    high = max(0.0, *(gain.percent for gain in gains)) if gains else 1.0
    left_room = room if low < 0 else 0
    per_unit = (width - left - left_room - room) / max(high - low, 1e-9)
    zero = left + left_room - low * per_unit
    pieces = []
    for index, gain in enumerate(gains):
        top, length = index * height + 5.0, abs(gain.percent) * per_unit
        better = gain.percent >= 0
        start, end = (zero, zero + length + 8) if better else (zero - length, zero - length - 8)
        pieces.append(
            Markup('<text class="name end" x="{}" y="{:.1f}">{}</text>').format(
                left - 12, top + 14, _short(gain.name, most=20)
            )
        )
        pieces.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="20" rx="2"><title>{}</title></rect>'
            ).format("up" if better else "down", start, top, max(length, 1.0), f"{gain.name}: {gain.text}")
        )
        pieces.append(
            Markup('<text class="name{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
                "" if better else " end", end, top + 14, gain.text
            )
        )
    pieces.append(
        Markup('<line class="base" x1="{:.1f}" x2="{:.1f}" y1="0" y2="{}"/>').format(zero, zero, height * len(gains))
    )
    description = "; ".join(f"{gain.name} {fixed_text(gain.percent, digits=2)} %" for gain in gains)
    return svg_frame(
        join_markup(pieces), size=(width, height * len(gains)), title=title, description=description, kind="chart"
    )
