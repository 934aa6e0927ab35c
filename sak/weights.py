"""State dicts: strict loading through explicit renames, safe files, atomic saves, digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sak.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "Fitted",
    "LoadReport",
    "compare_state",
    "digest_state",
    "fit_state",
    "load_metadata",
    "load_strict",
    "load_weights",
    "read_checkpoint",
    "rename_keys",
    "save_weights",
    "sha256_file",
    "unwrap_state",
]

_SAFETENSORS = ".safetensors"
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("model", "state_dict")
_METADATA_KEY = "sak"
_SHOWN = 8


class LoadReport(NamedTuple):
    """How a state dict fits a module.

    Attributes:
        mismatched: Names with both shapes.
        resized: Of the matched ones, those that had another shape in the file.
        new: Wanted, absent, and left as the module made them, as the caller allows.
        left_out: Of the state, not wanted, and not looked at, as the caller allows.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    resized: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every key of either side has its partner."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """One line with the faults, the first few of each kind by name."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.mismatched))
        parts = [f"{len(names)} {kind}: {_shorten(names)}" for kind, names in kinds if names]
        return "; ".join([f"{len(self.matched)} keys match", *parts])

    def story(self) -> str:
        """One line of what became of a state that fits, by the parts of the network."""
        kinds = (("resized", self.resized), ("new", self.new), ("left out", self.left_out))
        parts = [f"{len(names)} {kind} ({_parts(names)})" for kind, names in kinds if names]
        return ", ".join([f"{len(self.matched)} tensors loaded ({_parts(self.matched)})", *parts])

    def to_json(self) -> dict[str, list[str]]:
        """Every name under what became of it."""
        names = {"loaded": self.matched, "resized": self.resized, "new": self.new, "left_out": self.left_out}
        return {kind: list(found) for kind, found in names.items()}


class Fitted(NamedTuple):
    """A state by the module's own names, and how it was found to fit."""

    state: dict[str, Tensor]
    report: LoadReport


def compare_state(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], /) -> LoadReport:
    """Compare names and shapes of what a module wants with what there is, without loading anything."""
    wrong = [
        f"{name} (expected {tuple(tensor.shape)}, got {tuple(state[name].shape)})"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    matched = tuple(name for name, tensor in wanted.items() if name in state and state[name].shape == tensor.shape)
    missing = tuple(name for name in wanted if name not in state)
    unexpected = tuple(name for name in state if name not in wanted)
    return LoadReport(matched, missing, unexpected, tuple(wrong))


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    /,
    *,
    where: str,
    renames: Sequence[tuple[str, str]] = (),
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> LoadReport:
    """Load a state dict, all of it or nothing.

    Args:
        where: What is being loaded, for the error: a path or a description.
        renames: Pairs (regular expression, replacement) that turn the module's keys into the state's, see
            ``rename_keys``; the report speaks of the state's names, which are those the user can look up.
        drop: Prefixes of keys of the state that the module may lack; they are left out.
        keep: Prefixes of wanted keys that the state may lack; the module keeps their values.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape; the message lists them, nothing is loaded.
    """
    fitted = fit_state(module.state_dict(), state, where=where, renames=renames, drop=drop, keep=keep)
    module.load_state_dict(fitted.state, strict=False)
    return fitted.report


def fit_state(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    /,
    *,
    where: str,
    renames: Sequence[tuple[str, str]] = (),
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Fitted:
    """What ``load_strict`` would load: the state by the names of ``own``, whose tensors may be without storage.

    Raises:
        CheckpointError: As ``load_strict``.
    """
    wanted = rename_keys(own, renames)
    used = {name: tensor for name, tensor in state.items() if name in wanted or not name.startswith(tuple(drop))}
    report = compare_state(wanted, used)
    new = tuple(name for name in report.missing if name.startswith(tuple(keep)))
    report = report._replace(
        missing=tuple(name for name in report.missing if name not in new),
        new=new,
        left_out=tuple(name for name in state if name not in used),
    )
    if not report.fits:
        raise CheckpointError(
            f"{where}: expected the weights of this very network, got {report.summary()};"
            " check that the checkpoint and the configured model belong together"
        )
    return Fitted({ours: used[theirs] for ours, theirs in zip(own, wanted, strict=True) if theirs in used}, report)


def rename_keys(state: Mapping[str, Tensor], renames: Sequence[tuple[str, str]], /) -> dict[str, Tensor]:
    """Rename keys, in order: the first pattern that matches a whole key decides; a key that none matches stays.

    Raises:
        CheckpointError: two keys get the same name.
    """
    patterns = [(re.compile(pattern), replacement) for pattern, replacement in renames]
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for old, tensor in state.items():
        match = next(((found, to) for pattern, to in patterns if (found := pattern.fullmatch(old))), None)
        new = old if match is None else match[0].expand(match[1])
        if new in renamed:
            raise CheckpointError(
                f"renaming: expected distinct keys, got {new!r} from both {origin[new]!r} and {old!r};"
                " narrow the patterns"
            )
        renamed[new], origin[new] = tensor, old
    return renamed


def unwrap_state(loaded: Mapping[str, object], /, *, where: str = "checkpoint") -> dict[str, Tensor]:
    """Take the state dict out of a training checkpoint (``model`` or ``state_dict``) and off a DDP ``module.`` prefix.

    Raises:
        CheckpointError: what is left is not a mapping of names to tensors.
    """
    inner: Mapping[str, object] = loaded
    for wrapper in _WRAPPERS:
        candidate = inner.get(wrapper)
        if isinstance(candidate, Mapping):
            inner = candidate
    foreign = [f"{name} ({type(value).__name__})" for name, value in inner.items() if not isinstance(value, Tensor)]
    if foreign or not inner:
        raise CheckpointError(
            f"{where}: expected names with tensors, bare or under {' or '.join(_WRAPPERS)}, got"
            f" {_shorten(foreign) or 'nothing'}; extract the state dict first"
        )
    state = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


class Checkpoint(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state: The weights, in the file's order where it keeps one.
        beside: Names of what stands beside them, such as an optimiser's state.
    """

    state: dict[str, Tensor]
    beside: tuple[str, ...]


def load_weights(path: Path, /) -> dict[str, Tensor]:
    """Read a state dict onto the CPU: ``.safetensors``, or a torch file in weights-only mode (nothing in it runs).

    Raises:
        CheckpointError: no such file, an unknown suffix, or bytes that are no such file.
    """
    return read_checkpoint(path).state


def read_checkpoint(path: Path, /) -> Checkpoint:
    """Read a state dict as ``load_weights``, and what else its file holds.

    Raises:
        CheckpointError: As ``load_weights``.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint: expected a file, found none at {path}; check the path")
    if path.suffix == _SAFETENSORS:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, ())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {path}: expected a safetensors file, got {error}; fetch it again"
            ) from error
    if path.suffix not in _TORCH_SUFFIXES:
        known = ", ".join((_SAFETENSORS, *_TORCH_SUFFIXES))
        raise CheckpointError(f"checkpoint {path}: expected one of {known}, got {path.suffix!r}; convert the file")
    loaded = _load_torch(path)
    wrapper = next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
    beside = tuple(str(name) for name in loaded if name != wrapper) if wrapper else ()
    return Checkpoint(unwrap_state(loaded, where=f"checkpoint {path}"), beside)


def _load_torch(path: Path) -> Mapping[str, object]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged or hostile bytes surface as any of a dozen types, pickle's own among them; all mean: not a weights file.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"checkpoint {path}: expected tensors only (torch weights-only), got: {first_line};"
            " save the state dict alone, best as .safetensors"
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"checkpoint {path}: expected a state dict, got {type(loaded).__name__}; save state_dict()"
        )
    return loaded


