"""What stage 2 starts from: the student of its own stage 1, or one in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Study
from pipeline.errors import NotDoneError
from pipeline.identity import distill_dir
from pipeline.stagedir import write_json
from pipeline.tracking import CONSOLE
from pipeline.trained import check_trained, read_trained
from sak.spec import StudentSpec
from sak.student.model import Student, load_stage1
from sak.weights import LoadReport, load_weights

__all__ = ["Start", "load_start", "write_start"]


class Start(NamedTuple):
    """What stage 2 started from, and what of that it took."""

    source: str
    report: LoadReport


def write_start(folder: Path, start: Start | None, /) -> None:
    """Write ``start.json``: every tensor's name under what became of it. Without a start there is no file."""
    if start:
        write_json(folder / "start.json", {"from": start.source, **start.report.to_json()})


def load_start(student: Student, study: Study, out: Path, /, *, aligned: bool) -> Start | None:
    """Load what stage 2 starts from, strictly, and say so; None where it starts from scratch or from a stem alone.

    Args:
        aligned: Whether the student goes on learning from teachers. Else what serves that alone is left out: aligners,
            and the norms of a plain student.

    Raises:
        NotDoneError: Stage 1 is not done.
        CheckpointError: A tensor is missing, extra or of a wrong shape, or the file cannot be read.
        PipelineError: The file holds another student than the recipe describes.
    """
    if study.distill:
        stage1 = distill_dir(study, out)
        if not stage1.done():
            raise NotDoneError(f"finetune starts from stage 1, which is not done ({stage1.path})")
        path = stage1.path / "student.safetensors"
        spec = stage1.record()["spec"]
        assert isinstance(spec, dict)
        before, state = StudentSpec.from_dict(spec), load_weights(path)
        source = stage1.path.name
    elif study.student.trained:
        check_trained(study)
        path = Path(study.student.trained)
        before, _, state = read_trained(study.student)
        source = path.name
    else:
        return None
    parts: Mapping[str, object] = {"aligners.": student.aligners, "norms.": student.norms}
    drop = () if aligned else tuple(prefix for prefix, part in parts.items() if not part)
    grid = _grid(before, student)
    report = load_stage1(student, state, where=str(path), source_grid=grid, drop=drop)
    CONSOLE.print(f"student: starts from {source}: {report.story()}")
    return Start(source, report)


def _grid(before: StudentSpec, student: Student) -> tuple[int, int] | None:
    """Token grid of the earlier student when its image size differs; same patch size, so it scales with the image."""
    if before.image_size == student.spec.image_size:
        return None
    rows, columns = student.grid
    height, width = student.spec.image_size
    return before.image_size[0] * rows // height, before.image_size[1] * columns // width
