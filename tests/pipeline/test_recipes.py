from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipes import load_recipe, parse_override, recipe_from_mapping
from tests.tiny_recipe import tiny_mapping

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.yaml"))
# Recipes of studies need what no default can give; on the command line a person adds it.
NEEDED = {"real_photos": ["teachers.sam2.checkpoint=a.safetensors", "teachers.effnet.checkpoint=b.safetensors"]}


def faults(mapping: object, *overrides: str) -> list[str]:
    """Lines of the error, without its head."""
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(mapping, overrides=overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_workflows_are_shipped() -> None:
    assert {"quickstart", "scenes_teachers"} <= {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_shipped_recipe_validates(path: Path) -> None:
    recipe = load_recipe(path, NEEDED.get(path.stem, []))
    assert recipe.name == path.stem
    assert recipe.runs
    for plan in recipe.runs:
        for name, teacher in plan.study.teachers.items():
            assert teacher.spec(name).name == name


def test_all_faults_come_at_once_with_their_paths(tmp_path: Path) -> None:
    mapping = tiny_mapping(tmp_path)
    mapping["distill"] |= {"batch": 0, "precison": "fp32"}
    mapping["data"]["eval"]["view"]["kind"] = "sideways"
    mapping["teachers"]["first"]["resize"] = "stretch"
    mapping["trak"] = {}
    lines = faults(mapping)
    for start in ("distill.precison: unknown key", "data.eval.view.kind: ", "teachers.first.resize: ", "trak: unknown"):
        assert any(line.startswith(start) for line in lines), (start, lines)
    assert len(lines) == len(set(lines))


def test_values_out_of_range_name_key_and_value(tmp_path: Path) -> None:
    text = "\n".join(faults(tiny_mapping(tmp_path), "distill.batch=0", "finetune.alpha=-1", "track.keep=0"))
    for part in (
        "distill.batch must be greater than 0, got 0",
        "finetune.alpha must be 0 or more, got -1",
        "track.keep",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("distill.lr=.nan", "distill.lr"),
        ("distill.weight_decay=-1", "weight_decay"),
        ("finetune.clip=-0.5", "finetune.clip"),
        ("finetune.warmup=1.0", "finetune.warmup"),
        ("distill.epochs=2", "exactly one of steps and epochs"),
        ("distill.steps=null", "exactly one of steps and epochs"),
        ("data.distill=null", "data.distill"),
        ("data.finetune=null", "data.finetune"),
        ("student.teachers=[third]", "third"),
        ("student.teachers=[]", "at least one teacher"),
        ("student.router=best", "student.router"),
        ("teachers.first.builtin=scenes-geometry", "drop its other keys"),
        ("teachers.first.random=null", "exactly one of"),
        ("eval.gallery=-1", "eval.gallery"),
        ("threads=0", "threads must be 1 or more"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, override: str, part: str) -> None:
    assert any(part in line for line in faults(tiny_mapping(tmp_path), override))


def test_faults_of_a_run_carry_its_path_and_stand_beside_shared_ones(tmp_path: Path) -> None:
    mapping = tiny_mapping(tmp_path)
    mapping["runs"]["sak"]["set"] = {"student.rooter": "none", "distill.batch": -1}
    mapping["eval"]["bach"] = 3
    lines = faults(mapping)
    assert "runs.sak.set.student.rooter: unknown key (got 'none')" in lines
    assert any(line.startswith("runs.sak.set.distill: ") and "-1" in line for line in lines)
    # Every run inherits the shared fault; it is told once.
    assert [line for line in lines if "bach" in line] == ["eval.bach: unknown key (got 3)"]


def test_a_run_that_sets_a_key_below_a_value_is_named(tmp_path: Path) -> None:
    mapping = tiny_mapping(tmp_path)
    mapping["runs"]["sak"]["set"] = {"distill.batch.deep": 1}
    (line,) = faults(mapping)
    assert line.startswith("runs.sak.set: ")
    assert "distill.batch is a plain value" in line


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".hidden", "..", "a\\b"])
def test_run_names_are_safe_folder_names(tmp_path: Path, name: str) -> None:
    mapping = tiny_mapping(tmp_path)
    mapping["runs"][name] = {}
    assert any(line.startswith(f"runs.{name}: ") for line in faults(mapping))


@pytest.mark.parametrize("baselines", [["nobody"], "sak", [{"a": 1}], [["sak"]], ["paper-vits"], ["a.json"]])
def test_baselines_are_runs_published_results_or_files(tmp_path: Path, baselines: object) -> None:
    assert any(line.startswith("baselines: ") for line in faults(tiny_mapping(tmp_path) | {"baselines": baselines}))


def test_a_baseline_may_be_no_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{}")
    names = ["no-distill", "paper-vitb", str(path)]
    assert recipe_from_mapping(tiny_mapping(tmp_path) | {"baselines": names}).baselines == tuple(names)
    mapping = tiny_mapping(tmp_path)
    mapping["runs"]["paper-vitb"] = {}
    assert faults(mapping, "baselines=[paper-vitb]") == [
        "baselines: 'paper-vitb' is a run and published results; rename the run"
    ]


def test_baselines_have_distinct_names_in_tables(tmp_path: Path) -> None:
    """Else one would stand in the place of another, or be left out as if it were the run."""
    for name in ("one/base.json", "two/base.json", "labels.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    one, two, labels = (str(tmp_path / name) for name in ("one/base.json", "two/base.json", "labels.json"))
    mapping = tiny_mapping(tmp_path) | {"runs": {"labels": {}}}
    assert recipe_from_mapping(mapping | {"baselines": [one, one, "labels"]})
    (line,) = faults(mapping | {"baselines": [one, two]})
    assert line.startswith("baselines: expected distinct names in tables, got 'base' for")
    (line,) = faults(mapping | {"baselines": [labels]})
    assert f"got 'labels' for a run and for {labels}; rename the file" in line


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_recipe_is_a_mapping(raw: object) -> None:
    with pytest.raises(RecipeError, match="expected a mapping"):
        recipe_from_mapping(raw)


def test_no_such_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bad\.yaml: cannot be read as YAML") as caught:
        load_recipe(tmp_path / "bad.yaml")
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RecipeError, match=r"bytes\.yaml"):
        load_recipe(tmp_path / "bytes.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("name: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        load_recipe(tmp_path / "evil.yaml")


@pytest.mark.parametrize("text", ["steps", "=3", " =3", "a=[1"])
def test_an_override_that_is_none(text: str) -> None:
    with pytest.raises(RecipeError, match="override"):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E+4", -2e4),
        ("1.5e3", 1.5e3),
        ("1.e2", 100.0),
        ("0.5", 0.5),
        ("7", 7),
        ("null", None),
        ("", None),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("a=b", "a=b"),
        ("1e-3x", "1e-3x"),
        ("v1e3", "v1e3"),
    ],
)
def test_override_values_are_yaml_and_1e_3_is_a_number(text: str, value: object) -> None:
    key, got = parse_override(f"some.key={text}")
    assert key == "some.key"
    assert got == value
    assert type(got) is type(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("abc xyz"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=6,
)


@given(json_values)
def test_any_json_value_passes_through_an_override(value: Any) -> None:
    assert parse_override(f"k={json.dumps(value)}") == ("k", value)


def test_1e_3_in_a_file_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    mapping = tiny_mapping(tmp_path)
    mapping["distill"].pop("lr", None)
    path.write_text(json.dumps(mapping).replace('"steps": 6,', '"steps": 6, "lr": 1e-3,'), encoding="utf-8")
    recipe = load_recipe(path, ["teachers.first.overrides.drop_rate=1e-2"])
    assert recipe.study.distill is not None
    assert recipe.study.distill.lr == 1e-3
    assert recipe.study.teachers["first"].overrides["drop_rate"] == 1e-2


def test_overrides_reach_every_run_and_runs_win(tmp_path: Path) -> None:
    mapping = tiny_mapping(tmp_path)
    mapping["runs"]["sak"]["set"] = {"finetune.batch": 2}
    recipe = recipe_from_mapping(mapping, overrides=["finetune.batch=6", "data.distill.source.images=9"])
    batches = {plan.name: plan.study.finetune.batch for plan in recipe.runs if plan.study.finetune}
    assert batches == {"sak": 2, "no-distill": 6, "single-task": 6}
    assert mapping["finetune"]["batch"] == 3, "the caller's mapping was changed"
    assert all(plan.study.data.distill and plan.study.data.distill.source.images == 9 for plan in recipe.runs)
    assert recipe.resolved["finetune"] == mapping["finetune"] | {"batch": 6}


def test_an_override_below_a_plain_value(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"override distill\.batch\.deep: distill\.batch is a plain value"):
        recipe_from_mapping(tiny_mapping(tmp_path), overrides=["distill.batch.deep=1"])


def test_without_runs_there_is_one(tmp_path: Path) -> None:
    mapping = tiny_mapping(tmp_path)
    del mapping["runs"], mapping["baselines"], mapping["out"], mapping["name"]
    recipe = recipe_from_mapping(mapping, where="some/where.yaml")
    assert [plan.name for plan in recipe.runs] == ["main"]
    assert recipe.out == Path("runs/where")
    assert recipe.runs[0].study == recipe.study


@pytest.mark.parametrize(
    "text",
    [
        "teachers: &all {first: *all}",
        "a: &a [*a]",
        "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)),
        "a: " + "[" * 40 + "]" * 40,
        "a: " + "[" * 5000 + "]" * 5000,
    ],
    ids=["mapping", "list", "doubling", "deep", "deeper"],
)
def test_what_has_no_end_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "endless.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"endless\.yaml: .*(contain itself|nested too deep)"):
        load_recipe(tmp_path / "endless.yaml")


def test_an_override_that_contains_itself_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"override a: .*contain itself"):
        parse_override("a=&a [*a]")


