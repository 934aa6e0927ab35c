"""Published teachers by name. A new one is one entry in one of the tables; tests and ``sak teachers`` pick it up.

Levels follow the paper: the ends of four quarters of the blocks (2, 5, 8, 11 of 12), or the stages of a pyramid.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from sak.errors import UnknownNameError
from sak.teachers.entries.distilled import DISTILLED
from sak.teachers.entries.language import LANGUAGE
from sak.teachers.entries.vision import VISION
from sak.teachers.entry import TeacherEntry

__all__ = ["PUBLISHED", "published_teacher"]

PUBLISHED: Mapping[str, TeacherEntry] = MappingProxyType({**VISION, **LANGUAGE, **DISTILLED})


def published_teacher(name: str, /) -> TeacherEntry:
    """The published teacher of that name.

    Raises:
        UnknownNameError: No such teacher; the message lists similar names.
    """
    if name not in PUBLISHED:
        similar = ", ".join(difflib.get_close_matches(name, PUBLISHED, n=4, cutoff=0.5) or list(PUBLISHED)[:4])
        raise UnknownNameError(
            f"unknown teacher {name!r}: expected a name of sak teachers ls, perhaps {similar}; any other timm model is"
            " timm: MODEL"
        )
    return PUBLISHED[name]
