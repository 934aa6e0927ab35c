from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from codecs_made import levels_of, made
from numpy.typing import NDArray

from store.backends.zarr3 import encode_row
from store.codecs.base import LevelSpec
from store.codecs.klt import Klt
from store.codecs.klt_fit import KltFitter
from store.codecs.registry import make_codec, make_fitter
from store.errors import FormatError, StoreError

Maps = list[NDArray[np.float32]]


def smooth_maps(rows: int, *, seed: int = 0, shapes: Sequence[tuple[int, int, int]] = ((12, 8, 8), (10, 8, 8))) -> Maps:
    """Levels whose components, neighbours and levels depend on each other, as a network's do."""
    rng = np.random.default_rng(seed)
    plan = np.random.default_rng(99)
    hidden = rng.normal(size=(rows, 4, 3, 3))
    maps = []
    for components, height, width in shapes:
        mixing = plan.normal(size=(components, 4)) * 3.0 ** -np.arange(4)
        up = [np.array([[np.interp(i, [0, n - 1], [0, 2]) for i in range(n)]]).ravel() for n in (height, width)]
        weights = [np.maximum(0, 1 - np.abs(axis[:, None] - np.arange(3))) for axis in up]
        field = np.einsum("hi,ncij,wj->nchw", weights[0], hidden, weights[1])
        noise = rng.normal(size=(rows, components, height, width)) * 0.02
        maps.append(
            (np.einsum("kc,nchw->nkhw", mixing, field) + plan.normal(size=(components, 1, 1)) + noise).astype(
                np.float32
            )
        )
    return maps


def relative_errors(codec: Any, feats: Maps) -> list[float]:
    parts = dict(enumerate(codec.encode_levels(feats)))
    decoded = codec.decode_levels(parts, levels=range(len(feats)))
    return [float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(feats, decoded, strict=True)]


def stored_bits(codec: Any, feats: Maps) -> float:
    size = 0
    for index, parts in enumerate(codec.encode_levels(feats)):
        cuts = codec.parts(levels_of(feats)[index], index=index)["values"].cuts
        size += sum(len(encode_row(row, cuts=cuts)) for row in parts["values"])
    return 8 * size / sum(feat.size for feat in feats)


