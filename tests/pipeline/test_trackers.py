"""Trackers as they are installed here; each is skipped where it is not."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from pipeline.config_track import MlflowConfig, TrackConfig, WandbConfig
from pipeline.errors import PipelineError
from pipeline.stagedir import read_json
from pipeline.trackers import Told, _Lenient, open_trackers
from pipeline.tracking import MetricsLog

TOLD = Told("both distill", {"seed": 0, "student": {"stem": "tiny", "paths": None}})


def log(folder: Path, steps: range, *, start: int = 0, **options: Any) -> None:
    track = TrackConfig(**{"tensorboard": False, **options})
    with MetricsLog(folder, start=start, trackers=open_trackers(track, folder, told=TOLD, start=start)) as file:
        for step in steps:
            file.write(step, {"total": step / 4, "cosine/a_level1": 0.5}, speeds={"speed/images_per_s": 5.0 + step})


def test_nothing_is_left_where_nothing_is_asked_for(tmp_path: Path) -> None:
    log(tmp_path, range(1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "speeds.jsonl"]


def test_tensorboard_gets_values_and_speeds(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, range(1, 4), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"total", "cosine/a_level1", "speed/images_per_s"} <= set(events.Tags()["scalars"])
    assert [(item.step, item.value) for item in events.Scalars("speed/images_per_s")] == [(1, 6), (2, 7), (3, 8)]


def test_mlflow_goes_on_in_the_run_that_a_stage_began(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    config = MlflowConfig(experiment="tests", uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ZeroDivisionError):
        log(tmp_path / "a", [1, 2, 1 / 0], mlflow=config)  # type: ignore[arg-type]
    log(tmp_path / "a", range(1, 4), mlflow=config)
    first = read_json(tmp_path / "a/mlflow.json")
    log(tmp_path / "a", range(4, 6), start=3, mlflow=config)
    assert read_json(tmp_path / "a/mlflow.json") == first
    client = MlflowClient(tracking_uri=config.uri)
    run = client.get_run(str(first["id"]))
    assert (run.info.run_name, run.info.status) == ("both distill", "FINISHED")
    assert run.data.params == {"seed": "0", "student.stem": "tiny", "student.paths": "None"}
    history = client.get_metric_history(run.info.run_id, "cosine/a_level1")
    assert [(item.step, item.value) for item in history] == [(step, 0.5) for step in range(1, 6)]
    log(tmp_path / "b", range(1, 2), mlflow=config)
    (experiment,) = [found for found in client.search_experiments() if found.name == "tests"]
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_an_mlflow_that_cannot_begin_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(PipelineError, match=r"^track.mlflow: .*; check track.mlflow.uri, [^\n]*$"):
        log(tmp_path, range(1, 2), mlflow=MlflowConfig(uri="nonsense://here"))


def test_wandb_works_offline_and_goes_on_in_the_run_that_a_stage_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log(tmp_path, range(1, 4), wandb=WandbConfig(project="tests"))
    first = read_json(tmp_path / "wandb.json")
    log(tmp_path, range(4, 6), start=3, wandb=WandbConfig(project="tests"))
    assert read_json(tmp_path / "wandb.json") == first
    name = str(first["id"])
    runs = [path for path in (tmp_path / "wandb").iterdir() if path.name.startswith("offline-run-")]
    assert {path.name.rpartition("-")[2] for path in runs} == {name}
    told = b"".join((path / f"run-{name}.wandb").read_bytes() for path in runs)
    assert b"cosine/a_level1" in told
    assert b"speed/images_per_s" in told
    log(tmp_path, range(6, 7), start=5, wandb=WandbConfig(project="others", mode="offline"))
    assert read_json(tmp_path / "wandb.json")["id"] != name


@pytest.mark.parametrize(("name", "config"), [("wandb", WandbConfig(project="p")), ("mlflow", MlflowConfig())])
def test_an_absent_package_is_one_line_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, config: object
) -> None:
    real = builtins.__import__

    def without(module: str, *rest: Any) -> Any:
        if module.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        PipelineError, match=rf"^track.{name}: it is not installed .* pip install 'sak-distill\[{name}\]'"
    ):
        log(tmp_path, range(1, 2), **{name: config})


class _Breaks:
    """A tracker whose service goes away after its first step."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def write(self, step: int, values: object, /) -> None:
        self.calls.append(f"write {step}")
        if step > 1:
            raise RuntimeError("the server\nis gone")

    def close(self, *, ok: bool) -> None:
        self.calls.append(f"close {ok}")


def test_training_outlives_a_tracker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    breaks = _Breaks()
    with MetricsLog(tmp_path, start=0, trackers=[_Lenient("mlflow", breaks)]) as file:
        for step in (1, 2, 3):
            file.write(step, {"total": 0.0}, speeds={})
    assert breaks.calls == ["write 1", "write 2"]
    assert capfd.readouterr().err == "track.mlflow: the server is gone; training goes on without it\n"
