"""How far a crop of a stored map is from the map of the crop: ``feature_crop.py PHOTOS SAM2 EFFICIENTNET``.

For each photograph a teacher sees the whole image once and each drawn crop once; the whole image's maps, cropped by
``pipeline.feature_crop``, are compared with the crop's own. Legend: B batch, C channels, H W a map.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.feature_crop import crop_boxes
from pipeline.images.imagefolder import ImageFolder
from pipeline.images.sample import ImageSample
from pipeline.views import ViewDraw, ViewSpec, apply_view, draw_view
from sak.grids import crop_map
from sak.teachers.model import Teacher, load_teacher
from sak.teachers.spec import TeacherSpec

__all__: list[str] = []

AREAS = (1.0, 0.75, 0.5, 0.25, 0.08)
WHOLE = ViewSpec(kind="full", size=384)


class Case(NamedTuple):
    """Draws of one kind, and the side of the view of the whole image whose maps are cropped."""

    name: str
    draws: Sequence[ViewDraw]
    side: int
    moved: bool = False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("sam2", type=Path)
    parser.add_argument("efficientnet", type=Path)
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(2)
    source = ImageFolder(options.photos)
    large = [index for index, key in enumerate(source.keys()) if not key.startswith("birds/")]
    picked = np.random.default_rng(0).permutation(large)[: options.images]
    samples = [source.read(int(index)) for index in sorted(picked)]
    specs = [
        TeacherSpec(name="sam2", timm="sam2_hiera_tiny", checkpoint=options.sam2, levels=(3, 5, 7, 9)),
        TeacherSpec(name="efficientnet", timm="tf_efficientnet_lite0", checkpoint=options.efficientnet),
    ]
    for spec in specs:
        start = time.perf_counter()
        report(load_teacher(spec), samples)
        print(f"{spec.name}: {time.perf_counter() - start:.0f} s\n", flush=True)


def report(teacher: Teacher, samples: Sequence[ImageSample]) -> None:
    """Print a table of one teacher: token cosine and relative error of each level."""
    print(f"| {teacher.spec.name}: case | " + " | ".join(f"level {level}" for level in teacher.levels) + " |")
    print("|---" * (len(teacher.levels) + 1) + "|")
    wholes = {side: [maps_of(teacher, sample, whole(sample, side=side)) for sample in samples] for side in (384, 768)}
    exact: dict[str, list[list[Tensor]]] = {}
    for case in cases(samples):
        shown = f"{[draw.box for draw in case.draws]}{[draw.flip for draw in case.draws]}"
        if shown not in exact:
            exact[shown] = [maps_of(teacher, s, draw) for s, draw in zip(samples, case.draws, strict=True)]
        found = np.array(list(scores(wholes[case.side], exact[shown], case)))  # image, level, (cosine, error)
        cells = " | ".join(f"{cosine:.3f}, {error:.2f}" for cosine, error in found.mean(axis=0))
        print(f"| {case.name} | {cells} |", flush=True)


def cases(samples: Sequence[ImageSample]) -> Iterator[Case]:
    """What is compared."""
    yield Case("flip alone", [replace(whole(sample, side=384), flip=True) for sample in samples], 384)
    for area in AREAS:
        spec = ViewSpec(kind="random_resized_crop", size=384, area=(area, area), flip=0.0)
        draws = [draw_view(spec, seed=0, key=sample.key, view=0, sample=sample) for sample in samples]
        yield Case("largest box" if area == 1.0 else f"area {area:.2f}", draws, 384)
        if area in (0.25, 0.08):
            yield Case(f"area {area:.2f}, whole image at 768", draws, 768)
            yield Case(f"area {area:.2f}, at another place", draws, 384, moved=True)


def scores(wholes: Sequence[list[Tensor]], exact: Sequence[list[Tensor]], case: Case) -> Iterator[list[list[float]]]:
    """Token cosine and relative error of each level, for each image."""
    for whole_maps, exact_maps, draw in zip(wholes, exact, case.draws, strict=True):
        boxes = crop_boxes([draw])
        box_B4 = boxes.boxes_B4.clone()
        if case.moved:  # the opposite corner of where it is
            box_B4[:, :2] = (1 - box_B4[:, 2:]) * (box_B4[:, :2] < (1 - box_B4[:, 2:]) / 2)
        levels = []
        for feat, want in zip(whole_maps, exact_maps, strict=True):
            got = crop_map(feat, box_B4, (want.shape[-2], want.shape[-1]), flips_B=boxes.flips_B)
            cosine = torch.cosine_similarity(got, want, dim=1).mean()
            levels.append([float(cosine), float((got - want).norm() / want.norm())])
        yield levels


def whole(sample: ImageSample, *, side: int) -> ViewDraw:
    """The whole image as a square view."""
    return draw_view(replace(WHOLE, size=(side, side)), seed=0, key=sample.key, view=0, sample=sample)


def maps_of(teacher: Teacher, sample: ImageSample, draw: ViewDraw) -> list[Tensor]:
    """A teacher's maps of one view."""
    pixels = torch.from_numpy(apply_view(draw, sample).image).permute(2, 0, 1)[None]
    return list(teacher(pixels))


if __name__ == "__main__":
    main()
