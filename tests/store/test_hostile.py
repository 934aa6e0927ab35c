"""Whatever a store holds, opening it says what is wrong in one line that names the file, and runs or fills nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.document import MAX_DOCUMENT_BYTES, parse_document
from store.errors import FormatError, StoreError, one_line
from store.fingerprint import digest_bytes
from store.root import check_name
from store.roots import open_root
from store.store import Store
from store.transfer import export_column, import_column
from store.viewset import ReadOptions
from tests.store.hostile_stores import (
    COLUMN,
    agree,
    attempts,
    copy,
    forge,
    found,
    pristine,
    put,
    refused,
    rendered,
    said,
    set_to,
    within,
)

VIEWS, FEATURES, COMMIT = "views/train/view_set.json", f"{COLUMN}/column.json", f"{COLUMN}/commits/part-00000.json"
VIEW_COMMIT = "views/train/commits/part-00000.json"
KINDS = {"store.json": "store", VIEWS: "view_set", FEATURES: "column", COMMIT: "commit", VIEW_COMMIT: "commit"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pristine(tmp_path_factory.mktemp("model") / "store")


@pytest.fixture
def root(model: Path, tmp_path: Path) -> Path:
    return copy(model, tmp_path / "store")


def test_the_model_is_sound_and_every_attempt_works_on_it(root: Path):
    assert said(root) == {}
    assert set(attempts(root)) == {"pixels", "features", "verify", "du", "gc"}


# JSON as such

RAW = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "no body": b'{"kind": "KIND", "format_version": 1}',
    "pickle": b"\x80\x04\x95pickle",
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": "{}".encode("utf-16"),
    "huge integer": b'{"body": {"a": ' + b"9" * 5000 + b'}, "format_version": 1, "kind": "KIND"}',
    "large integer": rendered("KIND", {"a": 10**4000}),
    "wide integer": rendered("KIND", {"a": 2**64}),
    "infinite": rendered("KIND", {"a": float("inf")}),
    "nan": rendered("KIND", {"a": float("nan")}),
    "overflowing": b'{"body": {"a": 1e999}, "format_version": 1, "kind": "KIND", "sha256": ""}',
    "surrogate": b'{"body": {"a": "\\ud800"}, "format_version": 1, "kind": "KIND", "sha256": ""}',
    "duplicate": rendered("KIND", {"a": 1}).replace(b'"a": 1', b'"a": 2, "a": 1'),
    "kind": rendered("other\n", {}),
    **{
        f"{depth} deep": b'{"body": {"a": %b%b}, "format_version": 1, "kind": "KIND"}' % (b"[" * depth, b"]" * depth)
        for depth in (70, 150, 400, 900, 990, 1100, 100_000)
    },
}


@pytest.mark.parametrize("kind", [*dict.fromkeys(KINDS.values()), "use", "cost", "export"])
def test_json_that_is_no_document(kind: str):
    for name, data in RAW.items():
        with pytest.raises(StoreError, match=r"^some/file\.json: ") as caught:
            parse_document(data.replace(b"KIND", kind.encode()), kind=kind, where="some/file.json")
        assert str(caught.value).isprintable(), name
        assert len(str(caught.value)) < 4000, name


@pytest.mark.parametrize("pattern", KINDS)
def test_files_of_json_that_is_no_document(root: Path, pattern: str):
    for name in ("empty", "surrogate", "infinite", "900 deep"):
        put(found(root, pattern), RAW[name].replace(b"KIND", KINDS[pattern].encode()))
        refused(root, re.escape(found(root, pattern).name), by="verify")


@pytest.mark.parametrize("pattern", KINDS)
def test_other_format_versions(root: Path, pattern: str):
    for version in (2, "1", 1.0, True, None, 0, -1):
        put(found(root, pattern), rendered(KINDS[pattern], {}, version=version))
        newer = type(version) is not int or version > 1
        message = r"format version .* is newer than 1.*upgrade sak" if newer else "differ from its own digest"
        by = "verify" if version == 2 else "features" if "columns" in pattern else "pixels"
        assert re.search(f"{found(root, pattern).name}: .*{message}", said(root, by)[by])


def test_documents_beyond_the_limit_are_not_read(root: Path):
    put(root / VIEWS, b"")
    os.truncate(root / VIEWS, 1 << 40)
    refused(root, f"view_set.json: .*at most {MAX_DOCUMENT_BYTES} bytes, got {1 << 40}", by="pixels")


def test_long_texts_and_names_are_cut(root: Path):
    long = "k\n" * 100_000
    for pattern in (VIEWS, FEATURES, VIEW_COMMIT, COMMIT):
        data = found(root, pattern).read_bytes()
        for body in ({long: 1}, {"name": long}, {"spec": long, "objects": {}, "assets": {}}, {"owner": long}):
            put(found(root, pattern), rendered(KINDS[pattern], body))
            assert len(refused(root, found(root, pattern).name, by="verify")) < 20_000
        put(found(root, pattern), data)


def test_messages_are_short_and_printable():
    error = StoreError("bad\n\x1b[31m\u202e\ud800" + "x" * 10**6 + "end")
    assert str(error).isprintable()
    assert len(str(error)) < 4000
    assert str(error).startswith("bad\\n\\x1b[31m\\u202e\\ud800x")
    assert str(error).endswith("xend")
    assert one_line("é (as it is)") == "é (as it is)"


# What documents say

ABSURD = [2**41, 2**63, 0, -1, 1.5, True, "10", None, [10], {"a": 1}]
DIGEST = {"sha256": "0" * 64, "size": 1}
SHAPES = [[2**40], [2**62, 4], [2**31, 2**31, 2**31], [-1], [0], [1.5], [True], "ab", [[1]], [], [1] * 70, None, 5]
DTYPES = ["O", "object", "f4,f4", "(9999999,)f4", "V8", "M8[ns]", "U9", None, 5, ["a"], {"names": ["a"]}, "x\ny"]
BODIES: list[tuple[str, str, list[Any], str]] = [
    (VIEWS, "images", ABSURD, "images"),
    (VIEWS, "views", ABSURD, "views"),
    (VIEWS, "images", [2**39], "at most .* shards"),
    (VIEWS, "rows_per_shard", [*ABSURD, 2**31], "rows_per_shard"),
    (VIEWS, "order_seed", [1.0, "7", True, None], "order_seed"),
    (VIEWS, "name", ["../x", "a/b", "", "-x", "x" * 101, "é", "a\nb", 5, None], "view set name"),
    (VIEWS, "name", ["Train"], "a folder was moved"),
    (VIEWS, "source", [5, "x", [1], None], "view set"),
    (VIEWS, "tasks", [5, "abc", [1], None, {"a": 1}], "tasks"),
    (VIEWS, "extra", [1], "expected the keys"),
    (FEATURES, "spec.levels.0.components", [*ABSURD, 2**31], "level"),
    (FEATURES, "spec.levels.0.width", ABSURD, "level"),
    (FEATURES, "spec.levels", [[], {}, None, "ab", [[1, 2, 3]], [{}] * 65], "level"),
    (FEATURES, "spec.levels", [[{"components": 2**16, "height": 2**5, "width": 2**5}] * 64], "values in all"),
    (FEATURES, "spec.codec", [None, "int8", {}, {"name": "pickle"}, {"name": ["int8"]}], "codec"),
    (FEATURES, "spec.codec", [{"name": "int8", "scale": ["float32"]}, {"name": "int8", "eval": "1"}], "int8"),
    (FEATURES, "spec.codec", [{"name": "fp16", "clip": "yes"}, {"name": "int4", "group": -1}], "codec"),
    (FEATURES, "spec.codec", [{"name": "klt"}, {"name": "klt", "error": 0}], "klt"),
    (FEATURES, "backend", ["pickle", "pipe:id", None, 5, ["zarr"], {}], "expected a backend"),
    (FEATURES, "spec.teacher", ["../x", "a\nb", "x" * 84, 5], "teacher"),
    (FEATURES, "spec.view_set", ["../x", 5], "view set name"),
    (FEATURES, "spec.view_set", ["other"], "a folder was moved"),
    (FEATURES, "spec.identity", [5, [1], "x", {"a": 1}], "identity|a folder was moved"),
    (FEATURES, "spec", [5, [1], "x", None], "column"),
    (FEATURES, "assets", [5, [1], "x", None], "column description"),
    (FEATURES, "objects", [5, [1], "x", None], "column description"),
    (FEATURES, "objects", [{"x": item} for item in (5, {}, {"sha256": "a\nb", "size": 5})], "column description"),
    (FEATURES, "objects", [{"x": {"sha256": "0" * 64, "size": -1}}, {"x": {"eval": 1}}], "column description"),
    (FEATURES, "assets", [{"x": {"shape": shape, "dtype": "float32"}} for shape in SHAPES], "asset|description"),
    (FEATURES, "assets", [{"x": {"shape": [4], "dtype": dtype}} for dtype in DTYPES], "column description"),
    (FEATURES, "assets", [{name: {"shape": [4], "dtype": "int8"}} for name in ("../../x", "a/b", "", "x")], "codec_"),
    (COMMIT, "part", [1, -1, "0", True, 2**63, None], "part"),
    (COMMIT, "stop", [2**60, 2**63, 0, -1, "8", 7, 8.0], "record"),
    (COMMIT, "owner", ["views/train", "../x", "a\nb", 5, None], "a file was moved"),
    (COMMIT, "keys_sha256", [None, 5, "a\nb"], "commit record"),
    (COMMIT, "keys_sha256", ["0" * 64], "keys are not those of view set"),
    (COMMIT, "view_commit", [5, "a\nb"], "commit record"),
    (COMMIT, "view_commit", [None, "0" * 64], "made from other images"),
    (COMMIT, "content", [5, "x", {"level_0": 5}, None], "commit record"),
    (COMMIT, "content", [{"level_0": "0" * 64}, {"level_9": "0" * 64}], "numbers of level_0"),
    (COMMIT, "stats", [5, "x", [1], None], "commit record"),
    (COMMIT, "objects", [5, [1], None, {"x": DIGEST}, {"../x": DIGEST}, {"/etc/passwd": DIGEST}], "commit record"),
    (COMMIT, "objects", [{}], "other files than the column has"),
    (COMMIT, "extra", [1], "commit record"),
    (FEATURES, "extra", [1], "column description"),
    (FEATURES, "spec.extra", [1], "expected the keys"),
    (VIEW_COMMIT, "excluded", [[2**60], [-1], [True], ["3"], 5, "12", [9], [3, 3], [3, 2]], "commit record"),
]


@pytest.mark.parametrize(
    ("pattern", "key", "values", "message"),
    [pytest.param(*case, id=f"{case[0].rsplit('/')[-1]}-{case[1]}-{place}") for place, case in enumerate(BODIES)],
)
def test_documents_that_say_absurd_things(root: Path, pattern: str, key: str, values: list[Any], message: str):
    path = found(root, pattern)
    data = path.read_bytes()
    for place, value in enumerate(values):
        forge(root, pattern, set_to(key, value))
        by = "features" if "columns" in pattern else "pixels"
        texts = said(root, by)
        if place == 0 or by not in texts:  # what all readers refuse alike need not be verified each time
            texts |= said(root, by := "verify")
        assert re.search(message, texts[by]), (value, texts)
        assert path.name in texts[by] or f"{pattern.split('/')[0]}/train" in texts[by], (value, texts)
        put(path, data)


@pytest.mark.parametrize("pattern", [VIEWS, FEATURES, VIEW_COMMIT, COMMIT])
def test_absent_keys(root: Path, pattern: str):
    path = found(root, pattern)
    data = path.read_bytes()
    for key in parse_document(data, kind=KINDS[pattern], where=""):
        forge(root, pattern, lambda body, key=key: body.pop(key) and None)
        texts = said(root, "verify")
        optional = key in ("content", "backend", "stats", "excluded", "view_commit")
        assert optional or path.name in texts["verify"], key
        put(path, data)


@pytest.mark.parametrize(
    "path",
    ["view_set.json", "commits/part-00001.json", "costs/part-00000.json", "index/part-00001.parquet", "images/x"],
)
def test_a_part_cannot_claim_files_that_are_not_its_own(root: Path, path: str):
    """An import copies what a view set's record lists: it must not be able to plant anything else."""
    forge(root, VIEW_COMMIT, lambda body: body["objects"].update({path: DIGEST}))
    agree(root)
    refused(root, rf"part-00000\.json: .*{re.escape(path)}.* is no file of part 0", by="pixels")


