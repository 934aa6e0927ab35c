"""The boundary metric equals the published scripts' counts and scores; protocols, bounds, maps without a boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sak.boundary import (
    PROTOCOLS,
    image_counts,
    label_edges,
    match_counts,
    pr_curve,
    protocol_named,
    scores,
    suppress,
)
from sak.errors import SakError, UnknownNameError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "boundary_golden.npz"
PAIRS = range(12)
SETS = {"pascal": slice(0, 6), "nyud": slice(6, 12)}
TOLERANCES = ("ds", "wide")

small_maps = arrays(np.uint8, st.tuples(st.integers(2, 14), st.integers(2, 14)))


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def tolerance(golden: dict[str, NDArray[Any]], pair: int, which: str) -> float:
    return float(golden["max_dist"][pair] if which == "ds" else golden["max_dist_wide"])


@pytest.mark.parametrize("pair", PAIRS)
def test_suppression_is_the_published_one(golden: dict[str, NDArray[Any]], pair: int) -> None:
    ours, theirs = suppress(golden[f"p{pair:02d}_pred"]), golden[f"p{pair:02d}_nms"]
    # Equal where this was written; sines and arctangents may differ in the last bit on another processor.
    assert (ours != theirs).sum() <= 0.003 * (theirs > 0).sum()


@pytest.mark.parametrize("pair", PAIRS)
def test_true_boundaries_are_the_published_ones(golden: dict[str, NDArray[Any]], pair: int) -> None:
    np.testing.assert_array_equal(label_edges(golden[f"p{pair:02d}_gt"]), golden[f"p{pair:02d}_bdry"])


@pytest.mark.parametrize("which", TOLERANCES)
@pytest.mark.parametrize("pair", PAIRS)
def test_counts_and_scores_of_an_image_are_the_published_ones(
    golden: dict[str, NDArray[Any]], pair: int, which: str
) -> None:
    name = f"p{pair:02d}"
    counts = match_counts(golden[f"{name}_nms"], golden[f"{name}_bdry"], tolerance(golden, pair, which))
    np.testing.assert_array_equal(counts, golden[f"{name}_counts_{which}"])
    np.testing.assert_allclose(scores(counts)[:3], golden[f"{name}_score_{which}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("which", TOLERANCES)
@pytest.mark.parametrize("dataset", SETS)
def test_scores_and_curves_of_a_set_are_the_published_ones(
    golden: dict[str, NDArray[Any]], dataset: str, which: str
) -> None:
    counts = np.stack([golden[f"p{pair:02d}_counts_{which}"] for pair in PAIRS])[SETS[dataset]]
    got = scores(counts)
    np.testing.assert_allclose(got[:3], golden[f"{dataset}_score_{which}"], rtol=0, atol=1e-12)
    assert got.threshold == golden["thresholds"][golden[f"{dataset}_ods_index_{which}"]]
    assert got.protocol == "sak"
    for ours, key in zip(pr_curve(counts), ("prec", "rec", "f"), strict=True):
        np.testing.assert_allclose(ours, golden[f"{dataset}_{key}_{which}"], rtol=0, atol=1e-12)


def test_a_byte_passes_a_threshold_as_published(golden: dict[str, NDArray[Any]]) -> None:
    every = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    byte = every / 255
    thresholds = np.array(PROTOCOLS["sak"].thresholds)
    np.testing.assert_array_equal(thresholds, golden["thresholds"])
    np.testing.assert_array_equal(byte[..., None] >= thresholds, every[..., None] >= golden["level"].astype(np.int64))


@pytest.mark.parametrize("pair", [0, 5, 7])
def test_other_protocols_make_other_masks_and_the_same_of_a_sharp_one(
    golden: dict[str, NDArray[Any]], pair: int
) -> None:
    pred, labels = golden[f"p{pair:02d}_pred"], golden[f"p{pair:02d}_gt"]
    counts = {name: image_counts(pred, labels, max_dist=0.03, protocol=name) for name in PROTOCOLS}
    assert {name: len(rows) for name, rows in counts.items()} == {"sak": 99, "invpt": 101, "mtinet": 99}
    found = {name: scores(rows, protocol=name) for name, rows in counts.items()}
    assert [item.protocol for item in found.values()] == list(PROTOCOLS)
    assert len({round(item.odsF, 6) for item in found.values()}) == 3
    # As the evaluations they stand for, they differ by a few points at most.
    assert max(item.odsF for item in found.values()) - min(item.odsF for item in found.values()) < 0.1
    edges = label_edges(labels)
    exact = image_counts(edges.astype(np.uint8) * np.uint8(255), labels, max_dist=0.0075, protocol="mtinet")
    assert scores(exact, protocol="mtinet").odsF == 1.0


def test_an_unsuppressed_protocol_counts_what_match_counts_does(golden: dict[str, NDArray[Any]]) -> None:
    pred, labels = golden["p01_pred"], golden["p01_gt"]
    np.testing.assert_array_equal(
        image_counts(pred, labels, max_dist=0.0075, protocol="mtinet"),
        match_counts(pred, label_edges(labels), 0.0075),
    )
    np.testing.assert_array_equal(
        image_counts(pred, labels, max_dist=0.0075), match_counts(suppress(pred), label_edges(labels), 0.0075)
    )


@settings(max_examples=40)
@given(data=st.data(), prediction_HW=small_maps)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_counts_are_bounded(protocol: str, data: st.DataObject, prediction_HW: NDArray[np.uint8]) -> None:
    labels_HW = data.draw(arrays(np.uint8, prediction_HW.shape, elements=st.integers(0, 2)))
    found, true, right, predicted = image_counts(prediction_HW, labels_HW, max_dist=0.1, protocol=protocol).T
    assert (found == right).all()
    assert (true == label_edges(labels_HW).sum()).all()
    assert (found >= 0).all()
    assert (found <= np.minimum(true, predicted)).all()
    assert (predicted <= prediction_HW.size).all()


@settings(max_examples=40)
@given(prediction_HW=small_maps)
def test_suppression_only_lowers_and_clears_the_rim(prediction_HW: NDArray[np.uint8]) -> None:
    kept_HW = suppress(prediction_HW)
    assert kept_HW.dtype == np.uint8
    assert kept_HW.max() <= prediction_HW.max()
    assert not any(rim.any() for rim in (kept_HW[0], kept_HW[-1], kept_HW[:, 0], kept_HW[:, -1]))


@settings(max_examples=60)
@given(labels_HW=arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)))
def test_names_of_labels_do_not_matter(labels_HW: NDArray[np.int32]) -> None:
    renamed_HW = np.array([7, 0, 255, 3])[labels_HW]
    np.testing.assert_array_equal(label_edges(labels_HW), label_edges(renamed_HW))


@settings(max_examples=60)
@given(drawn=arrays(np.int64, (5, 99, 3), elements=st.integers(0, 4)), order=st.permutations(range(5)))
def test_scores_do_not_depend_on_the_order_of_images(drawn: NDArray[np.int64], order: list[int]) -> None:
    found, missed, wrong = np.moveaxis(drawn, -1, 0)
    counts = np.stack([found, found + missed, found, found + wrong], axis=-1)
    first, other = scores(counts), scores(counts[order])
    assert first == other
    assert 0 <= first.odsF <= 1
    assert 0 <= first.oisF <= 1
    assert 0 <= first.AP <= 1.01


def test_images_without_a_boundary_and_predictions_without_one() -> None:
    labels_HW = np.zeros((20, 24), dtype=np.uint8)
    cut_HW = labels_HW.copy()
    cut_HW[:, 12:] = 1
    black, white = np.zeros_like(labels_HW), np.full_like(labels_HW, 255)
    nothing = scores(image_counts(black, labels_HW, max_dist=0.0075))
    assert nothing[:3] == (0.0, 0.0, 0.0)
    assert scores(image_counts(white, labels_HW, max_dist=0.0075)).odsF == 0.0
    assert scores(image_counts(black, cut_HW, max_dist=0.0075)).odsF == 0.0
    assert scores(image_counts(white, cut_HW, max_dist=0.0075)).odsF <= 1.0


def test_an_image_without_a_boundary_can_make_ois_the_smaller() -> None:
    """It has no best threshold and so enters at the lowest, where it has most false alarms."""
    good, empty = np.zeros((99, 4), dtype=np.int64), np.zeros((99, 4), dtype=np.int64)
    good[:] = (10, 10, 10, 10)
    empty[:50, 3] = 100
    got = scores(np.stack([good, empty]))
    assert got.odsF == 1.0
    assert got.threshold == 0.51
    assert got.oisF == pytest.approx(2 * 10 / 120)


GOOD = np.zeros((8, 9), dtype=np.uint8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: suppress(GOOD.astype(np.float32)), r"expected uint8 \(H, W\).*float32"),  # type: ignore[arg-type]
        (lambda: suppress(GOOD[:1]), "at least 2 x 2"),
        (lambda: suppress(np.zeros((8, 9, 3), np.uint8)), r"\(8, 9, 3\)"),
        (lambda: label_edges(np.zeros((8, 9, 3))), "one label map"),
        (lambda: label_edges(np.array([["a", "b"]])), "expected numbers"),
        (lambda: match_counts(GOOD, np.zeros((9, 8), dtype=bool), 0.0075), r"size \(8, 9\).*\(9, 8\)"),
        (lambda: match_counts(GOOD, GOOD, 0.0075), "expected bool edges"),  # type: ignore[arg-type]
        (lambda: match_counts(GOOD, GOOD > 0, 4.69), "0.0075 is PASCAL"),
        (lambda: match_counts(GOOD, GOOD > 0, float("nan")), "tolerance"),
        (lambda: match_counts(GOOD, GOOD > 0, 0.0), "tolerance"),
        (lambda: scores(np.zeros((0, 99, 4), dtype=np.int64)), "at least one image"),
        (lambda: scores(np.zeros((3, 99, 4))), "expected integers"),  # type: ignore[arg-type]
        (lambda: scores(np.zeros((3, 99, 4), dtype=np.int64), protocol="invpt"), "by its own name"),
        (lambda: protocol_named("seism"), "sak, invpt, mtinet"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call: Any, words: str) -> None:
    with pytest.raises(SakError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_protocol_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        image_counts(GOOD, GOOD, max_dist=0.0075, protocol="A")
