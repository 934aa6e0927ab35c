"""Light, sky and camera response; colours are linear until ``finish``.

Axis letters: N pixels, M pixels that hit a surface, H height, W width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.surface import Surface
from pipeline.scenes.world import World

__all__ = ["finish", "shade", "sky"]

F32 = NDArray[np.float32]


def shade(world: World, *, surface: Surface, which: NDArray[np.int64], base_M3: F32) -> F32:
    """Light the surface points ``which`` of base colour ``base_M3``: sun, shadow, ambient, lamps, gloss, fog."""
    light = world.light
    normal_M3, point_M3, ray_M3 = surface.normal_N3[which], surface.point_N3[which], surface.ray_N3[which]
    material_M = surface.material_N[which]
    sun_3 = light.sun_3.astype(np.float32)
    lambert_M = np.maximum(normal_M3 @ sun_3, 0.0)
    lit = np.flatnonzero(lambert_M > 0)
    dark = world.prims.occluded(point_N3=point_M3[lit] + 0.012 * normal_M3[lit], direction_3=light.sun_3)
    lambert_M[lit[dark]] = 0.0
    sky_M = 0.62 + 0.38 * normal_M3[:, 1]
    # Ground light bounces up: undersides are dim, never black.
    glow_M3 = sky_M[:, None] * np.asarray(light.ambient, dtype=np.float32)
    glow_M3 = glow_M3 * _contact(world, point_M3, normal_M3)[:, None]
    incoming_M3 = glow_M3 + lambert_M[:, None] * np.asarray(light.sun_colour, dtype=np.float32)
    incoming_M3 += _lamps(world, point_M3, normal_M3)
    colour_M3 = base_M3 * incoming_M3
    gloss_M = world.materials.gloss_K[material_M]
    shiny = np.flatnonzero((gloss_M > 0.05) & (lambert_M > 0))
    if len(shiny):
        view = -ray_M3[shiny] / np.sqrt((ray_M3[shiny] ** 2).sum(1, keepdims=True))
        half = view + sun_3
        half /= np.sqrt((half * half).sum(1, keepdims=True))
        peak = np.maximum((half * normal_M3[shiny]).sum(1), 0.0) ** 40
        colour_M3[shiny] += (gloss_M[shiny] * peak)[:, None] * np.asarray(light.sun_colour, dtype=np.float32)
    emit_M = world.materials.glow_K[material_M]
    colour_M3 += world.materials.first_K3[material_M] * emit_M[:, None]
    if light.fog_density > 0:
        clear_M = np.exp(-light.fog_density * surface.t_N[which])[:, None]
        fog = np.asarray(light.fog, dtype=np.float32)
        colour_M3 = fog + (colour_M3 - fog) * clear_M
    return np.asarray(colour_M3, dtype=np.float32)


def _contact(world: World, point_M3: F32, normal_M3: F32) -> F32:
    """Ambient darkening near the corners of a room and where things meet the ground."""
    shade_M = np.ones(len(point_M3), dtype=np.float32)
    if world.room is not None:
        low, high = np.asarray(world.room.low, dtype=np.float32), np.asarray(world.room.high, dtype=np.float32)
        gap_M3 = np.minimum(point_M3 - low, high - point_M3)
        gap_M3 = np.where(np.abs(normal_M3) > 0.5, np.float32(9.0), gap_M3)
        shade_M *= 1.0 - 0.35 * np.exp(-3.0 * np.maximum(gap_M3.min(1), 0.0))
    rising = np.abs(normal_M3[:, 1]) < 0.6
    shade_M[rising] *= 1.0 - 0.3 * np.exp(-6.0 * np.maximum(point_M3[rising, 1], 0.0))
    flat = np.flatnonzero((normal_M3[:, 1] > 0.9) & (point_M3[:, 1] < 0.02))
    feet_F2 = world.origin_I3[world.objects_from :, [0, 2]]
    if len(flat) and len(feet_F2):
        x_M, z_M = point_M3[flat, 0], point_M3[flat, 2]
        near_M = np.full(len(flat), np.inf, dtype=np.float32)
        for x, z in feet_F2:
            np.minimum(near_M, (x_M - x) ** 2 + (z_M - z) ** 2, out=near_M)
        shade_M[flat] *= 1.0 - 0.4 * np.exp(-4.0 * near_M)
    return shade_M


def _lamps(world: World, point_M3: F32, normal_M3: F32) -> F32:
    total_M3 = np.zeros_like(point_M3)
    for place, colour in world.lamps:
        away_M3 = np.asarray(place, dtype=np.float32) - point_M3
        square_M = (away_M3 * away_M3).sum(1)
        facing_M = np.maximum((away_M3 * normal_M3).sum(1), 0.0) / np.sqrt(square_M + 1e-6)
        power_M = world.light.lamp_power * facing_M / (0.3 + 0.35 * square_M)
        total_M3 += power_M[:, None] * np.asarray(colour, dtype=np.float32)
    return total_M3


def sky(world: World, *, ray_N3: F32) -> F32:
    """Sky colour in the ray directions: gradient, sun glow, clouds or stars."""
    light = world.light
    unit_N3 = ray_N3 / np.sqrt((ray_N3 * ray_N3).sum(1, keepdims=True))
    up_N = np.clip(unit_N3[:, 1], 0.0, 1.0)
    rise_N1 = (1.0 - np.exp(-3.5 * up_N))[:, None]
    horizon, zenith = np.asarray(light.fog, dtype=np.float32), np.asarray(light.zenith, dtype=np.float32)
    colour_N3 = horizon + (zenith - horizon) * rise_N1
    sun_3 = light.sun_3.astype(np.float32)
    if light.stars:
        spark_N = world.noise(unit_N3 * 90.0)
        colour_N3 = colour_N3 + (np.clip(spark_N - 0.86, 0.0, 1.0) * 5.0)[:, None]
        return np.asarray(colour_N3, dtype=np.float32)
    flat_N3 = unit_N3 / (up_N + 0.12)[:, None] * 1.3
    puff_N = 0.6 * world.noise(flat_N3) + 0.4 * world.noise(flat_N3 * 2.3 + 3.0)
    cover_N1 = (np.clip(3.0 * (puff_N - 0.95 + 0.5 * light.clouds), 0.0, 0.85) * np.clip(4.0 * up_N, 0, 1))[:, None]
    colour_N3 = colour_N3 + (np.float32(0.92) - colour_N3) * cover_N1
    glare_N1 = (np.maximum(unit_N3 @ sun_3, 0.0) ** 24)[:, None]
    return np.asarray(colour_N3 + 0.5 * glare_N1, dtype=np.float32)


def finish(
    image_HW3: F32, *, instance_HW: NDArray[np.int64], grain: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Camera response: softened outlines, exposure, white balance, tone curve, sensor noise, 8 bits."""
    image_HW3 = _soften(image_HW3, instance_HW)
    # Auto exposure towards a random mean keeps night scenes dark only because their target is.
    gain = float(rng.uniform(0.85, 1.15))
    balance_3 = rng.uniform(0.94, 1.06, 3).astype(np.float32)
    image_HW3 = image_HW3 * (gain * balance_3)
    # A shoulder above 0.8 instead of clipping: white things keep their shading.
    over = np.maximum(image_HW3 - 0.75, 0.0)
    image_HW3 = np.minimum(image_HW3, 0.75) + over / (1.0 + 3.0 * over)
    display = np.power(np.maximum(image_HW3, 0.0), 1.0 / 2.2)
    if grain > 0:
        display = display + grain * rng.standard_normal(display.shape, dtype=np.float32)
    return np.asarray(np.clip(display * 255.0 + 0.5, 0, 255), dtype=np.uint8)


def _soften(image_HW3: F32, instance_HW: NDArray[np.int64]) -> F32:
    """Blend pixels at outlines with their neighbours: cheap anti-aliasing without extra rays."""
    edge_HW = np.zeros(instance_HW.shape, dtype=np.bool_)
    across = instance_HW[:, 1:] != instance_HW[:, :-1]
    down = instance_HW[1:] != instance_HW[:-1]
    edge_HW[:, 1:] |= across
    edge_HW[:, :-1] |= across
    edge_HW[1:] |= down
    edge_HW[:-1] |= down
    y, x = np.nonzero(edge_HW)
    if not len(y):
        return image_HW3
    height, width = instance_HW.shape
    total = 4.0 * image_HW3[y, x]
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        total = total + image_HW3[np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)]
    out = image_HW3.copy()
    out[y, x] = total / 8.0
    return out
