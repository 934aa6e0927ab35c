"""Stage ``tune``: try codecs on a sample of a recipe's own views and teachers, and say which to take.

The sample is drawn in memory; no store is read or written. Codecs that are fitted see the first rows of the view set,
and all codecs are measured on rows after those, of other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from pipeline.calibration import KEEP_BYTES, Replay, fit_codecs, in_batches
from pipeline.config import Study
from pipeline.errors import PipelineError
from pipeline.features import probe_levels, run_teacher
from pipeline.needs import Need, needs
from pipeline.rates import LossKind, Rate, front, measure
from pipeline.runtime import device_name, pick_device
from pipeline.samples import Sample
from pipeline.tracking import ProgressBar, progress_bar
from pipeline.tuning import (
    CANDIDATES,
    HEADINGS,
    TeacherRates,
    TuneOptions,
    Tuning,
    ViewRows,
    chosen,
    codec_text,
    rate_cells,
    refined,
)
from pipeline.viewsets import view_set_spec, view_size
from sak.teachers.model import Teacher, load_teacher
from store.codecs.base import Codec, Fitter
from store.codecs.registry import CodecChoice, choice_json, choose_codec, is_fitted, make_fitter
from store.errors import StoreError
from store.spec import ColumnSpec, ViewSetSpec

__all__ = ["rate_table", "tune"]

_LARGEST_SHARE = 4  # at most a quarter of the images are held out, where there are few


def tune(study: Study, /, *, options: TuneOptions) -> Tuning:
    """Measure every candidate on every teacher of a study.

    Raises:
        PipelineError: The study has no data or no such teacher, or fewer than 2 images.
        TeacherError: A teacher's weights are absent or do not fit.
        StoreError: A teacher's maps are not finite.
    """
    need, names = _need(study), options.teachers or study.student_teachers
    unknown = [name for name in names if name not in study.teachers]
    if unknown or not names:
        raise PipelineError(f"--teacher: expected some of {', '.join(study.teachers) or 'none'}, got {unknown}")
    device, stage = pick_device(study.device), study.distill or study.finetune
    loss = LossKind(stage.loss, stage.cosine) if stage else LossKind()
    sample = Sample(need.data, view_set_spec(need.data, labels=need.labels), study.extract.batch_rows)
    found = []
    for name in names:
        choices = _choices(study.codec(name))
        teacher = load_teacher(study.teachers[name].spec(name), device=str(device))
        found.append(_Tuner(teacher, sample, device=device, loss=loss).run(choices, options=options))
    return Tuning(options, loss, device_name(device), tuple(found), _views(study))


def _need(study: Study) -> Need:
    """The view set that teachers are tuned on: the first they are stored over, or else the first there is."""
    found = needs(study)
    if not found:
        raise PipelineError("tune needs data: give the recipe data.distill, data.finetune or data.eval")
    return next((need for need in found if need.teachers), found[0])


def _views(study: Study) -> tuple[ViewRows, ...]:
    """View sets whose columns would have the codec that is chosen; scoring may have one of its own."""
    chosen_here = [need for need in needs(study) if need.purpose != "eval" or study.eval.codec is None]
    specs = [(view_set_spec(need.data, labels=need.labels), tuple(need.teachers)) for need in chosen_here]
    return tuple(ViewRows(spec.name, spec.rows, teachers) for spec, teachers in specs)


def _choices(own: CodecChoice) -> list[CodecChoice]:
    """The candidates, and what the recipe has now, each once."""
    return list({str(choice_json(choice)): choice for choice in (*CANDIDATES, own)}.values())


class _Split(NamedTuple):
    """Rows to fit to, and rows of other images to measure on."""

    fit: range
    held_out: range


def _split(spec: ViewSetSpec, *, rows: int, fit: int) -> _Split:
    """Both lie in the first view of every image, so no image is in both.

    Raises:
        PipelineError: There are fewer than 2 images.
    """
    if spec.images < 2:
        raise PipelineError(f"tune: expected at least 2 images, one to fit to and one to measure on, got {spec.images}")
    held_out = min(rows, max(1, spec.images // _LARGEST_SHARE))
    fit = min(fit, spec.images - held_out)
    return _Split(range(fit), range(fit, fit + held_out))


class _Tuner:
    """One teacher's sample, and every codec on it."""

    def __init__(self, teacher: Teacher, sample: Sample, *, device: torch.device, loss: LossKind) -> None:
        self._teacher, self._sample, self._device, self._loss = teacher, sample, device, loss
        self._levels = probe_levels(teacher, size=view_size(sample.spec))
        self._values = sum(level.values for level in self._levels)
        self._rates: list[Rate] = []
        self._refused: dict[str, str] = {}

    def run(self, choices: Sequence[CodecChoice], *, options: TuneOptions) -> TeacherRates:
        """Fit, measure, and fit once more between the two settings that enclose what is asked."""
        fitted = [choice for choice in choices if is_fitted(choice)]
        fitters = [make_fitter(choice, self._levels) for choice in fitted]
        wanted = min(options.fit_rows, max((fitter.rows for fitter in fitters), default=0))
        # Held-out maps stay in memory for every codec: a large teacher gets fewer rows, not more memory.
        rows = max(1, min(options.rows, KEEP_BYTES // (4 * self._values)))
        split = _split(self._sample.spec, rows=rows, fit=wanted)
        batches = in_batches(split.fit, self._sample.batch)
        replay = Replay(len(batches), make=lambda index: self._maps(batches[index]))
        with progress_bar("rows") as bar:
            held_out = self._held_out(split.held_out, bar)
            codecs = self._fit(fitters, replay, bar) if fitters else []
            shown = bar.add_task(f"tune {self._teacher.spec.name}: measure", total=len(choices) * len(split.held_out))
            for choice in choices:
                codec = codecs[fitted.index(choice)] if choice in fitted else choose_codec(choice)
                self._measure(codec, held_out)
                bar.advance(shown, len(split.held_out))
            between = refined(tuple(self._rates), options=options)
            if between is not None:
                self._measure(self._fit([make_fitter(between, self._levels)], replay, bar)[0], held_out)
        measured = sum(len(feats[0]) for feats in held_out)
        rates = tuple(sorted(self._rates, key=lambda rate: -rate.bits))
        return TeacherRates(self._teacher.spec.name, self._values, len(split.fit), measured, rates, self._refused)

    def _maps(self, numbers: Sequence[int]) -> list[Tensor]:
        return run_teacher(self._teacher, self._sample.pixels(numbers))

    def _held_out(self, numbers: range, bar: ProgressBar) -> list[list[Tensor]]:
        shown = bar.add_task(f"tune {self._teacher.spec.name}: held-out maps", total=len(numbers))
        batches = []
        for some in in_batches(numbers, self._sample.batch):
            batches.append([feat.cpu() for feat in self._maps(some)])
            bar.advance(shown, len(some))
        return batches

    def _fit(self, fitters: Sequence[Fitter], replay: Replay, bar: ProgressBar) -> list[Codec]:
        shown = bar.add_task(f"tune {self._teacher.spec.name}: fit {len(fitters)} codecs", total=None)
        return fit_codecs(fitters, replay, done=lambda count: bar.advance(shown, count))

    def _measure(self, codec: Codec, held_out: Sequence[Sequence[Tensor]]) -> None:
        spec = ColumnSpec(
            view_set=self._sample.spec.name,
            teacher=self._teacher.spec.name,
            identity={},
            levels=self._levels,
            codec=codec,
        )
        try:
            self._rates.append(measure(spec, held_out, device=self._device, loss=self._loss))
        except StoreError as error:
            self._refused[codec_text(codec.to_json())] = str(error)


def rate_table(tuning: Tuning, item: TeacherRates, /) -> Table:
    """One teacher's measurements, most bits first; the Pareto front and the choice are marked."""
    choice = chosen(tuning).each[item.teacher]
    fitted = f", fitted to {item.fit_rows} others" if item.fit_rows else ""
    table = Table(header_style="bold", title=f"{item.teacher}: {item.rows} held-out rows{fitted}; {tuning.device}")
    table.add_column("")
    table.add_column("codec")
    for name in HEADINGS:
        table.add_column(name, justify="right")
    for rate, on_front in zip(item.rates, front(item.rates, metric=tuning.options.metric), strict=True):
        mark = "chosen" if rate is choice else "front" if on_front else ""
        table.add_row(mark, codec_text(rate.codec), *rate_cells(rate), style="bold" if rate is choice else None)
    return table
