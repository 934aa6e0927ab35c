"""docs/evaluation.md names every key, metric and published table there is, and its code runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from pipeline.config_eval import EvalConfig
from sak.published import PUBLISHED
from sak.tasks import DATASETS

PAGE = (Path(__file__).resolve().parents[1] / "docs/evaluation.md").read_text(encoding="utf-8")


def test_its_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["total"].compute()["depth"]["RMSE"] > 0  # type: ignore[attr-defined]


def test_it_leaves_nothing_out() -> None:
    keys = {field.name for field in dataclasses.fields(EvalConfig)} - {"gallery"}
    assert keys == {*re.findall(r"^\| `eval\.(\w+)`", PAGE, flags=re.MULTILINE)}
    tasks = [task for dataset in DATASETS.values() for task in dataset.tasks.values()]
    metrics = {name for task in tasks for name in (task.metric, *task.extra_metrics)}
    assert not {name for name in metrics if f"`{name}`" not in PAGE}
    for name in PUBLISHED:
        size, _, row = name.removeprefix("paper-").partition("-")
        assert f"`paper-{size}" in PAGE
        assert not row or f"-{row}`" in PAGE
