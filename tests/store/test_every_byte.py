"""Every byte of every kind of file in a store, one at a time: what is damaged is found, and named with its rows.

No file is left out, and no damage to a byte or to a length. What is not found, by design:

- a file below ``costs/`` that is missing, or in the place of another of them: they tell seconds, no record vouches for
  them, and no row depends on them;
- a record of a use that is missing: nothing refers to it, and its experiment writes it again when it is resumed.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_store

from store.errors import StoreError
from store.store import Store
from store.verify import locate_part, verify

# Of so many bytes the fast test flips one.
SAMPLE = 251
# Of so many bytes the slow one flips one in more ways.
STRIDE = 61


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tiny_store.every_kind(tmp_path)


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def kind_of(path: str) -> str:
    """``columns/t/a-<fingerprint>/level_0/c/1/0/0`` and ``…/level_1/c/0/0/0`` are of one kind."""
    for pattern, short in ((r"-[0-9a-f]{12,16}", ""), (r"\d{1,5}(?=[/._]|$)", "n"), (r"codec_[a-z]+_n/.*", "codec")):
        path = re.sub(pattern, short, path)
    return path


def is_cost(path: str) -> bool:
    return "/costs/" in path


def check_found(store: Store, *damaged: str, whole: bool) -> list[str]:
    """At least one of these files is named, with the rows of its part and no others; returns those that are not."""
    found = {
        item.path: item.rows for item in verify(store, paths=None if whole else damaged) if item.severity == "error"
    }
    assert set(damaged) & set(found), f"nothing found in {damaged}, only in {sorted(found)}"
    for path in set(damaged) & set(found):
        part = locate_part(path)
        expected = None if part is None or is_cost(path) else range(2 * part.part, min(2 * part.part + 2, 3))
        assert found[path] == expected, path
    return sorted(set(damaged) - set(found))


def flips(path: str, size: int, *, sample: bool) -> Iterator[tuple[int, int, bool]]:
    """Position, what to flip there, and whether to look at the whole store then.

    Another pseudo-random byte for each position, at a sample of them each of the 8 bits by itself, and for some of
    these the whole store is looked at, as it is for the first byte of each file.
    """
    masks = np.random.default_rng(zlib.crc32(path.encode())).integers(1, 256, size).tolist()
    stride = SAMPLE if sample else STRIDE
    start = zlib.crc32(path.encode()) % min(size, stride)
    for position, mask in enumerate(masks):
        chosen = position % stride == start
        if chosen or not sample:
            yield position, mask, position == 0 or (chosen and mask % 8 == 0)
        if chosen and not sample:
            yield from ((position, 1 << bit, False) for bit in range(8))


def flip_all(root: Path, store: Store, *, sample: bool) -> int:
    count = 0
    for path in files_of(root):
        descriptor = os.open(root / path, os.O_RDWR)
        for position, mask, whole in flips(path, os.fstat(descriptor).st_size, sample=sample):
            (byte,) = os.pread(descriptor, 1, position)
            os.pwrite(descriptor, bytes([byte ^ mask]), position)
            try:
                check_found(store, path, whole=whole)
                if path == "store.json":
                    with pytest.raises(StoreError, match=r"store\.json"):
                        Store.open(root)
            except BaseException as error:
                error.add_note(f"{path}: byte {position} ^ {mask}")
                raise
            os.pwrite(descriptor, bytes([byte]), position)
            count += 1
        os.close(descriptor)
    assert verify(store) == []
    return count


KINDS = """
store.json uses/e.json
views/t: view_set.json index/part-n.parquet images/part-n.tar commits/part-n.json costs/part-n.json
columns/t/a: column.json zarr.json commits/part-n.json costs/part-n.json
columns/t/a: level_n/zarr.json level_n/c/n/n/n/n level_n_scale/zarr.json level_n_scale/c/n/n/n/n
columns/t/b: column.json zarr.json commits/part-n.json costs/part-n.json shards/part-n.tar
columns/t/k: column.json zarr.json commits/part-n.json costs/part-n.json level_n/zarr.json level_n/c/n/n codec
"""


def test_the_store_has_every_kind_of_file(store: Store, tmp_path: Path):
    kinds = set()
    for line in KINDS.strip().splitlines():
        folder, _, names = line.rpartition(": ")
        kinds |= {f"{folder}/{name}".lstrip("/") for name in names.split()}
    assert {kind_of(path) for path in files_of(tmp_path)} == kinds


def test_a_flip_of_some_bytes_of_every_file_is_found_and_named(store: Store, tmp_path: Path):
    assert flip_all(tmp_path, store, sample=True) >= len(files_of(tmp_path))


@pytest.mark.slow
def test_a_flip_of_every_single_byte_is_found_and_named(store: Store, tmp_path: Path):
    count = flip_all(tmp_path, store, sample=False)
    size = sum((tmp_path / path).stat().st_size for path in files_of(tmp_path))
    assert count > size
    print(f"{count} flips of {size} bytes in {len(files_of(tmp_path))} files")


def first_of_each_kind(root: Path) -> list[str]:
    return list({kind_of(path): path for path in reversed(files_of(root))}.values())


def cut_all(root: Path, store: Store, *, step: int) -> int:
    """Files cut to lengths ``step`` apart, the empty one and the last but one among them, and two that are too long."""
    count = 0
    for path in first_of_each_kind(root):
        data = (root / path).read_bytes()
        for length in {*range(0, len(data), step), len(data) - 1}:
            (root / path).write_bytes(data[:length])
            check_found(store, path, whole=length == 0)
            count += 1
        for more in (b"\n", bytes(512)):
            (root / path).write_bytes(data + more)
            check_found(store, path, whole=False)
            count += 1
        (root / path).write_bytes(data)
    assert verify(store) == []
    return count


def test_some_truncations_of_every_kind_of_file_are_found(store: Store, tmp_path: Path):
    cut_all(tmp_path, store, step=509)


@pytest.mark.slow
def test_every_truncation_of_every_kind_of_file_is_found(store: Store, tmp_path: Path):
    print(cut_all(tmp_path, store, step=1), "truncations of", len(first_of_each_kind(tmp_path)), "files")


def test_every_missing_file_is_found(store: Store, tmp_path: Path):
    for path in files_of(tmp_path):
        data = (tmp_path / path).read_bytes()
        (tmp_path / path).unlink()
        if is_cost(path) or path.startswith("uses/"):
            assert verify(store) == []
        else:
            check_found(store, path, whole=True)
            check_found(store, path, whole=False)
        (tmp_path / path).write_bytes(data)
    assert verify(store) == []


def swap_all(root: Path, store: Store, pairs: list[tuple[str, str]]) -> int:
    """Each of two files in the place of the other, and each twice.

    What a damaged record vouches for cannot be judged: it is found once the record is as it was.
    """
    count = 0
    for one, other in pairs:
        kept = {path: (root / path).read_bytes() for path in (one, other)}
        if kept[one] == kept[other] or (is_cost(one) and is_cost(other)):
            continue
        for new in ({one: kept[other], other: kept[one]}, {one: kept[other]}, {other: kept[one]}):
            for path, data in new.items():
                (root / path).write_bytes(data)
            hidden = check_found(store, *new, whole=True)
            for path in set(new) - set(hidden):
                (root / path).write_bytes(kept[path])
            if hidden:
                check_found(store, *hidden, whole=True)
            for path in hidden:
                (root / path).write_bytes(kept[path])
            count += 1
    assert verify(store) == []
    return count


def test_swapped_and_duplicated_files_of_a_kind_are_found(store: Store, tmp_path: Path):
    pairs = pairwise(sorted(files_of(tmp_path), key=kind_of))
    assert swap_all(tmp_path, store, [pair for pair in pairs if kind_of(pair[0]) == kind_of(pair[1])]) > 50


@pytest.mark.slow
def test_any_two_files_swapped_or_duplicated_are_found(store: Store, tmp_path: Path):
    print(swap_all(tmp_path, store, list(combinations(files_of(tmp_path), 2))), "swaps and copies")


def test_a_file_under_a_second_name_is_found(store: Store, tmp_path: Path):
    """A part that the view set does not have, and one more file of a part that it has."""
    for path in files_of(tmp_path):
        part = locate_part(path)
        if part is None:
            copy = f"{path}.bak"
        elif "/c/" in path:
            copy = re.sub(rf"/c/{part.part}/", "/c/7/", path)
        else:
            copy = path.replace(f"part-0000{part.part}", "part-00007")
        (tmp_path / copy).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / copy).write_bytes((tmp_path / path).read_bytes())
        found = [item for item in verify(store) if item.severity == "error"]
        assert [(item.path, item.stray) for item in found] == [(copy, not copy.startswith("uses/"))]
        (tmp_path / copy).unlink()
