"""Contact sheets: pages of images with the prediction and the truth of every task, side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.report.colour import CLASS_TASKS, DepthRange, colour_task, depth_range
from pipeline.report.palettes import IGNORE, class_palette
from pipeline.transforms import Array
from sak.dense.registry import LABELS
from sak.tasks import DatasetSpec

__all__ = ["SheetImage", "sheet"]

CELL, GAP, MARGIN, GUTTER = 208, 8, 24, 26
TALLEST = 280
LINE = 20
INK, PALE, PAPER, RULE = (28, 32, 38), (112, 118, 126), (255, 255, 255), (222, 225, 229)
ROWS = ("prediction", "truth")
_NO_RANGE = DepthRange(0.0, 1.0)
_SIZE = 14  # of letters, in pixels

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetImage:
    """One image of a page.

    Attributes:
        predicted: Task to map, as ``read_map`` gives it.
        true: Task to label; a task may lack one.

    Shapes:
        image: ``(H, W, 3)`` uint8; maps have its height and width.
    """

    name: str
    image: Pixels
    predicted: Mapping[str, Array]
    true: Mapping[str, Array]


class _Block(NamedTuple):
    """An image's cells as pixels, and what is written below the image."""

    height: int
    image: Image.Image
    cells: Mapping[tuple[str, str], Image.Image]
    notes: tuple[str, ...]


def sheet(images: Sequence[SheetImage], /, *, dataset: DatasetSpec, tasks: Sequence[str], title: str) -> bytes:
    """One page as the bytes of a JPEG file.

    Args:
        tasks: Columns, from left to right.
    """
    blocks = [_block(item, dataset=dataset.name, tasks=tasks) for item in images]
    width = _left(len(tasks)) + CELL + MARGIN
    keys = [_entries(images, dataset=dataset, task=task) for task in tasks if task in CLASS_TASKS]
    key_lines = [line for entries in keys for line in _wrapped(entries, width=width - 2 * MARGIN)]
    heads = MARGIN + LINE + GAP + LINE + GAP
    height = heads + sum(2 * block.height + 3 * GAP for block in blocks) + 2 * GAP + LINE * len(key_lines) + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    _text(draw, (MARGIN, MARGIN - GAP), title, size=17)
    for column, label in enumerate(("image", *(dataset.task(task).short_name for task in tasks))):
        _text(draw, (_left(column), MARGIN + LINE + GAP), label, size=_SIZE, bold=True)
    top = heads
    for block in blocks:
        top = _paste(page, block, top=top, tasks=tasks)
    top += GAP
    for line in key_lines:
        top = _paste_key(draw, line, top=top)
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def _left(column: int) -> int:
    # Between the image and the tasks stand the names of the lines.
    return MARGIN + column * (CELL + GAP) + (GUTTER if column else 0)


def _block(item: SheetImage, *, dataset: str, tasks: Sequence[str]) -> _Block:
    rows, columns = item.image.shape[:2]
    height = min(TALLEST, max(1, round(CELL * rows / columns)))
    maps = {"prediction": item.predicted, "truth": item.true}
    ranged = [task for task in tasks if LABELS[task].shown == "range"]
    limits = {
        task: depth_range([found[task] for found in (item.true, item.predicted) if task in found]) for task in ranged
    }
    cells = {
        (row, task): _fitted(
            colour_task(task, found[task], dataset=dataset, limits=limits.get(task, _NO_RANGE)), height, task=task
        )
        for row, found in maps.items()
        for task in tasks
        if task in found
    }
    notes = [item.name, f"{columns} x {rows}"]
    for task, (near, far) in limits.items():
        unit = LABELS[task].unit
        notes += [f"{LABELS[task].title}: {near:.1f} {unit} is bright,", f"{far:.1f} {unit} dark"]
    return _Block(height, _fitted(item.image, height, task=""), cells, tuple(notes))