@pytest.mark.parametrize("seconds", ["abc", [1], None, -1.0, True])
def test_costs_that_are_no_numbers(root: Path, seconds: object):
    forge(root, f"{COLUMN}/costs/part-00000.json", set_to("seconds", seconds))
    assert re.search(r"costs/part-00000\.json: seconds: expected a number", said(root, "features")["features"])


@pytest.mark.parametrize("stats", [{"a": {"b": "c"}}, {"a": 2**63}, {"a": 1e308}, {"a": [1]}, {"a\nb": True}])
def test_stats_of_any_shape_are_averaged_or_left_out(root: Path, stats: object):
    forge(root, COMMIT, set_to("stats", stats))
    assert said(root) == {}


USE = {"experiment": "e", "folder": "f", "host": "h", "commits": {}}
USES = [
    {},
    {**USE, "folder": 5},
    {**USE, "experiment": "../e"},
    {**USE, "commits": {"columns/x": {"0": "0" * 64}}},
    {**USE, "commits": {"views/train": {"x": "0" * 64}}},
    {**USE, "commits": {"views/train": {"9" * 5000: "0" * 64}}},
    {**USE, "commits": [1]},
    USE,
]


def test_uses_that_are_malformed(root: Path):
    (root / "uses").mkdir(exist_ok=True)
    for body in USES:
        put(root / "uses" / "e-0.json", rendered("use", body))
        refused(root, r"uses/e-0\.json", by="gc")


