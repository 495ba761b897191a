"""What each named shape is made of: parts in the thing's own frame (numpy only; metres).

Both the MuJoCo model and the mesh are made from these parts. A thing's radius is the scale of its shape: a
ball has exactly that radius, the others fill roughly the same space. Things lie the way they rest: +z is up.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simulator.words import SHAPES

UPRIGHT = (1.0, 0.0, 0.0, 0.0)
Z_TO_X = (float(np.cos(np.pi / 4)), 0.0, float(np.sin(np.pi / 4)), 0.0)
MUG_SIDES = 12


@dataclass(frozen=True)
class Part:
    """One primitive: `form` is box, sphere, cylinder, capsule or ellipsoid, `size` as MuJoCo's geom size."""

    form: str
    size: tuple[float, ...]
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    quaternion: tuple[float, float, float, float] = UPRIGHT
    solid: bool = True
    visible: bool = True


def _prism(r: float, half: float) -> list[Part]:
    """What a cylinder collides as: three boxes whose corners lie on its rims.

    A flat cylinder's contact points jump about with the smallest tilt, and hard contacts then gain energy.
    """
    side = float(r / np.sqrt(2))
    angles = np.pi / 12 + np.arange(3) * np.pi / 6
    turns = [(float(np.cos(a / 2)), 0.0, 0.0, float(np.sin(a / 2))) for a in angles]
    return [Part("box", (side, side, half), quaternion=turn, visible=False) for turn in turns]


def _mug(r: float) -> list[Part]:
    wall_m, outer, half = 0.07 * r, 0.68 * r, 0.75 * r
    parts = _prism(outer, half)
    parts.append(Part("cylinder", (outer - wall_m, wall_m), (0.0, 0.0, wall_m - half), solid=False))
    middle = outer - wall_m
    side = middle * np.tan(np.pi / MUG_SIDES) + 0.25 * wall_m
    for angle in np.arange(MUG_SIDES) * 2 * np.pi / MUG_SIDES:
        place = (float(middle * np.cos(angle)), float(middle * np.sin(angle)), 0.0)
        turn = (float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2)))
        parts.append(Part("box", (wall_m, float(side), half), place, turn, solid=False))
    bend = np.linspace(-np.pi / 2, np.pi / 2, 6)
    points = np.stack([outer + 0.42 * r * np.cos(bend), 0 * bend, 0.45 * r * np.sin(bend)], axis=1)
    for start, end in pairwise(points):
        along = end - start
        tilt = float(np.arctan2(along[0], along[2]) / 2)
        parts.append(
            Part(
                "capsule",
                (0.09 * r, float(np.linalg.norm(along) / 2)),
                (float(start[0] + end[0]) / 2, 0.0, float(start[2] + end[2]) / 2),
                (float(np.cos(tilt)), 0.0, float(np.sin(tilt)), 0.0),
                solid=False,
            )
        )
    return parts


def parts(shape: str, r: float) -> list[Part]:
    """The parts of one named shape with radius `r` in metres.

    Raises:
        ValueError: the shape is not one of `envs.vocabulary.SHAPES`.
    """
    if shape == "box":
        return [Part("box", (0.8 * r, 0.8 * r, 0.8 * r))]
    if shape == "ball":
        return [Part("sphere", (r,))]
    if shape == "cylinder":
        return [*_prism(0.7 * r, 0.85 * r), Part("cylinder", (0.7 * r, 0.85 * r), solid=False)]
    if shape == "capsule":
        return [Part("capsule", (0.5 * r, 0.65 * r), quaternion=Z_TO_X)]
    if shape == "egg":
        return [Part("ellipsoid", (1.05 * r, 0.75 * r, 0.75 * r))]
    if shape == "L block":
        return [
            Part("box", (0.95 * r, 0.4 * r, 0.32 * r), (0.0, 0.0, -0.63 * r)),
            Part("box", (0.32 * r, 0.4 * r, 0.63 * r), (-0.63 * r, 0.0, 0.32 * r)),
        ]
    if shape == "mug":
        return _mug(r)
    raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")


def rest_height(shape: str, r: float) -> float:
    """Height of the thing's origin above the floor that it rests on, metres."""
    share = {
        "box": 0.8,
        "ball": 1.0,
        "cylinder": 0.85,
        "capsule": 0.5,
        "egg": 0.75,
        "L block": 0.95,
        "mug": 0.75,
    }
    return share[shape] * r


def reach(shape: str, r: float) -> float:
    """Radius of the upright thing's footprint on the floor, metres."""
    share = {
        "box": 1.14,
        "ball": 1.0,
        "cylinder": 0.7,
        "capsule": 1.15,
        "egg": 1.05,
        "L block": 1.03,
        "mug": 1.1,
    }
    return share[shape] * r
