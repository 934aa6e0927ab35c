from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.tracking import MetricsLog, progress_bar, read_metrics


def log(folder: Path, steps: range, *, start: int = 0, tensorboard: bool = False) -> None:
    with MetricsLog(folder, start=start, tensorboard=tensorboard) as file:
        for step in steps:
            file.write(step, {"total": step / 3, "lr": 1e-3}, speeds={"speed/images_per_s": 5.0 + step})


def test_lines_hold_values_and_no_speeds(tmp_path: Path) -> None:
    log(tmp_path, range(1, 4))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines == [{"step": step, "total": step / 3, "lr": 1e-3} for step in (1, 2, 3)]
    assert not (tmp_path / "tensorboard").exists()


def test_resuming_drops_lines_after_the_checkpoint(tmp_path: Path) -> None:
    log(tmp_path / "whole", range(1, 8))
    log(tmp_path / "cut", range(1, 6))
    with (tmp_path / "cut" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "tot')
    log(tmp_path / "cut", range(4, 8), start=3)
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["metrics.jsonl"]


def test_a_kill_while_dropping_lines_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, range(1, 6))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(tmp_path, start=2, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_tensorboard_gets_values_and_speeds(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, range(1, 4), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"total", "lr", "speed/images_per_s"} <= set(events.Tags()["scalars"])
    assert [(item.step, item.value) for item in events.Scalars("speed/images_per_s")] == [(1, 6), (2, 7), (3, 8)]


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, start=0, tensorboard=False) as file:
        file.write(1, {"total": 0.1 + 0.2}, speeds={})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"))["total"] == 0.1 + 0.2


def test_the_bar_is_silent_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("steps") as bar:
        bar.advance(bar.add_task("training", total=3, note=""))
    assert capfd.readouterr() == ("", "")
