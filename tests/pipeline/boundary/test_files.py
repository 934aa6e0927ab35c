"""Folders of predictions and labels: what belongs together, and one line for whatever does not."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from pipeline.boundary.files import KINDS, Truth, decode_prediction, decode_truth, find_pairs, some
from pipeline.errors import BadImageError, DataError, PipelineError
from sak.boundary import label_edges
from tests.pipeline.boundary.pairs import draw, write_label_map, write_nyud, write_prediction, write_set


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, "PNG")
    return buffer.getvalue()


def truth(path: Path) -> Truth:
    return decode_truth(path.read_bytes(), where=str(path))


def test_pairs_are_found_by_name_and_in_order(tmp_path: Path) -> None:
    write_set(tmp_path, images=3)
    (tmp_path / "pred" / ".hidden.png").write_bytes(b"")
    (tmp_path / "pred" / "notes.txt").write_bytes(b"")
    pairs = find_pairs(tmp_path / "pred", tmp_path / "labels")
    assert [pair.key for pair in pairs] == ["im0", "im1", "im2"]
    assert pairs[1].prediction == tmp_path / "pred/im1.png"
    assert pairs[1].label == tmp_path / "labels/im1.mat"


def test_missing_sides_are_named_and_a_list_leaves_them_out(tmp_path: Path) -> None:
    write_set(tmp_path, images=4)
    (tmp_path / "pred/im1.png").unlink()
    (tmp_path / "labels/im3.mat").unlink()
    with pytest.raises(DataError, match=r"im1: no prediction NAME\.png in .*im3: no label .*--ids FILE"):
        find_pairs(tmp_path / "pred", tmp_path / "labels")
    chosen = tmp_path / "ids.txt"
    chosen.write_text("im2\nim0\n")
    assert [pair.key for pair in find_pairs(tmp_path / "pred", tmp_path / "labels", ids=chosen)] == ["im0", "im2"]
    chosen.write_text("im2\nim7\n")
    with pytest.raises(DataError, match=r"im7: no prediction .*; im7: no label"):
        find_pairs(tmp_path / "pred", tmp_path / "labels", ids=chosen)


def test_folders_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path, images=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"nowhere: cannot list predictions"):
        find_pairs(tmp_path / "nowhere", tmp_path / "labels")
    with pytest.raises(DataError, match=r"empty: no labels NAME\.mat or NAME\.png"):
        find_pairs(tmp_path / "pred", tmp_path / "empty")
    write_prediction(tmp_path / "labels/im0.png", draw(0))
    with pytest.raises(DataError, match=r"im0\.mat: there is a im0\.png too|im0\.png: there is a im0\.mat too"):
        find_pairs(tmp_path / "pred", tmp_path / "labels")


def test_labels_of_each_kind_give_the_map_they_hold(tmp_path: Path) -> None:
    drawn = draw(1)
    write_label_map(tmp_path / "a.mat", drawn)
    region = truth(tmp_path / "a.mat")
    assert region.kind == "LabelMap"
    np.testing.assert_array_equal(region.labels_HW, drawn.labels_HW)
    edges = label_edges(drawn.labels_HW)
    write_nyud(tmp_path / "b.mat", edges.astype(np.uint8))
    boundary = truth(tmp_path / "b.mat")
    assert boundary.kind == "groundTruth"
    np.testing.assert_array_equal(boundary.labels_HW, edges)
    for data in (png(drawn.labels_HW), png(edges), png(edges.astype(np.uint8) * np.uint8(255))):
        assert decode_truth(data, where="c.png").kind == "PNG"
    np.testing.assert_array_equal(decode_truth(png(drawn.labels_HW), where="c.png").labels_HW, drawn.labels_HW)
    np.testing.assert_array_equal(
        label_edges(decode_truth(png(edges.astype(np.uint8) * np.uint8(255)), where="c.png").labels_HW),
        label_edges(edges),
    )
    assert KINDS["groundTruth"] == 0.011


GREY = np.zeros((4, 5), dtype=np.uint8)


def bomb() -> bytes:
    """A PNG whose header claims 4 gigapixels, with a right checksum."""
    data = bytearray(png(GREY))
    data[16:24] = (65536).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be decoded"),
        (b"not a picture", "not a known image format"),
        (png(GREY)[:40], "cannot be decoded"),
        (png(np.zeros((4, 5, 3), np.uint8)), "expected pixels of mode L, got RGB"),
        (png(GREY.astype(np.uint16)), "got I;16"),
        (png(GREY, "P"), "got P"),
        (bomb(), "claims more than"),
    ],
    ids=["empty", "text", "cut", "colour", "deep", "palette", "bomb"],
)
def test_predictions_that_are_none_are_named(data: bytes, words: str) -> None:
    with pytest.raises(BadImageError, match=rf"^x/im0\.png: .*{words}") as caught:
        decode_prediction(data, where="x/im0.png")
    assert "\n" not in str(caught.value)


def mat(**variables: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"MATLAB 5.0 MAT-file, not", "cannot be read as a MATLAB file"),
        (mat(other=1), "no variable 'LabelMap' or 'groundTruth'"),
        (mat(LabelMap=np.zeros((2, 3, 4))), r"LabelMap to be a map of numbers \(H, W\)"),
        (mat(LabelMap=np.zeros((0, 4))), "map of numbers"),
        (mat(LabelMap="text"), "map of numbers"),
        (mat(groundTruth=np.zeros((1, 1))), "no field Boundaries"),
        (mat(groundTruth={"Segmentation": GREY}), "no field Boundaries"),
    ],
    ids=["damaged", "other", "deep", "empty", "text", "numbers", "field"],
)
def test_labels_that_are_none_are_named(data: bytes, words: str) -> None:
    with pytest.raises(BadImageError, match=rf"^x/im0\.mat: .*{words}"):
        decode_truth(data, where="x/im0.mat")


def test_several_annotators_are_refused(tmp_path: Path) -> None:
    write_nyud(tmp_path / "a.mat", GREY, annotators=2)
    with pytest.raises(BadImageError, match="expected one annotator in groundTruth, as NYUD has, got 2"):
        truth(tmp_path / "a.mat")


def said_of(data: bytes, where: str) -> str:
    try:
        return f"{where} is a map {decode_truth(data, where=where).labels_HW.shape}"
    except PipelineError as error:
        return str(error)


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_byte_gives_a_map_or_one_line(data: st.DataObject) -> None:
    for where, whole in (("a.png", png(draw(1, size=(6, 7)).prediction_HW)), ("a.mat", mat(LabelMap=GREY))):
        hurt = bytearray(whole)
        hurt[data.draw(st.integers(0, len(hurt) - 1))] ^= data.draw(st.integers(1, 255))
        assert said_of(bytes(hurt), where).startswith(where)


def test_long_lists_are_shortened() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"
