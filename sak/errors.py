"""Errors that the model side raises for its users' mistakes."""

from __future__ import annotations

__all__ = ["CheckpointError", "SakError", "TeacherError", "UnknownNameError"]


class SakError(ValueError):
    """Base of every model-side error that a user can mend; the message says what, where and how."""


class CheckpointError(SakError):
    """Weights do not fit the network they are loaded into, or the file cannot be read."""


class TeacherError(SakError):
    """A teacher cannot be built, found or fed as its spec asks."""


class UnknownNameError(SakError):
    """A name that no registry holds; the message lists the choices."""
