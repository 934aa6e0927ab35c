"""Kills and interruptions of real processes: the same command again must end where an undisturbed run ended."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sak_process import SakProcess, finished_run, sak, stage_folders, until, write_recipe
from tests.tiny_recipe import stored_bytes

# How often state is saved changes no result, so the undisturbed run saves less.
OFTEN = "track.checkpoint_every=2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    return finished_run(tmp_path_factory)[0]


def records(folder: Path) -> int:
    """Commit records in the store, of view sets and columns."""
    return len(list(folder.glob("store/**/commits/*.json")))


def checkpoints(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / "out").glob(f"{stage}-*/checkpoints/step-*.safetensors"))


def locks(folder: Path) -> list[Path]:
    """Lock files of stages at work, once they name their process."""
    return [path for path in (folder / "out").glob("distill-*/.lock") if path.read_bytes()]


def outcome(folder: Path) -> dict[str, object]:
    """All that a run leaves for people, without its seconds."""
    results = json.loads((folder / "out/results.json").read_text())
    found: dict[str, object] = {
        "results": [{name: value for name, value in row.items() if name != "seconds"} for row in results["runs"]]
    }
    for pattern in ("*/metrics.jsonl", "*/student.safetensors", "eval-*/metrics.json", "eval-*/routers.json"):
        for path in (folder / "out").glob(pattern):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def working_in(folder: Path) -> list[str]:
    """Processes whose working folder this is."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == folder and "zombie" not in (link.parent / "status").read_text():
                found.append(link.parent.name)
    return found


def stop_when(condition: Callable[[], bool], *arguments: str, cwd: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a command and send it a signal as soon as the condition holds; its exit code and stderr."""
    process = SakProcess(*arguments, cwd=cwd)
    until(condition, process=process)
    assert process.running(), "ended before it could be stopped"
    process.send(number)
    ended = process.wait()
    return ended.code, ended.err


def test_killed_again_and_again_ends_as_if_nothing_had_happened(finished: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    total = records(finished)
    # The first records are view sets, the last columns.
    for wanted in (1, 3, total // 2, total - 5):
        code, _ = stop_when(
            lambda least=wanted: records(tmp_path) >= least, "extract", "tiny.yaml", cwd=tmp_path, number=signal.SIGKILL
        )
        assert code == -signal.SIGKILL
        assert wanted <= records(tmp_path) < total, "the kill came too late to test anything"
        # Whole but for the shard in flight, whose files may be there without a record.
        verdict = sak("store", "verify", "store", cwd=tmp_path)
        errors = [line for line in verdict.out.splitlines() if line.startswith("error: ")]
        assert len(errors) <= 1
        assert all("left by a writer that died" in line for line in errors)
        assert verdict.code == len(errors)
    for stage, saved in (("distill", 1), ("distill", 6), ("finetune", 8), ("finetune", 18)):
        mark = f"step-{saved:09d}.safetensors"
        code, _ = stop_when(
            lambda stage=stage, mark=mark: any(path.name >= mark for path in checkpoints(tmp_path, stage)),
            *("run", "tiny.yaml", OFTEN),
            cwd=tmp_path,
            number=signal.SIGKILL,
        )
        assert code == -signal.SIGKILL
    done = sak("run", "tiny.yaml", OFTEN, cwd=tmp_path)
    assert done.code == 0, done.err
    assert stored_bytes(tmp_path / "store") == stored_bytes(finished / "store")
    assert outcome(tmp_path) == outcome(finished)


def test_kill_with_worker_processes_leaves_none_behind(finished: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    workers = "extract.workers=2"
    code, _ = stop_when(
        lambda: records(tmp_path) >= 1, "extract", "tiny.yaml", workers, cwd=tmp_path, number=signal.SIGKILL
    )
    assert code == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while working_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert working_in(tmp_path) == []
    done = sak("extract", "tiny.yaml", workers, cwd=tmp_path)
    assert done.code == 0, done.err
    assert stored_bytes(tmp_path / "store") == stored_bytes(finished / "store")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_training_saves_says_so_and_goes_on(
    number: signal.Signals, finished: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    finished_run(tmp_path_factory, tmp_path)
    for stage in ("distill", "finetune", "eval"):
        for folder in stage_folders(tmp_path, stage):
            (folder / "stage.json").unlink()
            for path in checkpoints(tmp_path, stage):
                path.unlink()
            (folder / "metrics.jsonl").unlink(missing_ok=True)
    log = stage_folders(tmp_path, "distill")[0] / "metrics.jsonl"
    code, err = stop_when(
        lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, "run", "tiny.yaml", cwd=tmp_path, number=number
    )
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 0}[number]
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("sak: both: distill: stopped at step ")
    assert "rerun" in last
    step = int(last.split("stopped at step ")[1].split()[0])
    assert [path.name for path in checkpoints(tmp_path, "distill")] == [f"step-{step:09d}.safetensors"]
    done = sak("run", "tiny.yaml", cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"resuming at step {step} of 30" in done.err
    assert outcome(tmp_path) == outcome(finished)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "sak: interrupted; the same command goes on where it stopped"),
        (signal.SIGTERM, 0, "sak: extract: stopped by SIGTERM; the same command goes on where it stopped"),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_interrupted_extraction_is_one_line_and_goes_on(
    number: signal.Signals, code: int, said: str, workers: int, finished: Path, tmp_path: Path
) -> None:
    write_recipe(tmp_path)
    command = ("extract", "tiny.yaml", f"extract.workers={workers}")
    found, err = stop_when(lambda: records(tmp_path) >= 1, *command, cwd=tmp_path, number=number)
    assert (found, err.splitlines()[-1]) == (code, said)
    assert "Traceback" not in err
    events = (tmp_path / "out" / "extract" / "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["event"] == "run_interrupted"
    assert sak(*command, cwd=tmp_path).code == 0
    assert stored_bytes(tmp_path / "store") == stored_bytes(finished / "store")


def test_two_extractions_at_once_make_one_store(finished: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    both = [SakProcess("extract", "tiny.yaml", cwd=tmp_path) for _ in range(2)]
    for process in both:
        ended = process.wait()
        assert ended.code == 0, ended.err
    assert sak("store", "verify", "store", cwd=tmp_path).out == "every committed byte is as recorded\n"
    assert stored_bytes(tmp_path / "store") == stored_bytes(finished / "store")


def test_two_trainings_at_once_are_one_and_a_refusal(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    finished_run(tmp_path_factory, tmp_path)
    shutil.rmtree(tmp_path / "out")
    first = SakProcess("distill", "tiny.yaml", cwd=tmp_path)
    until(lambda: bool(locks(tmp_path)), process=first)
    first.send(signal.SIGSTOP)
    second = sak("distill", "tiny.yaml", cwd=tmp_path)
    holder = locks(tmp_path)[0].read_text()
    first.send(signal.SIGCONT)
    assert second.code == 2
    last = second.err.splitlines()[-1]
    assert last.startswith("sak: out/distill-")
    assert f"process {holder} is working in it" in last
    assert "Traceback" not in second.err
    assert first.wait().code == 0
    assert sak("distill", "tiny.yaml", cwd=tmp_path).code == 0
