"""Gradients of several ranks are those of one process, with routers' noise, batch statistics and uneven masks."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.batch_norm import RankBatchNorm
from pipeline.config import TrackConfig
from pipeline.distributed import ALONE, Ranks, joined, ranks_of
from pipeline.errors import PipelineError
from pipeline.loader import Batch
from pipeline.runtime import pick_device
from pipeline.split import Split
from pipeline.trainer import Trainer, TrainPlan
from sak.losses.distill import distill_loss
from sak.losses.tasks import task_losses
from sak.student.model import Student, build_student
from sak.weights import load_weights, save_weights
from tests.sak.student.tiny import IMAGE_SIZE, STAGE2

ROWS = 4
WORKERS = ["pipeline.trainer", "sak.student.model", "sak.losses.tasks"]


def batch_of(split: Split, *, step: int) -> Iterator[Batch]:
    """Random pixels, targets and labels of a step; the first two rows are all but unlabelled."""
    rng = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (ROWS, 3, *IMAGE_SIZE), generator=rng, dtype=torch.uint8)
    labels = {
        "semseg": torch.randint(0, 40, (ROWS, 1, *IMAGE_SIZE), generator=rng).float(),
        "normals": torch.nn.functional.normalize(torch.randn(ROWS, 3, *IMAGE_SIZE, generator=rng)),
        "edge": torch.randint(0, 2, (ROWS, 1, *IMAGE_SIZE), generator=rng).float(),
    }
    labels["semseg"][:2, :, 1:] = 255.0
    labels["normals"][:2] = 0.0
    maps = {"sam": torch.randn(ROWS, 24, 2, 3, generator=rng), "clip": torch.randn(ROWS, 40, 2, 3, generator=rng)}
    for share in split.shares():
        rows = slice(share.start, share.start + split.micro)
        encoded = {name: [{"values": value[rows]}] * 4 for name, value in maps.items()}
        mine = {task: label[rows] for task, label in labels.items()}
        yield Batch(step, np.arange(ROWS)[rows], pixels[rows], mine, encoded, None if split.whole else share)


class Losses:
    """As in stage 2; ``tasks`` leaves out what batch normalisation is in."""

    def __init__(self, student: Student, ranks: Ranks, *, tasks: bool = True) -> None:
        self.student, self.ranks, self.tasks = student, ranks, tasks

    def __call__(self, batch: Batch, /) -> Mapping[str, Tensor]:
        output = self.student(batch.pixels / 255, share=batch.share)
        wanted = {name: [level["values"] for level in levels] for name, levels in batch.encoded.items()}
        # One teacher a step, as where teachers are drawn: the other's path must keep no gradient on any rank.
        name = ("sam", "clip")[batch.step % 2]
        feature = distill_loss({name: wanted[name]}, {name: output.aligned[name]}, "cos+l1")["total"]
        if not self.tasks:
            gates = sum(gate.square().mean() for levels in output.gates.values() for gate in levels)
            return {"distill": feature, "total": feature + gates}
        shares = task_losses("nyud", output.tasks, batch.labels, total=self.ranks.total)
        named = {task: value * self.ranks.world for task, value in shares.items()}
        return {**named, "distill": feature, "total": named["total"] + feature}


def trained(split: Split, folder: Path, *, tasks: bool = True, steps: int = 2) -> dict[str, Tensor]:
    """Gradients and what is recorded of every step, and the running statistics after them."""
    torch.manual_seed(0)
    student = build_student(replace(STAGE2, tasks={"semseg": 40, "normals": 3, "edge": 1}))
    plan = TrainPlan(
        steps=steps,
        rate=lambda step: 0.0,  # weights stay, so that gradients of every step compare
        groups=[(list(student.parameters()), 1.0)],
        weight_decay=0.1,
        clip=0.0,
        precision="fp32",
        track=TrackConfig(tensorboard=False),
        split=split,
        ema=0.5,
    )
    torch.manual_seed(1)
    losses = Losses(student, split.ranks, tasks=tasks)
    run = Trainer(model=student, losses=losses, plan=plan, folder=folder)
    student.train()
    found: dict[str, Tensor] = {}
    for step in range(steps):
        values = run.record(step, run.step(step, batch_of(split, step=step)))
        found |= {f"{step}/{name}": torch.tensor(value) for name, value in values.items()}
        found |= {f"{step}/grad/{name}": p.grad for name, p in student.named_parameters() if p.grad is not None}
    return found | {f"state/{name}": value for name, value in student.state_dict().items() if "running" in name}


def _work(rank: int, world: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with joined() as ranks:
        found = trained(Split(batch=ROWS, ranks=ranks), Path(folder))
        save_weights(Path(folder) / f"rank{rank}.safetensors", found)
        facts = {
            "agreed": ranks.agreed(10 + rank),
            "total": ranks.total(torch.tensor(rank + 1)).item(),
            "mean": ranks.mean(torch.tensor(float(rank))).item(),
            "largest": ranks.largest_later(rank)(),
            "each": ranks.largest(torch.tensor([rank, -rank])).tolist(),
            "gathered": [data.decode() for data in ranks.gathered(b"abcd"[:rank])],
        }
        (Path(folder) / f"rank{rank}.json").write_text(json.dumps(facts))


def on_ranks(world: int, folder: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WORKERS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_work, args=(rank, world, port, str(folder))) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}"
        )


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_losses_and_statistics_are_those_of_one_process(tmp_path: Path, world: int) -> None:
    on_ranks(world, tmp_path)
    alone = trained(Split(batch=ROWS), tmp_path)
    assert any(name.startswith("1/grad/aligners.clip") for name in alone)
    assert not any(name.startswith("1/grad/aligners.sam") for name in alone)
    found = [load_weights(tmp_path / f"rank{rank}.safetensors") for rank in range(world)]
    for mine in found:
        close(mine, alone)
        for name, value in mine.items():
            assert torch.equal(value, found[0][name]), f"{name} differs between ranks"
    for rank in range(world):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == {
            "agreed": 10,
            "total": world * (world + 1) // 2,
            "mean": (world - 1) / 2,
            "largest": world - 1,
            "each": [world - 1, 0],
            "gathered": ["", "a", "ab", "abc"][:world] if rank == 0 else [],
        }


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_are_the_large_batch(tmp_path: Path, accumulate: int) -> None:
    """With noise, but without batch normalisation, which sees micro-batches."""
    found = trained(Split(batch=ROWS, accumulate=accumulate), tmp_path, tasks=False)
    whole = trained(Split(batch=ROWS), tmp_path, tasks=False)
    statistics = {name for name in whole if "running" in name}
    close(*({name: value for name, value in one.items() if name not in statistics} for one in (found, whole)))


def test_alone_everything_is_itself() -> None:
    value = torch.tensor(3.0)
    assert ALONE.first
    assert ALONE.agreed(7) == 7
    assert ALONE.total(value) is value
    assert ALONE.mean(value) is value
    assert ALONE.largest_later(15)() == 15
    assert ALONE.gathered(b"x") == [b"x"]
    forward: Callable[[Any], Any] = dict
    assert ALONE.replica(forward, model=nn.Linear(1, 1)).forward is forward
    with joined() as ranks:
        assert ranks is ALONE


@pytest.mark.parametrize("value", [True, False, 7])
def test_ranks_agree_in_words_of_one_size(value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo copies bytes: a truth of one byte would fill an eighth of what the others wait for."""
    words: list[Tensor] = []
    monkeypatch.setattr(dist, "broadcast", lambda word, src: words.append(word))
    assert [Ranks(rank=rank, world=2).agreed(value) for rank in (0, 1)] == [value, 0]
    assert [word.dtype for word in words] == [torch.int64, torch.int64]


