"""Gallery and feature strip: which picture goes into which cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.charts import swatch
from pipeline.report.colour import CLASS_TASKS, DepthRange, colour_task, depth_range
from pipeline.report.data import GallerySample, ReportData
from pipeline.report.palettes import IGNORE, class_palette
from pipeline.report.pictures import Picture, picture
from sak.dense.registry import LABELS

__all__ = ["ClassKey", "FeatureBlock", "Gallery", "class_keys", "feature_blocks", "gallery"]

CELL = 136  # CSS pixels of a gallery picture
FEATURE_COLUMNS = 12  # feature maps side by side before a new block starts
FEATURE_CELL = 64
FEATURE_IMAGE = 112


class GalleryLine(NamedTuple):
    """One row of pictures; ``run`` is the position of the run, -1 for the labels."""

    name: str
    run: int
    mark: Markup
    pictures: tuple[Picture | None, ...]


class GallerySet(NamedTuple):
    """One sample: its image, then labels and predictions."""

    key: str
    image: Picture
    depth: str
    lines: tuple[GalleryLine, ...]


class Gallery(NamedTuple):
    """The whole gallery; ``heads`` are column titles by task, ``runs`` the names that can be switched."""

    heads: tuple[str, ...]
    runs: tuple[tuple[int, str, Markup], ...]
    samples: tuple[GallerySet, ...]


class ClassKey(NamedTuple):
    """Colour key of one task: (colour as hex, name) of every class that is seen in the gallery."""

    label: str
    entries: tuple[tuple[str, str], ...]


class FeatureSet(NamedTuple):
    """One sample of the feature strip: per role (teacher, student) the maps of every group in turn."""

    key: str
    image: Picture
    rows: tuple[tuple[str, tuple[Picture | None, ...]], ...]


class FeatureBlock(NamedTuple):
    """Groups (teachers) shown side by side, with so many levels each; ``starts`` are their first columns."""

    groups: tuple[tuple[str, int], ...]
    starts: tuple[int, ...]
    samples: tuple[FeatureSet, ...]


def _tasks(data: ReportData) -> list[str]:
    """Tasks in the order of the result table, then whatever else the samples hold."""
    seen = [c.task for c in data.columns]
    for sample in data.gallery:
        seen += [*sample.labels, *(task for maps in sample.predictions.values() for task in maps)]
    have = {task for sample in data.gallery for maps in (sample.labels, *sample.predictions.values()) for task in maps}
    return [task for task in dict.fromkeys(seen) if task in have]


def _runs(data: ReportData) -> list[str]:
    """Runs with predictions, in the order of the result table."""
    return list(dict.fromkeys([*(r.name for r in data.runs), *(n for s in data.gallery for n in s.predictions)]))


def _limits(sample: GallerySample) -> dict[str, DepthRange]:
    """From near to far, of each task that is shown so."""
    maps = [sample.labels, *sample.predictions.values()]
    shown = [name for name, label in LABELS.items() if label.shown == "range" and any(name in found for found in maps)]
    return {task: depth_range([found[task] for found in maps if task in found]) for task in shown}


def _line(sample: GallerySample, *, who: str, tasks: Sequence[str], dataset: str) -> tuple[Picture | None, ...]:
    """Pictures of the labels (``who`` empty) or of one run, in the order of ``tasks``."""
    maps = sample.predictions.get(who, {}) if who else sample.labels
    limits, source = _limits(sample), f"prediction of {who}" if who else "label"
    pictures: list[Picture | None] = []
    for task in tasks:
        if task not in maps:
            pictures.append(None)
            continue
        pixels = colour_task(task, maps[task], dataset=dataset, limits=limits.get(task, DepthRange(0.0, 1.0)))
        alt = f"{task}, {source}, {sample.key}"
        pictures.append(picture(pixels, alt=alt, width=CELL, hard=task in CLASS_TASKS))
    return tuple(pictures)


def gallery(data: ReportData) -> Gallery:
    """Every sample's image, labels and predictions as pictures."""
    tasks, names = _tasks(data), _runs(data)
    if not tasks:  # photographs without labels: their features have a section of their own
        return Gallery((), (), ())
    heads = {column.task: column.label for column in data.columns}
    samples = []
    for sample in data.gallery:
        lines = []
        if sample.labels:
            lines.append(GalleryLine("Label", -1, Markup(""), _line(sample, who="", tasks=tasks, dataset=data.dataset)))
        for slot, name in enumerate(names):
            if name in sample.predictions:
                made = _line(sample, who=name, tasks=tasks, dataset=data.dataset)
                lines.append(GalleryLine(name, slot, swatch(slot), made))
        limits = _limits(sample)
        depth = ", ".join(f"{task} {near:.1f}–{far:.1f} {LABELS[task].unit}" for task, (near, far) in limits.items())
        image = picture(sample.image, alt=f"image {sample.key}", width=CELL)
        samples.append(GallerySet(sample.key, image, depth, tuple(lines)))
    shown = {name for sample in data.gallery for name in sample.predictions}
    runs = tuple((slot, name, swatch(slot)) for slot, name in enumerate(names) if name in shown)
    return Gallery(tuple(heads.get(task, task) for task in tasks), runs, tuple(samples))