def _fitted(pixels: Pixels, height: int, *, task: str) -> Image.Image:
    """As large as its cell allows; colours of classes are never mixed, and small maps keep their pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = min(CELL / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    hard = task in CLASS_TASKS or (scale > 1 and task != "")
    return image.resize(size, Image.Resampling.NEAREST if hard else Image.Resampling.LANCZOS)


def _paste(page: Image.Image, block: _Block, *, top: int, tasks: Sequence[str]) -> int:
    """Draw one image's two lines; gives where the next one begins."""
    draw = ImageDraw.Draw(page)
    draw.line([(MARGIN, top - GAP // 2), (page.width - MARGIN, top - GAP // 2)], fill=RULE)
    first = top + GAP // 2
    page.paste(block.image, (_left(0), first))
    for index, name in enumerate(ROWS):
        line = first + index * (block.height + GAP)
        upright = _upright(name)
        page.paste(upright, (_left(0) + CELL + GAP, line + max(0, block.height - upright.height) // 2))
        for column, task in enumerate(tasks, start=1):
            cell = block.cells.get((name, task))
            if cell is None:
                _text(draw, (_left(column), line), "no label", size=_SIZE, ink=PALE)
            else:
                page.paste(cell, (_left(column), line))
    for index, note in enumerate(block.notes):
        at = (_left(0), first + block.height + GAP + index * LINE)
        _text(draw, at, _shortened(note, CELL), size=_SIZE, ink=PALE if index else INK)
    return first + 2 * block.height + 2 * GAP + GAP // 2


class _Entry(NamedTuple):
    colour: tuple[int, int, int]
    name: str


def _entries(images: Sequence[SheetImage], *, dataset: DatasetSpec, task: str) -> list[_Entry]:
    """The task's name, then the classes that occur on the page."""
    maps = [found[task] for item in images for found in (item.predicted, item.true) if task in found]
    present = sorted({int(value) for found in maps for value in np.unique(found)})
    palette, names = class_palette(dataset.name, task=task), dataset.task(task).classes
    entries = [_Entry(PAPER, dataset.task(task).short_name)]
    for index in present:
        red, green, blue = (int(value) for value in palette[index])
        name = "ignored" if index == IGNORE else names[index] if index < len(names) else f"class {index}"
        entries.append(_Entry((red, green, blue), name))
    return entries


def _wrapped(entries: Sequence[_Entry], *, width: int) -> list[list[tuple[int, _Entry]]]:
    """Entries with their places, in lines of at most a width."""
    lines: list[list[tuple[int, _Entry]]] = [[]]
    at = 0
    for entry in entries:
        needed = _width(entry.name) + (0 if entry.colour == PAPER else LINE) + 2 * GAP
        if at + needed > width and lines[-1]:
            lines.append([])
            at = 0
        lines[-1].append((at, entry))
        at += needed
    return lines


def _paste_key(draw: ImageDraw.ImageDraw, line: Sequence[tuple[int, _Entry]], *, top: int) -> int:
    for at, entry in line:
        left = MARGIN + at
        if entry.colour == PAPER:
            _text(draw, (left, top), entry.name, size=_SIZE, bold=True)
            continue
        draw.rectangle([left, top + 2, left + 11, top + 13], fill=entry.colour, outline=RULE)
        _text(draw, (left + LINE, top), entry.name, size=_SIZE)
    return top + LINE


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    *,
    size: int,
    ink: tuple[int, int, int] = INK,
    bold: bool = False,
) -> None:
    # Pillow's own font has one weight and few letters beyond Latin; what it lacks would be boxes.
    shown = text.encode("latin-1", "replace").decode("latin-1")
    draw.text(at, shown, fill=ink, font=_font(size), stroke_width=0.3 if bold else 0)


def _width(text: str) -> int:
    return int(_font(_SIZE).getlength(text.encode("latin-1", "replace").decode("latin-1"))) + 1


def _shortened(text: str, width: int) -> str:
    """The end of a name tells more than its beginning."""
    if _width(text) <= width:
        return text
    kept = next(count for count in range(len(text), -1, -1) if _width(f"...{text[len(text) - count :]}") <= width)
    return f"...{text[len(text) - kept :]}"


@cache
def _upright(text: str) -> Image.Image:
    """A line's name, to be read from below."""
    strip = Image.new("RGB", (_width(text) + 2, GUTTER - 4), PAPER)
    _text(ImageDraw.Draw(strip), (0, 1), text, size=_SIZE, ink=PALE)
    return strip.rotate(90, expand=True)
