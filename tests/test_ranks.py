"""Several real processes train as one does: gloo ranks on this machine, with kills, signals and faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sak.weights import load_metadata, load_weights
from tests.sak_process import REPOSITORY, Outcome, SakProcess, ranks, sak, stage_folders, until, write_recipe

# float32 sums in another order, through steps of AdamW.
CLOSE = 2e-4
SHORT = ("--run", "both", "distill.steps=10", "finetune.steps=4", "track.checkpoint_every=4")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and both stages trained by one process in ``out``; not to be changed."""
    folder = tmp_path_factory.mktemp("alone")
    write_recipe(folder)
    for stage in ("extract", "distill", "finetune"):
        done = sak(stage, "tiny.yaml", *SHORT, cwd=folder)
        assert done.code == 0, done.err
    return folder


def place(alone: Path, folder: Path, *, stages: tuple[str, ...] = ()) -> Path:
    """A folder with the same store, and results of these stages."""
    write_recipe(folder)
    shutil.copytree(alone / "store", folder / "store")
    for stage in stages:
        for found in stage_folders(alone, stage):
            shutil.copytree(found, folder / "out" / found.name)
    return folder


def ended(processes: list[SakProcess]) -> list[Outcome]:
    return [process.wait() for process in processes]


def said(outcome: Outcome) -> list[str]:
    """What a rank printed; torch's C++ is quiet only where torch was loaded by the command itself."""
    return [line for line in outcome.err.splitlines() if not line.startswith("[rank")]


def lines(folder: Path, stage: str) -> list[dict[str, float]]:
    (path,) = stage_folders(folder, stage)
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_close(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert len(one) == len(other)
    for line, same in zip(one, other, strict=True):
        assert losses(line) == pytest.approx(losses(same), rel=CLOSE)
        assert {**line, "grad_norm": 0} == pytest.approx(
            {**same, "grad_norm": 0}, rel=CLOSE, abs=1e-3
        )  # cosines, gates


def losses(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if "/" not in name and name != "grad_norm"}


def steps_done(folder: Path, stage: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "out").glob(f"{stage}-*/metrics.jsonl"))


@pytest.mark.parametrize("world", [2, 4])
def test_both_stages_as_one_process(alone: Path, tmp_path: Path, world: int) -> None:
    """The same rows, noise, masked losses and batch statistics; files as one process writes them, and no others."""
    place(alone, tmp_path)
    for stage in ("distill", "finetune"):
        for outcome in ended(ranks(world, stage, "tiny.yaml", *SHORT, cwd=tmp_path)):
            assert outcome.code == 0, outcome.err
        assert_close(lines(tmp_path, stage), lines(alone, stage))
        (mine,), (theirs,) = stage_folders(tmp_path, stage), stage_folders(alone, stage)
        assert mine.name == theirs.name
        assert sorted(path.name for path in mine.iterdir()) == sorted(path.name for path in theirs.iterdir())
        assert load_metadata(mine / "student.safetensors") == load_metadata(theirs / "student.safetensors")
        got, wanted = load_weights(mine / "student.safetensors"), load_weights(theirs / "student.safetensors")
        assert {name: value.shape for name, value in got.items()} == {n: value.shape for n, value in wanted.items()}


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_scoring_is_that_of_one_process_to_the_last_bit(alone: Path, tmp_path: Path, world: int) -> None:
    """Boundaries and the held-out loss included; four images are two batches, so that two of four ranks have none."""
    options = (*SHORT, "eval.boundary=odsF", "eval.batch=2", "eval.save=true")
    for folder, count in ((tmp_path / "one", 1), (tmp_path / "many", world)):
        place(alone, folder, stages=("distill", "finetune"))
        for outcome in ended(ranks(count, "eval", "tiny.yaml", *options, cwd=folder)):
            assert outcome.code == 0, outcome.err
    (one,), (many,) = (stage_folders(tmp_path / name, "eval") for name in ("one", "many"))
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in many.iterdir())
    assert {"metrics.json", "routers.json", "gallery.npz", "boundary.parquet"} <= {*files}
    for name in ("metrics.json", "routers.json", "boundary.parquet"):
        assert (one / name).read_bytes() == (many / name).read_bytes(), name
    assert json.loads((one / "metrics.json").read_text())["distill"]["loss"] > 0
    maps = {path.relative_to(one): path.read_bytes() for path in (one / "predictions").rglob("*.*g")}
    assert len(maps) == 4 * 6 + 1
    assert all((many / name).read_bytes() == data for name, data in maps.items())


