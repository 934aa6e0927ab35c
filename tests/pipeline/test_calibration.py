"""Samples shown to fitters: the rows, the passes, and what is kept between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pipeline.calibration import Replay, column_codec, fit_codecs, in_batches
from pipeline.features import probe_levels, run_teacher
from pipeline.images.scenes import SceneSource
from pipeline.maps import LiveMaps
from pipeline.tensors import to_tensors
from pipeline.viewsets import view_size
from sak.teachers.model import load_teacher
from sak.teachers.registry import TEACHERS
from store.codecs.base import LevelSpec
from store.codecs.int8 import Int8
from store.codecs.registry import make_fitter
from store.store import Store
from tests.conftest import Finished
from tests.fitted_codec import CentredFitter, CentredSettings, register

LEVELS = (LevelSpec(components=2, height=1, width=3), LevelSpec(components=1, height=2, width=2))


def batch(rows: int, *, first: int) -> list[torch.Tensor]:
    values = torch.arange(first, first + rows, dtype=torch.float32)[:, None, None, None]
    return [values.expand(rows, *level.shape).contiguous() for level in LEVELS]


def test_batches_cover_all_rows_in_order() -> None:
    assert in_batches(range(7), 3) == [range(3), range(3, 6), range(6, 7)]
    assert in_batches([], 3) == []


@pytest.mark.parametrize(("keep", "made"), [(0, 6), (10**6, 3), (2 * 2 * 10 * 4, 4)])
def test_replay_gives_the_same_batches_and_makes_few_twice(keep: int, made: int) -> None:
    """Two batches of 2 rows of 10 values fit into the last bound: only the third is made again."""
    asked: list[int] = []

    def make(index: int) -> Sequence[torch.Tensor]:
        asked.append(index)
        return batch(2, first=2 * index)

    replay = Replay(3, make=make, keep_bytes=keep)
    passes = [[float(feats[0][0, 0, 0, 0]) for feats in replay] for _ in range(2)]
    assert passes == [[0, 2, 4], [0, 2, 4]]
    assert len(asked) == made


def test_each_fitter_gets_its_own_rows_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    one, two = (CentredFitter(CentredSettings(rows=rows), LEVELS) for rows in (3, 5))
    monkeypatch.setattr(two, "passes", 3, raising=False)
    told: list[int] = []
    batches = [batch(2, first=0), batch(2, first=2), batch(2, first=4)]
    fit_codecs([one, two], batches, done=told.append)
    assert told == [2] * 9
    rows = [[fitter.sample(number, 0)[:, 0, 0, 0].tolist() for number in range(fitter.passes)] for fitter in (one, two)]
    assert rows == [[[0, 1, 2]] * 2, [[0, 1, 2, 3, 4]] * 3]


def test_a_codec_without_a_fit_runs_no_teacher(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    study = finished.recipe.runs[0].study
    teacher = load_teacher(study.teachers["first"].spec("first"))
    view_set = Store.open(study.store).view_sets()[0]
    levels = probe_levels(teacher, size=view_size(view_set.spec))
    monkeypatch.setattr(type(teacher), "forward", lambda *_: pytest.fail("the teacher ran"))
    assert column_codec("int8", source=LiveMaps(teacher), view_set=view_set, levels=levels, batch=4) == Int8()


def test_the_sample_is_the_first_usable_rows(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    study = finished.recipe.runs[0].study
    teacher = load_teacher(study.teachers["first"].spec("first"))
    store = Store.open(study.store)
    view_set = next(item for item in store.view_sets() if item.spec.rows == 22)
    levels = probe_levels(teacher, size=view_size(view_set.spec))
    usable = np.array([1, 2, 5, 9, 10, 20])
    monkeypatch.setattr(type(view_set), "usable_rows", lambda _: usable)
    choice = {"name": "centred", "rows": 4}
    codec = column_codec(choice, source=LiveMaps(teacher), view_set=view_set, levels=levels, batch=3)
    column = next(column for column in store.columns(view_set.name) if column.spec.teacher == "first")
    stored = column.read_floats([1, 2, 5, 9])
    for level in range(4):
        np.testing.assert_allclose(codec.assets()[f"mean_{level}"], stored[level].mean((0, 2, 3)), atol=1e-5)


def test_klt_meets_a_large_error_on_levels_that_the_one_before_nearly_tells() -> None:
    """A decoder predicts from maps whose error lies in few components; taken for white, it gave up to 0.52 here."""
    source = SceneSource(split="unlabeled", size=(96, 96), images=96, seed=0)
    pixels = to_tensors([source.read(index, labels=False) for index in range(96)]).pixels
    feats = run_teacher(load_teacher(TEACHERS["scenes-boundary"]), pixels)
    levels = [LevelSpec(components=feat.shape[1], height=feat.shape[2], width=feat.shape[3]) for feat in feats]
    (codec,) = fit_codecs(
        [make_fitter({"name": "klt", "error": 0.3}, levels)], [[feat[:64] for feat in feats]], done=id
    )
    held_out = [feat[64:] for feat in feats]
    decoded = codec.decode_levels(dict(enumerate(codec.encode_levels(held_out))), levels=range(len(levels)))
    for feat, back in zip(held_out, decoded, strict=True):
        assert 0.27 < float((feat - back).norm() / feat.norm()) < 0.33