@pytest.mark.parametrize("error", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("chain", [True, False])
def test_the_asked_error_is_met_on_rows_that_were_not_shown(error: float, chain: bool):
    codec = made({"name": "klt", "error": error, "chain": chain}, smooth_maps(64))
    for found in relative_errors(codec, smooth_maps(16, seed=1)):
        assert 0.7 * error < found < 1.15 * error


def test_decorrelation_saves_bits():
    """Blocks and prediction are there to save bits; the maps have both kinds of dependence."""
    fit, held = smooth_maps(64), smooth_maps(16, seed=1)
    plain, blocks, chained = (
        stored_bits(made({"name": "klt", "error": 0.05, **options}, fit), held)
        for options in ({"block": 1, "chain": False}, {"chain": False}, {})
    )
    assert chained < 0.9 * blocks < 0.9 * 0.9 * plain
    assert blocks < 0.5 * stored_bits(make_codec("int8"), held)


def test_levels_of_other_grids_or_widths_are_not_predicted_from_each_other():
    feats = smooth_maps(16, shapes=((6, 4, 4), (8, 2, 2), (4, 2, 2)))
    codec = made({"name": "klt"}, feats)
    assert codec.needed_levels([2]) == (1, 2)
    assert codec.needed_levels([1]) == (1,)
    assert codec.needed_levels([0, 2]) == (0, 1, 2)
    assert made({"name": "klt", "chain": False}, feats).needed_levels([2]) == (2,)


def test_equal_samples_give_equal_codecs_whatever_the_batches():
    feats = smooth_maps(12)
    first = made({"name": "klt"}, feats)
    fitter = make_fitter({"name": "klt"}, levels_of(feats))
    for _ in range(fitter.passes):
        for start in range(0, 12, 5):
            fitter.add([feat[start : start + 5] for feat in feats])
        fitter.end_pass()
    assert_alike(fitter.codec(), first, feats)
    for name, values in made({"name": "klt"}, feats).assets().items():
        np.testing.assert_array_equal(values, first.assets()[name])


def test_sums_of_several_workers_add_up():
    feats = smooth_maps(12)
    whole, half, other = (KltFitter(fitter_settings(), levels_of(feats)) for _ in range(3))
    for _ in range(whole.passes):
        whole.add(feats)
        half.add([feat[:7] for feat in feats])
        other.add([feat[7:] for feat in feats])
        half.merge(other.sums)
        other.merge({name: half.sums[name] - other.sums[name] for name in half.sums})
        for fitter in (whole, half, other):
            fitter.end_pass()
    assert_alike(half.codec(), whole.codec(), feats)


def assert_alike(one: Any, other: Any, feats: Maps) -> None:
    """Of components with equal variance, the last bit of a sum decides the basis; what it costs is the same."""
    assert relative_errors(one, feats) == pytest.approx(relative_errors(other, feats), rel=0.01)
    assert stored_bits(one, feats) == pytest.approx(stored_bits(other, feats), rel=0.05)


def fitter_settings() -> Any:
    return make_fitter("klt", levels_of(smooth_maps(1)))._settings  # type: ignore[attr-defined]


def test_torch_fits_the_same_codec():
    feats = smooth_maps(16)
    plain = made({"name": "klt", "error": 0.1}, feats)
    tensors = made({"name": "klt", "error": 0.1}, [torch.from_numpy(feat) for feat in feats])  # type: ignore[misc]
    for first, second in zip(relative_errors(plain, feats), relative_errors(tensors, feats), strict=True):
        assert first == pytest.approx(second, rel=0.02)


def test_outliers_beyond_the_calibration_are_clipped_not_wrapped():
    codec = made({"name": "klt", "error": 0.1}, smooth_maps(32))
    wild = [feat * 1e6 for feat in smooth_maps(1, seed=3)]
    decoded = codec.decode_levels(dict(enumerate(codec.encode_levels(wild))), levels=[0])
    cosine = (decoded[0] * wild[0]).sum() / np.linalg.norm(decoded[0]) / np.linalg.norm(wild[0])
    assert cosine > 0.3


def test_a_codec_travels_to_another_process():
    feats = smooth_maps(8)
    codec = made({"name": "klt"}, feats)
    again = pickle.loads(pickle.dumps(codec))
    for first, second in zip(codec.encode_levels(feats), again.encode_levels(feats), strict=True):
        np.testing.assert_array_equal(first["values"], second["values"])


def test_a_fit_says_what_it_lacks():
    levels = [LevelSpec(components=2, height=1, width=1)]
    fitter = make_fitter("klt", levels)
    with pytest.raises(StoreError, match="expected rows to fit to, got none"):
        fitter.end_pass()
    with pytest.raises(StoreError, match="expected 4 passes over the sample, got 0"):
        fitter.codec()
    with pytest.raises(StoreError, match=r"expected maps of \[\(2, 1, 1\)\]"):
        fitter.add([np.zeros((1, 3, 1, 1), np.float32)])
    fitter.add([np.zeros((3, 2, 1, 1), np.float32)])
    with pytest.raises(StoreError, match="level 0: all features are zero"):
        fitter.end_pass()


def test_other_levels_than_those_fitted_to_are_refused():
    feats = smooth_maps(8)
    codec = made({"name": "klt"}, feats)
    with pytest.raises(StoreError, match="expected maps of the shapes it was fitted to"):
        codec.encode_levels([feats[0][:, :, :4], feats[1]])
    with pytest.raises(FormatError, match="fitted to 12 components on \\[8, 8\\]"):
        codec.parts(LevelSpec(components=12, height=4, width=8))
    with pytest.raises(FormatError, match="fitted to 2 levels, got level 2"):
        codec.parts(LevelSpec(components=12, height=8, width=8), index=2)
    with pytest.raises(FormatError, match="expected values"):
        codec.decode_levels({0: {"values": np.zeros((1, 3), np.uint8)}}, levels=[0])


def hostile(fitted: Mapping[str, NDArray[Any]]) -> list[tuple[str, dict[str, Any]]]:
    def changed(name: str, values: NDArray[Any]) -> dict[str, Any]:
        return {**fitted, name: values}

    infinite = fitted["basis_0"].copy()
    infinite[0, 0] = np.inf
    twice = fitted["order_0"].copy()
    twice[0] = twice[1]
    return [
        ("arrays", {name: values for name, values in fitted.items() if name != "order_1"}),
        ("arrays", changed("extra_0", fitted["steps_0"])),
        ("arrays", changed("predict_0", fitted["basis_0"])),
        ("basis: expected finite", changed("basis_0", infinite)),
        ("basis: refused int8", changed("basis_0", fitted["basis_0"].astype(np.int8))),
        ("basis: expected 12 rows", changed("basis_0", fitted["basis_0"][:5])),
        ("offset: refused", changed("offset_0", fitted["offset_0"][:0])),
        ("offset: expected the grid", changed("offset_0", fitted["offset_0"][:, :4])),
        ("predict: ", changed("predict_1", fitted["predict_1"][:, :3])),
        ("grid: expected two sizes", changed("grid_0", np.array([8, -8], np.int32))),
        (
            "predict: the level before",
            {**changed("grid_0", np.array([8, 16], np.int32)), "offset_0": np.zeros((12, 8, 16), np.float32)},
        ),
        ("order: expected different indices", changed("order_0", twice)),
        ("order: expected different indices", changed("order_0", fitted["order_0"] + 10**6)),
        ("groups: expected 5 sizes", changed("groups_0", fitted["groups_0"] + 1)),
        ("steps: expected a positive step", changed("steps_0", -fitted["steps_0"])),
    ]


def test_hostile_arrays_are_refused():
    fitted = made({"name": "klt"}, smooth_maps(8)).assets()
    cases = hostile(fitted)
    assert len(cases) > 10
    for message, arrays in cases:
        with pytest.raises(FormatError, match=message):
            Klt(fitted=arrays)
