"""Reading images and label files from folders that may be damaged, misplaced or hostile.

Nothing here unpickles: images and PNG labels go through Pillow, depth through ``np.load(allow_pickle=False)``, MATLAB
files through ``scipy.io.loadmat``, which builds arrays only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy.io import loadmat

from pipeline.errors import BadImageError, DataError

__all__ = [
    "SPLITS",
    "SUFFIXES",
    "choose",
    "choose_split",
    "content_fingerprint",
    "decode_map",
    "decode_mat",
    "decode_normals",
    "decode_rgb",
    "inside",
    "read_depth",
    "read_file",
    "read_list",
    "read_mat",
    "read_npy",
    "read_png_map",
    "read_rgb",
    "require_folder",
    "subset",
    "unit_normals",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of files that are taken for photographs."""

SPLITS = ("train", "val", "test", "unlabeled")
"""Names of folders that divide a collection of photographs."""

_WHOLE = ("all", "train", "unlabeled")
# What the suffixes above are found to hold in practice. Of Pillow's other formats some start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def require_folder(path: Path, *, layout: str) -> Path:
    """Return the folder, or say which layout was expected there.

    Raises:
        DataError: The folder does not exist.
    """
    if not path.is_dir():
        raise DataError(
            f"{path}: folder not found; expected {layout}; check the path in the recipe or on the command line"
        )
    return path


def inside(path: Path, *, root: Path) -> Path:
    """Return the path, refusing one that leads out of ``root`` through links or dots.

    Raises:
        DataError: The resolved path lies outside the resolved root.
    """
    try:
        real = path.resolve()
    except (OSError, ValueError) as error:  # a name with a NUL, or longer than the file system has
        raise DataError(f"{str(path)!r}: is no name of a file ({error}); mend the list that names it") from error
    if not real.is_relative_to(root.resolve()):
        raise DataError(
            f"{path}: leads outside the data folder {root} (to {real}); copy the file into the folder instead"
        )
    return path


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode a whole image file; see ``decode_rgb``.

    Raises:
        BadImageError: Missing, truncated, undecodable or suspiciously large; the message names the file.
    """
    return _rgb(_opened(path))


def decode_rgb(data: bytes, *, where: str) -> NDArray[np.uint8]:
    """Decode the bytes of an image file to ``(H, W, 3)`` RGB; orientation tags are not applied.

    Raises:
        BadImageError: Truncated, undecodable or suspiciously large; the message begins with ``where``.
    """
    return _rgb(_decoded(data, where=where))


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    with picture:
        if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to white
            deep = np.asarray(picture, dtype=np.int64)
            grey = np.clip((deep + 128) // 257, 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def read_png_map(path: Path) -> NDArray[np.uint8]:
    """Decode an 8-bit label image to ``(H, W)`` or ``(H, W, 3)``; a palette image gives its indices.

    Raises:
        BadImageError: Undecodable, or not 8 bits deep.
    """
    with _opened(path) as picture:
        if picture.mode not in ("L", "P", "RGB", "1"):
            raise BadImageError(f"{path}: expected an 8-bit grey, palette or RGB label image, got mode {picture.mode}")
        values = np.asarray(picture)
    return (values * np.uint8(255)) if values.dtype == np.bool_ else np.asarray(values, dtype=np.uint8)


def decode_map(data: bytes, *, where: str, modes: Sequence[str]) -> NDArray[np.generic]:
    """Decode the bytes of a single-channel image to ``(H, W)``; a palette image gives its indices.

    Args:
        modes: Pillow's names of the pixel formats that are welcome.

    Raises:
        BadImageError: Undecodable, or of another pixel format; the message begins with ``where``.
    """
    with _decoded(data, where=where) as picture:
        if picture.mode not in modes:
            raise BadImageError(f"{where}: expected pixels of mode {' or '.join(modes)}, got {picture.mode}")
        return np.asarray(picture)


def read_file(path: Path) -> bytes:
    """The bytes of a file of a data set.

    Raises:
        BadImageError: It is missing or cannot be read; the message names it.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadImageError(f"{path}: file not found; the data folder is incomplete") from error
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror}); replace or remove the file") from error


def _opened(path: Path) -> Image.Image:
    return _decoded(read_file(path), where=str(path))


def _decoded(data: bytes, *, where: str) -> Image.Image:
    """Decode fully, so that truncation shows here and not later."""
    try:
        picture = Image.open(BytesIO(data), formats=_FORMATS)
        picture.load()
    except Image.DecompressionBombError as error:
        raise BadImageError(f"{where}: refused, {error}; shrink the image first") from error
    except UnidentifiedImageError as error:
        # Pillow's own words hold a memory address; a store records the reason, and reruns must write the same bytes.
        raise BadImageError(f"{where}: cannot be decoded (not a known image format); replace or remove it") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise BadImageError(f"{where}: cannot be decoded ({error}); replace or remove the file") from error
    return picture


def read_mat(path: Path, *, name: str) -> NDArray[np.generic]:
    """Read one variable of a MATLAB 5 file.

    Raises:
        BadImageError: The file cannot be read or lacks the variable.
    """
    found = decode_mat(read_file(path), names=(name,), where=str(path))
    return found[name]


def decode_mat(data: bytes, *, names: Sequence[str], where: str) -> dict[str, NDArray[np.generic]]:
    """Those of some variables that the bytes of a MATLAB 5 file hold, at least one.

    Raises:
        BadImageError: Damaged, or without any of them; the message begins with ``where``.
    """
    try:
        variables = loadmat(BytesIO(data), variable_names=list(names))
    except NotImplementedError as error:
        raise BadImageError(f"{where}: MATLAB 7.3 file; save it again with -v7") from error
    except Exception as error:  # scipy raises many kinds on damaged bytes, down to zlib.error and TypeError
        raise BadImageError(f"{where}: cannot be read as a MATLAB file ({error}); replace the file") from error
    found = {name: np.asarray(variables[name]) for name in names if name in variables}
    if not found:
        wanted = " or ".join(repr(name) for name in names)
        raise BadImageError(f"{where}: has no variable {wanted}; is it from another data set?")
    return found


