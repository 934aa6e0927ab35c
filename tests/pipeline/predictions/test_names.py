from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.predictions.names import relative_name

KEYS = st.text(max_size=30) | st.text(alphabet="./\\a~#: \x00é", max_size=12)


@given(KEYS, KEYS, st.none() | st.integers(0, 3))
@example("../../etc/passwd", "a", None)
@example("/etc/passwd", "a//b", None)
@example("a/../../b", "..", 0)
@example("\ud800", "a", None)
def test_a_name_stays_in_its_folder_and_is_nobody_elses(one: str, other: str, view: int | None) -> None:
    found: dict[str, Path] = {}
    refused: list[str] = []
    for key in (one, other):
        try:
            found[key] = relative_name(key, view=view)
        except DataError as error:
            refused.append(str(error))
    assert not [line for line in refused if "\n" in line]
    for path in found.values():
        assert not path.is_absolute()
        assert os.path.normpath(f"/root/x/{path}.png").startswith("/root/x/")
        assert not any(part.startswith(".") for part in path.parts)
    assert len({*found.values()}) == len(found)


@pytest.mark.parametrize("key", ["", "/a", "a/", "..", "a/../b", ".hidden", "a\\b", "C:a", "a\nb", "a\x00", "x" * 201])
def test_what_cannot_name_a_file_is_refused(key: str) -> None:
    with pytest.raises(DataError, match="expected a name that a file can have"):
        relative_name(key)


def test_keys_of_the_data_sets_are_their_own_names() -> None:
    assert relative_name("2008_000026") == Path("2008_000026")
    assert relative_name("train/n01440764/x.JPEG") == Path("train/n01440764/x.JPEG")
    assert relative_name("0001", view=2) == Path("0001#2")
