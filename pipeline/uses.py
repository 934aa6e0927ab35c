"""What a stage reads, on record in the store and in the stage's own folder before its first step.

The store's record keeps ``sak store gc`` away. The folder's own refuses a resumed stage, or the next one, when the
store has changed under it: half a training on one set of features and half on another is neither.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.config import Study
from pipeline.errors import PipelineError
from pipeline.stagedir import StageDir
from pipeline.targets import TargetSource
from pipeline.tracking import CONSOLE
from pipeline.whole_file import write_whole
from store.column import Column
from store.errors import StoreError
from store.fingerprint import digest_json
from store.store import Store
from store.uses import Use, check_commits, make_use, save_use
from store.viewset import ViewSet

__all__ = ["USES_FILE", "record_uses"]

USES_FILE = "uses.json"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def record_uses(
    study: Study,
    stage: StageDir,
    /,
    *,
    view_set: ViewSet | None,
    targets: TargetSource | None,
    after: StageDir | None = None,
) -> dict[str, object]:
    """Record what a stage is about to read; to be called in its ``work``, before anything is read.

    Args:
        view_set: ``None`` for images that are not read from the store.
        after: The stage that this one continues.

    Returns:
        A summary for the stage's record.

    Raises:
        StoreError: The stage, or the one it continues, read other bytes than the store holds now.
        PipelineError: A record in a stage's folder is damaged.
    """
    items: list[ViewSet | Column] = [*([view_set] if view_set else []), *(targets.columns if targets else ())]
    if not items:
        return {}
    store = Store.open(study.store)
    for folder in [stage.path, *([after.path] if after else [])]:
        before = _recorded(folder / USES_FILE)
        if before is not None:
            check_commits(store, before.commits, where=str(folder))
    use = make_use(store, experiment=stage.path.name, folder=str(stage.path.absolute()), items=items)
    try:
        save_use(store, use)
    except StoreError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _READ_ONLY:
            raise
        CONSOLE.print(
            f"{stage.path}: not on record as a user of the store, so sak store gc will not know of it ({error})"
        )
    # Without its place: the folder may be moved, and two equal runs leave equal files.
    write_whole(stage.path / USES_FILE, replace(use, folder=".", host="").render())
    return {"uses": _summary(use)}


def _recorded(path: Path) -> Use | None:
    try:
        return Use.parse(path.read_bytes(), where=str(path))
    except FileNotFoundError:  # a stage begun before uses were recorded, or this one's first start
        return None
    except (OSError, StoreError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); delete its folder and rerun") from error


def _summary(use: Use) -> dict[str, Mapping[str, object]]:
    return {
        owner: {"parts": len(parts), "sha256": digest_json({str(part): item for part, item in parts.items()})}
        for owner, parts in use.commits.items()
    }
