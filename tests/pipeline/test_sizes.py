"""Bytes as people write them, and rows of maps by codec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sizes import KLT_BITS, nominal_bits, parse_bytes, row_size
from store.codecs.base import LevelSpec

LEVELS = [LevelSpec(components=6, height=4, width=5), LevelSpec(components=8, height=2, width=2)]  # 120 + 32 values


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2TB", 2 * 10**12),
        ("16GB", 16 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("512mib", 512 * 2**20),
        ("7k", 7000),
        (" 12 B ", 12),
        ("500", 500),
        (500, 500),
        (1e12, 10**12),
    ],
)
def test_bytes_are_read_as_people_write_them(text: str | float, count: int) -> None:
    assert parse_bytes(text, key="k") == count


@given(st.integers(1, 9999), st.sampled_from(["", "k", "M", "G", "T", "P"]), st.booleans())
def test_units_are_powers(count: int, unit: str, binary: bool) -> None:
    base = 1024 if binary else 1000
    written = f"{count}{unit}{'i' if binary else ''}B"
    assert parse_bytes(written, key="k") == count * base ** " kMGTP".index(unit or " ")


@pytest.mark.parametrize("text", ["", "much", "2XB", "-1GB", "0", "1e3GB", "nan", "inf", True, "1 2"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^extract.max_disk: expected"):
        parse_bytes(text, key="extract.max_disk")


@pytest.mark.parametrize(
    ("codec", "size"),
    [("fp32", 4 * 152), ("fp16", 2 * 152), ("int8", 152 + 4 * (20 + 4)), ({"name": "int8", "scale": "float16"}, 200)],
)
def test_plain_codecs_are_counted_from_shapes(codec: str, size: int) -> None:
    assert row_size(LEVELS, codec=codec) == (size, size, "counted")


def test_fitted_codecs_have_a_nominal_size_that_falls_with_the_error() -> None:
    assert row_size(LEVELS, codec="klt") == (pytest.approx(152 * KLT_BITS / 8), 152, "nominal")
    assert nominal_bits({"name": "klt", "error": 0.3}) == pytest.approx(0.48)
    bits = [nominal_bits({"name": "klt", "error": error}) for error in (0.001, 0.05, 0.15, 0.4, 0.9)]
    assert bits == sorted(bits, reverse=True)
    assert 0 < bits[-1] < bits[0] <= 16
