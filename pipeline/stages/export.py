"""Stage ``export``: weights of a finished run as one safetensors file, for use outside this project."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import Study
from pipeline.errors import NotDoneError, PipelineError
from pipeline.identity import last_stage_dir
from sak.spec import StudentSpec
from sak.student.file import Origin, save_student
from sak.weights import load_weights, save_weights

__all__ = ["DTYPES", "export"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export(study: Study, out: Path, path: Path, /, *, what: str, dtype: str) -> int:
    """Write the network (``what="student"``) or its stem alone as a timm state dict (``what="stem"``).

    Returns:
        Bytes of the file.

    Raises:
        NotDoneError: The run's last stage is not done.
        PipelineError: ``what`` or ``dtype`` is not a choice, or the network has no stem.
    """
    if dtype not in DTYPES:
        raise PipelineError(f"export: dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    if study.scores_file:
        raise PipelineError(f"export: this run trains nothing; {study.student.trained} is its student")
    if study.finetune is None and study.distill is None:
        raise PipelineError("export needs a trained student: give the recipe distill, finetune or both")
    stage = last_stage_dir(study, out)
    if not stage.done():
        raise NotDoneError(f"export: {stage.path} is not done")
    state = load_weights(stage.path / "student.safetensors")
    if what == "stem":
        state = {name.removeprefix("stem."): tensor for name, tensor in state.items() if name.startswith("stem.")}
        if not state:
            raise PipelineError(
                "export: stem: a run of frozen teachers trains heads alone and has none; export student"
            )
        # timm's ViT ends in a norm that the student's residual stream never passes; a neutral one makes the file whole.
        width = state["pos_embed"].shape[-1]
        state |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    elif what != "student":
        raise PipelineError(f"export: {what!r}; expected student or stem")
    cast = {name: t.to(DTYPES[dtype]).contiguous() if t.is_floating_point() else t for name, t in state.items()}
    record = stage.record()
    assert isinstance(record["spec"], dict)
    spec = StudentSpec.from_dict(record["spec"])
    if what == "student":
        made_by, student = f"sak export {stage.path.name}", study.student
        origin = Origin(str(record.get("dataset", "")), student.mean, student.std, made_by)
        save_student(path, cast, spec=spec, origin=origin)
    else:
        about = {"stem": spec.stem, "overrides": str(dict(spec.stem_overrides)), "what": what}
        save_weights(path, cast, metadata=about)
    return path.stat().st_size
