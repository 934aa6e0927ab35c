"""What tuning found, and what follows from it: the codec to take, the recipe line that says so, the bytes it takes."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.rates import METRICS, LossKind, Rate, cheapest, front, meets
from pipeline.report.quantities import bytes_text
from store.codecs.registry import CodecChoice, choice_json

__all__ = [
    "CANDIDATES",
    "DEFAULT_FIDELITY",
    "HEADINGS",
    "Chosen",
    "TeacherRates",
    "TuneOptions",
    "Tuning",
    "ViewRows",
    "chosen",
    "codec_text",
    "rate_cells",
    "recipe_line",
    "refined",
    "tuning_json",
    "verdict_lines",
]

DEFAULT_FIDELITY = 0.988

HEADINGS = (
    *("bits/value", "token cosine", "image cosine", "relative error", "loss"),
    *("encode M/s", "decode M/s", "unpack M/s/core", "an image"),
)
"""Of the cells that ``rate_cells`` gives."""

CANDIDATES: tuple[CodecChoice, ...] = (
    "fp32",
    "fp16",
    "bf16",
    "int8",
    {"name": "int8", "scale": "float16"},
    {"name": "int4", "group": 32},
    {"name": "int4"},
    {"name": "int4", "rotate": False},
    *({"name": "klt", "error": error} for error in (0.05, 0.1, 0.15, 0.22, 0.33)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """What to tune for.

    Attributes:
        rows: Held-out rows to measure on.
        fit_rows: Most rows that fitted codecs see, fewer than in an extraction: they come out a little worse here.
        fidelity: The least cosine, or with metric ``loss`` the greatest loss; None takes ``DEFAULT_FIDELITY``.
        metric: One of ``METRICS``.
        teachers: Names of teachers; empty for all that the recipe's student learns from.

    Raises:
        PipelineError: A value is refused.
    """

    rows: int = 64
    fit_rows: int = 64
    fidelity: float | None = None
    metric: str = "token_cosine"
    teachers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise PipelineError(f"--metric: expected one of {', '.join(METRICS)}, got {self.metric!r}")
        if min(self.rows, self.fit_rows) < 1:
            raise PipelineError(f"--rows and --fit-rows: expected at least 1, got {self.rows} and {self.fit_rows}")
        if self.fidelity is None and not METRICS[self.metric]:
            raise PipelineError("--fidelity: with --metric loss give the greatest loss to allow, as in --fidelity 0.01")
        if not 0 < self.asked < (1 if METRICS[self.metric] else math.inf):
            raise PipelineError(f"--fidelity: expected a cosine below 1, or a loss above 0, got {self.fidelity}")

    @property
    def asked(self) -> float:
        """The fidelity asked for."""
        return DEFAULT_FIDELITY if self.fidelity is None else self.fidelity


class TeacherRates(NamedTuple):
    """One teacher's measurements.

    Attributes:
        values: Numbers in a row, all levels.
        fit_rows: Rows that fitted codecs were fitted to; ``rows``: others, that all were measured on.
        refused: Codecs that cannot hold these maps, and why.
    """

    teacher: str
    values: int
    fit_rows: int
    rows: int
    rates: tuple[Rate, ...]
    refused: Mapping[str, str]


class ViewRows(NamedTuple):
    """A view set that the recipe stores columns over."""

    name: str
    rows: int
    teachers: tuple[str, ...]


class Tuning(NamedTuple):
    """Everything that was found."""

    options: TuneOptions
    loss: LossKind
    device: str
    teachers: tuple[TeacherRates, ...]
    views: tuple[ViewRows, ...]


class Chosen(NamedTuple):
    """The cheapest codec that is good enough: for each teacher, and the one that is good enough for all."""

    each: Mapping[str, Rate | None]
    one: Mapping[str, Rate] | None


def chosen(tuning: Tuning, /) -> Chosen:
    """What to take. The one choice for all is, of those measured for every teacher, that with the fewest bytes."""
    metric, asked = tuning.options.metric, tuning.options.asked
    each = {item.teacher: cheapest(item.rates, metric=metric, fidelity=asked) for item in tuning.teachers}
    good: dict[str, dict[str, Rate]] = {}
    for item in tuning.teachers:
        for rate in item.rates:
            if meets(rate, metric=metric, fidelity=asked):
                good.setdefault(_key(rate), {})[item.teacher] = rate
    shared = [rates for rates in good.values() if len(rates) == len(tuning.teachers)]
    one = min(shared, key=lambda rates: sum(rate.row_bytes for rate in rates.values()), default=None)
    return Chosen(each, one)


def refined(rates: tuple[Rate, ...], /, *, options: TuneOptions) -> dict[str, Any] | None:
    """A setting between the coarsest ``error`` that is good enough and the next, aimed at just what is asked.

    One minus a cosine grows as a power of the error, so a straight line between the logarithms hits it closely.
    """
    sized = sorted((rate for rate in rates if "error" in rate.codec), key=lambda rate: float(rate.codec["error"]))
    pairs = [
        (low, high)
        for low, high in itertools.pairwise(sized)
        if low.name == high.name
        and meets(low, metric=options.metric, fidelity=options.asked)
        and not meets(high, metric=options.metric, fidelity=options.asked)
    ]
    if not pairs:
        return None
    low, high = pairs[-1]
    target, below, above = (_damage(value, options.metric) for value in (options.asked, *_values(low, high, options)))
    if not 0 < below < target < above:
        return None
    share = math.log(target / below) / math.log(above / below)
    start, end = float(low.codec["error"]), float(high.codec["error"])
    # A little to the safe side: what is aimed at exactly is missed half the time.
    error = math.floor(1e4 * start * (end / start) ** (0.97 * share)) / 1e4
    return {**low.codec, "error": error} if start < error < end else None


def _values(low: Rate, high: Rate, options: TuneOptions) -> tuple[float, float]:
    return float(getattr(low.measured, options.metric)), float(getattr(high.measured, options.metric))


def _damage(value: float, metric: str) -> float:
    return 1 - value if METRICS[metric] else value


def _key(rate: Rate) -> str:
    return json.dumps(rate.codec, sort_keys=True)


def codec_text(codec: Mapping[str, Any], /) -> str:
    """A codec as a recipe gives it, without options that are as they would be anyway: ``{name: klt, error: 0.1}``."""
    name = str(codec["name"])
    usual = _usual(name)
    options = [f"{key}: {_yaml(value)}" for key, value in codec.items() if key != "name" and usual.get(key) != value]
    return f"{{name: {', '.join([name, *options])}}}" if options else name


def _usual(name: str) -> dict[str, Any]:
    return choice_json(name)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def rate_cells(rate: Rate, /) -> tuple[str, ...]:
    """One codec's numbers as people read them, under ``HEADINGS``."""
    found = rate.measured
    cosines = (f"{found.token_cosine:.5f}", f"{found.image_cosine:.5f}")
    errors = (f"{found.relative_error:.4f}", f"{found.loss:.5f}")
    speeds = (f"{rate.encode:.3g}", f"{rate.decode:.3g}", f"{rate.unpack:.3g}")
    return (f"{rate.bits:.2f}", *cosines, *errors, *speeds, bytes_text(rate.row_bytes))


