"""Prompts drawn at random, as many and as varied as the reference worlds' scenes (no MuJoCo here, so that a
dream needs none). What a caption says and how it is read back is `simulator/captions.py`'s.
"""

import numpy as np

from simulator.captions import Seen, styles
from simulator.words import COLOURS, FLOORS, KINDS, SHAPES, SIZES, WALLS, WORLDS


def random_things(rng: np.random.Generator, count: int) -> list[Seen]:
    """Things of different colours, at random places in the picture."""
    colours = rng.choice(COLOURS, size=count, replace=False)
    sizes = rng.choice(SIZES, size=count)
    shapes = rng.choice(SHAPES, size=count)
    places = rng.uniform(-0.7, 0.7, size=count)
    depths = rng.uniform(1.0, 2.0, size=count)
    return [
        Seen(str(s), str(c), str(z), float(x), float(d))
        for s, c, z, x, d in zip(shapes, colours, sizes, places, depths, strict=True)
    ]


KIND_CHANCES = {"Lab": (0.3, 0.25, 0.2, 0.1, 0.15)}


def draw_kind(rng: np.random.Generator, world: str) -> str:
    """One of the world's kinds of scene."""
    return str(rng.choice(list(KINDS[world]), p=KIND_CHANCES.get(world)))


def draw_count(rng: np.random.Generator, world: str, kind: str) -> int:
    """How many things a random scene of this kind has."""
    chances = {"Room": (0.25, 0.35, 0.25, 0.1, 0.05), "Orbit": (0.45, 0.3, 0.18, 0.04, 0.03)}
    if world in chances:
        return int(rng.choice(5, p=chances[world])) + 1
    if kind == "collide":
        return 2
    return 1 if kind in ("occluder", "mark") else int(rng.choice([1, 1, 2]))


def random_prompt(
    rng: np.random.Generator, world: str, kind: str | None = None, count: int | None = None
) -> str:
    """A caption drawn from the same grammar without any scene; `orrery/Dream-v0` starts from one by
    default.
    """
    if world not in WORLDS:
        raise ValueError(f"world must be one of {', '.join(WORLDS)}, got {world!r}")
    kind = kind or draw_kind(rng, world)
    things = random_things(rng, draw_count(rng, world, kind) if count is None else count)
    floor = str(rng.choice(FLOORS))
    wall = str(rng.choice(WALLS))
    return str(rng.choice(styles(world, things, floor=floor, wall=wall, kind=kind)["plain"]))
