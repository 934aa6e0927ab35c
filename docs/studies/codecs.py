"""The tables of codecs.md, from what the runs left.

    python docs/studies/codecs.py STORE OUT [OUT ...]

STORE is the study's store; each OUT is the output folder of one seed, whose results.json is read. Differences to the
run ``fp32`` are taken seed by seed, and shown as mean ± standard deviation over seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import store
from pipeline.fidelity import column_fidelity

__all__: list[str] = []

BASE = "fp32"


def main(root: str, *outs: str) -> None:
    """Print both tables."""
    print("| view set | teacher | codec | bits a value | token cosine | relative error | codec's own loss |")
    print("|---|---|---|---:|---:|---:|---:|")
    opened = store.open(root)
    for name in opened.view_set_names():
        for column in opened.columns(name):
            found = column_fidelity(column).get("mean", {})
            codec = column.spec.codec.to_json()
            label = f"{codec['name']} {codec.get('error', '')}".strip()
            figures = [found.get(key) for key in ("bits_per_value", "token_cosine", "relative_error", "loss")]
            print(f"| {name} | {column.spec.teacher} | {label} | {' | '.join(map(_figure, figures))} |")
    seeds = [{run["name"]: run for run in json.loads((Path(out) / "results.json").read_text())["runs"]} for out in outs]
    metrics = sorted({(task, metric) for seed in seeds for run in seed.values() for task, metric in _metrics(run)})
    print("\n| run | seeds | Δm % | " + " | ".join(f"{task} {metric}" for task, metric in metrics) + " |")
    print("|---|---:|---:" + "|---:" * len(metrics) + "|")
    for name in seeds[0]:
        having = [seed for seed in seeds if name in seed and BASE in seed]
        delta = [run["delta"][BASE] for run in (seed[name] for seed in having) if BASE in run.get("delta", {})]
        cells = [
            _spread(
                [value for seed in having if (value := _metrics(seed[name]).get(key)) is not None],
                [
                    100 * (value / base - 1)
                    for seed in having
                    if (value := _metrics(seed[name]).get(key)) is not None and (base := _metrics(seed[BASE]).get(key))
                ],
            )
            for key in metrics
        ]
        print(f"| {name} | {len(having)} | {_mean(delta, '+.2f')} | {' | '.join(cells)} |")


def _metrics(run: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(task, metric): value for task, found in run["metrics"].items() for metric, value in found.items()}


def _spread(values: Sequence[float], against: Sequence[float]) -> str:
    return f"{_mean(values, '.4g')} ({_mean(against, '+.2f')} %)" if values else "–"


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main(*sys.argv[1:])
