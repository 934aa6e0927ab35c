"""Render procedural scenes with exact labels for all six tasks.

Everything is a pure function of (seed, index, size, style): no global state, NumPy only. Labels come from the central
ray of each pixel. Axis letters: N pixels in raster order, H height, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.scenes.builder import CLASSES
from pipeline.scenes.labels import instance_edges, salient_mask
from pipeline.scenes.materials import paint
from pipeline.scenes.shading import finish, shade, sky
from pipeline.scenes.surface import FAR, Surface, cast
from pipeline.scenes.world import STYLES, World, build_world

__all__ = ["CLASSES", "INVALID_DEPTH", "RENDERER_VERSION", "TASKS", "RenderedScene", "render_layers", "render_scene"]

RENDERER_VERSION = 1  # raise it whenever the same (seed, index) would give other pixels or labels
TASKS = ("semseg", "human_parts", "normals", "depth", "edge", "sal")
INVALID_DEPTH = 255.0
_SKY = 0


class RenderedScene(NamedTuple):
    """A sample and the instance number of each pixel ``(H, W)``; 0 is the sky, 1 the ground."""

    sample: ImageSample
    instance_HW: NDArray[np.int64]


def render_scene(*, seed: int, index: int, size: tuple[int, int], style: str = "default") -> ImageSample:
    """Render one scene; the same arguments give the same bytes.

    Args:
        seed: Non-negative seed of the collection.
        index: Non-negative number of the scene within it.
        size: Height and width in pixels.
        style: A name in ``STYLES``.

    Returns:
        A sample with key ``<index, six digits>``, the RGB image and the labels of ``TASKS``.

    Raises:
        DataError: Unknown style, or a size below 8 pixels.
    """
    return render_layers(seed=seed, index=index, size=size, style=style).sample


def render_layers(*, seed: int, index: int, size: tuple[int, int], style: str = "default") -> RenderedScene:
    """Render one scene and also say which instance each pixel belongs to; arguments as for ``render_scene``.

    Raises:
        DataError: Unknown style, or a size below 8 pixels.
    """
    if style not in STYLES:
        raise DataError(f"scenes: unknown style {style!r}; choose one of {', '.join(STYLES)}")
    if min(size) < 8:
        raise DataError(f"scenes: expected a size of at least 8x8 pixels, got {size[0]}x{size[1]}; give a larger one")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, index))))
    world = build_world(rng, style=style)
    surface = cast(world, size=size)
    image_N3 = _colour(world, surface)
    instance_HW = surface.instance_N.reshape(size)
    image = finish(image_N3.reshape(*size, 3), instance_HW=instance_HW, grain=world.grain, rng=rng)
    sample = ImageSample(key=f"{index:06d}", image=image, labels=_labels(world, surface, image, size))
    return RenderedScene(sample, instance_HW)


def _colour(world: World, surface: Surface) -> NDArray[np.float32]:
    """Linear colour of every pixel."""
    out_N3 = np.empty((len(surface.t_N), 3), dtype=np.float32)
    hit = np.flatnonzero(surface.instance_N != _SKY)
    rest = np.flatnonzero(surface.instance_N == _SKY)
    if len(rest):
        out_N3[rest] = sky(world, ray_N3=surface.ray_N3[rest])
    if len(hit):
        instance = surface.instance_N[hit]
        yaw = world.yaw_I[instance]
        own_point = _turn(surface.point_N3[hit] - world.origin_I3[instance], yaw)
        own_normal = _turn(surface.normal_N3[hit], yaw)
        ray = surface.ray_N3[hit]
        slant = np.abs((ray * surface.normal_N3[hit]).sum(1)) / np.sqrt((ray * ray).sum(1))
        footprint = surface.t_N[hit] * surface.pixel / np.maximum(slant, 0.08)
        base = paint(
            world.materials,
            material_N=surface.material_N[hit],
            point_N3=own_point,
            normal_N3=own_normal,
            footprint_N=footprint,
            noise=world.noise,
        )
        out_N3[hit] = shade(world, surface=surface, which=hit, base_M3=base)
    return out_N3


def _turn(vector_N3: NDArray[np.float32], yaw_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """World to object coordinates: undo the object's rotation about the vertical."""
    c, s = np.cos(yaw_N), np.sin(yaw_N)
    x, z = vector_N3[:, 0], vector_N3[:, 2]
    return np.stack([c * x - s * z, vector_N3[:, 1], s * x + c * z], 1)


def _labels(
    world: World, surface: Surface, image: NDArray[np.uint8], size: tuple[int, int]
) -> dict[str, NDArray[np.generic]]:
    open_N = surface.instance_N == _SKY
    view_N3 = surface.normal_N3 @ world.camera.rotation().astype(np.float32)
    length_N1 = np.sqrt((view_N3 * view_N3).sum(1, keepdims=True))
    normals_N3 = np.where(open_N[:, None], np.float32(0.0), view_N3 / np.maximum(length_N1, 1e-12))
    depth_N = np.where(open_N, np.float32(INVALID_DEPTH), np.minimum(surface.t_N, FAR))
    instance_HW = surface.instance_N.reshape(size)
    depth_HW = depth_N.reshape(size).astype(np.float32)
    return {
        "semseg": world.class_I[instance_HW],
        "human_parts": surface.part_N.reshape(size),
        "normals": normals_N3.reshape(*size, 3).astype(np.float32),
        "depth": depth_HW,
        "edge": instance_edges(instance_HW, depth_HW=depth_HW),
        "sal": salient_mask(instance_HW, image=image, class_I=world.class_I, objects_from=world.objects_from),
    }
