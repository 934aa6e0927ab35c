"""The ``track:`` section of a recipe: what is recorded while a stage trains, and where."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import positive
from pipeline.config_teachers import STRICT

__all__ = ["MlflowConfig", "TrackConfig", "WandbConfig"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class WandbConfig:
    """Weights & Biases; ``mode`` is as its WANDB_MODE says where not given, and ``offline`` needs no network."""

    project: str
    entity: str | None = None
    group: str | None = None
    mode: Literal["online", "offline"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class MlflowConfig:
    """MLflow; ``uri`` is a server or a database as ``sqlite:///runs/mlflow.db``, or as its MLFLOW_TRACKING_URI says."""

    experiment: str = "sak"
    uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TrackConfig:
    """What is recorded while a stage runs. Nothing here changes a result."""

    log_every: int = 10
    checkpoint_every: int = 500
    keep: int = 2
    tensorboard: bool = True
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None

    def __post_init__(self) -> None:
        positive("track", {"log_every": self.log_every, "checkpoint_every": self.checkpoint_every, "keep": self.keep})

    def records(self, done: int, /, *, of: int) -> bool:
        """Whether the step that makes it ``done`` steps is recorded."""
        return done % self.log_every == 0 or done in (1, of)
