"""Small predictions and labels, in memory and as the files that users have."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import gaussian_filter

__all__ = ["Drawn", "draw", "write_label_map", "write_nyud", "write_prediction", "write_set"]


class Drawn(NamedTuple):
    """A prediction and a label map.

    Shapes:
        ``(H, W)``.
    """

    prediction_HW: NDArray[np.uint8]
    labels_HW: NDArray[np.uint16]


def draw(seed: int, /, *, size: tuple[int, int] = (40, 48)) -> Drawn:
    """Three regions, and a blurred and noisy guess at where they meet."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    labels = (y > 12 + seed % 7 + 0.3 * x).astype(np.uint16) + 300 * (x > 20 + seed % 5).astype(np.uint16)
    change = np.zeros(size)
    change[:, :-1] += labels[:, :-1] != labels[:, 1:]
    change[:-1] += labels[:-1] != labels[1:]
    guess = np.clip(3 * gaussian_filter(np.roll(change, seed % 2, axis=1), 1.2) + 0.2 * rng.random(size), 0, 1)
    return Drawn((guess * 255).astype(np.uint8), labels)


def write_prediction(path: Path, drawn: Drawn, /) -> None:
    """``NAME.png``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn.prediction_HW).save(path)


def write_label_map(path: Path, drawn: Drawn, /) -> None:
    """``NAME.mat`` as PASCAL-Context has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"LabelMap": drawn.labels_HW}, do_compression=True)


def write_nyud(path: Path, boundaries: NDArray[np.generic], /, *, annotators: int = 1) -> None:
    """``NAME.mat`` as NYUD's ``edge_mat`` has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.empty((1, annotators), dtype=object)
    for index in range(annotators):
        cells[0, index] = {"Boundaries": boundaries, "Segmentation": np.ones_like(boundaries)}
    savemat(path, {"groundTruth": cells}, do_compression=True)


def write_set(root: Path, /, *, images: int = 4) -> dict[str, Drawn]:
    """``pred/`` and ``labels/`` with so many images; returns them by name."""
    found = {f"im{index}": draw(index) for index in range(images)}
    for name, drawn in found.items():
        write_prediction(root / "pred" / f"{name}.png", drawn)
        write_label_map(root / "labels" / f"{name}.mat", drawn)
    return found
