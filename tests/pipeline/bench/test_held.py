from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bench.contender import BenchError
from pipeline.bench.features import FeatureMaker
from pipeline.bench.held import VIEW_SET, Held, array_bytes, digest
from pipeline.bench.plan import BenchPlan, Source
from store.codecs.base import LevelSpec
from tests.pipeline.bench.conftest import LEVELS, tiny_held, tiny_plan


def shards(held: Held) -> dict[str, bytes]:
    folder = held.root / "columns"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("c/*/*") if path.is_file()}


def test_a_seed_makes_the_same_bytes_and_another_others(held: Held, tmp_path: Path) -> None:
    again, other = (tiny_held(tmp_path / str(seed), tiny_plan(seed=seed)) for seed in (0, 1))
    assert shards(again) == shards(held)
    assert again.digests("stored") == held.digests("stored")
    assert not {*other.digests("stored")[0].values()} & {*held.digests("stored")[0].values()}


def test_rows_levels_and_teachers_differ() -> None:
    maker, other = (FeatureMaker([LEVELS[0]] * 2, seed=0, teacher=teacher) for teacher in (0, 1))
    maps = [*maker.rows([0, 1])[0], maker.rows([0])[1][0], other.rows([0])[0][0]]
    assert len({digest(feat) for feat in maps}) == 4
    np.testing.assert_array_equal(maker.rows([3, 0])[0][1], maps[0])


def test_made_features_compress_as_real_ones() -> None:
    """Most of the variance in few components, neighbours alike."""
    (feat_NCHW,) = FeatureMaker([LevelSpec(components=48, height=16, width=16)], seed=0, teacher=0).rows(range(8))
    values = feat_NCHW.transpose(0, 2, 3, 1).reshape(-1, 48)
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(values.T)))[::-1]
    assert spectrum[:8].sum() > 0.7 * spectrum.sum()
    centred = feat_NCHW - feat_NCHW.mean(axis=(0, 2, 3), keepdims=True)
    near = (centred[..., 1:] * centred[..., :-1]).mean() / centred.var()
    assert 0.4 < near < 0.8


def test_every_fidelity_is_the_decoded_row(held: Held) -> None:
    (column,) = held.open()
    floats = column.read_floats([5])
    for fidelity, dtype in (("fp16", np.float16), ("bf16", torch.bfloat16)):
        rows = dict(held.iterate(fidelity))
        for level, name in enumerate(held.levels):
            array = rows[5][name]
            assert array.dtype == dtype
            np.testing.assert_allclose(
                np.asarray(array.astype(np.float32) if fidelity == "fp16" else array.float()),
                floats[level][0],
                rtol=0.01,
            )
            assert held.digests(fidelity)[5][name] == digest(array)
    with pytest.raises(BenchError, match="fidelity: expected stored, fp16 or bf16, got 'int2'"):
        held.shapes("int2")


def test_several_columns_are_teachers_of_one_row(tmp_path: Path) -> None:
    held = tiny_held(tmp_path / "sak", tiny_plan(columns=2))
    assert len(held.names) == 2
    assert set(held.fields) == {
        f"teacher_{teacher}_level_{level}{part}" for teacher in (0, 1) for level in (0, 1) for part in ("", "_scale")
    }
    assert held.values == 2 * sum(spec.values for spec in LEVELS)


def test_a_column_of_ones_own_is_copied(held: Held, tmp_path: Path) -> None:
    source = Source(str(held.root), VIEW_SET, held.names[0])
    copy = tiny_held(tmp_path / "sak", BenchPlan(rows=16, batch=8, source=source))
    assert copy.rows == 16
    assert copy.codec.to_json() == held.codec.to_json()
    assert copy.digests("stored") == held.digests("stored")[:16]
    with pytest.raises(BenchError, match="expected at least two batches of 32 committed rows, found 20"):
        tiny_held(tmp_path / "few", BenchPlan(rows=64, batch=32, source=source))


def test_a_fitted_codec_is_fitted_to_the_rows(tmp_path: Path) -> None:
    plan = BenchPlan(rows=20, batch=8, levels=LEVELS, codec="klt")
    held = tiny_held(tmp_path / "sak", plan)
    assert held.codec.name == "klt"
    assert held.codec.assets()
    dict(held.iterate("fp16"))
    assert len(held.digests("fp16")) == 20


@pytest.mark.parametrize("shape", [(0,), (3, 2)])
def test_bytes_of_arrays_and_tensors_agree(shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.float16).reshape(shape)
    assert array_bytes(array) == array.tobytes() == array_bytes(torch.from_numpy(array))
