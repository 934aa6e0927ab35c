"""All metrics of several runs as lines: order, directions, units, classes, and what a run lacks."""

from __future__ import annotations

import math

from pipeline.results import RunResult
from pipeline.scores import score_lines, score_tables

NEW = {
    "depth": {"RMSE": 0.51234, "rel": 0.12345, "delta1": 87.654},
    "semseg": {"mIoU": 40.0, "IoU/wall": 80.0, "IoU/floor mat": math.nan},
    "edge": {"loss": 0.25, "odsF": 70.0, "threshold": 0.35},
    "distill": {"loss": 1.5},
}
OLD = {"semseg": {"mIoU": 41.0}, "depth": {"RMSE": math.nan}}  # of before there were classes


def results() -> list[RunResult]:
    return [
        RunResult(name=name, description="", dataset="nyud", metrics=metrics, delta={}, parameters=1, seconds={})
        for name, metrics in (("new", NEW), ("old", OLD))
    ]


def test_lines_are_in_the_order_of_tables_and_classes_after_metrics() -> None:
    found = [tuple(line) for line in score_lines(results())]
    assert found == [
        ("semseg", "", "mIoU ↑", ("40.00%", "41.00%")),
        ("semseg", "IoU", "wall", ("80.00%", "–")),
        ("semseg", "IoU", "floor mat", ("–", "–")),
        ("edge", "", "loss ↓", ("0.2500", "–")),
        ("edge", "", "odsF ↑", ("70.00%", "–")),
        ("edge", "", "threshold", ("0.35", "–")),
        ("depth", "", "RMSE ↓", ("0.5123 m", "–")),
        ("depth", "", "rel ↓", ("0.1235", "–")),
        ("depth", "", "delta1 ↑", ("87.65%", "–")),
        ("distill", "", "loss ↓", ("1.5000", "–")),
    ]


def test_metrics_and_classes_are_a_table_each() -> None:
    metrics, classes = score_tables(results())
    assert [str(column.header) for column in metrics.columns] == ["task", "metric", "new", "old"]
    assert (metrics.row_count, classes.row_count) == (8, 2)
    assert list(classes.columns[0].cells) == ["semseg IoU", "semseg IoU"]
    assert score_tables([]) == []
