from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pipeline.runtime import visible_gpus

pytest.importorskip("distributed")

from distributed import Client

from pipeline.cluster.local_workers import LocalWorkers


def seen() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_gpus_are_dealt_out_to_workers() -> None:
    with LocalWorkers(3, gpus=["2", "5"], dashboard=None) as cluster, Client(cluster, set_as_default=False) as client:
        names = {about["name"]: where for where, about in client.scheduler_info(n_workers=-1)["workers"].items()}
        found: dict[str, Any] = client.run(seen)
    assert {name: found[where] for name, where in names.items()} == {0: "2", 1: "5", 2: "2"}


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