def test_a_key_given_twice_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("name: a\ndistill:\n  steps: 3\n  batch: 4\n  steps: 5\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"'steps' is given twice.* line 5") as caught:
        load_recipe(tmp_path / "twice.yaml")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(RecipeError, match="'lr' is given twice"):
        parse_override("distill={lr: 1, lr: 2}")
    # Setting a key over a merged one is what merging is for.
    assert parse_override("a=[&b {x: 1, y: 2}, {<<: *b, x: 3}]")[1] == [{"x": 1, "y": 2}, {"x": 3, "y": 2}]


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_a_base_gives_what_the_recipe_does_not(tmp_path: Path) -> None:
    text = yaml.safe_dump(tiny_mapping(tmp_path) | {"name": "first", "summary": "of both"}, sort_keys=False)
    (tmp_path / "sub").mkdir()
    write(tmp_path, low=text)
    write(tmp_path / "sub", top="base: ../low.yaml\ndistill: {batch: 2}\nruns: {more: {set: {distill.lr: 0.5}}}\n")
    write(tmp_path / "sub", over="base: top.yaml\nstudent: {levels: [0, 1, 2, 3]}\nbaselines: []\n")
    low, over = load_recipe(tmp_path / "low.yaml"), load_recipe(tmp_path / "sub" / "over.yaml", ["distill.clip=2"])
    assert (over.name, over.out, over.summary) == ("over", Path("runs/over"), "of both")
    assert [plan.name for plan in over.runs] == ["sak", "no-distill", "single-task", "more"]
    assert over.baselines == ()
    assert low.study.distill
    assert over.study.distill == dataclasses.replace(low.study.distill, batch=2, clip=2.0)
    assert over.study.student == dataclasses.replace(low.study.student, levels=(0, 1, 2, 3))
    assert list(over.study.teachers) == list(low.study.teachers), "the order of a router's experts"
    assert "base" not in over.resolved
    assert recipe_from_mapping(over.resolved).runs == over.runs


def test_null_and_lists_replace_what_a_base_has(tmp_path: Path) -> None:
    write(tmp_path, low=yaml.safe_dump(tiny_mapping(tmp_path)))
    write(tmp_path, top="base: low.yaml\nfinetune: null\nruns: null\nbaselines: []\n")
    assert [plan.name for plan in load_recipe(tmp_path / "top.yaml").runs] == ["main"]
    assert load_recipe(tmp_path / "top.yaml").study.finetune is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"a": "base: a.yaml"},
            r"a\.yaml: base: expected at most 8 bases, none of them twice, got .*a\.yaml -> .*a\.yaml",
        ),
        ({"a": "base: b.yaml", "b": "base: ./c.yaml", "c": "base: a.yaml"}, r"c\.yaml: base: .*a\.yaml -> .*a\.yaml"),
        ({"a": "base: none.yaml"}, r"none\.yaml: no such recipe, the base of .*a\.yaml"),
        (
            {"a": "base: /etc/passwd"},
            r"base: expected a recipe's path relative to this file's folder, got '/etc/passwd'",
        ),
        ({"a": "base: [b.yaml]"}, r"base: expected a recipe's path .* got \['b\.yaml'\]"),
        ({"a": "base: ''"}, r"base: expected a recipe's path"),
        ({"a": "base: b.yaml", "b": "[1, 2]"}, r"b\.yaml: expected a mapping of keys at the top, got list"),
        ({"a": "base: b.yaml", "b": "x: [1"}, r"b\.yaml: cannot be read as YAML"),
        ({"a": "base: b.yaml", "b": "x: &y [*y]"}, r"b\.yaml: .*contain itself"),
        (
            {f"{char}": f"base: {chr(ord(char) + 1)}.yaml" for char in "abcdefghijk"},
            r"i\.yaml: base: expected at most 8",
        ),
    ],
)
def test_bases_that_lead_nowhere_are_refused(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    write(tmp_path, **texts)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tmp_path / "a.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_fault_in_a_base_is_found(tmp_path: Path) -> None:
    write(tmp_path, low=yaml.safe_dump(tiny_mapping(tmp_path) | {"trak": {}}), top="base: low.yaml\n")
    with pytest.raises(RecipeError, match="trak: unknown key"):
        load_recipe(tmp_path / "top.yaml")
