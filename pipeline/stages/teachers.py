"""What there is to know of the teachers before one is run: ``sak teachers ls`` and ``info``.

Costs are counted on networks without memory, so that a giant one can be looked at anywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rich.table import Table

from pipeline.report.quantities import bytes_text, count_text
from pipeline.sizes import KLT_BITS, row_size
from pipeline.tracking import progress_bar
from sak.errors import TeacherError, UnknownNameError
from sak.teachers.constants import HALF
from sak.teachers.entry import TeacherEntry, Weights
from sak.teachers.footprint import footprint
from sak.teachers.local import find_weights
from sak.teachers.packaged import builtin_file
from sak.teachers.published import PUBLISHED
from sak.teachers.registry import TEACHERS
from sak.teachers.spec import TeacherSpec
from store.codecs.base import LevelSpec

__all__ = ["About", "Found", "about_teacher", "about_teachers", "find_teachers", "info_table", "ls_table"]

About: TypeAlias = Mapping[str, Any]
"""What is known of a teacher, as JSON values."""

_STUDENT_CELL = 16  # pixels a side of a token of the students
_CODECS = ("fp16", "int8", "int4", "klt")
_RANDOM = Weights(random=0)  # what a teacher costs is the same with any weights


class Found(NamedTuple):
    """A teacher, and where its weights lie on this machine, if anywhere."""

    name: str
    entry: TeacherEntry
    spec: TeacherSpec
    weights: Path | None


def find_teachers(pattern: str, /, *, weights: Path | None = None, exact: bool = False) -> list[Found]:
    """Teachers whose name contains ``pattern``, or is it; built-in ones first.

    Args:
        weights: A folder to look for weights in, beside the caches of the hub and of torch.

    Raises:
        UnknownNameError: There is none; the message lists similar names.
        TeacherError: ``weights`` is no folder.
    """
    known = [*TEACHERS, *PUBLISHED]
    names = [name for name in known if (name == pattern if exact else pattern in name)]
    if names:
        return [_found(name, weights) for name in names]
    similar = ", ".join(difflib.get_close_matches(pattern, known, n=4, cutoff=0.4)) or ", ".join(known[:4])
    raise UnknownNameError(f"unknown teacher {pattern!r}: expected a name of sak teachers ls, perhaps {similar}")


def about_teachers(teachers: Sequence[Found], /, *, view: int, cost: bool) -> list[About]:
    """What is known of several teachers; ``cost`` counts each one's too, some tenths of a second apiece.

    Raises:
        TeacherError: A network takes no view of that size.
    """
    if not cost:
        return [_facts(item) for item in teachers]
    with progress_bar("teachers") as bar:
        task, found = bar.add_task("count", total=len(teachers), note=""), []
        for item in teachers:
            found.append(about_teacher(item, view=view))
            bar.advance(task, note=item.name)
    return found


def about_teacher(item: Found, /, *, view: int) -> About:
    """What is known of a teacher, and what it costs for a view of ``view`` by ``view`` pixels.

    Units:
        ``gmac`` billions of multiply-adds a view; ``bytes`` an image, of its own maps (``native``) and of maps pooled
        to the student's grid (``pooled``), before the store's byte codec, except for ``klt``, which has a nominal rate.

    Raises:
        TeacherError: The network takes no view of that size.
    """
    counted = footprint(item.spec, view=(view, view))
    grid = max(1, view // _STUDENT_CELL)
    pooled = [(channels, min(rows, grid), min(columns, grid)) for channels, rows, columns in counted.maps]
    return {
        **_facts(item),
        "view": view,
        "parameters": counted.parameters,
        "gmac": round(counted.macs / 1e9, 3),
        "sees": list(counted.input),
        "maps": [list(shape) for shape in counted.maps],
        "student_grid": [grid, grid],
        "bytes": {"native": _bytes(counted.maps), "pooled": _bytes(pooled)},
    }


def ls_table(abouts: Sequence[About], /) -> Table:
    """Teachers, one a line; with their costs where these were counted."""
    counted = all("gmac" in about for about in abouts)
    table = Table(header_style="bold")
    for column in ("teacher", "network", "input", "levels"):
        table.add_column(column)
    for column in ("parameters", "GMAC", "widths", "fp16 an image") if counted else ():
        table.add_column(column, justify="right")
    for column in ("licence", "weights"):
        table.add_column(column)
    for about in abouts:
        row = [about["name"], about["network"], about["input"], _numbers(about["levels"])]
        table.add_row(
            *row, *(_cost_cells(about) if counted else ()), about["licence"], "here" if about["weights"] else "–"
        )
    return table


def info_table(about: About, /) -> Table:
    """All that is known of one teacher, a line each."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    grid, maps = _by(about["student_grid"]), dict.fromkeys(_by(shape) for shape in about["maps"])
    lines = {
        "teacher": about["name"],
        "in a recipe": about["recipe"],
        "network": f"timm {about['network']}, {count_text(about['parameters'])} parameters",
        "licence": about["licence"],
        "published at": about["source"],
        "weights here": about["weights"] or "none; give --weights DIR to look elsewhere",
        "sees": f"{_by(about['sees'])} of a view of {about['view']} x {about['view']} ({about['resize']}, bicubic)",
        "trained at": str(about["trained_at"]),
        "statistics": f"mean {_numbers(about['mean'])}, std {_numbers(about['std'])}",
        "levels": f"{_numbers(about['levels'])}, raw; {about['prefix']} class and register tokens dropped",
        "maps": f"{'; '.join(maps)} (channels x rows x columns), a cell {about['cell']} pixels",
        "arithmetic": f"{about['gmac']:.1f} GMAC a view",
    }
    for codec, native in about["bytes"]["native"].items():
        pooled = about["bytes"]["pooled"][codec]
        nominal = f" (nominal {KLT_BITS} bits a value)" if codec == "klt" else ""
        lines[f"{codec} an image"] = f"{bytes_text(native)}, on a grid of {grid} {bytes_text(pooled)}{nominal}"
    if about["note"]:
        lines["note"] = about["note"]
    for key, text in lines.items():
        table.add_row(key, text)
    return table