@pytest.mark.parametrize("shape", [[2**40], [2**62, 4], [1 << 20, 1 << 10], [2**31, 2**31, 2**31]])
def test_assets_of_absurd_shapes(tmp_path: Path, fitted: Path, shape: list[int]):
    root = copy(fitted, tmp_path / "store")
    forge(root, FEATURES, set_to("assets.basis_0.shape", shape))
    refused(root, r"column\.json: refused codec asset 'basis_0'", by="features")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pristine(tmp_path_factory.mktemp("fitted") / "store", codec="klt")


@pytest.mark.parametrize("engine", ["zarr", "zarrs"])
def test_libraries_get_no_metadata_but_ours(root: Path, engine: str):
    """They obey it, so right digests are not enough: it could name any codec that is installed."""
    store = Store.open(root, options=ReadOptions(engine=engine))
    assert len(store.columns("train")) == 1
    path = found(root, f"{COLUMN}/level_0/zarr.json")
    put(path, path.read_bytes().replace(b'"zstd"', b'"numcodecs.pickle"'))
    entry = {"sha256": digest_bytes(path.read_bytes()), "size": path.stat().st_size}
    forge(root, FEATURES, lambda body: body["objects"].update({"level_0/zarr.json": entry}))
    with pytest.raises(StoreError, match=r"level_0/zarr\.json: not what sak writes for this column"):
        store.columns("train")
    assert "verify" in said(root), "for the engine that does not read it too"


