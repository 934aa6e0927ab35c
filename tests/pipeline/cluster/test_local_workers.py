from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import torch

from pipeline.runtime import visible_gpus

pytest.importorskip("distributed")

from pipeline.cluster.dask_cluster import DaskCluster
from pipeline.extraction_log import ExtractionLog


class Seen(NamedTuple):
    gpu: str
    messages: int
    stimuli: int
    looks: int
    profiles: bool


def seen(dask_worker: Any) -> Seen:
    return Seen(
        os.environ["CUDA_VISIBLE_DEVICES"],
        dask_worker.batched_stream.recent_message_log.maxlen,
        dask_worker.state.stimulus_log.maxlen,
        dask_worker.monitor.maxlen,
        "profile" in dask_worker.periodic_callbacks,
    )


def test_workers_have_gpus_dealt_out_and_keep_few_notes() -> None:
    log = ExtractionLog(None)
    with DaskCluster(3, scheduler=None, gpu=False, gpus=["2", "5"], threads=1, log=log) as cluster:
        client = cluster.client
        names = {about["name"]: where for where, about in client.scheduler_info(n_workers=-1)["workers"].items()}
        found: dict[str, Seen] = client.run(seen)
        assert client.scheduler_comm.recent_message_log.maxlen == 100
        assert client.cluster.scheduler.transition_log.maxlen == 100
    assert {name: found[where].gpu for name, where in names.items()} == {0: "2", 1: "5", 2: "2"}
    assert {notes[1:] for notes in found.values()} == {(100, 100, 600, False)}


@pytest.mark.parametrize(
    ("device", "given", "names"),
    [
        ("cpu", None, []),
        ("cuda:1", None, []),
        ("cuda", None, ["0", "1", "2"]),
        ("cuda", "3,GPU-7, 5", ["3", "GPU-7", "5"]),
    ],
)
def test_gpus_are_those_that_this_process_sees(
    device: str, given: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus(torch.device(device)) == names
