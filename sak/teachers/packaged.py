"""Where a teacher's weights lie as a file: at the spec's path, or in this package's data."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from sak.errors import TeacherError
from sak.teachers.spec import TeacherSpec

__all__ = ["builtin_file", "weights_file"]


def builtin_file(name: str, /) -> Path:
    """The shipped weights of that name.

    Raises:
        TeacherError: The installation has none; the message lists those it has.
    """
    folder = Path(str(resources.files("sak.teachers"))) / "weights"
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        held = ", ".join(sorted(found.stem for found in folder.glob("*.safetensors"))) or "none at all"
        raise TeacherError(
            f"built-in teacher weights {name!r}: expected {path.name} in the installed package, which holds {held};"
            " install the package again, or give a checkpoint"
        )
    return path


def weights_file(spec: TeacherSpec, /) -> Path:
    """The file with the weights of a teacher that has one (``checkpoint`` or ``builtin``).

    Raises:
        TeacherError: There is no such file.
    """
    if spec.checkpoint is None:
        assert spec.builtin is not None, spec
        return builtin_file(spec.builtin)
    if not spec.checkpoint.is_file():
        raise TeacherError(
            f"teacher {spec.name!r}: expected a checkpoint, found no file at {spec.checkpoint}; correct the path"
        )
    return spec.checkpoint
