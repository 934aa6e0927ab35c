"""Stage ``data``: write the built-in scenes in the layout of a real data set; check a data set on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from pipeline.boundary.files import some
from pipeline.errors import DataError
from pipeline.images.checking import Found, Labelled, empty_tasks, inspected
from pipeline.images.files import SPLITS, SUFFIXES
from pipeline.images.layouts import LAYOUTS, write_layout
from pipeline.images.registry import LABELLED, SOURCES, SourceRequest, open_source
from pipeline.images.sample import ImageSource
from pipeline.tracking import progress_bar
from sak.dense.registry import LABELS
from sak.tasks import dataset_spec
from store.workers import processors

__all__ = [
    "LAYOUTS",
    "DataReport",
    "SplitReport",
    "check_data",
    "label_table",
    "report_json",
    "split_table",
    "write_scenes",
]

_RENDERED = ("scenes", "scenes_night")


class SplitReport(NamedTuple):
    """A split: how many images it lists, how many were published (None: unknown), and what they hold."""

    name: str
    images: int
    published: int | None
    found: Found


class DataReport(NamedTuple):
    """A checked data set.

    Attributes:
        kind: Name of its source.
        notes: What is unusual but no fault.
        faults: All of them, in the order of splits and images.
    """

    root: str
    kind: str
    splits: tuple[SplitReport, ...]
    notes: tuple[str, ...]
    faults: tuple[str, ...]


def write_scenes(layout: str, /, *, out: Path, train: int, val: int, size: int, seed: int) -> None:
    """Render ``train`` and ``val`` scenes into ``out``.

    Raises:
        DataError: The layout is unknown, or ``out`` holds something else already.
    """
    with progress_bar("scenes") as bar:
        shown = bar.add_task(f"scenes as {layout}", total=train + val, note="")
        write_layout(
            layout,
            out=out,
            train=train,
            val=val,
            size=(size, size),
            seed=seed,
            progress=lambda done: bar.update(shown, completed=done),
        )


def check_data(
    root: str, /, *, kind: str | None = None, splits: Sequence[str] = (), workers: int | None = None
) -> DataReport:
    """Decode every image and label of a data set once.

    Args:
        root: Its folder, or whatever a recipe names as the root of such a source.
        kind: Name of its source; None to tell by the folder.
        splits: Those to check; all, if none is named.
        workers: Processes; by default one a processor.

    Raises:
        DataError: There is no such folder, kind or split, or the kind cannot be told.
    """
    kind = kind or _kind_of(Path(root))
    if kind not in SOURCES or kind in _RENDERED:
        known = ", ".join(name for name in SOURCES if name not in _RENDERED)
        raise DataError(f"unknown kind of data set {kind!r}; choose one of {known}")
    unknown = [split for split in splits if kind in LABELLED and split not in _published(kind)]
    if unknown:
        raise DataError(f"{kind}: unknown split {unknown[0]!r}; choose one of {', '.join(_published(kind))}")
    opened, faults = _opened(root, kind, splits)
    reports = []
    with progress_bar("images") as bar:
        total = sum(len(source.keys()) for source in opened.values())
        shown = bar.add_task(f"check {root}", total=total)
        for split, source in opened.items():
            found = Found()
            for part in inspected(source, _request(root, kind, split), workers=workers or processors()):
                found.add(part)
                bar.advance(shown, part.images)
            reports.append(SplitReport(split, len(source.keys()), _published(kind).get(split), found))
            faults += found.faults
    faults += _shared(opened)
    return DataReport(root, kind, tuple(reports), tuple(_notes(reports)), tuple(faults))


def split_table(report: DataReport, /) -> Table:
    """Images, sizes and faults of each split, for a terminal."""
    table = Table(header_style="bold")
    for name in ("split", "images", "published", "sizes (H×W)", "faults"):
        table.add_column(name, justify="left" if name in ("split", "sizes (H×W)") else "right")
    for split in report.splits:
        published = "–" if split.published is None else f"{split.published:,}"
        table.add_row(split.name, f"{split.images:,}", published, _sizes(split.found), f"{len(split.found.faults):,}")
    return table


def label_table(report: DataReport, /) -> Table | None:
    """What the labels of each split and task hold; None for images without labels."""
    rows = [(split.name, task, found) for split in report.splits for task, found in split.found.tasks.items()]
    if not rows:
        return None
    table = Table(header_style="bold")
    for name in ("split", "task", "labelled", "values"):
        table.add_column(name, justify="right" if name == "labelled" else "left")
    for split, task, found in rows:
        share = f"{100 * found.known / found.pixels:.1f} %" if found.pixels else "–"
        table.add_row(split, LABELS[task].title, share, _values(task, found, dataset=report.kind))
    return table


def report_json(report: DataReport, /) -> dict[str, object]:
    """All of it as plain data, every fault included."""
    return {
        "root": report.root,
        "kind": report.kind,
        "splits": [
            {
                "name": split.name,
                "images": split.images,
                "published": split.published,
                "sizes": {f"{height}x{width}": count for (height, width), count in sorted(split.found.sizes.items())},
                "tasks": {task: _labelled_json(task, found) for task, found in split.found.tasks.items()},
            }
            for split in report.splits
        ],
        "notes": list(report.notes),
        "faults": list(report.faults),
    }


def _kind_of(root: Path) -> str:
    """The source whose layout a folder has.

    Raises:
        DataError: It has none of them.
    """
    if not root.is_dir():
        raise DataError(f"{root}: folder not found; a file or an address needs --as tar, webdataset or parquet")
    for name, kind in LABELLED.items():
        if kind.is_at(root):
            return name
    if any(path.suffix.lower() in SUFFIXES for path in root.rglob("*")):
        return "imagefolder"
    layouts = "; ".join(f"{name}: {kind.layout}" for name, kind in LABELLED.items())
    raise DataError(f"{root}: is like no data set known ({layouts}), and holds no photographs; name one with --as")


def _published(kind: str) -> dict[str, int]:
    return dict(LABELLED[kind].published) if kind in LABELLED else {}


def _request(root: str, kind: str, split: str) -> SourceRequest:
    return SourceRequest(name=kind, root=root, split=split, size=None, images=None, seed=0)


def _opened(root: str, kind: str, splits: Sequence[str]) -> tuple[dict[str, ImageSource], list[str]]:
    """The splits that can be opened, and why the others cannot be.

    Raises:
        DataError: Unlabelled images, of which none can be opened.
    """
    opened: dict[str, ImageSource] = {}
    faults: list[str] = []
    for split in splits or _published(kind) or SPLITS:
        try:
            opened[split] = open_source(_request(root, kind, split))
        except DataError as error:
            faults.append(str(error))
    if kind in LABELLED or splits:
        return opened, list(dict.fromkeys(faults))
    # Photographs need not be divided, and then one name is as good as another.
    ends = {(len(source.keys()), source.keys()[0], source.keys()[-1]) for source in opened.values()}
    if not opened or (len(opened) > 1 and len(ends) == 1):
        return {"all": open_source(_request(root, kind, "all"))}, []
    return opened, []


def _shared(opened: dict[str, ImageSource]) -> list[str]:
    """Images that are in two splits."""
    seen: dict[str, str] = {}
    faults = []
    for split, source in opened.items():
        twice = [key for key in source.keys() if key in seen]  # noqa: SIM118
        if twice:
            where = f"{len(twice)} of the images of {split} are in {seen[twice[0]]} too"
            faults.append(f"{where}: {some(twice)}; take them out of one list")
        seen |= dict.fromkeys(source.keys(), split)
    return faults


def _notes(reports: Sequence[SplitReport]) -> list[str]:
    notes = []
    for split in reports:
        if split.published not in (None, split.images):
            notes.append(f"{split.name} has {split.images:,} images, {split.published:,} were published")
        notes += [
            f"{split.name} has no {LABELS[task].title} label in any image" for task in empty_tasks(split.found.tasks)
        ]
    return notes


def _sizes(found: Found) -> str:
    names = [f"{height}×{width}" for height, width in sorted(found.sizes)]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} sizes, {names[0]} to {names[-1]}"


def _values(task: str, found: Labelled, *, dataset: str) -> str:
    if LABELS[task].shown == "classes":
        classes = dataset_spec(dataset).task(task).channels
        return f"{int((found.classes_K[:classes] > 0).sum())} of {classes} classes"
    if LABELS[task].stored == "uint8":
        return f"{100 * int(found.classes_K[1]) / found.known:.2f} % set" if found.known else "–"
    unit = f" {LABELS[task].unit}" if LABELS[task].unit else ""
    return f"{found.low:.3g} to {found.high:.3g}{unit}" if found.known else "–"


def _labelled_json(task: str, found: Labelled) -> dict[str, object]:
    about: dict[str, object] = {"pixels": found.pixels, "labelled": found.known}
    if LABELS[task].stored == "uint8":
        counts = found.classes_K[:255].tolist()
        return about | {"classes": {str(number): count for number, count in enumerate(counts) if count}}
    return about | ({"lowest": found.low, "highest": found.high} if found.known else {})
