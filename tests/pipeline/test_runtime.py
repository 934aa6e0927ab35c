from __future__ import annotations

import platform

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.runtime import autocast, device_name, pick_device, seed_everything, versions

CPU = torch.device("cpu")


def test_auto_takes_what_there_is() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "warp", ""])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(PipelineError, match="take auto, cpu or cuda") as caught:
        pick_device(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(("name", "made"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_a_gpu_that_is_named_is_the_current_one(name: str, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its generator's state would be in no checkpoint."""
    current: list[str] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    assert pick_device(name) == torch.device(name)
    assert current == made


def test_seeding_repeats_the_draws() -> None:
    threads = torch.get_num_threads()
    seed_everything(3, threads=1)
    assert torch.get_num_threads() == 1
    first = torch.randn(4)
    seed_everything(3, threads=None)
    assert torch.equal(first, torch.randn(4))
    seed_everything(4, threads=threads)
    assert not torch.equal(first, torch.randn(4))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_of_a_layer(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, precision=precision):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(PipelineError, match="use bf16 or fp32"):
        autocast(CPU, precision="fp16")


def test_records_name_the_machine_and_versions() -> None:
    assert "CPU" in device_name(CPU)
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
