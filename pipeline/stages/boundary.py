"""Stage ``boundary``: odsF of predictions and labels in two folders, or of counts made before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from rich.table import Table

from pipeline.boundary.counting import FileJob, count_all, sha256
from pipeline.boundary.counts import CountTable, Rules, read_counts, write_counts
from pipeline.boundary.files import KINDS, Pair, decode_truth, find_pairs, some
from pipeline.errors import BadImageError, DataError
from pipeline.images.files import read_file, read_list
from pipeline.report.pr import PrLine, pr_picture
from pipeline.tracking import CONSOLE, progress_bar
from pipeline.whole_file import write_whole
from sak.boundary import Scores, protocol_named
from store.workers import processors

__all__ = ["BoundaryResult", "Folders", "score_counts", "score_folders", "scores_table"]

_SAVE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where predictions and labels lie.

    Attributes:
        ids: A list of the images that count; None for all.
    """

    predictions: Path
    labels: Path
    ids: Path | None = None


class BoundaryResult(NamedTuple):
    """Scores of some images, and the files that hold them."""

    rules: Rules
    images: int
    scores: Scores
    counts: Path
    plot: Path


def score_folders(
    folders: Folders, /, *, out: Path | None, protocol: str, max_dist: float | None, workers: int | None
) -> BoundaryResult:
    """Count every image that is not counted yet, and score all of them.

    Args:
        out: Folder for counts, scores and plot; by default the predictions' with ``.boundary`` after its name.
        max_dist: Tolerance as a share of the diagonal; by default what goes with the kind of label files.
        workers: Processes; by default one a processor.

    Raises:
        DataError: A folder, list or table cannot be read, a file of a pair is missing, or files cannot be used; what
            could be counted is kept.
        UnknownNameError: There is no such protocol.
    """
    protocol_named(protocol)
    pairs = find_pairs(folders.predictions, folders.labels, ids=folders.ids)
    kind = decode_truth(read_file(pairs[0].label), where=str(pairs[0].label)).kind
    if max_dist is None:
        max_dist = KINDS[kind]
        CONSOLE.print(f"tolerance {max_dist:g} of the diagonal, as goes with {kind} labels; --max-dist changes it")
    rules = Rules(protocol, max_dist)
    folder = out or folders.predictions.with_name(f"{folders.predictions.resolve().name}.boundary")
    counts = folder / f"counts-{protocol}-{max_dist:g}.parquet"
    known = read_counts(counts) if counts.exists() else CountTable(rules, {})
    if known.rules != rules:
        raise DataError(f"{counts}: holds counts by {known.rules.text}, expected {rules.text}; move it away")
    jobs = [FileJob(rules, pair, kind) for pair in pairs if not _is_counted(pair, known)]
    if len(jobs) < len(pairs):
        CONSOLE.print(f"{len(pairs) - len(jobs)} of {len(pairs)} images are counted already, skipped")
    table = _count(jobs, known, counts, workers=workers or processors())
    return _scored(
        table.of([pair.key for pair in pairs], where=str(counts)),
        counts=counts,
        folder=folder,
        subset=_named(folders.ids),
    )


def score_counts(counts: Path, /, *, ids: Path | None, out: Path | None) -> BoundaryResult:
    """Score images from their counts alone.

    Args:
        ids: A list of the images that count; None for all.
        out: Folder for scores and plot; by default the counts'.

    Raises:
        DataError: The table or the list cannot be read, or the table lacks an image.
    """
    table = read_counts(counts)
    if ids:
        table = table.of(read_list(ids, root=ids.parent, layout="one image id per line"), where=str(counts))
    return _scored(table, counts=counts, folder=out or counts.parent, subset=_named(ids))


def scores_table(result: BoundaryResult, /) -> Table:
    """The scores for a terminal, in per cent."""
    table = Table(header_style="bold")
    for name in ("images", "odsF ↑", "oisF ↑", "AP ↑", "threshold", "tolerance"):
        table.add_column(name, justify="right")
    table.add_column("protocol")
    found = result.scores
    percent = (f"{100 * value:.2f}" for value in (found.odsF, found.oisF, found.AP))
    table.add_row(
        str(result.images), *percent, f"{found.threshold:g}", f"{result.rules.max_dist:g}", result.rules.protocol
    )
    return table


def _is_counted(pair: Pair, known: CountTable) -> bool:
    image = known.images.get(pair.key)
    return image is not None and image.of(sha256(read_file(pair.prediction)), sha256(read_file(pair.label)))


def _count(jobs: Sequence[FileJob], known: CountTable, path: Path, *, workers: int) -> CountTable:
    """Count; the table on disk grows meanwhile, so that a run that is killed loses some seconds."""
    images, faults, unsaved, saved = dict(known.images), [], 0, monotonic()
    table = CountTable(known.rules, images)
    try:
        with progress_bar("images") as bar:
            shown = bar.add_task("boundary", total=len(jobs))
            for outcome in count_all(jobs, workers=min(workers, len(jobs))):
                bar.advance(shown)
                if isinstance(outcome, BadImageError):
                    faults.append(str(outcome))
                    continue
                images[outcome.key] = outcome
                unsaved += 1
                if monotonic() - saved > _SAVE_SECONDS:
                    write_counts(path, table)
                    unsaved, saved = 0, monotonic()
    finally:
        if unsaved:
            write_counts(path, table)
    if faults:
        kept = f"; {len(jobs) - len(faults)} others are counted and kept" if len(jobs) > len(faults) else ""
        raise DataError(f"{len(faults)} of {len(jobs)} images cannot be used: {some(faults, most=3)}{kept}")
    return table


def _scored(table: CountTable, *, counts: Path, folder: Path, subset: str) -> BoundaryResult:
    rules, found, curve = table.rules, table.scores(), table.curve()
    name = f"{rules.protocol}-{rules.max_dist:g}{subset}"
    result = BoundaryResult(rules, len(table.images), found, counts, folder / f"pr-{name}.svg")
    about = {"images": result.images, "max_dist": rules.max_dist, **found._asdict()}
    curves = {key: values.tolist() for key, values in curve._asdict().items()}
    write_whole(folder / f"scores-{name}.json", json.dumps({**about, **curves}, indent=1).encode())
    line = PrLine(f"{result.images} images, tolerance {rules.max_dist:g}", 0, curve, found)
    write_whole(result.plot, pr_picture([line]).encode())
    return result


def _named(ids: Path | None) -> str:
    """What a subset adds to the names of its files, so that they do not take the place of the whole set's."""
    return f"-{ids.stem}" if ids else ""
