from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.tracking import MetricsLog, progress_bar, read_metrics


def log(folder: Path, steps: range, *, start: int = 0) -> None:
    with MetricsLog(folder, start=start) as file:
        for step in steps:
            file.write(step, {"total": step / 3, "lr": 1e-3}, speeds={"speed/images_per_s": 5.0 + step})


def test_lines_hold_values_and_no_speeds(tmp_path: Path) -> None:
    log(tmp_path, range(1, 4))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines == [{"step": step, "total": step / 3, "lr": 1e-3} for step in (1, 2, 3)]
    speeds = read_metrics(tmp_path / "speeds.jsonl")
    assert speeds == [{"step": step, "speed/images_per_s": 5.0 + step} for step in (1, 2, 3)]


def test_resuming_drops_lines_after_the_checkpoint(tmp_path: Path) -> None:
    log(tmp_path / "whole", range(1, 8))
    log(tmp_path / "cut", range(1, 6))
    with (tmp_path / "cut" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "tot')
    log(tmp_path / "cut", range(4, 8), start=3)
    for name in ("metrics.jsonl", "speeds.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["metrics.jsonl", "speeds.jsonl"]


def test_a_kill_while_dropping_lines_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, range(1, 6))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(tmp_path, start=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, start=0) as file:
        file.write(1, {"total": 0.1 + 0.2}, speeds={})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"))["total"] == 0.1 + 0.2


def lines_of(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, seconds: float, steps: int, note: str = ""
) -> list[str]:
    """What is printed off a terminal where ``steps`` steps of 50, on from step 10, take so many seconds each."""
    now = 1000.0
    monkeypatch.setattr(tracking, "monotonic", lambda: now)
    with progress_bar("steps") as bar:
        task = bar.add_task("training [a]", total=60, completed=10)
        for _ in range(steps):
            now += seconds
            bar.advance(task, note=note)
    out, err = capfd.readouterr()
    assert out == ""
    return err.splitlines()


def test_short_work_prints_nothing_without_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines_of(capfd, monkeypatch, seconds=0.5, steps=50) == []


def test_long_work_prints_a_plain_line_now_and_then(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lines_of(capfd, monkeypatch, seconds=2.0, steps=50)
    assert lines == [
        "training [a]: 25/60 steps, 0.5 steps/s, ETA 0:01:10",
        "training [a]: 40/60 steps, 0.5 steps/s, ETA 0:00:40",
        "training [a]: 55/60 steps, 0.5 steps/s, ETA 0:00:10",
    ]
    noted = lines_of(capfd, monkeypatch, seconds=40.0, steps=2, note="7 images/s, data wait 3 %")
    assert noted[1] == "training [a]: 12/60 steps, 7 images/s, data wait 3 %, ETA 0:32:00"


def test_work_of_unknown_size_prints_no_eta(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, *[31.0] * 9])
    monkeypatch.setattr(tracking, "monotonic", lambda: next(times))
    with progress_bar("objects") as bar:
        bar.update(bar.add_task("verify", total=None), completed=62)
    assert capfd.readouterr().err == "verify: 62 objects, 2 objects/s\n"