def read_npy(path: Path) -> NDArray[np.float32]:
    """Read numbers from a .npy file; those beyond float32 become infinite.

    Raises:
        BadImageError: Not a plain numeric array file.
    """
    try:
        _check_npy(path)
        values = np.load(path, allow_pickle=False)
        if values.dtype.kind not in "biuf":  # text and dates would pass for numbers, complex ones for half of them
            raise ValueError(f"its values are of type {values.dtype}")
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=np.float32)
    except FileNotFoundError as error:
        raise BadImageError(f"{path}: file not found; the data folder is incomplete") from error
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise BadImageError(f"{path}: cannot be read as a numeric .npy array ({error}); replace the file") from error


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read ``(H, W)`` metres from a .npy file; zero, negative and non-finite values become 255.0 (invalid).

    Raises:
        BadImageError: Not a plain numeric array file.
    """
    depth_HW = read_npy(path)
    depth_HW = depth_HW.squeeze(-1) if depth_HW.ndim == 3 and depth_HW.shape[-1] == 1 else depth_HW
    return np.where(np.isfinite(depth_HW) & (depth_HW > 0), depth_HW, np.float32(255.0))


def _check_npy(path: Path) -> None:
    """Refuse a file smaller than its header claims, before NumPy allocates what the header claims."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        wanted, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
    if wanted > held:
        raise ValueError(f"its header claims {wanted} bytes, it holds {held}")


def decode_normals(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn 8-bit normals into unit vectors, ``2 x / 255 - 1`` and normalised.

    A pixel whose vector is not near unit length encodes no direction (black and mid-grey are used for "nothing") and
    becomes exact zeros. The published loader trains on such pixels as if they were normals.
    """
    return unit_normals(pixels_HW3.astype(np.float32) * np.float32(2.0 / 255.0) - np.float32(1.0))


def unit_normals(vector_HW3: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of near unit length, normalised; exact zeros for all others."""
    length_HW1 = np.sqrt((vector_HW3 * vector_HW3).sum(-1, keepdims=True))
    valid_HW1 = (length_HW1 > 0.5) & (length_HW1 < 1.5)
    return np.where(valid_HW1, vector_HW3 / np.maximum(length_HW1, np.float32(0.5)), np.float32(0.0))


def read_list(path: Path, *, root: Path, layout: str) -> list[str]:
    """Read the image ids of a split file, one per line, without blanks.

    Raises:
        DataError: Missing, empty, with a repeated id, or with an id that leads out of the folder.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: split list cannot be read ({error}); expected {layout}") from error
    ids = [line for line in lines if line]
    if not ids:
        raise DataError(f"{path}: split list is empty; expected one image id per line")
    if len(set(ids)) != len(ids):
        twice = next(name for number, name in enumerate(ids) if name in ids[:number])
        raise DataError(f"{path}: image id {twice!r} is listed twice; remove one line")
    for name in ids:
        inside(root / name, root=root)
    return ids


def choose_split(split: str, *, present: Iterable[str], where: str) -> str | None:
    """Which folder of a collection of photographs holds a split, None for the whole of an undivided one.

    Args:
        present: Those of ``SPLITS`` that the collection is divided into.

    Raises:
        DataError: It has no such split.
    """
    others = [name for name in SPLITS if name in set(present)]
    if split in others:
        return split
    # A collection that has other splits must not hand its validation images out as training images.
    if split in _WHOLE and (split == "all" or not others):
        return None
    found = f"it has {', '.join(others)}" if others else "it is not divided into splits"
    remedy = f"put the images of each split in a folder of its own, as in {where}/train and {where}/val"
    raise DataError(f"{where}: has no folder {split!r}; {found}; {remedy}, or name another root")


def choose(count: int, *, images: int | None, seed: int, where: str) -> list[int] | None:
    """Ascending positions of a seeded random choice among ``count`` sorted names; None for all of them.

    Raises:
        DataError: There are none, or fewer than ``images``.
    """
    if not count:
        raise DataError(f"{where}: no images found; check the folder and the split")
    if images is None:
        return None
    if not 1 <= images <= count:
        raise DataError(f"{where}: {images} images asked for, but there are {count}; ask for 1 to {count}")
    # Taking the first ones instead would take one class of a class-per-folder tree.
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)[:images]
    return sorted(order.tolist())


def subset(names: Iterable[str], *, images: int | None, seed: int, where: str) -> list[str]:
    """Sort the names and, when fewer are asked for, keep a seeded random choice of them.

    Raises:
        DataError: There are none, or fewer than ``images``.
    """
    ordered = sorted(names)
    chosen = choose(len(ordered), images=images, seed=seed, where=where)
    return ordered if chosen is None else [ordered[i] for i in chosen]


def content_fingerprint(kind: str, *, root: Path, files: Iterable[Path], facts: Mapping[str, object]) -> str:
    """Digest of the paths and bytes of the files and of further facts.

    Reads every file once: about a second for 300 MB. That is the price of noticing a replaced photograph. A file that
    is missing or unreadable counts as such: whether that matters is for whoever reads its row to say.
    """
    digest = hashlib.sha256(json.dumps([kind, dict(facts)], sort_keys=True).encode())
    for path in sorted(files):
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            content = "unreadable"
        digest.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
