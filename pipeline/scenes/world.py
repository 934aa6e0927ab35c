"""Composition of a random world: place, weather, light, camera and the objects that stand in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.builder import Builder, Draw
from pipeline.scenes.camera import Camera
from pipeline.scenes.geometry import BOX, PrimTable, yaw_frame
from pipeline.scenes.materials import Colour, MaterialTable, Noise
from pipeline.scenes.objects import OBJECTS

__all__ = ["PLACES", "STYLES", "Light", "Place", "Room", "Style", "World", "build_world"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The look of a whole data set; another style serves as an unseen domain."""

    daylight: tuple[float, float]
    ambient: tuple[float, float]
    dark_sky: bool
    lamp_power: float
    noise: tuple[float, float]


STYLES: dict[str, Style] = {
    "default": Style(daylight=(0.8, 1.4), ambient=(0.42, 0.68), dark_sky=False, lamp_power=0.35, noise=(0.0, 0.025)),
    "night": Style(daylight=(0.06, 0.16), ambient=(0.07, 0.13), dark_sky=True, lamp_power=2.2, noise=(0.015, 0.05)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A kind of surroundings: which objects occur there and how often."""

    weight: float
    objects: dict[str, float]
    count: tuple[int, int]
    reach: float


PLACES: dict[str, Place] = {
    "room": Place(
        weight=0.34,
        objects={
            "person": 3.2,
            "ball": 1.2,
            "crate": 1,
            "pillar": 0.6,
            "cone": 0.5,
            "table": 1.4,
            "lamp": 1.1,
            "tree": 0.15,
        },
        count=(2, 6),
        reach=6.5,
    ),
    "street": Place(
        weight=0.36,
        objects={
            "person": 3.2,
            "car": 1.7,
            "lamp": 0.9,
            "cone": 0.9,
            "tree": 0.7,
            "crate": 0.5,
            "pillar": 0.5,
            "ball": 0.5,
        },
        count=(3, 8),
        reach=14.0,
    ),
    "field": Place(
        weight=0.3,
        objects={
            "tree": 2.0,
            "person": 3.0,
            "ball": 1.0,
            "crate": 0.6,
            "cone": 0.5,
            "table": 0.7,
            "car": 0.6,
            "lamp": 0.3,
            "pillar": 0.4,
        },
        count=(3, 9),
        reach=15.0,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The inside of a box: low and high corner, and material and instance of the faces x0 x1 y0 y1 z0 z1."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    materials: tuple[int, ...]
    instances: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Sun (or key light), ambient light, fog and sky; colours are linear."""

    sun_3: NDArray[np.float64]
    sun_colour: Colour
    ambient: Colour
    fog: Colour
    fog_density: float
    zenith: Colour
    clouds: float
    stars: bool
    lamp_power: float


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything the renderer needs; instance 0 is the sky, 1 the ground."""

    camera: Camera
    prims: PrimTable
    materials: MaterialTable
    class_I: NDArray[np.uint8]
    origin_I3: NDArray[np.float32]
    yaw_I: NDArray[np.float32]
    ground: int
    path: tuple[int, float, float] | None
    room: Room | None
    light: Light
    lamps: tuple[tuple[tuple[float, float, float], Colour], ...]
    noise: Noise
    grain: float
    objects_from: int


def build_world(rng: np.random.Generator, *, style: str) -> World:
    """Compose one world.

    Raises:
        KeyError: Never for names in ``STYLES``; the public entry points check the name first.
    """
    look = STYLES[style]
    draw = Draw(rng)
    builder = Builder(draw)
    builder.instance("sky")
    builder.instance("ground")
    name = draw.pick(tuple(PLACES), tuple(place.weight for place in PLACES.values()))
    camera = _camera(draw, name)
    ground, path = _ground(builder, name)
    room = _room(builder, ground) if name == "room" else None
    if name == "street":
        _street(builder)
    elif name == "field" and draw.chance(0.45):
        _fence(builder, camera)
    objects_from = len(builder.instance_class)
    _populate(builder, PLACES[name], camera, room)
    return World(
        camera=camera,
        prims=builder.prims.freeze(),
        materials=builder.materials.freeze(),
        class_I=np.asarray(builder.instance_class, dtype=np.uint8),
        origin_I3=np.asarray(builder.instance_origin, dtype=np.float32),
        yaw_I=np.asarray(builder.instance_yaw, dtype=np.float32),
        ground=ground,
        path=path,
        room=room,
        light=_light(draw, look, indoors=room is not None),
        lamps=tuple(builder.lights),
        noise=Noise.draw(rng),
        grain=draw.real(*look.noise),
        objects_from=objects_from,
    )


def _camera(draw: Draw, place: str) -> Camera:
    height = draw.real(1.1, 2.3) if place == "room" else draw.real(1.0, 3.0)
    # A higher camera looks further down, so that the scene keeps filling the picture.
    pitch = -draw.real(0.02, 0.10) - 0.09 * (height - 1.0)
    yaw = draw.real(-0.5, 0.5) if place == "room" else draw.real(-0.3, 0.3)
    return Camera(height=height, yaw=yaw, pitch=pitch, roll=draw.real(-0.05, 0.05), fov=draw.real(0.72, 1.1))


def _ground(builder: Builder, place: str) -> tuple[int, tuple[int, float, float] | None]:
    draw, mats = builder.draw, builder.materials
    if place == "room":
        texture = draw.pick(("wood", "planks", "tiles", "checker", "noise", "plain"), (2, 3, 3, 2, 1, 1))
        frequency = draw.real(0.8, 2.2) if texture != "planks" else draw.real(3, 5)
        first, second = draw.earth(), draw.earth()
        return mats.add(texture, first=first, second=second, frequency=frequency, gloss=draw.real(0, 0.3)), None
    if place == "street":
        grey = draw.colour(hue=(0, 1), sat=(0.0, 0.15), val=(0.5, 0.8))
        texture = draw.pick(("tiles", "bricks", "noise", "plain"), (3, 2, 1, 1))
        pave = mats.add(texture, first=grey, second=draw.earth(), frequency=draw.real(0.8, 1.8))
        road = mats.add("noise", first=(0.06, 0.06, 0.065), second=(0.12, 0.12, 0.12), frequency=4.0)
        path = (road, draw.real(1.5, 3.2), draw.real(-0.5, 0.5)) if draw.chance(0.8) else None
        return pave, path
    hue = (0.18, 0.36) if draw.chance(0.65) else (0.03, 0.16)
    first = draw.colour(hue=hue, sat=(0.3, 0.75), val=(0.3, 0.6))
    second = draw.colour(hue=hue, sat=(0.3, 0.7), val=(0.5, 0.8))
    field = mats.add("noise", first=first, second=second, frequency=draw.real(1.0, 3.0))
    dirt = mats.add("noise", first=(0.25, 0.17, 0.1), second=(0.4, 0.3, 0.2), frequency=3.0)
    return field, ((dirt, draw.real(0.6, 1.3), draw.real(-1.2, 1.2)) if draw.chance(0.4) else None)


def _wall_material(builder: Builder) -> int:
    draw = builder.draw
    texture = draw.pick(("plain", "bricks", "stripes", "planks", "noise", "tiles", "dots"), (4, 2, 1, 1, 1, 1, 0.5))
    first, second = draw.earth(), draw.earth()
    return builder.materials.add(texture, first=first, second=second, frequency=draw.real(1.2, 3.5))


def _room(builder: Builder, ground: int) -> Room:
    draw = builder.draw
    left, right = draw.real(2.2, 4.5), draw.real(2.2, 4.5)
    height, back = draw.real(2.6, 4.2), draw.real(5.0, 9.0)
    wall = _wall_material(builder)
    accent = _wall_material(builder) if draw.chance(0.4) else wall
    white = draw.colour(hue=(0, 1), sat=(0, 0.12), val=(0.75, 0.98))
    ceiling = builder.materials.add("plain", first=white)
    faces = tuple(builder.instance("wall") for _ in range(5))
    return Room(
        low=(-left, 0.0, -back),
        high=(right, height, 2.0),
        materials=(wall, wall, ground, ceiling, accent, wall),
        instances=(faces[0], faces[1], 1, faces[2], faces[3], faces[4]),
    )


def _street(builder: Builder) -> None:
    """House fronts along both sides and sometimes across the end."""
    draw = builder.draw
    plan: list[tuple[float, float, float, float]] = []
    for side in (-1.0, 1.0):
        if draw.chance(0.2):
            continue
        offset, z = side * draw.real(4.5, 8.0), -2.0
        while z > -32.0:
            depth = draw.real(4.0, 9.0)
            plan.append((offset + side * 3.0, z - 0.5 * depth, 3.0, 0.5 * depth))
            z -= depth + (draw.real(1.0, 4.0) if draw.chance(0.3) else 0.0)
    if draw.chance(0.5):
        plan.append((draw.real(-4, 4), -draw.real(18.0, 34.0), draw.real(6.0, 16.0), 2.0))
    for x, z, half_x, half_z in plan:
        height = draw.real(1.6, 4.5)
        house = builder.solid("wall", origin=(x, 0.0, z), yaw=0.0)
        if draw.chance(0.65):
            front = draw.earth()
            glass = draw.colour(hue=(0.5, 0.65), sat=(0.1, 0.4), val=(0.12, 0.5))
            material = builder.materials.add(
                "facade", first=front, second=glass, frequency=draw.real(0.35, 0.7), gloss=0.2
            )
        else:
            material = _wall_material(builder)
        matrix = np.diag([half_x, height, half_z])
        builder.prims.add(BOX, centre=(x, height, z), matrix=matrix, k=0.0, tag=(house.instance, material, 0))


def _fence(builder: Builder, camera: Camera) -> None:
    """A long low wall across the view."""
    draw = builder.draw
    z, half = -draw.real(9.0, 20.0), draw.real(0.5, 1.3)
    yaw = camera.yaw + draw.real(-0.3, 0.3)
    wall = builder.solid("wall", origin=(0.0, 0.0, z), yaw=yaw)
    wall.box((draw.real(-9, 9), half, 0.0), (draw.real(6.0, 30.0), half, 0.2), material=_wall_material(builder))


def _populate(builder: Builder, place: Place, camera: Camera, room: Room | None) -> None:
    """Stand objects on the ground where they are in view and do not touch each other."""
    draw = builder.draw
    low, high = place.count
    wanted = low + int(draw.real(0, high - low + 0.999))
    taken: list[tuple[float, float, float]] = []
    names, weights = tuple(place.objects), tuple(place.objects.values())
    for number in range(wanted):
        name = draw.pick(names, weights)
        kind = OBJECTS[name]
        for _ in range(12):
            # The first object is a near one: a scene should have something to look at.
            reach = kind.nearest + 0.3 * (place.reach - kind.nearest) if number == 0 else place.reach
            spread = draw.real(0.0, 1.0)
            distance = kind.nearest + max(reach - kind.nearest, 0.5) * spread * spread
            angle = camera.yaw + draw.real(-0.46, 0.46) * camera.fov
            x, z = -distance * math.sin(angle), -distance * math.cos(angle)
            if _free(x, z, kind.radius, taken, room):
                taken.append((x, z, kind.radius))
                kind.add(builder, origin=(x, 0.0, z), yaw=draw.real(-math.pi, math.pi))
                break


def _free(x: float, z: float, radius: float, taken: list[tuple[float, float, float]], room: Room | None) -> bool:
    if room is not None:
        inside = room.low[0] + radius < x < room.high[0] - radius and room.low[2] + radius < z < room.high[2] - radius
        if not inside:
            return False
    return all((x - a) ** 2 + (z - b) ** 2 > (0.8 * (radius + r)) ** 2 for a, b, r in taken)


def _light(draw: Draw, look: Style, *, indoors: bool) -> Light:
    height, angle = draw.real(0.45, 1.25), draw.real(-math.pi, math.pi)
    if indoors:
        height = draw.real(0.9, 1.4)
    sun_3 = yaw_frame(angle) @ np.array([0.0, math.sin(height), math.cos(height)])
    power, fill = draw.real(*look.daylight), draw.real(*look.ambient)
    warm = draw.real(-0.12, 0.2)
    sun = (power * (1 + warm), power, power * (1 - 1.3 * warm))
    ambient = (fill * (1 - 0.4 * warm), fill, fill * (1 + 0.5 * warm))
    if look.dark_sky:
        zenith = draw.colour(hue=(0.6, 0.72), sat=(0.5, 0.9), val=(0.08, 0.2))
        horizon = draw.colour(hue=(0.6, 0.8), sat=(0.3, 0.7), val=(0.2, 0.38))
    else:
        zenith = draw.colour(hue=(0.54, 0.64), sat=(0.3, 0.75), val=(0.6, 0.95))
        horizon = draw.colour(hue=(0.5, 0.64), sat=(0.03, 0.25), val=(0.82, 0.97))
        if draw.chance(0.2):
            horizon = draw.colour(hue=(0.02, 0.12), sat=(0.2, 0.55), val=(0.85, 0.98))
    fog = draw.real(0.015, 0.045) if draw.chance(0.2) else draw.real(0.0, 0.012)
    return Light(
        sun_3=sun_3,
        sun_colour=sun,
        ambient=ambient,
        fog=horizon,
        fog_density=0.0 if indoors else fog,
        zenith=zenith,
        clouds=draw.real(0.0, 1.0),
        stars=look.dark_sky,
        lamp_power=look.lamp_power,
    )
