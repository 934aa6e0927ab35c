"""Where numbers of training go besides the stage's own files: TensorBoard, Weights & Biases, MLflow.

All of it on rank 0 alone. The last two are optional packages, imported when a recipe asks for them; the name of the run
there is kept in the stage's folder, so that a resumed stage goes on in it. One that fails later than at the start is
told of and left: training does not end for it.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.config_track import MlflowConfig, TrackConfig, WandbConfig
from pipeline.errors import PipelineError
from pipeline.stagedir import read_json, write_json
from pipeline.tracking import CONSOLE, Tracker

__all__ = ["Told", "open_trackers"]

_LONGEST, _PARAMS = 500, 100  # of a value and in one call, as MLflow takes them


class Told(NamedTuple):
    """What is told of a run: its name, and what it depends on, ready for JSON."""

    name: str
    inputs: Mapping[str, object]


def open_trackers(track: TrackConfig, folder: Path, /, *, told: Told, start: int) -> list[Tracker]:
    """What a recipe asks for, on from step ``start``.

    Raises:
        PipelineError: A package is not installed, or refuses to begin.
    """
    found: list[Tracker] = []
    if track.tensorboard:
        found.append(_TensorBoard(folder / "tensorboard", start=start))
    if track.wandb is not None:
        found.append(_Lenient("wandb", _Wandb(track.wandb, folder, told)))
    if track.mlflow is not None:
        found.append(_Lenient("mlflow", _Mlflow(track.mlflow, folder, told)))
    return found


class _TensorBoard:
    def __init__(self, folder: Path, /, *, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # it costs a second

        self._writer = SummaryWriter(log_dir=str(folder), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, ok: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, config: WandbConfig, folder: Path, told: Told, /) -> None:
        with _extra("wandb"):
            import wandb
        where = {"project": config.project, "entity": config.entity}
        name = _kept(folder / "wandb.json", where) or os.urandom(4).hex()
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        with _refusals("wandb", "run wandb login, or set track.wandb.mode to offline"):
            self._run = wandb.init(
                id=name,
                resume="allow",
                name=told.name,
                dir=str(folder),
                config=dict(told.inputs),
                settings=settings,
                group=config.group,
                mode=config.mode,
                project=config.project,
                entity=config.entity,
            )
        write_json(folder / "wandb.json", {"id": name, **where})
        # Steps as an axis of our own: those that a killed run told already may come again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        self._run.log({"step": step, **values})

    def close(self, *, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)


class _Mlflow:
    def __init__(self, config: MlflowConfig, folder: Path, told: Told, /) -> None:
        with _extra("mlflow"):
            from mlflow import entities, tracking
        self._entities = entities
        with _refusals("mlflow", "check track.mlflow.uri, such as sqlite:///runs/mlflow.db"):
            self._client = tracking.MlflowClient(tracking_uri=config.uri)
            where = {"uri": self._client.tracking_uri, "experiment": config.experiment}
            self._run = _kept(folder / "mlflow.json", where) or self._created(config.experiment, told)
            self._client.update_run(self._run, status="RUNNING")
        write_json(folder / "mlflow.json", {"id": self._run, **where})

    def _created(self, experiment: str, told: Told) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        run: str = self._client.create_run(number, run_name=told.name).info.run_id
        params = [self._entities.Param(name, value[:_LONGEST]) for name, value in _flat(told.inputs)]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(run, params=params[first : first + _PARAMS])
        return run

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, ok: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if ok else "FAILED")


class _Lenient:
    """A tracker whose failure ends its own work alone."""

    def __init__(self, name: str, tracker: Tracker, /) -> None:
        self._name, self._tracker = name, tracker
        self._failed = False

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        if not self._failed:
            try:
                self._tracker.write(step, values)
            except Exception as error:  # whatever someone else's library raises
                self._fail(error)

    def close(self, *, ok: bool) -> None:
        if not self._failed:
            try:
                self._tracker.close(ok=ok)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        CONSOLE.print(f"track.{self._name}: {_line(error)}; training goes on without it")


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Around the import of an optional package."""
    try:
        with _quiet():
            yield
    except ImportError as error:
        raise PipelineError(
            f"track.{name}: it is not installed here ({error}); pip install 'sak-distill[{name}]', or drop the key"
        ) from error


@contextmanager
def _refusals(name: str, remedy: str) -> Iterator[None]:
    """Errors of someone else's library, in one line of ours."""
    try:
        with _quiet():
            yield
    except Exception as error:
        raise PipelineError(f"track.{name}: {_line(error)}; {remedy}, or drop the key") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Their warnings are about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def _kept(path: Path, where: Mapping[str, object]) -> str | None:
    """The run that this stage began there, if it did."""
    found = read_json(path) if path.exists() else {}
    return str(found["id"]) if found and {**found, **where} == found else None


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested mappings under dotted names."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)
