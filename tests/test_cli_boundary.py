"""``sak eval boundary`` as a user meets it, beside ``sak eval RECIPE``: processes, files, one line for each mistake."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.boundary.counts import read_counts
from tests.pipeline.boundary.pairs import draw, write_label_map, write_prediction, write_set
from tests.sak_process import REPOSITORY, SakProcess, sak, until

FOLDERS = ["--predictions", "pred", "--labels", "labels"]


def test_scores_are_printed_and_found_again(tmp_path: Path) -> None:
    write_set(tmp_path)
    first = sak("eval", "boundary", *FOLDERS, "--workers", "2", cwd=tmp_path)
    assert first.code == 0, first.err
    assert "tolerance 0.0075 of the diagonal, as goes with LabelMap labels" in first.err
    assert re.search(r"│ +4 │ +[\d.]+ │ +[\d.]+ │ +[\d.]+ │ +0\.\d+ │ +0\.0075 │ sak +│", first.out)
    assert "counts: pred.boundary/counts-sak-0.0075.parquet" in first.out
    again = sak("eval", "boundary", *FOLDERS, cwd=tmp_path)
    assert again.out == first.out
    assert "4 of 4 images are counted already, skipped" in again.err
    (tmp_path / "some.txt").write_text("im2\n")
    part = sak(
        "eval", "boundary", "--counts", "pred.boundary/counts-sak-0.0075.parquet", "--ids", "some.txt", cwd=tmp_path
    )
    assert part.code == 0, part.err
    assert "│      1 │" in part.out
    assert (tmp_path / "pred.boundary/pr-sak-0.0075-some.svg").exists()


def test_protocols_tolerances_and_places_are_as_asked(tmp_path: Path) -> None:
    write_set(tmp_path, images=2)
    options = ["--protocol", "invpt", "--max-dist", "0.02", "--out", "made/here"]
    done = sak("eval", "boundary", *FOLDERS, *options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "│ invpt" in done.out
    assert read_counts(tmp_path / "made/here/counts-invpt-0.02.parquet").rules == ("invpt", 0.02)


def test_a_recipe_is_still_what_eval_takes(tmp_path: Path) -> None:
    for arguments in (["eval", "none.yaml"], ["eval", "./boundary"], ["eval", "--run", "a", "boundary"]):
        done = sak(*arguments, cwd=tmp_path)
        assert done.code == 2
        assert "no such recipe" in done.err
    assert "see sak eval --help" in sak("eval", cwd=tmp_path).err


MISTAKES = [
    ([], ["give --predictions DIR and --labels DIR, or --counts FILE", "sak eval boundary --help"]),
    (["--predictions", "pred"], ["give --predictions DIR and --labels DIR"]),
    ([*FOLDERS, "--counts", "x"], ["or --counts FILE"]),
    (["--counts", "none.parquet"], ["none.parquet: no such file"]),
    (["--counts", "damaged.parquet"], ["damaged.parquet: no table of boundary counts"]),
    (["--counts", "damaged.parquet", "--protocol", "sak"], ["has its own protocol and tolerance"]),
    (["--predictions", "none", "--labels", "labels"], ["none: cannot list predictions"]),
    (["--predictions", "labels", "--labels", "labels"], ["labels: no predictions NAME.png"]),
    ([*FOLDERS, "--protocol", "seism"], ["seism", "invpt"]),
    ([*FOLDERS, "--max-dist", "4.69"], ["tolerance in (0, 0.1]", "4.69"]),
    ([*FOLDERS, "--max-dist", "nan"], ["tolerance in (0, 0.1]"]),
    ([*FOLDERS, "--ids", "none.txt"], ["none.txt: split list cannot be read"]),
    ([*FOLDERS, "--ids", "odd.txt"], ["im9: no prediction", "im9: no label"]),
    ([*FOLDERS, "--workers", "0"], ["--workers"]),
    (["--predictions", "pred", "--labels", "fewer"], ["im1: no label NAME.mat or NAME.png in fewer", "--ids FILE"]),
    (
        ["--predictions", "hurt", "--labels", "labels"],
        ["1 of 2 images cannot be used", "hurt/im1.png: cannot be decoded"],
    ),
    (["--predictions", "pred", "--labels", "small"], ["pred/im0.png", "(40, 48)", "(20, 48)"]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with one fault each."""
    root = tmp_path_factory.mktemp("faults")
    write_set(root, images=2)
    (root / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (root / "odd.txt").write_text("im0\nim9\n")
    write_label_map(root / "fewer/im0.mat", draw(0))
    shutil.copytree(root / "pred", root / "hurt")
    (root / "hurt/im1.png").write_bytes((root / "pred/im1.png").read_bytes()[:200])
    for name in ("im0", "im1"):
        write_label_map(root / "small" / f"{name}.mat", draw(0, size=(20, 48)))
    return root


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES)
def test_a_mistake_is_one_line(arguments: list[str], parts: list[str], folders: Path) -> None:
    done = sak("eval", "boundary", *arguments, cwd=folders)
    lines = [line for line in done.err.splitlines() if line.startswith("sak: ")]
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert len(lines) == 1, done.err
    for part in parts:
        assert part in lines[0]


def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path: Path) -> None:
    drawn = write_set(tmp_path, images=5)
    whole = sak("eval", "boundary", *FOLDERS, "--workers", "1", "--out", "whole", cwd=tmp_path)
    held = tmp_path / "pred/im3.png"
    held.unlink()
    os.mkfifo(held)  # whoever reads it waits: three images are counted when somebody does
    process = SakProcess("eval", "boundary", *FOLDERS, "--workers", "1", "--out", "out", cwd=tmp_path)
    until(lambda: is_read(held), process=process)
    process.send(signal.SIGINT)
    time.sleep(0.5)  # a signal between Python's last look and the system's read is only seen when the read ends
    os.close(kept.pop())
    stopped = process.wait()
    assert stopped.code == 130, stopped
    assert "interrupted; the same command goes on where it stopped" in stopped.err
    held.unlink()
    write_prediction(held, drawn["im3"])
    resumed = sak("eval", "boundary", *FOLDERS, "--workers", "1", "--out", "out", cwd=tmp_path)
    assert "3 of 5 images are counted already, skipped" in resumed.err
    assert resumed.out.replace("out/", "whole/") == whole.out
    name = "counts-sak-0.0075.parquet"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def is_read(fifo: Path) -> bool:
    """Whether a process has a named pipe open for reading, or waits for it to open."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    kept.append(descriptor)  # closed now, it would end the reader's wait
    return True


kept: list[int] = []


def test_it_loads_no_torch(tmp_path: Path) -> None:
    write_set(tmp_path, images=1)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cli", "eval", "boundary", *FOLDERS, "--workers", "1"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\| +(torch|timm)$", done.stderr, flags=re.MULTILINE)
