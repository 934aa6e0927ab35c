"""A codec with fitted arrays: they are stored beside the column, checked, and part of its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import store_samples
from numpy.typing import NDArray

from store.codecs import registry
from store.codecs.base import Array, LevelSpec, LevelwiseCodec, PartSpec
from store.errors import CorruptShardError, FormatError
from store.store import Store
from store.verify import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted(LevelwiseCodec):
    """Stores float32 minus a fitted mean."""

    name: ClassVar[str] = "shifted"
    fitted: Mapping[str, NDArray[np.float32]]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}

    def assets(self) -> Mapping[str, NDArray[np.float32]]:
        return self.fitted

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        return {"values": PartSpec(shape=level.shape, dtype="float32")}

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        return {"values": feat_NCHW - self.fitted["mean"][level, 0]}

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        return parts["values"] + self.fitted["mean"][level, 0]


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    monkeypatch.setattr(registry, "CODECS", {**registry.CODECS, "shifted": Shifted})
    return Shifted(fitted={"mean": np.array([[4.0, 1], [16, 1]], np.float32)})


def test_fitted_arrays_travel_with_the_column(tmp_path: Path, shifted: Shifted):
    store_samples.fill(tmp_path / "store")
    opened = Store.open(tmp_path / "store")
    spec = replace(store_samples.column_spec(), codec=shifted)
    made = opened.create_column(spec)
    for part in made.missing_parts():
        store_samples.write_column_part(made, part)
    column = Store.open(tmp_path / "store").column("train", spec.name)
    np.testing.assert_array_equal(column.spec.codec.assets()["mean"], shifted.fitted["mean"])
    expected = np.stack([store_samples.features(row, 1) for row in (5, 2)])
    np.testing.assert_allclose(column.read_floats([5, 2], levels=[1])[0], expected, atol=1e-5)
    assert verify(opened) == []

    other = replace(spec, codec=Shifted(fitted={"mean": shifted.fitted["mean"] + 1}))
    assert other.fingerprint != spec.fingerprint

    chunk = tmp_path / "store" / column.folder / "codec_mean" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptShardError, match=r"codec_mean.*differs from column.json"):
        Store.open(tmp_path / "store").column("train", spec.name)
    assert [finding.path for finding in verify(opened)] == [
        f"{column.folder}/codec_mean/c/0/0",
        f"{column.folder}/column.json",
    ]


def test_fitted_arrays_go_to_fitted_codecs_only(shifted: Shifted):
    with pytest.raises(FormatError, match="expected its fitted arrays"):
        registry.make_codec("shifted")
    with pytest.raises(FormatError, match=r"no others, got \['mean'\]"):
        registry.make_codec("int8", fitted=shifted.fitted)
