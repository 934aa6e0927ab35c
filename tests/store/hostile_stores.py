"""Stores that somebody made to harm whoever opens them, and everything that a user would then try.

Whoever can write a store can also recompute every digest in it, so all of these carry correct ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from store.backends.registry import BACKENDS
from store.document import FORMAT_VERSION
from store.du import disk_usage
from store.errors import StoreError, one_line
from store.fingerprint import digest_bytes, digest_json
from store.gc import plan
from store.store import Store
from store.verify import verify
from tests.store.backends import columns

__all__ = [
    "COLUMN",
    "agree",
    "attempts",
    "copy",
    "forge",
    "found",
    "pristine",
    "put",
    "refused",
    "rendered",
    "replace_object",
    "said",
    "set_to",
    "within",
]

COLUMN = "columns/train/dino-*"


def pristine(root: Path, *, backend: str = "zarr", codec: str = "int8") -> Path:
    """A sound store with one column."""
    assert backend in BACKENDS
    columns.fill(root, codec=codec, backend=backend)
    return root


def rendered(kind: str, body: Any, *, version: object = FORMAT_VERSION) -> bytes:
    """A document with a correct digest over anything, in the bytes that a well-meaning writer would use."""
    content = {"body": body, "format_version": version, "kind": kind}
    with contextlib.suppress(StoreError):
        content["sha256"] = digest_json(content)
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def copy(model: Path, root: Path) -> Path:
    """A store of its own that costs no reading: files are shared until ``put`` replaces one."""
    return Path(shutil.copytree(model, root, copy_function=os.link))


def put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def found(root: Path, pattern: str) -> Path:
    (path,) = root.glob(pattern)
    return path


def forge(root: Path, pattern: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the body of a document and make its digest right again."""
    path = found(root, pattern)
    content = json.loads(path.read_bytes())
    changed = change(content["body"])
    put(path, rendered(content["kind"], content["body"] if changed is None else changed))


def set_to(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one field, ``spec.levels.0.width``."""

    def change(body: Any) -> None:
        *path, last = key.split(".")
        for name in path:
            body = body[int(name)] if isinstance(body, list) else body[name]
        body[last] = value

    return change


def replace_object(root: Path, owner: str, path: str, data: bytes) -> None:
    """Put other bytes in place of an object of part 0, and let every record agree."""
    folder = found(root, owner)
    put(folder / path, data)
    entry = {"sha256": digest_bytes(data), "size": len(data)}
    forge(root, f"{owner}/commits/part-00000.json", lambda body: body["objects"].update({path: entry}))
    agree(root)


def agree(root: Path) -> None:
    """Let columns' records of part 0 vouch for the view set's as it is now."""
    views = root / "views/train/commits/part-00000.json"
    keys = json.loads(views.read_bytes())["body"]["keys_sha256"]
    digest = digest_bytes(views.read_bytes())
    forge(root, f"{COLUMN}/commits/part-00000.json", lambda body: body.update(view_commit=digest, keys_sha256=keys))


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail instead of hanging: a pipe's other end may never come."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempts(root: Path) -> dict[str, Callable[[], object]]:
    """What a user may do with a store, reading every kind of thing in it."""

    def pixels() -> object:
        views = Store.open(root).view_set("train")
        views.usable_rows()
        return views.read_rows([0, 9]), views.read_part(0), views.summary(), views.index(1), views.missing_parts()

    def features() -> object:
        store = Store.open(root)
        names = store.column_names("train") or ["dino"]
        store.column("train", names[0]).summary()
        return store.read("train", columns=names, rows=[0, 9]), store.read("train", columns=names, rows=range(8))

    def check() -> list[str]:
        findings = [item for item in verify(Store.open(root)) if item.severity == "error"]
        assert all(item.problem.isprintable() for item in findings)
        # A path is given as it is, for those who act on it; sak store verify escapes it.
        return [one_line(f"{item.path}: {item.problem}") for item in findings]

    return {
        "pixels": pixels,
        "features": features,
        "verify": check,
        "du": lambda: disk_usage(Store.open(root)),
        "gc": lambda: plan(Store.open(root)),
    }


def said(root: Path, *names: str) -> dict[str, str]:
    """What each attempt says of a store; every other outcome than an answer or one line is a failure of the test."""
    texts = {}
    every = attempts(root)
    for name in names or every:
        try:
            with within(20):
                answer = every[name]()
        except StoreError as error:
            texts[name] = str(error)
        else:
            if name == "verify" and answer:
                assert isinstance(answer, list)
                texts[name] = " ".join(answer)
    for name, text in texts.items():
        assert text.isprintable(), f"{name}: more than one line, or control characters: {text!r}"
        assert len(text) < 40_000, f"{name}: {len(text)} characters"
    return texts


def refused(root: Path, message: str, *, by: str) -> str:
    """What an attempt says, which must be this; whatever else is refused, verify tells of it too."""
    texts = said(root, *{by, "verify"})
    assert re.search(message, texts.get(by, "")), f"{by} said {texts.get(by)!r}; all: {texts}"
    assert "verify" in texts, "damage that only readers see"
    return texts[by]
