from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_store
from hypothesis import given
from hypothesis import strategies as st

from store import commits, disk, ledger
from store.commits import CommitLog
from store.errors import CorruptShardError, StoreError
from store.ledger import Ledger, LedgerFile, empty_ledger, read_ledger
from store.root import Stamp
from store.store import Store
from store.summary import progress
from store.uses import commits_of


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept ledgers, in which even those of small stores are kept."""
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ledger, "_KEPT_PARTS", 1)
    monkeypatch.setattr(ledger, "_THREADS", 2)
    return tmp_path / "cache" / "records"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Names of files that are opened to be read."""
    found: Counter[str] = Counter()
    real = disk.open_read

    def open_read(path: Path) -> int:
        found[f"{path.parent.name}/{path.name}"] += 1
        return real(path)

    monkeypatch.setattr(disk, "open_read", open_read)
    return found


def records(opened: Counter[str]) -> list[str]:
    return sorted(name for name in opened.elements() if name.startswith("commits/"))


def fill(root: Path, images: int = 12) -> Store:
    return tiny_store.fill(root, images=images)


def log_of(root: Path) -> CommitLog:
    return Store.open(root).columns("t")[0].commits


def same(one: Ledger, other: Ledger) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_a_ledger_says_what_the_records_say(tmp_path: Path, kept: Path) -> None:
    store = fill(tmp_path / "store")
    for item in (store.view_set("t"), *store.columns("t")):
        found = item.commits.ledger()
        wanted = item.commits.require(range(6))
        assert found.parts.tolist() == [0, 1, 2, 3, 4, 5]
        assert found.hex_digests() == {commit.part: commit.digest() for commit in wanted}
        assert [row.tobytes().hex() for row in found.keys] == [commit.keys_sha256 for commit in wanted]
        assert [row.tobytes().hex() for row in found.view_commits] == [
            commit.view_commit or "00" * 32 for commit in wanted
        ]
        assert found.sizes.tolist() == [commit.size for commit in wanted]
        assert commits_of([item]) == {item.folder: found.hex_digests()}
        spec = store.view_set("t").spec
        assert progress(found, spec=spec) == (1, 6, 12, sum(commit.size for commit in wanted))


def test_records_are_read_once_on_a_machine(tmp_path: Path, kept: Path, opened: Counter[str]) -> None:
    fill(tmp_path / "store")
    first = log_of(tmp_path / "store").ledger()
    assert len(list(kept.iterdir())) == 1
    opened.clear()
    assert same(log_of(tmp_path / "store").ledger(), first)
    assert records(opened) == []


def test_small_stores_leave_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "store")
    log_of(tmp_path / "store").ledger()
    assert not (tmp_path / "cache").exists()


def test_only_what_changed_is_read_again(tmp_path: Path, kept: Path, opened: Counter[str]) -> None:
    store = fill(tmp_path / "store")
    column = store.columns("t")[0]
    before = column.commits.ledger()
    column.discard(2)
    assert column.commits.ledger().parts.tolist() == [0, 1, 3, 4, 5]
    tiny_store.write_part(column, 2)
    opened.clear()
    again = column.commits.ledger()
    assert records(opened) == ["commits/part-00002.json"]
    assert again.hex_digests() == before.hex_digests()


def test_a_record_that_is_damaged_after_it_was_proven_is_refused(tmp_path: Path, kept: Path) -> None:
    fill(tmp_path / "store")
    log = log_of(tmp_path / "store")
    log.ledger()
    path = tmp_path / "store" / log.path(3)
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(StoreError, match="part-00003"):
        log_of(tmp_path / "store").ledger()


def test_a_record_in_the_place_of_another_is_refused(tmp_path: Path, kept: Path) -> None:
    fill(tmp_path / "store")
    log = log_of(tmp_path / "store")
    log.ledger()
    (tmp_path / "store" / log.path(3)).write_bytes((tmp_path / "store" / log.path(4)).read_bytes())
    with pytest.raises(CorruptShardError, match=r"expected the record of .* part 3, got that of .* part 4"):
        log.ledger()


def test_a_kept_ledger_with_any_byte_changed_is_not_believed(tmp_path: Path, kept: Path) -> None:
    fill(tmp_path / "store")
    log = log_of(tmp_path / "store")
    log.ledger()
    (path,) = kept.iterdir()
    data, file = path.read_bytes(), LedgerFile(str(log._root.where(f"{log._folder}/commits")))
    assert len(file.load().parts) == 6
    for at in range(0, len(data), 37):
        path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        assert len(file.load().parts) == 0
    for size in (0, 1, 31, 32, 33, len(data) - 1):
        path.write_bytes(data[:size])
        assert len(file.load().parts) == 0
    path.write_bytes(data)
    assert len(file.load().parts) == 6


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "file"))
    fill(tmp_path / "store")
    assert len(log_of(tmp_path / "store").ledger().parts) == 6


def test_few_records_are_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_KNOWN", 2)
    store = fill(tmp_path / "store")
    column = store.columns("t")[0]
    rows = np.arange(12)
    for _ in range(2):
        np.testing.assert_array_equal(
            column.read(rows)[0]["values"],
            np.stack([tiny_store.expected(column.spec, row, 0)["values"] for row in range(12)]),
        )
        column.check_join(store.view_set("t"))
    assert len(column.commits._known) == 2


@given(
    st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 2), st.integers(0, 1))),
    st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 2), st.integers(0, 1))),
)
def test_a_ledger_brought_up_to_date_equals_a_new_one(
    before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]]
) -> None:
    """Each part has a version, and by it a stamp and a record, which leaves out a row or none."""

    def read(state: dict[int, tuple[int, int]], held: Ledger) -> tuple[Ledger, list[int]]:
        asked: list[int] = []

        def read_record(part: int) -> tuple[commits.PartCommit, str]:
            asked.append(part)
            version, bad = state[part]
            record = commits.PartCommit(
                owner="views/t", part=part, start=4 * part, stop=4 * part + 4, keys_sha256=f"{version:064x}",
                objects={}, excluded=(4 * part + version,) * bad,
            )  # fmt: skip
            return record, record.digest()

        stamps = {part: Stamp(10 * version + bad, 1, 1) for part, (version, bad) in state.items()}
        return read_ledger(held, stamps, read=read_record), asked

    old, _ = read(before, empty_ledger())
    updated, asked = read(after, old)
    fresh, _ = read(after, empty_ledger())
    assert same(updated, fresh)
    assert sorted(asked) == sorted(part for part in after if after[part] != before.get(part))


def test_a_user_without_a_home_keeps_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SAK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr(ledger, "_KEPT_PARTS", 1)
    monkeypatch.setattr(ledger, "_THREADS", 2)
    (view_set,) = fill(tmp_path / "store").view_sets()
    assert len(view_set.usable_rows()) == view_set.spec.rows