def _cost_cells(about: About) -> tuple[str, ...]:
    widths = dict.fromkeys(shape[0] for shape in about["maps"])
    native = bytes_text(about["bytes"]["native"]["fp16"])
    return count_text(about["parameters"]), f"{about['gmac']:.1f}", _numbers(list(widths)), native


def _facts(item: Found) -> dict[str, Any]:
    entry, spec = item.entry, item.spec
    padded = " padded" if spec.resize == "long_side_pad" else ""
    return {
        "name": item.name,
        "recipe": _recipe(item),
        "network": entry.timm,
        "input": f"{_by(spec.input_size)}{padded}" if spec.input_size else "the view's",
        "resize": spec.resize,
        "trained_at": entry.size,
        "mean": list(entry.mean),
        "std": list(entry.std),
        "levels": list(spec.levels),
        "prefix": entry.prefix,
        "cell": entry.cell,
        "licence": entry.licence,
        "source": entry.source,
        "weights": None if item.weights is None else str(item.weights),
        "note": entry.note,
    }


def _found(name: str, folder: Path | None) -> Found:
    if name in PUBLISHED:
        entry = PUBLISHED[name]
        return Found(name, entry, entry.spec("t", weights=_RANDOM), find_weights(name, entry, folder=folder))
    spec = TEACHERS[name]
    try:
        path = builtin_file(name)
    except TeacherError:
        path = None
    return Found(name, _builtin_entry(spec), spec, path)


def _builtin_entry(spec: TeacherSpec) -> TeacherEntry:
    size, cell = spec.overrides["img_size"], spec.overrides["patch_size"]
    assert isinstance(size, int)
    assert isinstance(cell, int)
    first, second, third, fourth = spec.levels
    return TeacherEntry(
        timm=spec.timm,
        levels=(first, second, third, fourth),
        prefix=1,
        size=size,
        cell=cell,
        mean=spec.mean or HALF,
        std=spec.std or HALF,
        licence="MIT",
        source="this package",
        overrides=spec.overrides,
        note="Tiny, trained on rendered scenes; sak/teachers/weights/README.md is its model card.",
    )


def _recipe(item: Found) -> str:
    """What a recipe says to take this teacher, with its weights from where they are."""
    if item.name in TEACHERS:
        return f"{{builtin: {item.name}}}"
    if item.entry.on_hub and item.weights is None:
        return f"{{name: {item.name}, pretrained: true}}, or checkpoint: FILE in place of pretrained"
    return f"{{name: {item.name}, checkpoint: {item.weights or 'FILE'}}}"


def _bytes(maps: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    levels = [LevelSpec(components=channels, height=rows, width=columns) for channels, rows, columns in maps]
    return {name: round(row_size(levels, codec=name).stored) for name in _CODECS}


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
