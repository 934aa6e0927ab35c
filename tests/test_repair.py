"""``sak store repair`` and ``verify --recompute`` as a user meets them: processes, exit codes, what they print."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.sak_process import SakProcess, finished_run, sak, until

WHOLE = "every committed byte is as recorded\n"


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A finished run to damage."""
    return finished_run(tmp_path_factory, tmp_path / "copy")[0]


def stored(folder: Path) -> dict[str, bytes]:
    """A store's files, without what their making cost."""
    root = folder / "store"
    found = sorted(path for path in root.rglob("*") if path.is_file() and "costs" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def one(folder: Path, pattern: str) -> Path:
    return sorted((folder / "store").glob(pattern))[-1]


def damage(folder: Path) -> list[str]:
    """A flipped byte, a cut, a missing file, two swapped shards and two missing records; what is found of them."""
    flipped = one(folder, "columns/*unlabeled*/first-*/level_1/c/2/**/0")
    data = bytearray(flipped.read_bytes())
    data[len(data) // 3] ^= 16
    flipped.write_bytes(data)
    cut = one(folder, "views/*unlabeled*/images/part-00003.tar")
    os.truncate(cut, cut.stat().st_size - 513)
    gone = one(folder, "columns/*train*/second-*/level_0/c/1/**/0")
    gone.unlink()
    swapped = [one(folder, f"columns/*unlabeled*/second-*/level_3/c/{part}/**/0") for part in (0, 1)]
    first, second = (path.read_bytes() for path in swapped)
    swapped[0].write_bytes(second)
    swapped[1].write_bytes(first)
    one(folder, "columns/*val*/first-*/commits/part-00000.json").unlink()
    one(folder, "views/*train*/commits/part-00000.json").unlink()
    return [path.relative_to(folder / "store").as_posix() for path in (flipped, cut, gone, *swapped)]


def test_damage_is_named_and_repaired_byte_for_byte(copy: Path) -> None:
    before = stored(copy)
    damaged = damage(copy)
    verdict = sak("store", "verify", "store", cwd=copy)
    assert verdict.code == 1
    assert all(any(f"error: {path} (rows " in line for line in verdict.out.splitlines()) for path in damaged)
    hurt = stored(copy)
    planned = sak("store", "repair", "store", "tiny.yaml", "--dry-run", cwd=copy)
    assert (planned.code, planned.out.splitlines()[-1]) == (0, "nothing would be left damaged")
    assert stored(copy) == hurt
    assert sum(line.startswith("would remake ") for line in planned.out.splitlines()) == 9
    done = sak("store", "repair", "store", "tiny.yaml", cwd=copy)
    assert done.code == 0, done.out + done.err
    lines = done.out.splitlines()
    # The columns over the view set's missing record agree with it again, and are not made again.
    assert sum(line.startswith("remade views/") for line in lines) == 2
    assert sum(line.startswith("remade columns/") for line in lines) == 5
    assert lines[-1] == WHOLE.strip()
    assert stored(copy) == before
    assert sak("store", "verify", "store", cwd=copy).out == WHOLE
    assert sak("store", "repair", "store", "tiny.yaml", cwd=copy).out == WHOLE


def test_what_another_recipe_cannot_repair_is_left_with_a_line_to_type(copy: Path) -> None:
    damage(copy)
    hurt = stored(copy)
    others = ["teachers.first.random=8", "teachers.second.random=9", "data.distill.seed=4", "data.finetune.seed=4"]
    done = sak("store", "repair", "store", "tiny.yaml", *others, "data.eval.seed=4", cwd=copy)
    assert done.code == 1
    assert done.out.splitlines()[-1] == "damage is left"
    assert "remedy: sak store discard store scenes-unlabeled-" in done.out
    assert stored(copy) == hurt


@pytest.mark.parametrize("moment", ["at once", "later"])
def test_a_killed_repair_is_finished_by_the_next(copy: Path, moment: str) -> None:
    before = stored(copy)
    damage(copy)
    record = one(copy, "views/*unlabeled*/commits/part-00003.json")
    stamp = record.stat().st_mtime_ns
    process = SakProcess("store", "repair", "store", "tiny.yaml", cwd=copy)
    if moment == "at once":
        until(lambda: not record.exists() or record.stat().st_mtime_ns != stamp, process=process)
    else:
        shard = one(copy, "columns/*unlabeled*/first-*/level_1/c/2/**/0")
        data = shard.read_bytes()
        until(lambda: shard.read_bytes() != data, process=process)
    process.send(signal.SIGKILL)
    assert process.wait().code in (-signal.SIGKILL, 0)
    assert sak("store", "repair", "store", "tiny.yaml", "--delete-stray", cwd=copy).code == 0
    assert stored(copy) == before


def test_recomputing_a_sound_store_and_one_with_other_photographs(copy: Path) -> None:
    arguments = ["store", "verify", "store", "--recompute", "3", "--recipe", "tiny.yaml"]
    done = sak(*arguments, cwd=copy)
    assert done.code == 0, done.out + done.err
    assert done.out.splitlines()[0] == WHOLE.strip()
    assert done.out.splitlines()[-1] == "3 rows of each view set are what the recipe makes"
    assert done.out.count("/second-") == 3 * 4
    damage(copy)
    hurt = sak(*arguments, cwd=copy)
    assert hurt.code == 1
    assert hurt.out.splitlines()[-1] == "nothing was computed again: repair the store first"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recompute", "3"], "belong together"),
        (["--recipe", "tiny.yaml"], "belong together"),
        (["seed=3"], "none is given"),
        (["--recompute", "3", "--recipe", "none.yaml"], "no such recipe"),
        (
            ["--recompute", "3", "--recipe", "tiny.yaml", "teachers.first.random=4", "teachers.second.random=5"]
            + [f"data.{name}.seed=6" for name in ("distill", "finetune", "eval")],
            "holds nothing that this recipe makes",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)
def test_mistakes_are_one_line(tmp_path_factory: pytest.TempPathFactory, arguments: list[str], says: str) -> None:
    folder, _ = finished_run(tmp_path_factory)
    done = sak("store", "verify", "store", *arguments, cwd=folder)
    assert done.code == 2
    assert says in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