def _present(data: ReportData, *, task: str) -> list[int]:
    maps: list[NDArray[np.generic]] = []
    for sample in data.gallery:
        maps += [found[task] for found in (sample.labels, *sample.predictions.values()) if task in found]
    return sorted({int(v) for one in maps for v in np.unique(one)})


def class_keys(data: ReportData) -> list[ClassKey]:
    """Colour keys of the class maps in the gallery: only the classes that occur."""
    labels = {column.task: column.label for column in data.columns}
    keys = []
    for task in CLASS_TASKS:
        names, palette = data.classes.get(task, ()), class_palette(data.dataset, task=task)
        entries = []
        for index in _present(data, task=task):
            name = "ignored" if index == IGNORE else names[index] if index < len(names) else f"class {index}"
            entries.append(("#" + palette[index].tobytes().hex(), name))
        if entries:
            keys.append(ClassKey(labels.get(task, task), tuple(entries)))
    return keys


def _split(name: str) -> tuple[str, str]:
    """``teacher semantics`` is (role, group); a name without a role is its own group."""
    role, _, group = name.partition(" ")
    return (role, group) if role in ("teacher", "student") and group else ("features", name)


def _feature_set(sample: GallerySample, *, groups: Sequence[tuple[str, int]]) -> FeatureSet:
    maps = {_split(name): levels for name, levels in sample.features.items()}
    rows = []
    for role in dict.fromkeys(role for role, _ in maps):
        cells: list[Picture | None] = []
        for group, levels in groups:
            found = maps.get((role, group), ())
            for level in range(levels):
                alt = f"{role} {group}, level {level + 1}, {sample.key}"
                cells.append(picture(found[level], alt=alt, width=FEATURE_CELL) if level < len(found) else None)
        if any(cells):
            rows.append((role, tuple(cells)))
    return FeatureSet(sample.key, picture(sample.image, alt=f"image {sample.key}", width=FEATURE_IMAGE), tuple(rows))


def feature_blocks(data: ReportData) -> list[FeatureBlock]:
    """The feature strip, broken into blocks of at most twelve maps side by side."""
    levels: dict[str, int] = {}
    for sample in data.gallery:
        for name, maps in sample.features.items():
            group = _split(name)[1]
            levels[group] = max(levels.get(group, 0), len(maps))
    chunks: list[list[tuple[str, int]]] = []
    for group, count in levels.items():
        if not chunks or sum(n for _, n in chunks[-1]) + count > FEATURE_COLUMNS:
            chunks.append([])
        chunks[-1].append((group, count))
    blocks = []
    for chunk in chunks:
        samples = [_feature_set(sample, groups=chunk) for sample in data.gallery if sample.features]
        starts = tuple(sum(count for _, count in chunk[:i]) for i in range(len(chunk)))
        blocks.append(FeatureBlock(tuple(chunk), starts, tuple(sample for sample in samples if sample.rows)))
    return blocks
