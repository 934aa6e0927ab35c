"""Articulated figures with human-part labels, in random poses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.builder import Builder, Draw, Solid
from pipeline.scenes.geometry import Vec

__all__ = ["HEAD", "LOWER_ARM", "LOWER_LEG", "POSES", "TORSO", "UPPER_ARM", "UPPER_LEG", "Pose", "add_person"]

HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = 1, 2, 3, 4, 5, 6
POSES = ("standing", "walking", "sitting", "waving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Joint angles in radians; pairs are (left, right), swings are forwards, spreads sideways."""

    lean: float
    hip: tuple[float, float]
    knee: tuple[float, float]
    shoulder: tuple[float, float]
    spread: tuple[float, float]
    elbow: tuple[float, float]

    @classmethod
    def random(cls, name: str, *, draw: Draw) -> Pose:
        """Draw the joint angles of a named pose."""
        r = draw.real
        if name == "standing":
            hip, knee, shoulder = (r(-0.1, 0.1), r(-0.1, 0.1)), (0.0, r(0, 0.15)), (r(-0.3, 0.3), r(-0.3, 0.3))
            return cls(
                lean=r(-0.05, 0.08),
                hip=hip,
                knee=knee,
                shoulder=shoulder,
                spread=_pair(draw, 0.08, 0.5),
                elbow=_pair(draw, 0, 1.2),
            )
        if name == "walking":
            step = r(0.3, 0.65) * (1 if draw.chance(0.5) else -1)
            knee = (0.1 + max(-step, 0) * 0.9, 0.1 + max(step, 0) * 0.9)
            return cls(
                lean=r(0, 0.15),
                hip=(step, -step),
                knee=knee,
                shoulder=(-step, step),
                spread=_pair(draw, 0.05, 0.25),
                elbow=_pair(draw, 0.2, 1.0),
            )
        if name == "sitting":
            hip = (r(1.3, 1.6), r(1.3, 1.6))
            return cls(
                lean=r(-0.15, 0.25),
                hip=hip,
                knee=(r(1.2, 1.7), r(1.2, 1.7)),
                shoulder=(r(0.1, 0.8), r(0.1, 0.8)),
                spread=_pair(draw, 0.1, 0.4),
                elbow=_pair(draw, 0.2, 1.3),
            )
        if name == "waving":
            spread = (r(1.8, 2.7), r(0.08, 0.4)) if draw.chance(0.6) else (r(1.6, 2.7), r(1.6, 2.7))
            return cls(
                lean=r(-0.05, 0.1),
                hip=(r(-0.1, 0.25), r(-0.25, 0.1)),
                knee=(0.05, 0.05),
                shoulder=(r(-0.2, 0.4), r(-0.2, 0.4)),
                spread=spread,
                elbow=_pair(draw, 0.1, 1.0),
            )
        raise AssertionError(f"unknown pose {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clothes:
    skin: int
    hair: int
    top: int
    sleeve: int
    trousers: int
    shin: int
    shoe: int


def add_person(builder: Builder, *, origin: Vec, yaw: float) -> None:
    """Add one figure of random height, build, clothes and pose; it faces its own +z."""
    draw = builder.draw
    name = draw.pick(POSES, (0.35, 0.3, 0.15, 0.2))
    pose = Pose.random(name, draw=draw)
    h = draw.real(1.5, 1.92) / 1.75
    girth = draw.real(0.92, 1.25) * h
    clothes = _dress(builder)
    body = builder.solid("person", origin=origin, yaw=yaw)
    seat = 0.46 * h if name == "sitting" else 0.92 * h
    hip_y = seat if name == "sitting" else seat - 0.1 * h * (1 - math.cos(max(abs(pose.hip[0]), abs(pose.hip[1]))))
    if name == "sitting":
        stool = builder.surface(plain=0.6)
        crate = builder.solid("crate", origin=origin, yaw=yaw)
        crate.box((0.0, 0.5 * (seat - 0.1), -0.02), (0.24, 0.5 * (seat - 0.1), 0.22), material=stool)
    _trunk(body, pose, clothes, scale=(h, girth, hip_y))
    for side in (0, 1):
        _leg(body, pose, clothes, scale=(h, girth, hip_y), side=side)
        _arm(body, pose, clothes, scale=(h, girth, hip_y), side=side)


def _pair(draw: Draw, low: float, high: float) -> tuple[float, float]:
    return (draw.real(low, high), draw.real(low, high))


def _dress(builder: Builder) -> _Clothes:
    draw, mats = builder.draw, builder.materials
    skin = mats.add("plain", first=draw.colour(hue=(0.03, 0.09), sat=(0.3, 0.6), val=(0.35, 0.95)), gloss=0.1)
    hair = mats.add("plain", first=draw.colour(hue=(0.02, 0.13), sat=(0.2, 0.8), val=(0.08, 0.75)), gloss=0.2)
    texture = draw.pick(("plain", "stripes", "checker", "noise", "dots"), (0.5, 0.2, 0.1, 0.1, 0.1))
    top = mats.add(texture, first=draw.vivid(), second=draw.muted(), frequency=draw.real(5, 11))
    trousers = mats.add("plain", first=draw.vivid() if draw.chance(0.35) else draw.muted())
    shoe = mats.add("plain", first=draw.muted(), gloss=0.3)
    bare = draw.chance(0.3)
    return _Clothes(
        skin=skin,
        hair=hair,
        top=top,
        sleeve=top if draw.chance(0.5) else skin,
        trousers=trousers,
        shin=skin if bare else trousers,
        shoe=shoe,
    )


def _trunk(body: Solid, pose: Pose, clothes: _Clothes, *, scale: tuple[float, float, float]) -> None:
    h, girth, hip_y = scale
    up_y, up_z = math.cos(pose.lean), math.sin(pose.lean)

    def along(d: float, forward: float = 0.0) -> Vec:
        return (0.0, hip_y + d * h * up_y, d * h * up_z + forward)

    turn = pose.lean
    body.ellipsoid(
        along(0.02), (0.165 * girth, 0.13 * h, 0.115 * girth), material=clothes.trousers, part=TORSO, turn=turn
    )
    body.ellipsoid(along(0.27), (0.17 * girth, 0.27 * h, 0.11 * girth), material=clothes.top, part=TORSO, turn=turn)
    body.ellipsoid(along(0.42), (0.205 * girth, 0.12 * h, 0.105 * girth), material=clothes.top, part=TORSO, turn=turn)
    body.capsule(along(0.5), along(0.6), 0.05 * h, material=clothes.skin, part=HEAD)
    body.ellipsoid(along(0.69), (0.082 * h, 0.115 * h, 0.095 * h), material=clothes.skin, part=HEAD, turn=turn)
    body.ellipsoid(
        along(0.725, -0.022 * h), (0.09 * h, 0.098 * h, 0.098 * h), material=clothes.hair, part=HEAD, turn=turn
    )


def _leg(body: Solid, pose: Pose, clothes: _Clothes, *, scale: tuple[float, float, float], side: int) -> None:
    h, girth, hip_y = scale
    x = (0.095 if side == 0 else -0.095) * girth
    swing = pose.hip[side]
    shin = swing - pose.knee[side]
    hip = np.array([x, hip_y - 0.02 * h, 0.0])
    knee = hip + 0.43 * h * np.array([0.0, -math.cos(swing), math.sin(swing)])
    ankle = knee + 0.40 * h * np.array([0.0, -math.cos(shin), math.sin(shin)])
    ankle[1] = max(ankle[1], 0.06 * h)
    body.capsule(hip, knee, 0.078 * girth, material=clothes.trousers, part=UPPER_LEG)
    body.capsule(knee, ankle, 0.056 * girth, material=clothes.shin, part=LOWER_LEG)
    foot = (float(ankle[0]), max(float(ankle[1]) - 0.02 * h, 0.045), float(ankle[2]) + 0.06 * h)
    body.ellipsoid(foot, (0.05 * h, 0.045 * h, 0.125 * h), material=clothes.shoe, part=LOWER_LEG)


def _arm(body: Solid, pose: Pose, clothes: _Clothes, *, scale: tuple[float, float, float], side: int) -> None:
    h, girth, hip_y = scale
    sign = 1.0 if side == 0 else -1.0
    reach = 0.46 * h
    top = np.array([sign * 0.2 * girth, hip_y + reach * math.cos(pose.lean), reach * math.sin(pose.lean)])
    swing, spread, bend = pose.shoulder[side], pose.spread[side], pose.elbow[side]
    down = np.array([sign * math.sin(spread), -math.cos(spread) * math.cos(swing), math.cos(spread) * math.sin(swing)])
    # The forearm bends forwards for a hanging arm and towards the head for a raised one.
    lift = (
        np.array([0.0, math.sin(bend), math.sin(bend)])
        if spread < 1.2
        else np.array([-sign * 0.3, math.sin(bend), 0.2])
    )
    lower = down * math.cos(bend) + lift
    lower = lower / math.sqrt(float(lower @ lower))
    elbow = top + 0.28 * h * down
    wrist = elbow + 0.25 * h * lower
    body.capsule(top, elbow, 0.052 * girth, material=clothes.top, part=UPPER_ARM)
    body.capsule(elbow, wrist, 0.042 * girth, material=clothes.sleeve, part=LOWER_ARM)
    hand = wrist + 0.05 * h * lower
    body.ellipsoid(tuple(hand.tolist()), (0.048 * h, 0.052 * h, 0.048 * h), material=clothes.skin, part=LOWER_ARM)
