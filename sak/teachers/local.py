"""Where a teacher's weights already lie on this machine; nothing is fetched and no file is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache

from sak.errors import TeacherError
from sak.teachers.entry import TeacherEntry
from sak.teachers.published import PUBLISHED

__all__ = ["find_weights"]

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(name: str, entry: TeacherEntry, /, *, folder: Path | None = None) -> Path | None:
    """The file with a published teacher's weights, or None.

    Looked for in ``folder`` under the teacher's name, its timm name or the name it is published under; then in the
    caches of the hub and of torch, which ``pretrained`` reads.

    Raises:
        TeacherError: ``folder`` is no folder.
    """
    if folder is not None and not folder.is_dir():
        raise TeacherError(f"weights: expected a folder, found none at {folder}; correct the path")
    found = (path for path in _candidates(name, entry, folder) if path.is_file())
    return next(found, None)


def _candidates(name: str, entry: TeacherEntry, folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        architecture = entry.timm.partition(".")[0]
        alike = [other for other in PUBLISHED.values() if other.timm.partition(".")[0] == architecture]
        # A network that two teachers share does not tell whose weights a file of that name holds.
        shared = [] if len(alike) > 1 else [architecture]
        stems = dict.fromkeys((name, entry.timm, *shared) if entry.on_hub else (name,))
        yield from (folder / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
        yield from (folder / file for file in entry.files)
    config = timm.get_pretrained_cfg(entry.timm, allow_unregistered=True) if entry.on_hub else None
    if config is None:
        return
    if config.hf_hub_id:
        cached = (try_to_load_from_cache(config.hf_hub_id, file) for file in _HUB_FILES)
        yield from (Path(path) for path in cached if isinstance(path, str))
    if isinstance(config.url, str) and config.url:
        yield Path(torch.hub.get_dir()) / "checkpoints" / config.url.rsplit("/", 1)[1]
