"""What is measured beside the losses: on watched steps, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import feature_losses as module
from pipeline.feature_losses import adapter_scales, gate_weights
from pipeline.stages.distill import distill
from pipeline.stages.finetune import finetune
from pipeline.tracking import read_metrics
from sak.student.model import build_student
from tests.conftest import Finished
from tests.sak.student.tiny import IMAGE_SIZE, STAGE2


def test_recorded_steps_hold_parts_cosines_scales_and_norm(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path)
    folder = distill(recipe.runs[0].study, recipe.out, label="test").path
    for line in read_metrics(folder / "metrics.jsonl"):
        for teacher in ("second", "first"):
            for level in range(1, 5):
                where = f"{teacher}_level{level}"
                parts = 0.9 * line[f"loss_cosine/{where}"] + 0.1 * line[f"loss_l1/{where}"]
                assert parts == pytest.approx(line[where], rel=1e-5)
                assert -1 <= line[f"cosine/{where}"] <= 1
            scales = [line[f"scale/{teacher}_{index}"] for index in range(5)]
            assert all(0.9 < scale < 1.1 for scale in scales)
        assert line["grad_norm"] > 0
    assert scales != [1.0] * 5, "they are what was learnt"
    first, *rest = read_metrics(folder / "speeds.jsonl")
    assert first["speed/images_per_s"] > 0
    assert 0 <= first["speed/data_wait"] <= 1
    # Rows are kept decoded, so later steps read less; targets are read in each.
    assert all(line["speed/read_bytes_per_s"] > 0 for line in (first, *rest))


def test_unwatched_steps_measure_nothing(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = module.distill_measures

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append("")
        return real(*arguments, **options)

    monkeypatch.setattr(module, "distill_measures", counted)
    recipe = finished.fresh(tmp_path, "track.log_every=4")
    folder = distill(recipe.runs[0].study, recipe.out, label="test").path
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 4, 6]
    assert len(calls) == 3


def test_gates_of_each_task_and_level_are_shares(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path, "distill.steps=1", "finetune.steps=2", "finetune.tasks=[semseg, depth]")
    distill(recipe.runs[0].study, recipe.out, label="test")
    folder = finetune(recipe.runs[0].study, recipe.out, label="test").path
    for line in read_metrics(folder / "metrics.jsonl"):
        for task in ("semseg", "depth"):
            for level in range(1, 5):
                shares = [line[f"gate/{task}_level{level}_{expert}"] for expert in ("stem", "second", "first")]
                assert sum(shares) == pytest.approx(1, abs=1e-5)
        levels = [line[f"distill/{name}_level{level}"] for name in ("second", "first") for level in range(1, 5)]
        assert sum(levels) == pytest.approx(line["distill"], rel=1e-5)
        assert {"scale/first_0", "cosine/second_level4"} <= line.keys()


def test_scales_and_gates_of_a_student() -> None:
    torch.manual_seed(0)
    student = build_student(STAGE2)
    path = next(iter(student.paths))
    with torch.no_grad():
        student.paths[path][2].scale.fill_(3.0)  # type: ignore[index]
    scales = adapter_scales(student)
    assert [name for name, scale in scales.items() if scale != 1.0] == [f"scale/{path}_2"]
    assert all(scale.shape == () and not scale.requires_grad for scale in scales.values())
    gates = student(torch.zeros(2, 3, *IMAGE_SIZE), with_aligned=False).gates
    found = gate_weights(gates, teachers=tuple(student.paths))
    task = next(iter(gates))
    torch.testing.assert_close(found[f"gate/{task}_level1_stem"], gates[task][0][:, 0].mean())
    assert len(found) == len(gates) * 4 * (1 + len(student.paths))
