"""Every data set on disk, from its files to losses, scores and pictures: no part of the way knows just some of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.images.registry import LABELLED
from pipeline.images.sample import ImageSource
from pipeline.pixels import decode_sample, encode_sample
from pipeline.report.colour import DepthRange, colour_task
from pipeline.stages.evaluate import decode_predictions
from pipeline.tensors import to_tensors
from pipeline.views import ViewSpec, apply_view, draw_view
from sak.losses.tasks import task_losses
from sak.metrics import TaskMetrics
from sak.tasks import dataset_spec

SIZE = (24, 32)


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_a_data_set_are_stored_learnt_scored_and_shown(opener: Callable[..., ImageSource], name: str) -> None:
    source, view = opener(name), ViewSpec(kind="multitask", size=SIZE)
    views = []
    for index, key in enumerate(source.keys()):
        sample = source.read(index)
        drawn = apply_view(draw_view(view, seed=0, key=key, view=0, sample=sample), sample)
        stored = decode_sample(encode_sample(drawn), key=key, tasks=source.tasks)
        for task in source.tasks:
            np.testing.assert_allclose(stored.labels[task], drawn.labels[task], atol=1e-3)
        views.append(stored)
    labels = to_tensors(views).labels
    tasks = dataset_spec(source.dataset).tasks
    torch.manual_seed(0)
    logits = {task: torch.randn(len(views), spec.channels, *SIZE) for task, spec in tasks.items()}
    losses = task_losses(source.dataset, logits, labels)
    assert all(float(losses[task]) > 0 for task in tasks)
    metrics = TaskMetrics(source.dataset, list(tasks))
    metrics.update(logits, labels)
    scores = metrics.compute()
    for task, spec in tasks.items():
        assert math.isfinite(scores[task][spec.metric])
        assert set(scores[task]) >= {spec.metric, *spec.extra_metrics}
    for task, shown in decode_predictions(logits).items():
        picture = colour_task(task, shown[0], dataset=source.dataset, limits=DepthRange(0.0, 1.0))
        assert picture.shape == (*SIZE, 3)
