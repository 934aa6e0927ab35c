"""Inline SVG: precision over recall of boundaries, with lines of equal F and each curve's best point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from pipeline.report.axes import Axis
from pipeline.report.charts import SLOTS, Frame, axes_grid, join_markup, svg_frame
from sak.boundary import Curve, Scores

__all__ = ["PrLine", "pr_chart", "pr_picture"]

_UNIT = Axis(0.0, 1.0, False, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
_EQUAL_F = (0.2, 0.4, 0.6, 0.8)
_SIZE = (540, 420)
# A picture that stands alone: the report's classes, in its light colours, on white.
_STYLE = """
text { fill: #5b6772; font: 12px system-ui, sans-serif; } .name { fill: #16202a; font-size: 13px; }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.grid { stroke: #e2e5e8; } .base { stroke: #5b6772; } .d2 { stroke: #c9ced3; stroke-dasharray: 2 4; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .c0 { stroke: #1f6aa5; } .f0 { fill: #1f6aa5; }
"""


class PrLine(NamedTuple):
    """One curve and its scores; ``slot`` picks its colour and dash."""

    name: str
    slot: int
    curve: Curve
    scores: Scores

    @property
    def text(self) -> str:
        """What the tip of its best point says."""
        found = self.scores
        return f"{self.name}: odsF {100 * found.odsF:.2f} % at {found.threshold:g}, protocol {found.protocol}"


def pr_chart(lines: Sequence[PrLine], *, title: str) -> Markup:
    """Curves, each with a dot where odsF is."""
    frame = Frame(52.0, 12.0, _SIZE[0] - 74.0, _SIZE[1] - 62.0)
    pieces = [axes_grid(_UNIT, _UNIT, frame=frame), *(_equal(value, frame=frame) for value in _EQUAL_F), _names(frame)]
    pieces += [_line(line, frame=frame) for line in lines]
    description = "; ".join(line.text for line in lines)
    return svg_frame(join_markup(pieces), size=_SIZE, title=title, description=description, kind="chart")


def pr_picture(lines: Sequence[PrLine], /) -> str:
    """The chart as an SVG file; the scores are written above it."""
    chart = pr_chart(lines, title="Precision over recall of boundaries")
    head = join_markup(
        Markup('<text class="name" x="52" y="{}">{}</text>').format(20 + 18 * row, line.text)
        for row, line in enumerate(lines)
    )
    top = 20 + 18 * len(lines)
    # A style element holds no markup: only our own constant may stand in it.
    style = Markup("<style>{}</style>").format(Markup(_STYLE))
    frame = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}">{2}'
        '<rect width="{0}" height="{1}" fill="#ffffff"/>{3}<g transform="translate(0 {4})">{5}</g></svg>\n'
    )
    return str(Markup(frame).format(_SIZE[0], _SIZE[1] + top, style, head, top, chart))


def _place(recall: float, precision: float, *, frame: Frame) -> str:
    return f"{frame.left + frame.width * recall:.1f} {frame.top + frame.height * (1.0 - precision):.1f}"


def _line(line: PrLine, *, frame: Frame) -> Markup:
    slot = line.slot % SLOTS
    points = [
        _place(float(recall), float(precision), frame=frame)
        for precision, recall in zip(line.curve.precision, line.curve.recall, strict=True)
    ]
    best = int(line.curve.f.argmax())
    x, y = points[best].split()
    path = Markup('<path class="line c{} d{}" d="{}"/>').format(slot, slot, "M" + "L".join(points))
    dot = Markup('<circle class="f{}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(slot, x, y, line.text)
    return path + dot


def _equal(value: float, *, frame: Frame) -> Markup:
    """Where F has a value: precision = F recall / (2 recall - F)."""
    recalls = np.geomspace(value / (2 - value), 1.0, 60)
    points = [_place(float(r), float(value * r / (2 * r - value)), frame=frame) for r in recalls]
    x, y = points[-1].split()
    return Markup('<path class="line grid d2" d="{}"/><text class="tick" x="{}" y="{}">F {}</text>').format(
        "M" + "L".join(points), f"{float(x) - 34:.1f}", f"{float(y) - 4:.1f}", value
    )


def _names(frame: Frame) -> Markup:
    base = frame.top + frame.height
    across = Markup('<text class="mid" x="{:.1f}" y="{:.1f}">recall</text>').format(
        frame.left + frame.width / 2, base + 38
    )
    up = Markup('<text class="mid" transform="translate(14 {:.1f}) rotate(-90)">precision</text>').format(
        frame.top + frame.height / 2
    )
    return across + up