def test_learnt_weights_of_tasks_and_fresh_views_are_those_of_one_process(alone: Path, tmp_path: Path) -> None:
    """Norms of gradients are the batch's, through batch normalisation over ranks; a fresh view is no rank's own."""
    command = ("finetune", "tiny.yaml", "--run", "labels", "finetune.steps=5", "finetune.crops=fresh")
    options = ("finetune.alpha=0", "finetune.weighting=gradnorm", "finetune.lora={rank: 2}", "student.head=light")
    both = place(alone, tmp_path / "both"), place(alone, tmp_path / "one")
    for folder, world in zip(both, (2, 1), strict=True):
        for outcome in ended(ranks(world, *command, *options, cwd=folder)):
            assert outcome.code == 0, outcome.err
    found, wanted = (lines(folder, "finetune") for folder in both)
    assert_close(found, wanted)
    weights = [{name: value for name, value in line.items() if name.startswith("weight/")} for line in found]
    assert len(weights[-1]) == 6
    assert len({*weights[-1].values()}) > 1
    assert weights[-1] == pytest.approx({name: wanted[-1][name] for name in weights[-1]}, rel=1e-3)


def test_killed_and_resumed_on_as_many_ranks_is_the_same_and_on_others_close(alone: Path, tmp_path: Path) -> None:
    """Four ranks, because of two the sum has but one order."""
    command = ("distill", "tiny.yaml", *SHORT)
    whole, cut = place(alone, tmp_path / "whole"), place(alone, tmp_path / "cut")
    assert {outcome.code for outcome in ended(ranks(4, *command, cwd=whole))} == {0}
    processes = ranks(4, *command, cwd=cut)
    until(lambda: steps_done(cut, "distill") >= 6, process=processes[0])
    for process in processes:
        process.send(signal.SIGKILL)
    assert {outcome.code for outcome in ended(processes)} == {-signal.SIGKILL}
    assert 4 <= steps_done(cut, "distill") < 10, "the kill came too late to test anything"
    elsewhere = {world: tmp_path / f"on{world}" for world in (1, 2)}
    for folder in elsewhere.values():
        shutil.copytree(cut, folder)
    again = ended(ranks(4, *command, cwd=cut))
    assert {outcome.code for outcome in again} == {0}, again
    assert "resuming at step" in again[0].err
    assert said(again[1]) == []
    (one,), (other,) = stage_folders(whole, "distill"), stage_folders(cut, "distill")
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for world, folder in elsewhere.items():
        outcomes = ended(ranks(world, *command, cwd=folder))
        assert {outcome.code for outcome in outcomes} == {0}, outcomes
        assert_close(lines(folder, "distill"), lines(whole, "distill"))


def test_sigterm_to_one_rank_stops_all_at_one_step_with_exit_0(alone: Path, tmp_path: Path) -> None:
    place(alone, tmp_path, stages=("distill",))
    options = (*SHORT, "finetune.steps=400", "track.checkpoint_every=1000")
    processes = ranks(2, "finetune", "tiny.yaml", *options, cwd=tmp_path)
    until(lambda: steps_done(tmp_path, "finetune") >= 3, process=processes[0])
    processes[1].send(signal.SIGTERM)
    outcomes = ended(processes)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    last = outcomes[0].err.splitlines()[-1]
    assert last.startswith("sak: both: finetune: stopped at step ")
    assert said(outcomes[1]) == []
    step = int(last.split("stopped at step ")[1].split()[0])
    (folder,) = stage_folders(tmp_path, "finetune")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step:09d}.safetensors"]