# Files that are no files

PLACES = {
    "store.json": "pixels",
    VIEWS: "pixels",
    VIEW_COMMIT: "pixels",
    "views/train/index/part-00000.parquet": "pixels",
    "views/train/images/part-00000.tar": "pixels",
    FEATURES: "features",
    COMMIT: "features",
    f"{COLUMN}/level_0/c/0/0/0/0": "features",
}


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other-end"))
    path.with_name("other-end").symlink_to(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


NO_FILES: dict[str, Callable[[Path], None]] = {
    "folder": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "device": device,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "outside": lambda path: path.symlink_to(os.__file__),
    "loop": loop,
}


@pytest.mark.parametrize("pattern", PLACES)
def test_files_that_are_no_files(root: Path, pattern: str):
    path = found(root, pattern)
    data = path.read_bytes()
    for kind, make in NO_FILES.items():
        path.unlink()
        make(path)
        texts = said(root, PLACES[pattern], "verify", "gc")
        told = texts.get(PLACES[pattern], "")
        assert re.search(rf"{re.escape(path.name)}|not committed|no column|no view set|os\.py", told), (kind, texts)
        assert "verify" in texts, (kind, texts)
        path.rmdir() if kind == "folder" else path.unlink()
        path.with_name("other-end").unlink(missing_ok=True)
        put(path, data)


FOLDERS = ["views/train", "columns/train", COLUMN, "views/train/commits", f"{COLUMN}/level_0", "views/train/images"]


@pytest.mark.parametrize("pattern", FOLDERS)
@pytest.mark.parametrize("inside", [False, True])
def test_linked_folders(root: Path, tmp_path: Path, pattern: str, inside: bool):
    """Out of the store they are refused; within it they are told of by verify."""
    path = found(root, pattern)
    target = (root / "elsewhere") if inside else (tmp_path / "elsewhere")
    path.rename(target)
    path.symlink_to(target)
    texts = said(root)
    assert "verify" in texts, texts
    assert inside or any("link leads outside" in text for text in texts.values()), texts


def test_hard_links_and_a_linked_root_are_fine(root: Path, tmp_path: Path):
    os.link(found(root, f"{COLUMN}/level_0/c/0/0/0/0"), tmp_path / "same")
    (tmp_path / "alias").symlink_to(root)
    assert said(tmp_path / "alias") == {}


# Names

ODD = [
    ".DS_Store",
    ".nfs0001",
    "lost+found",
    "a b",
    "a\nb",
    "\x1b[31mred",
    "\u00e9",
    "e\u0301",
    "n" * 255,
    "%2e%2e",
    "con:",
    "\udcff",
    "x;id",
    "$(id)",
    "[red]x",
]


@pytest.mark.parametrize(
    "where", [".", "views", "columns", "columns/train", "views/train", "views/train/commits", COLUMN, "uses"]
)
def test_odd_names_hide_nothing_and_are_told_of(root: Path, where: str):
    (root / "uses").mkdir(exist_ok=True)
    folder = found(root, where) if where != "." else root
    for name in ODD:
        (folder / name).write_bytes(b"x")
    texts = said(root)
    assert set(texts) == {"verify"}, texts
    assert all(one_line(f"{name}: no record accounts for this file") in texts["verify"] for name in ODD), texts
    for name in ODD:
        (folder / name).unlink()
        (folder / name).mkdir()
        (folder / name / "view_set.json").write_bytes(b"x")
        (folder / name / "commits").mkdir()
        (folder / name / "commits/part-00000.json").write_bytes(b"x")
    assert set(said(root)) == {"verify"}


@pytest.mark.parametrize("name", ["part-000000.json", "part-٠٠٠٠٠.json", "part-0000000001.json", "PART-00000.json"])
def test_other_spellings_of_a_record_are_no_records(root: Path, name: str):
    for pattern in (COMMIT, VIEW_COMMIT):
        path = found(root, pattern)
        shutil.copy(path, path.with_name(name))
    assert set(said(root)) == {"verify"}
    assert Store.open(root).view_set("train").committed_parts() == (0, 1, 2)


def test_names_that_differ_only_by_case_are_different_folders(root: Path):
    shutil.copytree(root / "views/train", root / "views/Train")
    refused(root, "expected the view set Train, got train; a folder was moved", by="verify")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "-x", "a/b", "a\\b", "a\0b", "a\n", "é", "x" * 101, "a b", "a:b", 5, None]
)
def test_unsafe_names_are_never_made(name: Any):
    with pytest.raises(FormatError, match="expected 1 to 100 letters") as caught:
        check_name(name, what="name")
    assert str(caught.value).isprintable()


