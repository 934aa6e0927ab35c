from __future__ import annotations

import re

from pipeline.report.scatter import Dot, scatter_chart


def dot(x: float, y: float, *, label: str = "a", joined: bool = True) -> Dot:
    return Dot(x, y, 1, label, f"{label}: <{x}>", joined)


def test_points_lie_on_logarithmic_scales_with_the_limit_among_them() -> None:
    dots = [dot(1, 0.1), dot(10, 0.001, label="b"), dot(32, 1e-5, label="c", joined=False)]
    chart = str(scatter_chart(dots, title="t", names=("bits", "lost"), limit=0.012, size=(900, 420)))
    centres = [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert len(centres) == 3
    (x0, y0), (x1, y1), (x2, y2) = centres
    assert x0 < x1 < x2
    assert y0 < y1 < y2
    assert (x1 - x0) / (x2 - x1) > 1.5, "a decade is wider than a third of one"
    assert abs((y1 - y0) - (y2 - y1)) < 0.2, "two decades each"
    (limit,) = re.findall(r'class="line c4 d1"[^>]* y1="([\d.]+)"', chart)
    assert y0 < float(limit) < y1
    assert len(re.findall("<path", chart)) == 1
    assert "&lt;10&gt;" in chart
    assert "<10>" not in chart


def test_labels_do_not_lie_on_each_other() -> None:
    dots = [dot(1, 0.1, label="left"), dot(1.01, 0.1, label="hidden"), dot(9, 0.01, label="right")]
    chart = str(scatter_chart(dots, title="t", names=("bits", "lost"), limit=0.05, size=(900, 420)))
    assert re.findall(r'class="name"[^>]*>(\w+)<', chart) == ["left", "right"]
    assert len(re.findall("<circle", chart)) == 3


def test_one_point_needs_no_line() -> None:
    chart = str(scatter_chart([dot(2, 0.01)], title="t", names=("bits", "lost"), limit=0.02, size=(900, 420)))
    assert "<path" not in chart
    assert "<circle" in chart
