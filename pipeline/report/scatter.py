"""Inline SVG: labelled points on two scales, some joined by a line. Used for what is paid against what is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report.axes import Axis, make_axis
from pipeline.report.charts import SLOTS, Frame, axes_grid, join_markup, svg_frame

__all__ = ["Dot", "scatter_chart"]

_LINE, _CHARACTER = 15.0, 7.5  # height of a label, and width of one of its characters


class Dot(NamedTuple):
    """One point with a tip. ``joined`` points are connected from left to right and labelled where there is room."""

    x: float
    y: float
    slot: int
    label: str
    text: str
    joined: bool


def scatter_chart(
    dots: Sequence[Dot], *, title: str, names: tuple[str, str], limit: float, size: tuple[int, int]
) -> Markup:
    """Points on logarithmic scales where they span a factor of eight, with a dashed line at ``limit`` of y.

    Args:
        names: What x and y are.
    """
    x = make_axis([dot.x for dot in dots], allow_log=True)
    y = make_axis([*(dot.y for dot in dots), limit], allow_log=True)
    frame = Frame(64.0, 14.0, size[0] - 150.0, size[1] - 64.0)
    pieces = [axes_grid(x, y, frame=frame), _names(names, frame=frame), _limit(limit, y, frame=frame)]
    joined = sorted((dot for dot in dots if dot.joined), key=lambda dot: dot.x)
    if len(joined) > 1:
        path = "M" + "L".join("{:.1f} {:.1f}".format(*_place(dot, x, y, frame=frame)) for dot in joined)
        pieces.append(Markup('<path class="line c7" d="{}"/>').format(path))
    pieces += [_dot(dot, x, y, frame=frame) for dot in dots] + _labels(joined, x, y, frame=frame)
    description = f"{names[1]} against {names[0]}: " + "; ".join(dot.text for dot in dots)
    return svg_frame(join_markup(pieces), size=size, title=title, description=description, kind="chart")


def _place(dot: Dot, x: Axis, y: Axis, *, frame: Frame) -> tuple[float, float]:
    return frame.left + frame.width * x.place(dot.x), frame.top + frame.height * (1.0 - y.place(dot.y))


def _dot(dot: Dot, x: Axis, y: Axis, *, frame: Frame) -> Markup:
    at = _place(dot, x, y, frame=frame)
    return Markup('<circle class="f{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
        dot.slot % SLOTS, *at, 5 if dot.joined else 3.5, dot.text
    )


def _labels(dots: Sequence[Dot], x: Axis, y: Axis, *, frame: Frame) -> list[Markup]:
    """Labels from left to right, without those that would lie on the one before."""
    pieces, last = [], (-math.inf, -math.inf)
    for dot in dots:
        left, top = _place(dot, x, y, frame=frame)
        if left > last[0] or abs(top - last[1]) > _LINE:
            frame_text = '<text class="name" x="{:.1f}" y="{:.1f}">{}</text>'
            pieces.append(Markup(frame_text).format(left + 9, top - 5, dot.label))
            last = (left + _CHARACTER * len(dot.label), top)
    return pieces


def _names(names: tuple[str, str], *, frame: Frame) -> Markup:
    left, base = frame.left, frame.top + frame.height
    across = Markup('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>').format(
        left + frame.width / 2, base + 40, names[0]
    )
    up = Markup('<text class="mid" transform="translate(14 {:.1f}) rotate(-90)">{}</text>').format(
        frame.top + frame.height / 2, names[1]
    )
    return across + up


def _limit(value: float, y: Axis, *, frame: Frame) -> Markup:
    at = frame.top + frame.height * (1.0 - y.place(value))
    return Markup(
        '<line class="line c4 d1" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"><title>{}</title></line>'
    ).format(frame.left, frame.left + frame.width, at, at, f"asked: {value:.4g}")
