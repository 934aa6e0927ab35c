"""The recipes of the paper: what they share and change, their arithmetic, the sizes of their networks."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.identity import plain
from pipeline.loop import steps_of
from pipeline.recipes import Recipe, load_recipe
from pipeline.students import student_spec
from pipeline.training import distill_rate, warmup_steps
from sak.student.model import build_student, parameter_counts
from sak.tasks import dataset_spec
from sak.teachers.footprint import footprint

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
KINDS, DATA = ("bb", "bs", "lb", "ll"), ("pascal", "nyud")
NAMES = [f"sak_{kind}_{data}" for kind in KINDS for data in DATA]
IMAGENET = 1_281_167
WIDTHS = {"b": 768, "l": 1024}


@cache
def recipe_of(name: str, *overrides: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml", list(overrides))


@pytest.mark.parametrize("name", NAMES)
def test_300270_steps_of_128_as_published(name: str) -> None:
    """30 epochs of the 10,009 whole batches that 8 ranks x 16 make of ImageNet-1k, 2 of them warm-up."""
    config: Any = recipe_of(name).study.distill
    steps = steps_of(config.steps, config.epochs, images=IMAGENET, batch=config.batch, drop_last=config.drop_last)
    assert (config.batch, steps, steps // 30) == (128, 300_270, 10_009)
    assert warmup_steps(config, steps=steps, images=IMAGENET) == 20_018
    rate = distill_rate(config, steps=steps, images=IMAGENET)
    assert (rate(0), rate(20_018), rate(300_270)) == (1.25e-7, 1e-3, 1e-5)
    assert rate(10_009) == pytest.approx((1e-3 + 1.25e-7) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_delta_m_is_against_the_single_task_networks_of_the_students_size(name: str) -> None:
    student = name.split("_")[1][1]
    assert recipe_of(name).baselines == {"b": ("paper-vitb",), "s": (), "l": ("paper-vitl",)}[student]


def test_stage_2_is_40000_steps_of_4() -> None:
    """32 epochs of PASCAL-Context, 202 of NYUD-v2, as published."""
    for name, images, epochs in (("sak_bb_pascal", 4_998, 32.0), ("sak_bb_nyud", 795, 201.3)):
        config: Any = recipe_of(name).study.finetune
        assert (config.steps, config.batch) == (40_000, 4)
        assert config.steps * config.batch / images == pytest.approx(epochs, abs=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_differ_in_nothing_but_their_networks_and_data(name: str) -> None:
    first, this = recipe_of("sak_bb_pascal").study, recipe_of(name).study
    assert (this.seed, this.store, this.extract, this.track, this.eval) == (
        *(first.seed, first.store, first.extract, first.track, first.eval),
    )
    assert (this.distill, this.finetune, this.data.distill) == (first.distill, first.finetune, first.data.distill)
    assert plain(this.student) | {"stem": ""} == plain(first.student) | {"stem": ""}
    assert recipe_of(name).out == Path("runs") / name


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_the_papers(name: str) -> None:
    _, kind, _ = name.split("_")
    study = recipe_of(name).study
    teacher, student = kind
    assert [config.name for config in study.teachers.values()] == [
        f"{family}_vit{teacher}{cell}"
        for family, cell in (("dinov2", 14), ("clip", {"b": "16_timm", "l": "14_timm"}[teacher]))
    ] + [f"sam_vit{teacher}"]
    assert study.student.stem == {"s": "vit_small", "b": "vit_base", "l": "vit_large"}[student] + "_patch16_384"
    levels = (2, 5, 8, 11) if teacher == "b" else (5, 11, 17, 23)
    assert all(config.spec(name).levels == levels for name, config in study.teachers.items())
    widths = dict.fromkeys(study.teachers, (WIDTHS[teacher],) * 4)
    spec = student_spec(study.student, image_size=(384, 384), widths=widths, tasks={})
    assert spec.aligners == (kind in ("bs", "lb"))


# Millions of parameters of stage 1 at 384 x 384: stem (the published count at 512 less its 448 positions), adapter
# paths, aligners (12 linear layers from the student's channels to the teachers').
STAGE1 = {"bb": (86.09, 11.54, 0.0), "bs": (21.81, 2.89, 3.55), "lb": (86.09, 11.54, 9.45), "ll": (303.69, 39.42, 0.0)}
# GMAC of stage 2: without heads, heads, all.
STAGE2 = {
    ("s", "pascal"): (36.2, 109.7, 145.9),
    ("b", "pascal"): (124.9, 438.3, 563.2),
    ("l", "pascal"): (413.1, 779.0, 1192.1),
    ("s", "nyud"): (35.2, 86.5, 121.7),
    ("b", "nyud"): (121.5, 345.4, 466.9),
    ("l", "nyud"): (403.7, 613.8, 1017.5),
}


def counted(name: str, *overrides: str, stage: int) -> tuple[dict[str, int], dict[str, float]]:
    """Parameters and GMAC by part, of a student without weights."""
    study = recipe_of(name, *overrides).study
    teacher, data = name.split("_")[1][0], name.split("_")[2]
    size: Any = study.data.distill.view.size if stage == 1 and study.data.distill else (512, 512)
    size = size if stage == 1 or data == "pascal" else (448, 576)
    dataset = dataset_spec({"pascal": "pascalcontext", "nyud": "nyud"}[data])
    tasks = {task: spec.channels for task, spec in dataset.tasks.items()} if stage == 2 else {}
    widths = dict.fromkeys(study.teachers, (WIDTHS[teacher],) * 4)
    with torch.device("meta"):
        student = build_student(student_spec(study.student, image_size=size, widths=widths, tasks=tasks))
        with FlopCounterMode(display=False) as counter:
            student.eval()(torch.empty(1, 3, *size), with_aligned=stage == 1)
    parts = {module: sum(flops.values()) / 2e9 for module, flops in counter.get_flop_counts().items()}
    heads = sum(value for module, value in parts.items() if re.fullmatch(r"Student\.heads\.\w+", module))
    return parameter_counts(student), {"heads": heads, "all": counter.get_total_flops() / 2e9}


@pytest.mark.parametrize("kind", KINDS)
def test_stage_1_has_the_published_sizes(kind: str) -> None:
    counts, macs = counted(f"sak_{kind}_pascal", stage=1)
    for part, expected in zip(("stem", "paths", "aligners"), STAGE1[kind], strict=True):
        assert counts[part] / 1e6 == pytest.approx(expected, abs=0.006), part
    if kind == "bb":
        assert counts["total"] / 1e6 == pytest.approx(97.65, abs=0.006)
        assert macs["all"] == pytest.approx(62.1, abs=0.06)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", ["bs", "bb", "ll"])
def test_stage_2_takes_the_published_arithmetic(kind: str, data: str) -> None:
    _, macs = counted(f"sak_{kind}_{data}", stage=2)
    rest, heads, total = STAGE2[kind[1], data]
    assert macs["heads"] == pytest.approx(heads, abs=0.06)
    # A little less than published: paths leave out the class token, gates their last layer at every token.
    saved = rest - (macs["all"] - macs["heads"])
    assert -0.05 <= saved <= 0.2
    assert macs["all"] + saved == pytest.approx(total, abs=0.11)


@pytest.mark.parametrize(("data", "heads", "total"), [("pascal", 31.2, 156.0), ("nyud", 24.8, 146.2)])
def test_light_heads_take_a_fourteenth(data: str, heads: float, total: float) -> None:
    """The numbers of docs/studies/heads.md."""
    counts, macs = counted(f"sak_bb_{data}", "student.head=light", stage=2)
    assert macs["heads"] == pytest.approx(heads, abs=0.06)
    assert macs["all"] == pytest.approx(total, abs=0.06)
    assert counts["heads"] == pytest.approx(counted(f"sak_bb_{data}", stage=2)[0]["heads"], rel=2e-3)


TEACHERS = {
    "sak_bb_pascal": {"dinov2": 72.2, "clip": 55.5, "sam": 482.8},
    "sak_ll_pascal": {"dinov2": 247.1, "clip": 247.1, "sam": 1489.4},
}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_take_the_published_arithmetic_at_384(name: str) -> None:
    teachers = recipe_of(name).study.teachers
    found = {key: footprint(config.spec(key), view=(384, 384)) for key, config in teachers.items()}
    assert {key: item.macs / 1e9 for key, item in found.items()} == pytest.approx(TEACHERS[name], abs=0.06)
    if name == "sak_bb_pascal":
        assert sum(item.values for item in found.values()) == 16_591_872
        assert [item.maps[0] for item in found.values()] == [(768, 27, 27), (768, 24, 24), (768, 64, 64)]


def test_every_switch_on_top_of_the_recipe_is_one() -> None:
    """What the header says undoes a deviation is accepted, and changes something."""
    text = (FOLDER / "sak_bb_pascal.yaml").read_text(encoding="utf-8").replace("NAME", "clip")
    header = [line for line in text.splitlines() if line.startswith("#")]
    switches = re.findall(r"(?:teachers|extract|data|distill|student)\.[\w.]+=[\w\[\]]+", "\n".join(header[11:]))
    plain_study = plain(recipe_of("sak_bb_pascal").study)
    assert len(switches) >= 12
    for switch in switches:
        assert plain(recipe_of("sak_bb_pascal", switch).study) != plain_study, switch
