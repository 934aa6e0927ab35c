"""A report on invented numbers: three runs, six tasks, four samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.report.colour import pca_colours
from pipeline.report.data import (
    Curve,
    GallerySample,
    MetricColumn,
    ReportData,
    RouterMap,
    RunRow,
    StageCost,
    StoreUsage,
)

TEACHERS = ("semantics", "geometry", "boundaries")
RUNS = ("SAK, cached", "no distillation", "single path")
SCENES = ("ground", "wall", "sky", "person", "ball", "crate", "pillar", "cone", "table", "tree", "lamp", "car")
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
COLUMNS = (
    MetricColumn(task="semseg", metric="mIoU", label="Semantics", higher_is_better=True),
    MetricColumn(task="human_parts", metric="mIoU", label="Parts", higher_is_better=True),
    MetricColumn(task="normals", metric="mErr °", label="Normals", higher_is_better=False),
    MetricColumn(task="depth", metric="RMSE m", label="Depth", higher_is_better=False, digits=3),
    MetricColumn(task="edge", metric="loss", label="Boundaries", higher_is_better=False, digits=4),
    MetricColumn(task="sal", metric="maxF", label="Saliency", higher_is_better=True),
)
VALUES = (
    (41.3, 22.8, 18.91, 0.874, 0.0612, 71.4),
    (36.2, 19.9, 20.12, 0.951, 0.0621, 71.9),
    (38, 21, 19.6, 0.9, 0.062, 70),
)


def _scene(seed: int, size: int) -> dict[str, NDArray[np.generic]]:
    """Discs on a ground below a sky, with every task's label."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[0:size, 0:size] / size
    classes = np.where(rows < 0.45, 2, 0).astype(np.uint8)
    depth = np.where(rows < 0.45, 255.0, 1.5 / np.maximum(rows - 0.4, 0.05)).astype(np.float32)
    normals = np.zeros((size, size, 3), np.float32)
    normals[rows >= 0.45] = (0.0, 1.0, 0.0)
    parts, sal = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    for index in range(5):
        cx, cy, radius = rng.uniform(0.15, 0.85), rng.uniform(0.4, 0.8), rng.uniform(0.07, 0.2)
        dx, dy = (cols - cx) / radius, (rows - cy) / radius
        inside = dx**2 + dy**2 < 1
        kind = int(rng.choice([1, 3, 4, 5, 6, 7, 8, 9, 10, 11]))
        classes[inside] = kind
        depth[inside] = 2.0 + index - 0.3 * np.sqrt(1 - dx**2 - dy**2, where=inside, out=np.zeros_like(dx))[inside]
        dz = np.sqrt(np.maximum(0, 1 - dx**2 - dy**2))
        normals[inside] = np.stack([dx, -dy, dz], -1)[inside]
        parts[inside] = np.clip((dy[inside] + 1) * 3 + 1, 1, 6) if kind == 3 else 0
        sal[inside] = 1
    edge = np.zeros((size, size), np.uint8)
    edge[:-1] |= (classes[:-1] != classes[1:]).astype(np.uint8)
    edge[:, :-1] |= (classes[:, :-1] != classes[:, 1:]).astype(np.uint8)
    sal[:3] = 255
    return {"semseg": classes, "human_parts": parts, "normals": normals, "depth": depth, "edge": edge, "sal": sal}


