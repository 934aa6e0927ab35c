from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.predictions.sheets import CELL, GAP, SheetImage, sheet
from pipeline.report.palettes import class_palette
from sak.tasks import dataset_spec

SCENES = dataset_spec("scenes")
TASKS = tuple(SCENES.tasks)


def item(name: str = "x", *, size: tuple[int, int] = (40, 60), label: int = 3) -> SheetImage:
    def maps(value: int) -> dict[str, np.ndarray]:
        return {
            "semseg": np.full(size, value, dtype=np.uint8),
            "human_parts": np.zeros(size, dtype=np.uint8),
            "sal": np.full(size, 0.5, dtype=np.float32),
            "normals": np.tile(np.float32([0, 0, 1]), (*size, 1)),
            "edge": np.zeros(size, dtype=np.float32),
            "depth": np.full(size, 2.0, dtype=np.float32),
        }

    return SheetImage(name=name, image=np.full((*size, 3), 200, np.uint8), predicted=maps(7), true=maps(label))


def pixels(images: list[SheetImage], tasks: tuple[str, ...] = TASKS) -> np.ndarray:
    data = sheet(images, dataset=SCENES, tasks=tasks, title="Scenes")
    with Image.open(io.BytesIO(data)) as page:
        assert page.format == "JPEG"
        return np.asarray(page.convert("RGB")).astype(int)


def count(page: np.ndarray, colour: tuple[int, ...] | np.ndarray) -> int:
    return int((np.abs(page - np.asarray(colour, dtype=int)).max(axis=-1) < 12).sum())


def test_prediction_and_truth_are_shown_in_the_palette_of_the_data_set() -> None:
    page, palette = pixels([item(label=5)]), class_palette("scenes", task="semseg")
    cell = CELL * round(CELL * 40 / 60)
    for index in (7, 5):  # each has a cell, and a swatch in the key
        assert cell * 0.9 < count(page, palette[index]) < cell * 1.2
    assert count(page, palette[9]) < cell * 0.01


def test_a_page_grows_with_its_images_and_tasks() -> None:
    one, two = pixels([item("a")]), pixels([item("a"), item("b", size=(60, 40))])
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] > one.shape[0] + CELL
    narrow = pixels([item("a")], tasks=("semseg", "depth"))
    assert one.shape[1] - narrow.shape[1] == (len(TASKS) - 2) * (CELL + GAP)


@pytest.mark.parametrize("name", ["ünïcode-名前", "a/very/long/" + "x" * 200, "e"])
def test_any_name_and_a_missing_label_can_be_shown(name: str) -> None:
    shown = item(name)
    bare = SheetImage(name=name, image=shown.image, predicted=shown.predicted, true={})
    assert pixels([bare]).shape == pixels([shown]).shape


def test_the_same_page_is_the_same_bytes() -> None:
    first, second = (sheet([item()], dataset=SCENES, tasks=TASKS, title="t") for _ in range(2))
    assert first == second
