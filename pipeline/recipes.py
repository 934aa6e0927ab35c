"""YAML recipes: read, override, validate, and expand into runs.

A recipe is one YAML mapping. ``name``, ``out``, ``runs``, ``baselines`` and ``summary`` belong to the recipe as a
whole; all other keys describe the ``Study`` that every run starts from. Each run sets dotted keys on top.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config import RunConfig, Study
from pipeline.errors import RecipeError

__all__ = ["Recipe", "RunPlan", "load_recipe", "parse_override", "plain", "recipe_from_mapping"]

T = TypeVar("T")

_RECIPE_KEYS = ("name", "out", "runs", "baselines", "summary")
_STUDY = TypeAdapter(Study)
_RUNS = TypeAdapter(dict[str, RunConfig])


class RunPlan(NamedTuple):
    """One run of a recipe: its name, what it is for, and its complete configuration."""

    name: str
    description: str
    study: Study
    split_tasks: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A validated recipe.

    Attributes:
        out: Folder for everything that runs write, except the store.
        runs: In recipe order; the first is the headline of the report.
        baselines: Names of runs that Delta_m is measured against.
        resolved: The mapping after overrides, as written into the run folder.
    """

    name: str
    out: Path
    study: Study
    runs: tuple[RunPlan, ...]
    baselines: tuple[str, ...]
    summary: str
    resolved: Mapping[str, object]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` overrides.

    Raises:
        RecipeError: The file is absent or not YAML, or keys or values are wrong; every fault is named with its path.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; the shipped ones are in workflows/") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    return recipe_from_mapping(raw, overrides=overrides, where=str(path))


def recipe_from_mapping(raw: object, *, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """Validate a recipe given as plain data.

    Raises:
        RecipeError: As ``load_recipe``.
    """
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: expected a mapping of keys at the top, got {type(raw).__name__}")
    data: dict[str, object] = copy.deepcopy(raw)
    for override in overrides:
        key, value = parse_override(override)
        _set_dotted(data, key, value)
    problems: list[str] = []
    study_raw = {key: value for key, value in data.items() if key not in _RECIPE_KEYS}
    study = _validate(_STUDY, study_raw, "", problems)
    configs = _validate(_RUNS, data.get("runs") or {"main": {}}, "runs", problems)
    plans = _expand(study_raw, configs or {}, study is None, problems)
    baselines = data.get("baselines") or []
    if not isinstance(baselines, list) or any(name not in (configs or {}) for name in baselines):
        problems.append(f"baselines: expected a list of names from runs {sorted(configs or {})}, got {baselines!r}")
    name = str(data.get("name") or Path(where).stem)
    if problems or study is None or not isinstance(baselines, list):
        raise RecipeError(f"{where}: {len(problems)} fault(s):\n" + "\n".join(f"  {line}" for line in problems))
    return Recipe(
        name=name,
        out=Path(str(data.get("out") or f"runs/{name}")),
        study=study,
        runs=tuple(plans),
        baselines=tuple(str(item) for item in baselines),
        summary=str(data.get("summary") or ""),
        resolved=data,
    )


def parse_override(text: str, /) -> tuple[str, object]:
    """Split ``a.b=value``; the value is read as YAML, so ``null``, ``[1, 2]`` and ``0.5`` mean what they say.

    Raises:
        RecipeError: No ``=``, an empty key, or a value that is not YAML.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"override {text!r}: expected key=value, for example distill.steps=100")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not YAML") from error


def plain(config: object, /) -> dict[str, object]:
    """A configuration object as JSON-ready data, for fingerprints and records."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    return {item.name: _plain_value(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _plain_value(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return value


def _expand(
    study_raw: dict[str, object], configs: Mapping[str, RunConfig], broken: bool, problems: list[str]
) -> list[RunPlan]:
    plans = []
    for name, config in configs.items():
        if not name or any(char in name for char in "/\\ ") or name.startswith("."):
            problems.append(f"runs.{name}: a run's name is used as a folder name; no spaces, slashes or leading dot")
        raw = copy.deepcopy(study_raw)
        for key, value in config.set.items():
            _set_dotted(raw, key, value)
        # A fault of the shared part would be repeated for every run.
        study = _validate(_STUDY, raw, f"runs.{name}.set", [] if broken else problems)
        if study is not None:
            plans.append(
                RunPlan(name=name, description=config.description, study=study, split_tasks=config.split_tasks)
            )
    return plans


def _set_dotted(data: dict[str, object], key: str, value: object) -> None:
    *parents, last = key.split(".")
    node = data
    for depth, part in enumerate(parents):
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            where = ".".join(parents[: depth + 1])
            raise RecipeError(f"override {key}: {where} is a plain value, so it has no key {last!r} below it")
        node = child
    node[last] = value


def _validate(adapter: TypeAdapter[T], raw: object, prefix: str, problems: list[str]) -> T | None:
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path = ".".join([part for part in (prefix, *map(str, item["loc"])) if part])
            message = "unknown key" if item["type"] == "unexpected_keyword_argument" else item["msg"]
            shown = (
                "" if isinstance(item["input"], dict) or "dataclass" in item["type"] else f" (got {item['input']!r})"
            )
            problems.append(f"{path or 'recipe'}: {message.removeprefix('Value error, ')}{shown}")
    return None
