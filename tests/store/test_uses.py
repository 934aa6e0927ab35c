from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_store

from store import uses
from store.errors import CorruptShardError, FormatError, MissingColumnError, StoreError
from store.store import Store
from store.uses import Use, all_uses, check_commits, commits_of, load_use, make_use, save_use


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tiny_store.fill(tmp_path / "store")


def use_of(store: Store, experiment: str = "distill-0123", folder: str = "/out/distill-0123") -> Use:
    return make_use(store, experiment=experiment, folder=folder, items=[store.view_set("t"), *store.columns("t")])


def change(store: Store, part: int) -> None:
    """Make a part of the column again with other bytes."""
    column = store.columns("t")[0]
    column.discard(part)
    levels = column.read_part(1 - part)
    column.write_part(part, levels, keys=column.view_set.keys(part))


def test_a_use_names_every_commit_and_comes_back(store: Store):
    use = use_of(store)
    column = store.columns("t")[0]
    assert use.commits == {
        owner.folder: {part: owner.commits.load(part).digest() for part in (0, 1)}
        for owner in (store.view_set("t"), column)
    }
    save_use(store, use)
    before = tiny_store.tree(store.root.local("uses"))
    save_use(store, use)
    assert tiny_store.tree(store.root.local("uses")) == before
    assert all_uses(store.root) == (use,)
    assert Use.parse(use.render(), where="here") == use


def test_one_experiment_has_one_record_and_two_have_two(store: Store):
    assert use_of(store).id == use_of(store).id
    others = {use_of(store, "distill-4567").id, use_of(store, folder="/elsewhere/distill-0123").id}
    assert len({use_of(store).id, *others}) == 3


def test_the_same_store_again_is_accepted(store: Store):
    use = use_of(store)
    column = store.columns("t")[0]
    column.discard(1)
    with pytest.raises(
        StoreError, match=rf"^/out: refuses to mix: {column.folder} part 1, .* not committed any more; run"
    ):
        check_commits(store, use.commits, where="/out")
    tiny_store.write_column(store)
    check_commits(store, use.commits, where="/out")


def test_other_bytes_are_refused_in_one_line(store: Store):
    use, column = use_of(store), store.columns("t")[0]
    change(store, 0)
    with pytest.raises(StoreError) as caught:
        check_commits(store, use.commits, where="/out")
    assert str(caught.value).startswith(f"/out: refuses to mix: {column.folder} part 0 holds other bytes")
    assert str(caught.value).endswith("restore that part from a copy, or delete /out to train anew")
    with pytest.raises(StoreError, match="refuses to mix"):
        save_use(store, use)


def test_a_column_that_is_gone_is_refused(store: Store):
    use, column = use_of(store), store.columns("t")[0]
    store.root.remove(f"{column.folder}/column.json")
    with pytest.raises(
        StoreError, match=rf"{column.folder}, which it read, is no longer in the store; run sak extract"
    ):
        check_commits(store, use.commits, where="/out")
    with pytest.raises(MissingColumnError, match="has no column"):
        make_use(store, experiment="e", folder="/out", items=[column])


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "../x"},
        {"commits": {"views/t": {0: "short"}}},
        {"commits": {"../etc": {0: "0" * 64}}},
        {"commits": {"views/t": {"0": "0" * 64}}},
        {"folder": 3},
    ],
)
def test_malformed_uses_are_refused(change: dict[str, object]):
    fields: dict[str, object] = {"experiment": "e", "folder": "/out", "host": "h", "commits": {}}
    with pytest.raises(FormatError):
        Use(**{**fields, **change})  # type: ignore[arg-type]


def test_a_damaged_or_moved_record_is_refused(store: Store):
    use = use_of(store)
    save_use(store, use)
    path = store.root.local(use.path)
    path.with_name("moved.json").write_bytes(path.read_bytes())
    with pytest.raises(FormatError, match="a file was moved"):
        load_use(store.root, "moved.json")
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(CorruptShardError, match="its bytes differ"):
        all_uses(store.root)


def test_only_committed_parts_are_named(store: Store):
    column = store.columns("t")[0]
    column.discard(0)
    assert set(commits_of([column])[column.folder]) == {1}


def test_a_use_of_more_parts_than_a_record_holds_is_refused_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_store.fill(tmp_path / "store", images=12)
    use = make_use(store, experiment="e", folder="/e", items=[store.view_set("t"), *store.columns("t")])
    monkeypatch.setattr(uses, "MAX_DOCUMENT_BYTES", 800)
    with pytest.raises(StoreError, match=r"e reads 12 parts, .* bytes: [1-9] of them; .* rows_per_shard"):
        save_use(store, use)
    assert store.root.names(uses.USES) == []
