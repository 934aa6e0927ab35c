"""The ``sak eval boundary`` command: parse, call one stage, print what it returns."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.tables import print_table

__all__ = ["eval_boundary"]


class Protocol(StrEnum):
    """How predictions become masks: of SAK; of InvPT, ATRC and TaskPrompter; of MTI-Net."""

    sak = "sak"
    invpt = "invpt"
    mtinet = "mtinet"


Predictions = Annotated[
    Path | None, typer.Option("--predictions", metavar="DIR", help="Folder of NAME.png: uint8(255 x probability).")
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="DIR",
        help="Folder of NAME.mat with LabelMap (PASCAL-Context's pascal-context/trainval) or groundTruth (NYUD's"
        " edge_mat), or of NAME.png with a label map or boundary map.",
    ),
]
Counts = Annotated[
    Path | None,
    typer.Option("--counts", metavar="FILE", help="In place of the folders: counts that an earlier call wrote."),
]
Ids = Annotated[
    Path | None, typer.Option("--ids", metavar="FILE", help="The images that count, one name a line. All, if absent.")
]
MaxDist = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Longest distance of a matched pair, as a share of the diagonal: 0.0075 for PASCAL-Context, 0.011 for"
        " NYUD. By the kind of label files, if absent.",
    ),
]


def eval_boundary(
    predictions: Predictions = None,
    labels: Labels = None,
    counts: Counts = None,
    ids: Ids = None,
    protocol: Annotated[
        Protocol | None, typer.Option(help="How predictions become masks; sak, if absent. Their numbers do not mix.")
    ] = None,
    max_dist: MaxDist = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for counts, scores and plot. Beside the predictions, if absent."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=1, metavar="N", help="Processes. One a processor, if absent."),
    ] = None,
) -> None:
    """Score boundary maps in a folder: odsF, oisF, AP and the precision-recall curve, without MATLAB.

    Counts of every image are kept. An interrupted call goes on where it stopped, a later one counts only what changed,
    and --counts scores subsets (--ids) without any map.
    """
    if (counts is None) == (predictions is None) or (predictions is None) != (labels is None):
        raise typer.BadParameter("give --predictions DIR and --labels DIR, or --counts FILE")
    if counts is not None and any(item is not None for item in (protocol, max_dist, workers)):
        raise typer.BadParameter("--counts FILE has its own protocol and tolerance; only --ids and --out go with it")
    from pipeline.stages.boundary import Folders, score_counts, score_folders, scores_table

    if predictions is not None and labels is not None:
        folders = Folders(predictions=predictions, labels=labels, ids=ids)
        result = score_folders(folders, out=out, protocol=str(protocol or "sak"), max_dist=max_dist, workers=workers)
    else:
        assert counts is not None
        result = score_counts(counts, ids=ids, out=out)
    print_table(scores_table(result))
    print(f"counts: {result.counts}")
    print(f"plot: {result.plot}")