def _predict(labels: dict[str, NDArray[np.generic]], *, seed: int, error: float) -> dict[str, NDArray[np.generic]]:
    """Labels with blocks of mistakes and some noise."""
    rng = np.random.default_rng(seed)
    shape = labels["semseg"].shape
    wrong = np.kron(rng.random((shape[0] // 8, shape[1] // 8)) < error, np.ones((8, 8), bool))
    noise = rng.normal(0, error, (*shape, 3)).astype(np.float32)
    semseg = np.where(wrong, rng.integers(0, 12), labels["semseg"]).astype(np.uint8)
    depth = np.where(labels["depth"] == 255.0, 9.0, labels["depth"]) * (1 + noise[..., 0])
    soft = np.clip(labels["edge"] * (1 - error) + np.abs(noise[..., 1]), 0, 1)
    sal = np.clip((labels["sal"] == 1) * (1 - error) + np.abs(noise[..., 2]), 0, 1)
    parts = np.where(wrong, 0, labels["human_parts"]).astype(np.uint8)
    normals = labels["normals"] + noise
    return {"semseg": semseg, "human_parts": parts, "normals": normals, "depth": depth, "edge": soft, "sal": sal}


def _features(labels: dict[str, NDArray[np.generic]], *, seed: int) -> dict[str, tuple[NDArray[np.uint8], ...]]:
    rng = np.random.default_rng(seed)
    found = {}
    for name in TEACHERS:
        teacher, student = [], []
        for level in range(4):
            grid = labels["semseg"][::8, ::8]
            table = rng.normal(size=(12, 16))
            feature = np.moveaxis(table[grid], -1, 0) + rng.normal(0, 0.4 / (level + 1), (16, *grid.shape))
            mimic = feature + rng.normal(0, 0.35, feature.shape)
            one, two = pca_colours([feature, mimic])
            teacher.append(one)
            student.append(two)
        found[f"teacher {name}"], found[f"student {name}"] = tuple(teacher), tuple(student)
    return found


def _sample(seed: int, size: int) -> GallerySample:
    labels = _scene(seed, size)
    colours = np.array(
        [[120, 110, 90], [190, 160, 130], [150, 190, 225], [200, 80, 90]]
        + [[40 * i, 180 - 9 * i, 90] for i in range(8)]
    )
    shade = 0.75 + 0.25 * labels["normals"][..., 2:3].astype(float)
    noise = np.random.default_rng(seed).normal(0, 6, (size, size, 3))
    image = np.clip(colours[labels["semseg"]] * shade + noise, 0, 255).astype(np.uint8)
    predictions = {run: _predict(labels, seed=seed, error=e) for run, e in zip(RUNS, (0.08, 0.22, 0.15), strict=True)}
    return GallerySample(
        key=f"val/scene_{seed:05d}",
        image=image,
        labels=labels,
        predictions=predictions,
        features=_features(labels, seed=seed),
    )


def _curves() -> tuple[Curve, ...]:
    rng = np.random.default_rng(3)
    steps = np.arange(300)
    curves = []
    for stage, names, runs in (
        ("distill", TEACHERS, RUNS[:1] + RUNS[2:]),
        ("finetune", [c.label for c in COLUMNS], RUNS),
    ):
        for place, run in enumerate(runs):
            parts = {
                n: (1 + i) * np.exp(-steps / (60 + 20 * place)) + 0.2 + rng.gamma(2, 0.03, 300)
                for i, n in enumerate(names)
            }
            total = np.sum(list(parts.values()), axis=0)
            curves.append(Curve(run=run, stage=stage, steps=steps, values={"total": total, **parts}))
    return tuple(curves)


def _router() -> RouterMap:
    weights = np.random.default_rng(5).dirichlet(np.ones(4), size=(6, 4))
    levels = tuple(f"level {i}" for i in (1, 2, 3, 4))
    return RouterMap(
        run=RUNS[0], tasks=tuple(c.task for c in COLUMNS), levels=levels, experts=("stem", *TEACHERS), weights=weights
    )


def make_report(*, samples: int = 4, size: int = 96) -> ReportData:
    """The demonstration report."""
    deltas = ({RUNS[1]: 6.42, RUNS[2]: 3.10}, {RUNS[2]: -2.87}, {RUNS[1]: 2.95})
    about = ("three teachers, adapter paths, routers", "the same student from scratch", "one path for all teachers")
    runs = tuple(
        RunRow(
            name=name,
            description=text,
            values=dict(zip((c.task for c in COLUMNS), values, strict=True)),
            delta=delta,
            parameters=5_717_000 - 400_000 * i,
            seconds=71.0 - 20 * i,
        )
        for i, (name, text, values, delta) in enumerate(zip(RUNS, about, VALUES, deltas, strict=True))
    )
    costs = [StageCost(stage="extract", seconds=21.3, rate="310 images/s", detail="3 teachers, 2,048 rows")]
    costs += [
        StageCost(stage=s, run=r, seconds=t, rate=f"{v} images/s", detail="300 steps")
        for r in RUNS
        for s, t, v in (("distill", 32.5, 196), ("finetune", 36.1, 160), ("evaluate", 4.2, 900))
    ]
    store = tuple(
        StoreUsage(
            column=n, codec=c, rows=2048, bytes_stored=b, bytes_fp16=113_246_208, bytes_per_image=b / 2048, fidelity=f
        )
        for n, c, b, f in zip(
            TEACHERS,
            ("int8", "int8", "fp16"),
            (46_137_344, 44_040_192, 101_246_208),
            ("cosine 0.9998", "cosine 0.9997", "exact"),
            strict=True,
        )
    )
    return ReportData(
        title="Quickstart: one cached committee, three students",
        created="2026-01-31 12:00 UTC",
        summary="SAK beats the same student without distillation by Δm +6.42 %, and a single-path student by +3.10 %.",
        dataset="scenes",
        columns=COLUMNS,
        runs=runs,
        curves=_curves(),
        gallery=tuple(_sample(seed, size) for seed in range(samples)),
        routers=(_router(),),
        costs=tuple(costs),
        store=store,
        recipe_yaml="name: quickstart\ndata:\n  source: scenes\n  rows: 2048\nteachers: [semantics, geometry]\n",
        versions={"sak-distill": "0.1.0", "torch": "2.6.0", "python": "3.11.2"},
        notes=("Held-out scenes: 256 images that no stage has trained on.", "One seed; the study has three."),
        classes={"semseg": SCENES, "human_parts": PARTS},
    )


@pytest.fixture(scope="session")
def report() -> ReportData:
    """The demonstration report, made once and never changed."""
    return make_report()


@pytest.fixture(scope="session")
def build_report() -> Callable[..., ReportData]:
    """The function that makes the demonstration report anew."""
    return make_report
