"""Teachers run again over a sample of stored rows: bytes may be as recorded, and still not be what the recipe makes.

A column is at fault where its stored features are farther from what the teacher gives now than its codec explains, a
view set where the source and the draw give other files than are stored.

Legend: N rows, C channels, h w rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from pipeline.calibration import in_batches
from pipeline.config import Study
from pipeline.errors import PipelineError
from pipeline.features import Parts, decode_maps, encode_maps
from pipeline.fidelity import Fidelity, Measured
from pipeline.makers import Makers, TeacherMaker, ViewMaker, makers_of
from pipeline.runtime import torch_threads
from pipeline.tracking import ProgressBar, progress_bar
from pipeline.viewsets import draw_rows
from store.column import Column
from store.rows import ViewRow
from store.store import Store
from store.viewset import ViewSet

__all__ = ["FLOAT_NOISE", "MARGIN", "SAME_ROWS", "Recomputed", "allowed_error", "recompute", "sample_rows"]

MARGIN = 1.25
"""How far a sample's error may lie above what the codec is known to cause."""
SAME_ROWS = 2.0
"""Up to how many times the recorded error the codec's own on the very rows of the sample is believed: rows differ."""
FLOAT_NOISE = 1e-3
"""Relative error of a network in float32 elsewhere: another order of sums gives 1e-6, products in TF32 up to 6e-4
(the last four maps of vit_small_patch16_224 and convnext_tiny, against float64)."""


class Recomputed(NamedTuple):
    """Outcome of a recomputation.

    Attributes:
        table: One row for each level of each column.
        lines: What is wrong, and what could not be looked at.
        failed: Whether anything is wrong.
    """

    table: Table
    lines: tuple[str, ...]
    failed: bool


def recompute(root: str | Path, studies: Sequence[Study], /, *, rows: int) -> Recomputed:
    """Draw rows again from their images, run teachers again over the stored pixels, and compare with what is stored.

    Args:
        studies: What says where images and teachers are.
        rows: How many rows of each view set to look at; the same ones each time, from all of it.

    Raises:
        PipelineError: Nothing in the store is of this recipe.
        StoreError: There is no store at ``root``, or it is damaged.
        TeacherError: A teacher's weights are absent or do not fit.
    """
    store, makers = Store.open(str(root)), makers_of(studies)
    table = Table(header_style="bold")
    for name in ("column", "level", "cosine", "relative error", "recorded", "allowed", "equal numbers"):
        table.add_column(name, justify="left" if name == "column" else "right")
    work = _Work(makers, table, [], [])
    with progress_bar("rows") as bar:
        for view_set in store.view_sets():
            _view_set(store, view_set, work, rows=rows, bar=bar)
    if not work.looked_at:
        faults = "".join(f"; {fault}" for fault in makers.faults)
        raise PipelineError(f"store {root}: holds nothing that this recipe makes, so nothing can be compared{faults}")
    lines = [*work.faults, *(f"info: {fault}" for fault in makers.faults)]
    return Recomputed(table, tuple(lines), bool(work.faults))


