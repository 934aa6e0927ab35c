"""What Δm is measured against besides a recipe's own runs: published tables, and the metrics of an earlier evaluation.

A recipe's ``baselines`` name one by its name in ``sak.published``, the other by a path that ends in ``.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from sak.published import PUBLISHED

__all__ = ["baseline_faults", "baseline_label", "baseline_story", "stored_metrics"]


def baseline_faults(names: Sequence[object], /, *, runs: Collection[str]) -> list[str]:
    """Why a recipe cannot name these as baselines."""
    faults = [fault for name in names if (fault := _fault(name, runs=runs))]
    called = dict.fromkeys(runs, "a run")
    for name in dict.fromkeys(str(name) for name in names if name not in runs):
        label = baseline_label(name)
        if label in called:
            faults.append(
                f"baselines: expected distinct names in tables, got {label!r} for {called[label]} and for {name};"
                " rename the file"
            )
        called.setdefault(label, name)
    return faults


def _fault(name: object, *, runs: Collection[str]) -> str | None:
    if not isinstance(name, str) or not (name in runs or name in PUBLISHED or name.endswith(".json")):
        return (
            f"baselines: expected names of runs ({', '.join(sorted(runs))}), of published results"
            f" ({', '.join(PUBLISHED)}) or a metrics.json, got {name!r}"
        )
    if name in runs and name in PUBLISHED:
        return f"baselines: {name!r} is a run and published results; rename the run"
    if name not in runs and name not in PUBLISHED and not Path(name).is_file():
        return f"baselines: {name}: no such file; name the metrics.json of a finished evaluation"
    return None


def baseline_label(name: str, /) -> str:
    """What tables call a baseline: itself, or of a file its stem, or its folder where that is ``metrics``."""
    path = Path(name)
    if path.suffix != ".json":
        return name
    return path.absolute().parent.name if path.stem == "metrics" else path.stem


def stored_metrics(name: str, /, *, dataset: str) -> Mapping[str, Mapping[str, float]]:
    """Task to metric to value of a baseline that is no run; empty where it has none of this data set.

    Raises:
        PipelineError: Its file is absent or holds something else.
    """
    if name in PUBLISHED:
        return PUBLISHED[name].results.get(dataset, {})
    path = Path(name)
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return {str(task): _numbers(values) for task, values in read.items()}
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise PipelineError(
            f"{path}: expected task to metric to value, as an evaluation's metrics.json has ({error}); name another"
        ) from error


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, dict):
        raise TypeError(f"got {values!r} for a mapping of metrics")
    # What no pixel was labelled for is null.
    return {str(name): math.nan if value is None else float(value) for name, value in values.items()}


def baseline_story(name: str, /, *, dataset: str) -> str:
    """What a baseline that is no run is, in one line."""
    if name not in PUBLISHED:
        return f"metrics stored in {name}"
    row = PUBLISHED[name]
    return row.story(dataset) if dataset in row.results else f"{row.title}; no results on {dataset or 'such images'}"