def load_metadata(path: Path, /) -> dict[str, str]:
    """Read the metadata that ``save_weights`` wrote; empty for a file of other origin.

    Raises:
        CheckpointError: no such file, no safetensors file, or metadata of that name that ``save_weights`` never wrote.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY, "{}")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path}: expected a safetensors file, got {error}; check the path") from error
    try:
        return {str(key): str(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {path}: its metadata {_METADATA_KEY!r} cannot be read ({error}); write the file again"
        ) from error


def save_weights(path: Path, state: Mapping[str, Tensor], /, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically: whoever opens ``path`` sees the old file or the whole new one.

    The same tensors and metadata always give the same bytes.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors, or cannot be written, as on a full disk.
    """
    if path.suffix != _SAFETENSORS:
        raise CheckpointError(f"checkpoint {path}: expected the suffix {_SAFETENSORS}, got {path.suffix!r}; rename it")
    # Copies, because safetensors refuses tensors that share memory, as tied weights and views do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    # One entry only: the header keeps several in no fixed order, and equal weights shall be equal bytes.
    text = json.dumps(dict(metadata or {}), sort_keys=True, ensure_ascii=False)
    try:
        _write_atomically(path, tensors, text)
    # safetensors wraps what the operating system says in its own type.
    except (SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); check the path, its permissions and the space on its disk"
        ) from error


def _write_atomically(path: Path, tensors: dict[str, Tensor], text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={_METADATA_KEY: text})
        os.chmod(temporary, 0o644)
        _sync(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def digest_state(state: Mapping[str, Tensor], /) -> str:
    """SHA-256 over names, types, shapes and values, whatever the order of the keys."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sha256_file(path: Path, /) -> str:
    """SHA-256 of a checkpoint's bytes, in hex.

    Raises:
        CheckpointError: no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = f"found none at {path}" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        raise CheckpointError(f"checkpoint: expected a file, {reason}; check the path") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _parts(names: Sequence[str]) -> str:
    """The parts of the network that names belong to, with how many of each."""
    counts: dict[str, int] = {}
    for name in names:
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} {count}" for part, count in counts.items()) or "none"