def recipe_line(codec: Mapping[str, Any], /, *, teacher: str = "") -> str:
    """The override that chooses a codec, ready for a command line."""
    key = f"teachers.{teacher}.codec" if teacher else "extract.codec"
    return shlex.quote(f"{key}={codec_text(codec)}")


def verdict_lines(tuning: Tuning, /) -> list[str]:
    """What to write into the recipe, and the bytes it will take."""
    found, options = chosen(tuning), tuning.options
    asked = f"{options.metric} {'>=' if METRICS[options.metric] else '<='} {options.asked:g}"
    lines = []
    for item in tuning.teachers:
        rate = found.each[item.teacher]
        if rate is None:
            best = _best(item, options.metric)
            lines.append(f"{item.teacher}: no codec reaches {asked}; the best is {best}")
            continue
        what = f"{rate.bits:.2f} bits a value, {bytes_text(rate.row_bytes)} an image"
        lines.append(f"{item.teacher}: {recipe_line(rate.codec, teacher=item.teacher)}  ({asked}: {what})")
    if len(tuning.teachers) > 1 and found.one is not None:
        total = sum(rate.row_bytes for rate in found.one.values())
        codec = next(iter(found.one.values())).codec
        lines.append(f"one for every teacher: {recipe_line(codec)}  ({bytes_text(total)} an image)")
    elif len(tuning.teachers) == 1 and (rate := next(iter(found.each.values()))) is not None:
        lines.append(f"one for every teacher: {recipe_line(rate.codec)}")
    best_each = {name: rate for name, rate in found.each.items() if rate is not None}
    lines += [
        f"{views.name}: {bytes_text(size)} for {views.rows} rows of {', '.join(names)}"
        for views, names, size in _projected(tuning, best_each)
    ]
    return lines


class _Projected(NamedTuple):
    views: ViewRows
    names: list[str]
    size: float


def _projected(tuning: Tuning, rates: Mapping[str, Rate]) -> list[_Projected]:
    """Bytes of the recipe's columns, each teacher with its own choice."""
    found = []
    for views in tuning.views:
        names = [name for name in views.teachers if name in rates]
        size = sum(views.rows * rates[name].row_bytes + rates[name].asset_bytes for name in names)
        if names:
            found.append(_Projected(views, names, size))
    return found


def _best(item: TeacherRates, metric: str) -> str:
    if not item.rates:
        return "none"
    best = min(item.rates, key=lambda rate: _damage(float(getattr(rate.measured, metric)), metric))
    return f"{codec_text(best.codec)} with {getattr(best.measured, metric):g}"


def tuning_json(tuning: Tuning, /) -> dict[str, Any]:
    """Plain form: every measurement, the front and the choices."""
    found, options = chosen(tuning), tuning.options
    teachers = {}
    for item in tuning.teachers:
        on_front = front(item.rates, metric=options.metric)
        rate = found.each[item.teacher]
        teachers[item.teacher] = {
            "values_per_row": item.values,
            "fit_rows": item.fit_rows,
            "rows": item.rows,
            "rates": [_rate_json(one, front=kept) for one, kept in zip(item.rates, on_front, strict=True)],
            "refused": dict(item.refused),
            "chosen": None if rate is None else dict(rate.codec),
        }
    one = None if found.one is None else dict(next(iter(found.one.values())).codec)
    projected = {
        views.name: {"rows": views.rows, "bytes": round(size)}
        for views, _, size in _projected(tuning, {name: rate for name, rate in found.each.items() if rate is not None})
    }
    return {
        "metric": options.metric,
        "fidelity": options.asked,
        "loss": tuning.loss._asdict(),
        "device": tuning.device,
        "teachers": teachers,
        "one_for_all": one,
        "projected": projected,
    }


def _rate_json(rate: Rate, *, front: bool) -> dict[str, Any]:
    return {
        **rate._asdict(),
        "codec": dict(rate.codec),
        "measured": rate.measured._asdict(),
        "levels": [level._asdict() for level in rate.levels],
        "front": front,
    }
