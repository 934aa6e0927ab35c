"""A recipe so small that every stage of it runs in a test: three shards of 32 x 32 scenes, two random teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.recipes import Recipe, recipe_from_mapping
from pipeline.stages.run import STAGES, run_stage

__all__ = ["NETWORK", "files_of", "run_stages", "stored_bytes", "tiny_mapping", "tiny_recipe", "tree_digests"]

NETWORK = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
STEM = "vit_tiny_patch16_224"


def tiny_mapping(root: Path, /, *, out: str = "out") -> dict[str, Any]:
    """The recipe as plain data, as YAML would give it; everything it writes is below ``root``."""
    crop = {"kind": "random_resized_crop", "size": 32, "area": [0.5, 1.0], "ignore_empty_parts": False}
    whole = {"kind": "full", "size": 32, "ignore_empty_parts": False}
    return {
        "name": "tiny",
        "out": str(root / out),
        "store": str(root / "store"),
        "device": "cpu",
        "threads": 1,
        "data": {
            "distill": {"source": _scenes("unlabeled", 22), "view": crop, "rows_per_shard": 8},
            "finetune": {"source": _scenes("train", 12), "view": crop, "rows_per_shard": 8},
            "eval": {"source": _scenes("val", 6), "view": whole, "rows_per_shard": 4},
        },
        # Not in alphabetical order: writers that sort keys must not reorder a router's experts.
        "teachers": {"second": _teacher(2), "first": _teacher(1)},
        "extract": {"codec": "fp32", "batch": 5, "workers": 1},
        "student": {"stem": STEM, "overrides": dict(NETWORK)},
        "distill": {"steps": 6, "batch": 4},
        "finetune": {"steps": 5, "batch": 3, "lr": 1.0e-3, "alpha": 0.5},
        "eval": {"batch": 4, "gallery": 2},
        "track": {"tensorboard": False, "log_every": 1, "checkpoint_every": 3},
        "runs": {
            "sak": {"description": "everything"},
            "no-distill": {"set": {"distill": None, "finetune.alpha": 0.0}},
            "single-task": {
                "set": {
                    "distill": None,
                    "finetune.alpha": 0.0,
                    "student.paths": "none",
                    "finetune.tasks": ["semseg", "depth"],
                },
                "split_tasks": True,
            },
        },
        "baselines": ["no-distill"],
    }


def tiny_recipe(root: Path, overrides: Sequence[str] = (), /, *, out: str = "out", only: str = "") -> Recipe:
    """The recipe with overrides as on the command line; ``only`` keeps one of its runs and no baselines."""
    mapping = tiny_mapping(root, out=out)
    if only:
        mapping |= {"runs": {only: mapping["runs"][only]}, "baselines": []}
    return recipe_from_mapping(mapping, overrides=overrides)


def run_stages(recipe: Recipe, stages: Sequence[str] = STAGES, /) -> None:
    """Stages of every run, as ``sak run`` does."""
    for stage in stages:
        run_stage(stage, recipe, recipe.runs)


def files_of(root: Path, /) -> list[str]:
    """Relative paths of all files below a folder."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def stored_bytes(store: Path, /) -> dict[str, bytes]:
    """What two equal stores have in common: every file but what a part cost to make, who used it, and hidden ones.

    Hidden are locks, and what a writer that was killed had not yet renamed.
    """
    return {
        name: (store / name).read_bytes()
        for name in files_of(store)
        if not {"costs", "uses"} & {*name.split("/")} and not name.rsplit("/", 1)[-1].startswith(".")
    }


def tree_digests(root: Path, /) -> dict[str, tuple[str, int]]:
    """SHA-256 and modification time of all files below a folder."""
    return {
        name: (hashlib.sha256((root / name).read_bytes()).hexdigest(), (root / name).stat().st_mtime_ns)
        for name in files_of(root)
    }


def _scenes(split: str, images: int) -> dict[str, object]:
    return {"name": "scenes", "split": split, "images": images, "size": 32}


def _teacher(seed: int) -> dict[str, object]:
    return {"timm": STEM, "random": seed, "levels": [0, 1, 2, 3], "overrides": {"img_size": 32, **NETWORK}}
