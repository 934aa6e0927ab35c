"""The precision-recall chart: every point, the best one marked, texts escaped, and a file that stands alone."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from pipeline.report.pr import PrLine, pr_chart, pr_picture
from sak.boundary import pr_curve, scores


def line(name: str, *, slot: int = 0) -> PrLine:
    thresholds = np.arange(99)
    pairs = (200 - 2 * thresholds).astype(np.int64)
    counts = np.stack([pairs, np.full(99, 220), pairs, pairs + 300 - 3 * thresholds], axis=-1)
    return PrLine(name, slot, pr_curve(counts), scores(counts))


def test_each_curve_has_all_its_points_and_a_dot_at_its_best() -> None:
    lines = [line("ours", slot=0), line("theirs", slot=3)]
    root = ElementTree.fromstring(str(pr_chart(lines, title="curves")))
    paths = [path for path in root.iter("path") if "grid" not in path.attrib["class"]]
    assert [path.attrib["class"] for path in paths] == ["line c0 d0", "line c3 d3"]
    dots = list(root.iter("circle"))
    for path, dot, one in zip(paths, dots, lines, strict=True):
        points = path.attrib["d"][1:].split("L")
        assert len(points) == 99
        assert points[int(one.curve.f.argmax())] == f"{dot.attrib['cx']} {dot.attrib['cy']}"
        tip = dot.find("title")
        assert tip is not None
        assert tip.text == one.text
        assert "protocol sak" in one.text


def test_names_are_text_and_never_markup() -> None:
    drawn = str(pr_chart([line("<script>")], title="a & b"))
    assert "<script>" not in drawn
    assert "&lt;script&gt;" in drawn


def test_the_file_needs_nothing_else() -> None:
    drawn = pr_picture([line("4 images <b>")])
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text.startswith("4 images <b>: odsF") for text in texts)
    styled = set(re.findall(r"\.(\w+)", drawn.split("</style>")[0]))
    used = {name for names in re.findall(r'class="([^"]*)"', drawn) for name in names.split()}
    assert used - styled <= {"chart", "tick", "d0"}
