"""YAML recipes: read, override, validate, and expand into runs.

A recipe is one YAML mapping. ``name``, ``out``, ``runs``, ``baselines`` and ``summary`` belong to the recipe as a
whole; all other keys describe the ``Study`` that every run starts from. Each run sets dotted keys on top.

``base: FILE``, a path relative to the recipe's own folder, takes another recipe's keys where the recipe has none:
mappings are merged key by key, everything else is replaced whole. ``name`` and ``out`` are never another's.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.baselines import baseline_faults
from pipeline.config import RunConfig, Study
from pipeline.errors import RecipeError

__all__ = ["Recipe", "RunPlan", "load_recipe", "parse_override", "recipe_from_mapping"]

T = TypeVar("T")

_DEEPEST, _MOST, _BASES = 32, 100_000, 8
_RECIPE_KEYS = ("name", "out", "runs", "baselines", "summary")
_STUDY = TypeAdapter(Study)
_RUNS = TypeAdapter(dict[str, RunConfig])
_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+\Z"))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``1e-3`` for text, because it has no dot; people mean a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own form
        first: [_FLOAT, *known] if first in "-+0123456789" else known
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that is given twice; YAML would keep the last and say nothing."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} is given twice; keep one", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


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
        baselines: What Delta_m is measured against: runs, and what ``pipeline.baselines`` knows besides.
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
    return recipe_from_mapping(_with_bases(path, ()), overrides=overrides, where=str(path))


def _with_bases(path: Path, above: tuple[Path, ...]) -> object:
    """A recipe file's keys on top of those of its bases; ``above`` are the files that name it, outermost first."""
    raw = _read(path, above)
    base = raw.pop("base", None) if isinstance(raw, dict) else None
    if base is None or not isinstance(raw, dict):
        return raw
    if not isinstance(base, str) or not base or Path(base).is_absolute():
        raise RecipeError(f"{path}: base: expected a recipe's path relative to this file's folder, got {base!r}")
    files = (*above, path)
    found = path.parent / base
    if len(files) > _BASES or found.resolve() in [file.resolve() for file in files]:
        chain = " -> ".join(str(file) for file in (*files, found))
        raise RecipeError(f"{path}: base: expected at most {_BASES} bases, none of them twice, got {chain}")
    below = _with_bases(found, files)
    if not isinstance(below, dict):
        raise RecipeError(f"{found}: expected a mapping of keys at the top, got {type(below).__name__}")
    return _merged({key: value for key, value in below.items() if key not in ("name", "out")}, raw)


def _read(path: Path, above: tuple[Path, ...]) -> object:
    named = f", the base of {above[-1]}" if above else "; the shipped ones are in workflows/"
    try:
        raw = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe{named}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: cannot be read as YAML: nested too deep") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    return _unshared(raw, where=str(path)) if isinstance(raw, dict) else raw


def _merged(below: Mapping[Any, object], above: Mapping[Any, object]) -> dict[Any, object]:
    """Mappings merged key by key, ``above`` first in rank and ``below`` first in order."""
    merged = dict(below)
    for key, value in above.items():
        other = merged.get(key)
        merged[key] = _merged(other, value) if isinstance(other, dict) and isinstance(value, dict) else value
    return merged


def recipe_from_mapping(raw: object, *, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """Validate a recipe given as plain data.

    Raises:
        RecipeError: As ``load_recipe``.
    """
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: expected a mapping of keys at the top, got {type(raw).__name__}")
    data: dict[str, object] = {str(key): value for key, value in _unshared(raw, where=where).items()}
    for override in overrides:
        key, value = parse_override(override)
        _set_dotted(data, key, value)
    problems: list[str] = []
    study_raw = {key: value for key, value in data.items() if key not in _RECIPE_KEYS}
    base = _validate(_STUDY, study_raw)
    runs = _validate(_RUNS, data.get("runs") or {"main": {}})
    problems += [_line("", fault) for fault in base.faults] + [_line("runs", fault) for fault in runs.faults]
    study, configs = base.value, runs.value
    plans = _expand(study_raw, configs or {}, shared=base.faults, problems=problems)
    baselines = data.get("baselines") or []
    if not isinstance(baselines, list):
        problems.append(f"baselines: expected a list, got {baselines!r}")
        baselines = []
    problems += baseline_faults(baselines, runs=[*(configs or {})])
    name = str(data.get("name") or Path(where).stem)
    if problems or study is None:
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
        RecipeError: No ``=``, an empty key, or a value that is not YAML or contains itself.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"override {text!r}: expected key=value, for example distill.steps=100")
    try:
        parsed = _parse(value)
    except (yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "problem", None) or "cannot be parsed"
        raise RecipeError(f"override {text!r}: the value is not YAML ({reason})") from error
    return key.strip(), _unshared({"": parsed}, where=f"override {key.strip()}")[""]


def _parse(text: str) -> object:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _expand(
    study_raw: dict[str, object], configs: Mapping[str, RunConfig], *, shared: Sequence[_Fault], problems: list[str]
) -> list[RunPlan]:
    plans = []
    for name, config in configs.items():
        if not name or any(char in name for char in "/\\ ") or name.startswith("."):
            problems.append(f"runs.{name}: a run's name is used as a folder name; no spaces, slashes or leading dot")
        raw = copy.deepcopy(study_raw)
        try:
            for key, value in config.set.items():
                _set_dotted(raw, key, value)
        except RecipeError as error:
            problems.append(f"runs.{name}.set: {error}")
            continue
        checked = _validate(_STUDY, raw)
        # A fault of the shared part is listed once, under its own path.
        problems += [_line(f"runs.{name}.set", fault) for fault in checked.faults if fault not in shared]
        if checked.value is not None:
            plans.append(RunPlan(name, config.description, checked.value, config.split_tasks))
    return plans


def _unshared(mapping: Mapping[object, object], *, where: str) -> dict[object, object]:
    """Copy, with what YAML anchors made one object in several places as several: an override must change one place.

    Raises:
        RecipeError: Nested too deep or too large, as an alias that contains itself or doubles again and again is.
    """
    left = _MOST

    def copied(value: object, depth: int) -> object:
        nonlocal left
        left -= 1
        if depth > _DEEPEST or left < 0:
            limit = f"expected at most {_DEEPEST} levels and {_MOST:,} values"
            raise RecipeError(f"{where}: {limit}, got more; does an alias contain itself?")
        if isinstance(value, dict):
            return {key: copied(item, depth + 1) for key, item in value.items()}
        return [copied(item, depth + 1) for item in value] if isinstance(value, list) else value

    return {key: copied(value, 1) for key, value in mapping.items()}


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


class _Fault(NamedTuple):
    path: str
    message: str


class _Checked(NamedTuple, Generic[T]):
    value: T | None
    faults: list[_Fault]


def _validate(adapter: TypeAdapter[T], raw: object) -> _Checked[T]:
    try:
        return _Checked(adapter.validate_python(raw), [])
    except ValidationError as error:
        return _Checked(None, [_fault(item) for item in error.errors(include_url=False)])


def _fault(item: ErrorDetails) -> _Fault:
    message = "unknown key" if item["type"] == "unexpected_keyword_argument" else item["msg"]
    hidden = isinstance(item["input"], dict) or "dataclass" in item["type"]
    shown = "" if hidden else f" (got {item['input']!r})"
    return _Fault(".".join(map(str, item["loc"])), message.removeprefix("Value error, ") + shown)


def _line(prefix: str, fault: _Fault) -> str:
    return f"{'.'.join(part for part in (prefix, fault.path) if part) or 'recipe'}: {fault.message}"