# URLs

URLS = ["pipe:id", "pipe:touch BAD", "pipe:cat /etc/passwd |", "file:///etc", "http://x/y", "gs://b/p", "s3:x", "a\nb"]


@pytest.mark.parametrize("url", [*URLS, "a\0b", "\x1b[2J"])
def test_urls_that_are_no_store(url: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    store = Store.open(root)
    column = store.columns("train")[0]
    ways: list[Callable[[], object]] = [
        lambda: open_root(url),
        lambda: Store.open(url),
        lambda: Store.create(url),
        lambda: import_column(store, url),
        lambda: export_column(column, url),
    ]
    for way in ways:
        with pytest.raises(FormatError, match=r"expected a local folder or s3://bucket/prefix") as caught:
            way()
        assert str(caught.value).isprintable()
    assert sorted(tmp_path.iterdir()) == before, "nothing was made or run"


def test_a_folder_with_a_colon_is_reached_by_its_path(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root.rename(tmp_path / "pipe:id")
    monkeypatch.chdir(tmp_path)
    assert Store.open("./pipe:id").view_set_names() == ("train",)
    assert Store.open(tmp_path / "pipe:id").view_set_names() == ("train",)


@pytest.mark.parametrize("path", ["x" * 5000, "/".join(["x" * 200] * 40)])
def test_paths_beyond_what_the_system_takes(path: str):
    with within(5), pytest.raises(StoreError) as caught:
        Store.open(path)
    assert str(caught.value).isprintable()