def test_who_is_who() -> None:
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    assert ranks_of(variables) == Ranks(rank=3, world=4, local=1)
    assert ranks_of({}) is ALONE
    assert ranks_of({**variables, "WORLD_SIZE": "1", "RANK": "0"}) is ALONE
    with pytest.raises(PipelineError, match=r"WORLD_SIZE is 4, .* but RANK, MASTER_PORT is not set; start them with"):
        ranks_of({name: value for name, value in variables.items() if name not in ("RANK", "MASTER_PORT")})


def test_each_rank_has_a_gpu_of_its_own_or_says_so() -> None:
    assert pick_device("cpu", ranks=Ranks(rank=1, world=2, local=1)) == torch.device("cpu")
    if torch.cuda.device_count() < 99:
        with pytest.raises(PipelineError, match="'cuda:98' cannot be used here"):
            pick_device("cuda", ranks=Ranks(rank=98, world=99, local=98))


def test_converted_layers_keep_the_very_parameters() -> None:
    layer = nn.BatchNorm2d(3, eps=1e-3, momentum=0.2).train()
    made = RankBatchNorm.convert(layer)
    assert made.weight is layer.weight
    assert made.running_var is layer.running_var
    assert (made.eps, made.momentum, made.training) == (1e-3, 0.2, True)
    assert made.state_dict().keys() == layer.state_dict().keys()
    feat = torch.randn(2, 3, 4, 4)
    assert torch.equal(made.eval()(feat), layer.eval()(feat))
