"""Whether extraction of many shards stays flat: ``scale.py FOLDER [--engine process|dask] [--rows N]``.

Runs ``sak extract`` as anybody would, over a tar of small images that it writes and a tiny random network, and looks on
from outside: for each commit record that appears, the time, and what ``/proc`` says of the command and all of its
children: memory, open files, threads, calls to read and write. Writes ``scale_ENGINE.json`` and ``.png`` beside itself
and prints, for each of these, its slope and what the run changed it by, first shards (start-up) apart.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import yaml
from PIL import Image

__all__: list[str] = []

HERE = Path(__file__).parent
NETWORK = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
POLL_SECONDS = 0.2
WARM = 0.2  # of the shards: imports, pools and caches that fill
COUNTED = ("rss_mb", "files", "threads", "read_calls", "write_calls", "seconds")


class Look(NamedTuple):
    """At one moment: the kind of work, shards of it that are done, and what the processes hold and have done."""

    kind: str
    shards: int
    at: float
    rss_mb: float
    files: int
    threads: int
    read_calls: int
    write_calls: int


def write_images(path: Path, *, rows: int) -> None:
    """A tar of so many PNG images of 32 x 32 pixels, no two of one colour."""
    with tarfile.open(path, "w") as tar:
        for number in range(rows):
            colour = (number % 256, number // 256 % 256, number // 65536)
            file = io.BytesIO()
            Image.new("RGB", (32, 32), colour).save(file, "png")
            info = tarfile.TarInfo(f"images/{number:08d}.png")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)


def recipe_of(folder: Path, *, rows: int, per_shard: int, engine: str, workers: int) -> Path:
    """Write the recipe."""
    recipe = {
        "name": "scale",
        "out": str(folder / "out"),
        "store": str(folder / "store"),
        "device": "cpu",
        "threads": 1,
        "data": {
            "distill": {
                "source": {"name": "tar", "root": str(folder / "train.tar")},
                "view": {"kind": "full", "size": 32},
                "rows_per_shard": per_shard,
            }
        },
        "teachers": {
            "tiny": {
                "timm": "vit_tiny_patch16_224",
                "random": 1,
                "levels": [0, 1, 2, 3],
                "overrides": {"img_size": 32, **NETWORK},
            }
        },
        "extract": {"codec": "int8", "batch": 64, "engine": engine, "workers": workers},
        "student": {"stem": "vit_tiny_patch16_224", "overrides": dict(NETWORK)},
        "distill": {"steps": 1, "batch": 64},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder / "train.tar", rows=rows)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def watch(recipe: Path, folder: Path) -> list[Look]:
    """Run the command and look at it until it ends."""
    with open(folder / "log", "wb") as log:
        command = subprocess.Popen([sys.executable, "-m", "cli", "extract", str(recipe)], stdout=log, stderr=log)
    looks: list[Look] = []
    family = _Family(psutil.Process(command.pid))
    while command.poll() is None:
        time.sleep(POLL_SECONDS)
        for kind in ("views", "columns"):
            shards = sum(len(list(found.iterdir())) for found in folder.glob(f"store/{kind}/**/commits"))
            before = [look for look in looks if look.kind == kind]
            if shards and (not before or shards > before[-1].shards):
                looks.append(family.look(kind, shards))
    if command.returncode:
        raise SystemExit((folder / "log").read_text())
    return looks


class _Family:
    """A process and its children; the counts of those that have ended stay in the sums."""

    def __init__(self, parent: psutil.Process) -> None:
        self._parent = parent
        self._calls: dict[int, tuple[int, int]] = {}

    def look(self, kind: str, shards: int) -> Look:
        rss = files = threads = 0
        for process in [self._parent, *self._parent.children(recursive=True)]:
            try:
                with process.oneshot():
                    rss += process.memory_info().rss
                    files += process.num_fds()
                    threads += process.num_threads()
                    counters = process.io_counters()
                    self._calls[process.pid] = (counters.read_count, counters.write_count)
            except psutil.Error:
                continue
        reads, writes = (sum(calls) for calls in zip(*self._calls.values(), strict=True))
        return Look(kind, shards, time.monotonic(), rss / 1e6, files, threads, reads, writes)


def slopes(looks: Sequence[Look], kind: str) -> dict[str, dict[str, float]]:
    """For each thing counted its level, and how much a straight line through it changes from first to last shard."""
    mine = [look for look in looks if look.kind == kind]
    last = mine[-1].shards
    mine = [look for look in mine if look.shards >= WARM * last]
    shards = np.array([look.shards for look in mine], float)
    found = {}
    for name in COUNTED:
        if name in ("rss_mb", "files", "threads"):
            at, values = shards, np.array([getattr(look, name) for look in mine], float)
        else:
            totals = np.array([look.at if name == "seconds" else getattr(look, name) for look in mine], float)
            at, values = (shards[1:] + shards[:-1]) / 2, np.diff(totals) / np.diff(shards)
        slope, _ = np.polyfit(at, values, 1)
        rest = values - np.polyval(np.polyfit(at, values, 1), at)
        error = float(np.sqrt((rest**2).sum() / max(1, len(at) - 2) / ((at - at.mean()) ** 2).sum()))
        span = float(at[-1] - at[0])
        found[name] = {
            "median": float(np.median(values)),
            "first_tenth": float(np.median(values[: max(1, len(values) // 10)])),
            "last_tenth": float(np.median(values[-max(1, len(values) // 10) :])),
            "change": float(slope * span),
            "change_error": 2 * error * span,
        }
    return found


def plot(looks: Sequence[Look], path: Path) -> None:
    """Draw each thing counted against the number of shards done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = ("memory, MB", "open files", "threads", "read calls per shard", "write calls per shard", "s per shard")
    figure, panels = pyplot.subplots(2, 3, figsize=(12, 6), constrained_layout=True)
    for panel, name, title in zip(panels.flat, COUNTED, titles, strict=True):
        for kind in dict.fromkeys(look.kind for look in looks):
            mine = [look for look in looks if look.kind == kind]
            shards = np.array([look.shards for look in mine], float)
            if name in ("rss_mb", "files", "threads"):
                panel.plot(shards, [getattr(look, name) for look in mine], label=kind)
                continue
            totals = np.array([look.at if name == "seconds" else getattr(look, name) for look in mine], float)
            panel.plot(shards[1:], np.diff(totals) / np.diff(shards), label=kind, linewidth=0.7)
        panel.set_title(title)
        panel.set_ylim(bottom=0)
    panels[0, 0].legend()
    for panel in panels[1]:
        panel.set_xlabel("shards done")
    figure.savefig(path, dpi=80)


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--engine", choices=["process", "dask"], default="process")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    recipe = recipe_of(
        options.folder,
        rows=options.rows,
        per_shard=options.per_shard,
        engine=options.engine,
        workers=options.workers,
    )
    looks = watch(recipe, options.folder)
    result: dict[str, Any] = {"rows": options.rows, "per_shard": options.per_shard, "workers": options.workers}
    for kind in dict.fromkeys(look.kind for look in looks):
        result[kind] = slopes(looks, kind)
        print(f"{kind}: {max(look.shards for look in looks if look.kind == kind)} shards")
        for name, item in result[kind].items():
            print(
                f"  {name:12s} median {item['median']:10.3f}  first tenth {item['first_tenth']:10.3f}"
                f"  last tenth {item['last_tenth']:10.3f}  change {item['change']:+9.3f} ± {item['change_error']:.3f}"
            )
    start = looks[0].at
    result["looks"] = [look._replace(at=round(look.at - start, 3), rss_mb=round(look.rss_mb, 1)) for look in looks]
    (HERE / f"scale_{options.engine}.json").write_text(json.dumps(result) + "\n")
    plot(looks, HERE / f"scale_{options.engine}.png")


if __name__ == "__main__":
    main()