def sample_rows(usable_N: NDArray[np.int64], count: int, /) -> list[int]:
    """Rows spread evenly over all, ascending: one from the middle of each of ``count`` equal stretches."""
    count = min(count, len(usable_N))
    return [int(usable_N[(2 * index + 1) * len(usable_N) // (2 * count)]) for index in range(count)]


def allowed_error(*, recorded: float, own: float) -> float:
    """The most by which stored features may differ from recomputed ones.

    A codec's error on a sample of rows is not its error on all of them, so what the codec does to these very rows now
    counts where it is more. But only up to ``SAME_ROWS`` times what was recorded: a codec fitted to one teacher does
    badly on another, and would excuse a teacher that was exchanged.

    Args:
        recorded: The relative error that extraction measured.
        own: The codec's relative error on the recomputed features of the sample.
    """
    return MARGIN * max(recorded, min(own, SAME_ROWS * recorded)) + FLOAT_NOISE


class _Work(NamedTuple):
    makers: Makers
    table: Table
    faults: list[str]
    looked_at: list[str]


def _view_set(store: Store, view_set: ViewSet, work: _Work, *, rows: int, bar: ProgressBar) -> None:
    usable_N = view_set.usable_rows()
    maker = work.makers.of_views(view_set.name)
    if maker is not None and len(usable_N):
        sample = sample_rows(usable_N, rows)
        work.looked_at.append(view_set.folder)
        with torch_threads(maker.threads):
            work.faults.extend(_redrawn(view_set, maker, sample, bar=bar))
    for column in store.columns(view_set.name):
        teacher = work.makers.of_column(column)
        stored_N = usable_N[np.isin(view_set.spec.parts_of(usable_N), column.committed_parts())]
        if teacher is not None and len(stored_N):
            work.looked_at.append(column.folder)
            column.check_join(view_set)
            with torch_threads(teacher.threads):
                work.faults.extend(_reextracted(column, teacher, sample_rows(stored_N, rows), work.table, bar=bar))


def _redrawn(view_set: ViewSet, maker: ViewMaker, rows: Sequence[int], *, bar: ProgressBar) -> list[str]:
    """Faults of rows that come out other than they are stored."""
    faults = []
    shown = bar.add_task(f"views {view_set.name}", total=len(rows))
    for row in rows:
        (stored,), (drawn,) = view_set.read_rows([row]), draw_rows(maker.data, view_set.spec, numbers=[row])
        differing = _differing(stored, drawn)
        if differing:
            faults.append(
                f"error: {view_set.folder} row {row} ({stored.key}): its {', '.join(differing)} are not what the source"
                " gives now: an image changed, or the software that decodes it"
            )
        bar.advance(shown)
    return faults


def _differing(stored: ViewRow, drawn: ViewRow) -> list[str]:
    names = sorted({*stored.files, *drawn.files})
    wrong = [name for name in names if stored.files.get(name) != drawn.files.get(name)]
    fields = ("key", "view", "draw", "label", "error")
    return wrong + [name for name in fields if getattr(stored, name) != getattr(drawn, name)]


class _Level(NamedTuple):
    """What is known of one level over the sample so far: stored against recomputed, and the codec by itself."""

    stored: Fidelity
    own: Fidelity
    equal: list[float]


def _reextracted(
    column: Column, maker: TeacherMaker, rows: Sequence[int], table: Table, *, bar: ProgressBar
) -> list[str]:
    """Faults of levels whose stored features are not the teacher's; adds the levels to the table."""
    spec = column.spec
    source = maker.load()
    levels = [_Level(Fidelity(), Fidelity(), []) for _ in spec.levels]
    shown = bar.add_task(f"{spec.teacher} over {spec.view_set}", total=len(rows))
    for some in in_batches(rows, maker.batch):
        feats = source.sample(column.view_set, some)
        if [tuple(feat.shape[1:]) for feat in feats] != [level.shape for level in spec.levels]:
            return [f"error: {column.folder}: the teacher gives maps of other shapes now; its weights were exchanged"]
        parts, stored = encode_maps(spec, feats), _stored_parts(column, some, device=feats[0].device)
        backs, held = decode_maps(spec, parts), decode_maps(spec, stored)
        for index, level in enumerate(levels):
            level.stored.add(feats[index], held[index])
            level.own.add(feats[index], backs[index])
            level.equal.extend([_equal(parts[index], stored[index])] * len(some))
        bar.advance(shown, len(some))
    recorded = _recorded(column, rows)
    return [fault for index, level in enumerate(levels) for fault in _judged(column, index, level, recorded, table)]


def _stored_parts(column: Column, rows: Sequence[int], *, device: torch.device) -> Parts:
    return [
        {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in level.items()}
        for level in column.read(rows)
    ]


def _equal(parts: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    """Which share of stored numbers comes out the same."""
    same = sum(float((values == stored[name]).sum()) for name, values in parts.items())
    return same / sum(values.numel() for values in parts.values())


def _recorded(column: Column, rows: Sequence[int]) -> dict[str, float]:
    """The relative errors that extraction noted of the rows' parts: root mean square, each row counting once."""
    sums: dict[str, float] = {}
    for row in rows:
        (commit,) = column.commits.require([column.view_set.spec.part_of(row)])
        known = {name: item for name, item in commit.stats.items() if isinstance(item, Mapping)}
        for name, measured in known.items():
            sums[name] = sums.get(name, 0.0) + float(measured.get("relative_error", 0.0)) ** 2
    return {name: (total / len(rows)) ** 0.5 for name, total in sums.items()}


def _judged(column: Column, index: int, level: _Level, recorded: Mapping[str, float], table: Table) -> list[str]:
    found, own = level.stored.result(), level.own.result()
    assert found is not None
    assert own is not None
    name = f"level_{index}"
    if name not in recorded:
        return [f"error: {column.folder} {name}: no error of its codec is on record, so none can be judged"]
    allowed = allowed_error(recorded=recorded[name], own=own.relative_error)
    wrong = not found.relative_error <= allowed
    table.add_row(*_cells(column, index, found, recorded[name], allowed, sum(level.equal) / len(level.equal)))
    if not wrong:
        return []
    return [
        f"error: {column.folder} {name}: its features differ from what the teacher gives now by a relative error of"
        f" {found.relative_error:.4g}, and its codec explains {allowed:.4g}: the weights or the software changed since"
    ]


def _cells(
    column: Column, index: int, found: Measured, recorded: float, allowed: float, equal: float
) -> tuple[str, ...]:
    numbers = (f"{found.token_cosine:.6f}", f"{found.relative_error:.3g}", f"{recorded:.3g}", f"{allowed:.3g}")
    return (column.folder.removeprefix("columns/"), str(index), *numbers, f"{equal:.3%}")
