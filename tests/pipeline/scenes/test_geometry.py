"""Ray casting: every primitive against its implicit surface, found by brute force along the ray."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.scenes.camera import Camera
from pipeline.scenes.geometry import BOX, CAPSULE, ELLIPSOID, FRUSTUM, PrimList, axis_frame

KINDS = {"ellipsoid": ELLIPSOID, "box": BOX, "frustum": FRUSTUM, "capsule": CAPSULE}


def level(kind: int, k: float, p: np.ndarray) -> np.ndarray:
    """Negative inside the canonical solid, positive outside."""
    across = np.hypot(p[..., 0], p[..., 1])
    if kind == ELLIPSOID:
        return np.linalg.norm(p, axis=-1) - 1
    if kind == BOX:
        return np.abs(p).max(-1) - 1
    if kind == FRUSTUM:
        radius = 0.5 * (1 + k) + 0.5 * (k - 1) * p[..., 2]
        return np.maximum(across - radius, np.abs(p[..., 2]) - 1)
    return np.hypot(across, p[..., 2] - np.clip(p[..., 2], -k, k)) - 1


@pytest.fixture(params=KINDS)
def table(request: pytest.FixtureRequest):
    rng = np.random.default_rng(KINDS[request.param])
    prims = PrimList()
    for number in range(6):
        frame = axis_frame(rng.normal(size=3).tolist())
        scale = np.full(3, rng.uniform(0.4, 0.9)) if request.param == "capsule" else rng.uniform(0.3, 0.9, 3)
        k = rng.uniform(0, 1.2)
        centre = rng.uniform(-1.5, 1.5, 3) + np.array([0, 1.5, -7])
        prims.add(KINDS[request.param], centre=centre.tolist(), matrix=frame * scale, k=k, tag=(number, 0, 0))
    return prims.freeze()


CAMERA = Camera(height=1.5, yaw=0.1, pitch=-0.05, roll=0.02, fov=0.9)
SIZE = (28, 36)


def nearest_by_marching(table, ray: np.ndarray) -> np.ndarray:
    """First of 4,000 steps along each ray that is inside any primitive; inf when none is."""
    steps = np.linspace(2, 14, 4000)
    best = np.full(len(ray), np.inf)
    for i in range(len(table.kind_P)):
        point = CAMERA.position + ray[:, None, :].astype(np.float64) * steps[:, None]
        local = (point - table.centre_P3[i]) @ table.inverse_P33[i].T
        inside = level(int(table.kind_P[i]), float(table.k_P[i]), local) < 0
        first = np.where(inside.any(1), steps[inside.argmax(1)], np.inf)
        best = np.minimum(best, first)
    return best


def test_nearest_hits_agree_with_marching(table) -> None:
    ray = CAMERA.rays(SIZE)
    boxes = CAMERA.rectangles(table.corners(), size=SIZE)
    hits = table.trace(origin_3=CAMERA.position, ray_N3=ray, boxes_P4=boxes, width=SIZE[1])
    chosen = np.arange(0, len(ray), 3)
    marched = nearest_by_marching(table, ray[chosen])
    # A grazing ray can slip between two steps: it may only be missed by the marcher.
    assert (np.isfinite(hits.t_N[chosen]) >= np.isfinite(marched)).all()
    both = np.isfinite(marched)
    assert both.sum() > 30
    slack = 14 / 4000 + 2e-3
    assert (hits.t_N[chosen][both] <= marched[both] + 1e-3).all()
    assert np.mean(np.abs(hits.t_N[chosen][both] - marched[both]) < slack) > 0.98


def test_hit_points_lie_on_the_surface_and_normals_point_out(table) -> None:
    ray = CAMERA.rays(SIZE)
    boxes = CAMERA.rectangles(table.corners(), size=SIZE)
    hits = table.trace(origin_3=CAMERA.position, ray_N3=ray, boxes_P4=boxes, width=SIZE[1])
    hit = np.flatnonzero(hits.prim_N >= 0)
    prim = hits.prim_N[hit]
    point = (CAMERA.position + hits.t_N[hit, None] * ray[hit]).astype(np.float32)
    normal = table.normals(prim_M=prim, point_M3=point)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)

    def value(offset: float) -> np.ndarray:
        local = np.einsum("mij,mj->mi", table.inverse_P33[prim], point + offset * normal - table.centre_P3[prim])
        return np.array([level(int(table.kind_P[p]), float(table.k_P[p]), q) for p, q in zip(prim, local, strict=True)])

    np.testing.assert_allclose(value(0.0), 0, atol=2e-3)
    assert (value(0.02) > 0).mean() > 0.99
    assert (value(-0.02) < 0).mean() > 0.97


def test_rectangles_contain_every_hit(table) -> None:
    ray = CAMERA.rays(SIZE)
    whole = np.tile([0, 0, SIZE[1], SIZE[0]], (len(table.kind_P), 1))
    boxes = CAMERA.rectangles(table.corners(), size=SIZE)
    tight = table.trace(origin_3=CAMERA.position, ray_N3=ray, boxes_P4=boxes, width=SIZE[1])
    loose = table.trace(origin_3=CAMERA.position, ray_N3=ray, boxes_P4=whole, width=SIZE[1])
    np.testing.assert_array_equal(tight.prim_N, loose.prim_N)


def test_shadows_agree_with_tracing_towards_the_light(table) -> None:
    rng = np.random.default_rng(0)
    points = (rng.uniform(-3, 3, (400, 3)) * [1, 0, 1] + [0, -1.5, -7]).astype(np.float32)
    light = np.array([0.3, 0.9, 0.2]) / np.linalg.norm([0.3, 0.9, 0.2])
    dark = table.occluded(point_N3=points, direction_3=light)
    whole = np.tile([0, 0, 1, 1], (len(table.kind_P), 1))
    ray = light[None].astype(np.float32)
    traced = [
        np.isfinite(table.trace(origin_3=point.astype(np.float64), ray_N3=ray, boxes_P4=whole, width=1).t_N[0])
        for point in points
    ]
    assert np.mean(dark == np.array(traced)) > 0.995
    assert dark.any()
    assert not dark.all()


def test_axis_frame_is_orthonormal_and_ends_in_the_axis() -> None:
    for axis in ([0, 0, 1], [0, 0, -1], [0, 1, 0], [1, 2, -3], [-1e-4, 0, -1]):
        frame = axis_frame(axis)
        np.testing.assert_allclose(frame.T @ frame, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(frame[:, 2], np.array(axis) / np.linalg.norm(axis), atol=1e-12)
        assert np.linalg.det(frame) == pytest.approx(1)
