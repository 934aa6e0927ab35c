"""Composite objects: ball, crate, pillar, cone, table, tree, lamp and car."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pipeline.scenes.builder import Builder
from pipeline.scenes.geometry import Vec
from pipeline.scenes.people import add_person

__all__ = ["OBJECTS", "ObjectKind"]


class ObjectKind(NamedTuple):
    """How to add an object, the radius of ground it needs and how near to the camera it may stand, in metres."""

    add: Callable[..., None]
    radius: float
    nearest: float


def add_ball(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a ball, a quarter of a metre to a metre across."""
    r = builder.draw.real(0.16, 0.5)
    ball = builder.solid("ball", origin=(origin[0], r, origin[2]), yaw=yaw)
    ball.ellipsoid((0.0, 0.0, 0.0), (r, r, r), material=builder.surface(plain=0.35, gloss=0.8))


def add_crate(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a crate, sometimes with a smaller one on top."""
    draw = builder.draw
    crate = builder.solid("crate", origin=origin, yaw=yaw)
    half = (draw.real(0.25, 0.55), draw.real(0.2, 0.55), draw.real(0.25, 0.55))
    crate.box((0.0, half[1], 0.0), half, material=builder.surface(plain=0.25))
    if draw.chance(0.25):
        upper = draw.real(0.15, 0.3)
        top = builder.solid("crate", origin=origin, yaw=yaw + draw.real(-0.6, 0.6))
        top.box((0.0, 2 * half[1] + upper, 0.0), (upper, upper, upper), material=builder.surface(plain=0.25))


def add_pillar(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a round or square pillar with base and capital."""
    draw = builder.draw
    pillar = builder.solid("pillar", origin=origin, yaw=yaw)
    r, height = draw.real(0.16, 0.32), draw.real(1.6, 3.4)
    shaft, trim = builder.surface(plain=0.35, gloss=0.2), builder.surface(plain=0.8)
    pillar.box((0.0, 0.1, 0.0), (1.45 * r, 0.1, 1.45 * r), material=trim)
    pillar.box((0.0, height - 0.08, 0.0), (1.4 * r, 0.08, 1.4 * r), material=trim)
    if draw.chance(0.75):
        pillar.frustum((0.0, 0.15, 0.0), (0.0, height - 0.1, 0.0), (r, r * draw.real(0.75, 1.0)), material=shaft)
    else:
        pillar.box((0.0, 0.5 * height, 0.0), (r, 0.5 * height - 0.1, r), material=shaft)


def add_cone(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a traffic cone: square foot, tapering body, often with bands."""
    draw = builder.draw
    cone = builder.solid("cone", origin=origin, yaw=yaw)
    height, r = draw.real(0.55, 1.15), draw.real(0.2, 0.34)
    first, second = draw.vivid(), draw.muted()
    texture = "stripes" if draw.chance(0.5) else draw.pick(("plain", "noise", "checker"))
    body = builder.materials.add(texture, first=first, second=second, frequency=draw.real(2.0, 5.0), gloss=0.2)
    foot = builder.materials.add("plain", first=first if draw.chance(0.5) else second)
    cone.box((0.0, 0.03, 0.0), (1.25 * r, 0.03, 1.25 * r), material=foot)
    cone.frustum((0.0, 0.05, 0.0), (0.0, height, 0.0), (r, 0.12 * r), material=body)


def add_table(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a round or rectangular table, sometimes with a ball or a small crate on it."""
    draw = builder.draw
    table = builder.solid("table", origin=origin, yaw=yaw)
    height = draw.real(0.6, 0.95)
    top, legs = builder.surface(plain=0.4), builder.surface(plain=0.8)
    if draw.chance(0.35):
        r = draw.real(0.45, 0.75)
        table.frustum((0.0, height - 0.06, 0.0), (0.0, height, 0.0), (r, r), material=top)
        table.frustum((0.0, 0.0, 0.0), (0.0, height - 0.05, 0.0), (0.07, 0.05), material=legs)
        table.frustum((0.0, 0.0, 0.0), (0.0, 0.05, 0.0), (0.5 * r, 0.4 * r), material=legs)
    else:
        w, d = draw.real(0.5, 0.95), draw.real(0.35, 0.6)
        table.box((0.0, height - 0.03, 0.0), (w, 0.035, d), material=top)
        for sx in (-1.0, 1.0):
            for sz in (-1.0, 1.0):
                table.box(
                    (sx * (w - 0.06), 0.5 * height - 0.03, sz * (d - 0.06)),
                    (0.04, 0.5 * height - 0.03, 0.04),
                    material=legs,
                )
    if draw.chance(0.4):
        r = draw.real(0.09, 0.17)
        thing = builder.solid(
            "ball" if draw.chance(0.5) else "crate", origin=(origin[0], height + r, origin[2]), yaw=yaw + 0.5
        )
        shape = thing.ellipsoid if builder.instance_class[-1] == 4 else thing.box
        shape((draw.real(-0.2, 0.2), 0.0, draw.real(-0.2, 0.2)), (r, r, r), material=builder.surface())


def add_tree(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a conifer of stacked cones or a broad tree of several crowns."""
    draw = builder.draw
    tree = builder.solid("tree", origin=origin, yaw=yaw)
    bark = builder.materials.add(
        "noise",
        first=draw.colour(hue=(0.03, 0.1), sat=(0.2, 0.6), val=(0.2, 0.5)),
        second=draw.colour(hue=(0.05, 0.12), sat=(0.1, 0.4), val=(0.3, 0.6)),
        frequency=5.0,
    )
    hue = draw.pick(("green", "autumn", "other"), (0.6, 0.25, 0.15))
    span = {"green": (0.2, 0.42), "autumn": (0.0, 0.16), "other": (0.0, 1.0)}[hue]
    leaf = builder.materials.add(
        "noise",
        first=draw.colour(hue=span, sat=(0.35, 0.85), val=(0.25, 0.5)),
        second=draw.colour(hue=span, sat=(0.35, 0.85), val=(0.5, 0.85)),
        frequency=draw.real(3.0, 7.0),
    )
    height = draw.real(2.2, 4.6)
    trunk = height * draw.real(0.3, 0.45)
    tree.frustum((0.0, 0.0, 0.0), (0.0, trunk + 0.3 * height, 0.0), (0.05 * height, 0.025 * height), material=bark)
    if draw.chance(0.4):
        for i in range(3):
            low = 0.5 * trunk + i * 0.24 * height
            r = height * (0.27 - 0.06 * i)
            tree.frustum((0.0, low, 0.0), (0.0, low + 0.38 * height, 0.0), (r, 0.02 * r), material=leaf)
        return
    for _ in range(2 + int(draw.real(0, 3.99))):
        angle, off = draw.real(0, 2 * math.pi), draw.real(0.0, 0.16) * height
        r = height * draw.real(0.15, 0.24)
        centre = (off * math.cos(angle), trunk + draw.real(0.15, 0.42) * height, off * math.sin(angle))
        tree.ellipsoid(centre, (r, r * draw.real(0.75, 1.1), r), material=leaf)


def add_lamp(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a lamp: a thin post with a glowing globe, shade or street-lamp arm."""
    draw = builder.draw
    lamp = builder.solid("lamp", origin=origin, yaw=yaw)
    height = draw.real(1.4, 3.2)
    metal = builder.materials.add("plain", first=draw.muted(), gloss=0.5)
    warm = draw.colour(hue=(0.08, 0.16), sat=(0.1, 0.45), val=(0.95, 1.0))
    light = builder.materials.add("plain", first=warm, glow=draw.real(0.7, 1.4))
    lamp.frustum((0.0, 0.0, 0.0), (0.0, 0.06, 0.0), (0.2, 0.16), material=metal)
    lamp.frustum((0.0, 0.0, 0.0), (0.0, height, 0.0), (0.045, 0.035), material=metal)
    kind = draw.pick(("globe", "shade", "arm"))
    top: Vec = (0.0, height + 0.12, 0.0)
    if kind == "globe":
        r = draw.real(0.15, 0.24)
        lamp.ellipsoid(top, (r, r, r), material=light)
    elif kind == "shade":
        lamp.frustum((0.0, height - 0.12, 0.0), (0.0, height + 0.24, 0.0), (0.28, 0.15), material=light)
    else:
        lamp.capsule((0.0, height, 0.0), (0.5, height + 0.08, 0.0), 0.035, material=metal)
        lamp.box((0.55, height + 0.04, 0.0), (0.2, 0.05, 0.09), material=light)
        top = (0.55, height - 0.1, 0.0)
    place = lamp.place(top)
    builder.lights.append(((float(place[0]), float(place[1]), float(place[2])), warm))


def add_car(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add a car: body, cabin with windows, four wheels and lights; it drives along its own +x."""
    draw, mats = builder.draw, builder.materials
    car = builder.solid("car", origin=origin, yaw=yaw)
    paint = mats.add("plain", first=draw.vivid() if draw.chance(0.65) else draw.muted(), gloss=0.8)
    glass = mats.add("plain", first=draw.colour(hue=(0.5, 0.65), sat=(0.1, 0.4), val=(0.12, 0.35)), gloss=1.0)
    tyre = mats.add("plain", first=(0.015, 0.015, 0.017), gloss=0.1)
    rim = mats.add("plain", first=(0.5, 0.5, 0.52), gloss=0.6)
    front = mats.add("plain", first=(0.9, 0.88, 0.7), glow=0.25)
    rear = mats.add("plain", first=(0.6, 0.02, 0.02), glow=0.1)
    length, width = draw.real(1.7, 2.15), draw.real(0.78, 0.9)
    deck = draw.real(0.78, 0.95)
    roof = deck + draw.real(0.42, 0.65)
    car.box((0.0, 0.5 * (deck + 0.28), 0.0), (length, 0.5 * (deck - 0.28), width), material=paint)
    back, fore = -draw.real(0.55, 0.95) * length, draw.real(0.25, 0.5) * length
    middle, half = 0.5 * (back + fore), 0.5 * (fore - back)
    car.box((middle, 0.5 * (deck + roof), 0.0), (half, 0.5 * (roof - deck), 0.88 * width), material=glass)
    car.box((middle, roof, 0.0), (0.93 * half, 0.045, 0.86 * width), material=paint)
    for x in (back + 0.04, middle, fore - 0.04):
        car.box((x, 0.5 * (deck + roof), 0.0), (0.045, 0.5 * (roof - deck), 0.895 * width), material=paint)
    for sx in (-0.62, 0.62):
        for sz in (-1.0, 1.0):
            inner, outer = sz * (width - 0.16), sz * (width + 0.03)
            car.frustum((sx * length, 0.33, inner), (sx * length, 0.33, outer), (0.33, 0.33), material=tyre)
            car.frustum((sx * length, 0.33, inner), (sx * length, 0.33, outer + sz * 0.012), (0.18, 0.18), material=rim)
    for sz in (-0.7, 0.7):
        car.box((length, 0.72 * deck, sz * width), (0.03, 0.07, 0.16), material=front)
        car.box((-length, 0.72 * deck, sz * width), (0.03, 0.07, 0.16), material=rear)


OBJECTS: dict[str, ObjectKind] = {
    "person": ObjectKind(add_person, 0.5, 2.2),
    "ball": ObjectKind(add_ball, 0.5, 2.0),
    "crate": ObjectKind(add_crate, 0.75, 2.4),
    "pillar": ObjectKind(add_pillar, 0.45, 3.6),
    "cone": ObjectKind(add_cone, 0.4, 2.0),
    "table": ObjectKind(add_table, 1.0, 2.6),
    "tree": ObjectKind(add_tree, 0.9, 4.2),
    "lamp": ObjectKind(add_lamp, 0.5, 2.4),
    "car": ObjectKind(add_car, 2.0, 4.6),
}