def test_a_rank_that_dies_of_its_data_says_so_alone(alone: Path, tmp_path: Path) -> None:
    """Only rank 1 reads the damaged rows of the first step; rank 0 waits for it and ends without a word."""
    place(alone, tmp_path)
    for path in (tmp_path / "store").glob("views/*unlabeled*/images/*.tar"):
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(bytes(data))
    outcomes = ended(ranks(2, "distill", "tiny.yaml", *SHORT, cwd=tmp_path))
    told = [line for outcome in outcomes for line in outcome.err.splitlines() if line.startswith("sak:")]
    assert len(told) == 1, outcomes
    assert told[0].startswith(("sak: rank 0: ", "sak: rank 1: "))
    assert "run sak store verify" in told[0]
    assert sorted(outcome.code for outcome in outcomes) == [1, 2]
    assert not [outcome for outcome in outcomes if "Traceback" in outcome.err]


def test_a_rank_that_is_killed_ends_the_others_with_one_line(alone: Path, tmp_path: Path) -> None:
    place(alone, tmp_path)
    processes = ranks(2, "distill", "tiny.yaml", *SHORT, "distill.steps=4000", cwd=tmp_path)
    until(lambda: steps_done(tmp_path, "distill") >= 3, process=processes[0])
    processes[1].send(signal.SIGKILL)
    outcomes = ended(processes)
    assert [outcome.code for outcome in outcomes] == [2, -signal.SIGKILL]
    last = outcomes[0].err.splitlines()[-1]
    assert last.startswith("sak: rank 0: lost contact with another rank")
    assert "the same command goes on from the last checkpoint" in last
    assert "Traceback" not in outcomes[0].err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("distill", "tiny.yaml", "--run", "both", "distill.batch=5"), "distill.batch: expected rows that 2 ranks x 1"),
        (("run", "tiny.yaml"), "only sak distill, sak finetune and sak eval work on"),
        (("distill", "tiny.yaml", "distill.bath=4"), "distill.bath"),
    ],
)
def test_input_to_correct_is_told_once(alone: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    place(alone, tmp_path)
    outcomes = ended(ranks(2, *arguments, cwd=tmp_path))
    told = [line for outcome in outcomes for line in outcome.err.splitlines()]
    assert sum(message in line for line in told) == 1, told
    assert sum(line.startswith("sak: rank ") for line in told) == 1, told
    assert sorted(outcome.code for outcome in outcomes) == [1, 2]


def torchrun(world: int, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """As users start it."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}", "-m", "--", "cli"]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, *arguments], cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_torchrun_itself(alone: Path, tmp_path: Path) -> None:
    place(alone, tmp_path)
    process = torchrun(2, "distill", "tiny.yaml", *SHORT, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert_close(lines(tmp_path, "distill"), lines(alone, "distill"))
    shown = [line for line in err.splitlines() if not line.startswith(("*", "Setting OMP"))]
    assert [line for line in shown if "distill" not in line] == [], "one rank prints, and torch says nothing"


@pytest.mark.slow
def test_torchrun_hands_on_sigterm_and_names_the_rank_that_failed(alone: Path, tmp_path: Path) -> None:
    place(alone, tmp_path)
    process = torchrun(
        4, "distill", "tiny.yaml", *SHORT, "distill.steps=4000", "track.checkpoint_every=9999", cwd=tmp_path
    )
    while steps_done(tmp_path, "distill") < 3 and process.poll() is None:
        pass
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert err.count("sak: both: distill: stopped at step ") == 1
    assert len(list((tmp_path / "out").glob("distill-*/checkpoints/step-*.safetensors"))) == 1
    process = torchrun(2, "distill", "tiny.yaml", "--run", "both", "distill.batch=5", cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert err.count("sak: rank ") == 1
    assert process.returncode == 1
