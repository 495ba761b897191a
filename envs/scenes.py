"""The one scene generator: random scenes for every reference world, all in plain numbers.

`random_scene` draws what is not asked for. `wanted` and `options` come from a prompt or from the user.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from envs.asset_things import asset_thing
from envs.captions import draw_count, draw_kind
from envs.shapes import reach, rest_height
from envs.vocabulary import COLOURS, LIGHTS, SIZES, WALLS, Scene, Thing
from simulator.captions import parse
from simulator.words import FLOORS, KINDS, SHAPES, TEST_FLOORS

ROOM_HALF_M = 2.0
TABLE_HALF_M = 0.9
STAGE_HALF_X_M = 1.16
STAGE_BACK_M = 0.9
STAGE_FRONT_M = -0.7
MOST_THINGS = {"room": 5, "table": 5, "drop": 3, "throw": 2, "collide": 2, "occluder": 1, "mark": 3}

TABLE_RADII_M = (0.31, 0.255, 0.22, 0.19, 0.17)
ROOM_RADIUS_M = 0.30
LAB_RADIUS_M = 0.29


def _yaw(angle: float) -> tuple[float, float, float, float]:
    return (float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2)))


def _any_turn(rng: np.random.Generator) -> tuple[float, float, float, float]:
    q = rng.normal(size=4)
    q /= np.linalg.norm(q)
    return (float(q[0]), float(q[1]), float(q[2]), float(q[3]))


def _checked(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def _draw_things(
    rng: np.random.Generator, count: int, wanted: tuple[dict, ...], radius_m: float
) -> list[Thing]:
    """Things without places: wanted words first, the rest drawn so that no two have the same colour."""
    taken = {thing["colour"] for thing in wanted if "colour" in thing}
    free = [colour for colour in rng.permutation(list(COLOURS)) if colour not in taken]
    things = []
    for index in range(count):
        asked = wanted[index] if index < len(wanted) else {}
        if "asset" in asked:
            things.append(_asked_asset(asked, radius_m))
            continue
        unknown = set(asked) - {"shape", "colour", "size"}
        if unknown:
            raise ValueError(
                f"a scene's thing may have shape, colour, size or asset, got {sorted(unknown)[0]!r}"
            )
        drawn = {"shape": str(rng.choice(list(SHAPES))), "size": str(rng.choice(list(SIZES)))}
        shape = _checked("shape", asked.get("shape", drawn["shape"]), SHAPES)
        size = _checked("size", asked.get("size", drawn["size"]), tuple(SIZES))
        colour = _checked("colour", asked.get("colour") or str(free.pop()), tuple(COLOURS))
        things.append(Thing(shape, colour, size, radius_m * SIZES[size]))
    return things


def _asked_asset(asked: dict, radius_m: float) -> Thing:
    unknown = set(asked) - {"asset", "shape", "colour"}
    if unknown:
        raise ValueError(f"a thing from a file may have shape and colour, got {sorted(unknown)[0]!r}")
    if "colour" in asked:
        _checked("colour", asked["colour"], tuple(COLOURS))
    return asset_thing(asked, radius_m)


def stands_at(thing: Thing) -> float:
    """Height of a thing's origin above the floor that it stands on, metres."""
    return 0.0 if thing.asset else rest_height(thing.shape, thing.radius_m)


def footprint(thing: Thing) -> float:
    """Radius of an upright thing's footprint on the floor, metres."""
    return thing.radius_m if thing.asset else reach(thing.shape, thing.radius_m)


def _on_table(rng: np.random.Generator, things: list[Thing]) -> list[Thing]:
    """Things around the middle of the table, not touching each other."""
    count = len(things)
    ring = {1: 0.0, 2: 0.36, 3: 0.45, 4: 0.5, 5: 0.56}[count]
    start = rng.uniform(0, 2 * np.pi)
    placed = []
    for index, thing in enumerate(things):
        angle = start + 2 * np.pi * index / count + rng.uniform(-0.12, 0.12)
        x, y = ring * np.cos(angle), ring * np.sin(angle)
        if count == 1:
            x, y = rng.uniform(-0.08, 0.08, 2)
        turn = _yaw(rng.uniform(0, 2 * np.pi))
        placed.append(replace(thing, position=(float(x), float(y), stands_at(thing)), quaternion=turn))
    return placed


def _in_room(rng: np.random.Generator, things: list[Thing]) -> list[Thing]:
    """Things anywhere on the floor, with gaps that the camera can walk through."""
    edge = ROOM_HALF_M - 0.5
    for _ in range(200):
        places = rng.uniform(-edge, edge, (len(things), 2))
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(len(things))
        if gaps.min() > 0.85:
            break
    return [
        replace(
            thing,
            position=(float(place[0]), float(place[1]), stands_at(thing)),
            quaternion=_yaw(rng.uniform(0, 2 * np.pi)),
        )
        for thing, place in zip(things, places, strict=True)
    ]


def _dropped(rng: np.random.Generator, things: list[Thing]) -> list[Thing]:
    """Things at rest in the air in the camera's plane; the fall is seen whole."""
    count = len(things)
    placed = []
    for index, thing in enumerate(things):
        x = (
            rng.uniform(-0.5, 0.5)
            if count == 1
            else (index - (count - 1) / 2) * 1.9 / count + rng.uniform(-0.05, 0.05)
        )
        bottom = rng.uniform(1.15, 2.25 - 2 * reach(thing.shape, thing.radius_m))
        z = bottom + reach(thing.shape, thing.radius_m)
        round_thing = thing.shape == "ball" or rng.random() < 0.4
        turn = _yaw(rng.uniform(0, 2 * np.pi)) if round_thing else _any_turn(rng)
        placed.append(replace(thing, position=(float(x), 0.0, float(z)), quaternion=turn))
    return placed


def _thrown(rng: np.random.Generator, things: list[Thing]) -> list[Thing]:
    placed = []
    for index, thing in enumerate(things):
        side = (
            -1.0 if (index + int(rng.integers(2) if index == 0 else placed[0].position[0] < 0)) % 2 else 1.0
        )
        x = side * (STAGE_HALF_X_M - 0.03 - reach(thing.shape, thing.radius_m) - rng.uniform(0.0, 0.15))
        z = rng.uniform(0.4, 0.9)
        speed = (float(-side * rng.uniform(1.3, 2.4)), 0.0, float(rng.uniform(2.2, 3.8)))
        spin = (0.0, float(rng.uniform(-5, 5)), 0.0)
        turn = _yaw(rng.uniform(0, 2 * np.pi))
        placed.append(
            replace(
                thing,
                position=(float(x), 0.0, float(z)),
                quaternion=turn,
                linear_velocity=speed,
                angular_velocity=spin,
            )
        )
    return placed


def _rolled(rng: np.random.Generator, thing: Thing, side: float, speed: float) -> Thing:
    """A thing on the floor at one side, on its way to the other; balls roll, others slide."""
    height = rest_height(thing.shape, thing.radius_m)
    speed *= 1.0 if thing.shape == "ball" else 1.3
    spin = -side * speed / thing.radius_m if thing.shape == "ball" else 0.0
    return replace(
        thing,
        position=(side * (STAGE_HALF_X_M - 0.03 - reach(thing.shape, thing.radius_m)), 0.0, height),
        quaternion=_yaw(float(rng.choice([0.0, np.pi]))),
        linear_velocity=(-side * speed, 0.0, 0.0),
        angular_velocity=(0.0, spin, 0.0),
    )


def _on_stage(rng: np.random.Generator, things: list[Thing], kind: str) -> list[Thing]:
    """Lab's things at the start of the experiment."""
    if kind == "drop":
        return _dropped(rng, things)
    if kind == "throw":
        return _thrown(rng, things)
    if kind == "mark":
        rows = np.arange(len(things)) - (len(things) - 1) / 2
        return [
            replace(
                thing,
                position=(
                    float(0.75 * row + rng.uniform(-0.15, 0.15)),
                    0.0,
                    rest_height(thing.shape, thing.radius_m),
                ),
                quaternion=_yaw(rng.uniform(0, 2 * np.pi)),
            )
            for thing, row in zip(things, rows, strict=True)
        ]
    side = float(rng.choice([-1.0, 1.0]))
    if kind == "occluder":
        return [_rolled(rng, things[0], side, rng.uniform(1.2, 2.0))]
    return [
        _rolled(
            rng, thing, side * (-1.0) ** index, rng.uniform(1.5, 2.4) if index == 0 else rng.uniform(0.5, 1.5)
        )
        for index, thing in enumerate(things)
    ]


def _kind_for(rng: np.random.Generator, world: str, asked: str | None, count: int) -> str:
    """The kind that is asked for, else one drawn among those that take `count` things."""
    if asked is not None:
        kind = _checked("kind", asked, KINDS[world])
        if count > MOST_THINGS[kind]:
            raise ValueError(f"kind {kind} takes at most {MOST_THINGS[kind]} things, got {count}; name fewer")
        return kind
    most = max(MOST_THINGS[kind] for kind in KINDS[world])
    if count > most:
        raise ValueError(f"{world} takes at most {most} things, got {count}; name fewer")
    kind = draw_kind(rng, world)
    while count > MOST_THINGS[kind]:
        kind = draw_kind(rng, world)
    return kind


def _checked_options(options: Any) -> dict[str, Any]:
    """The options of a scene as a dict with the keys `things` (a tuple of dicts) and `walls` (a tuple)
    checked.
    """
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ValueError(f"scene must be a dict with kind and things, got {type(options).__name__}")
    unknown = set(options) - {"kind", "things", "floor", "walls", "light"}
    if unknown:
        raise ValueError(
            f"scene may have kind, things, floor, walls, light, got {sorted(map(str, unknown))[0]!r}"
        )
    wanted = options.get("things") or ()
    if not isinstance(wanted, (tuple, list)) or not all(isinstance(thing, dict) for thing in wanted):
        raise ValueError(
            f"scene things must be dicts such as {{'shape': 'ball', 'colour': 'red'}}, got {wanted!r}"
        )
    walls = options.get("walls") or ()
    walls = (walls,) * 4 if isinstance(walls, str) else tuple(walls)
    if len(walls) not in (0, 4):
        raise ValueError(f"walls must be one name or four, got {len(walls)}")
    return {**options, "things": tuple(wanted), "walls": walls}


def random_scene(rng: np.random.Generator, world: str, options: Any = None) -> Scene:
    """Draw a scene; what `options` asks for is kept.

    Args:
        rng: the source of everything that is not asked for.
        world: Room, Orbit or Lab.
        options: a dict with any of `kind`, `things` (a sequence of dicts with any of shape, colour, size; the
            first is the one that the prompt names; `asset`, the path of an MJCF file, makes a thing of that),
            `floor`, `walls` (one name or four), `light`.

    Raises:
        ValueError: options hold an unknown word or more things than the kind takes.
    """
    options = _checked_options(options)
    wanted = options["things"]
    if world == "Lab" and any("asset" in thing for thing in wanted):
        raise ValueError("things from files stand in Orbit and Room, not in Lab; name a shape there")
    kind = _kind_for(rng, world, options.get("kind"), len(wanted))
    count = len(wanted) or draw_count(rng, world, kind)
    count = max(count, 2) if kind == "collide" else count
    radius = {"Room": ROOM_RADIUS_M, "Orbit": TABLE_RADII_M[count - 1], "Lab": LAB_RADIUS_M}[world]
    if kind == "mark":
        radius *= 1.25 if count == 1 else 1.0
    things = _draw_things(rng, count, wanted, radius)
    if kind in ("occluder", "collide"):
        things = [
            thing if index < len(wanted) or rng.random() < 0.3 else replace(thing, shape="ball")
            for index, thing in enumerate(things)
        ]
    place = {"Room": _in_room, "Orbit": _on_table}
    things = _on_stage(rng, things, kind) if world == "Lab" else place[world](rng, things)
    floor, light = str(rng.choice(list(FLOORS))), str(rng.choice(list(LIGHTS)))
    paints = [str(paint) for paint in rng.permutation(list(WALLS))]
    asked_walls = tuple(_checked("wall", wall, tuple(WALLS)) for wall in options["walls"])
    walls = asked_walls or (tuple(paints[:4]) if world == "Room" else (paints[0],) * 4)
    return Scene(
        world=world,
        kind=kind,
        things=tuple(things),
        floor=_checked("floor", options.get("floor") or floor, FLOORS + TEST_FLOORS),
        walls=(walls[0], walls[1], walls[2], walls[3]),
        light=_checked("light", options.get("light") or light, tuple(LIGHTS)),
        screen="slate" if kind == "occluder" else None,
    )


def asked_scene(world: str, options: dict[str, Any] | None) -> tuple[Any, str | None]:
    """What a reference world's reset options ask for: options of `random_scene`, and the prompt if there is
    one.

    Raises:
        ValueError: an option is unknown, or the prompt names no thing.
    """
    options = options or {}
    if "image" in options:
        raise ValueError("a reference world cannot start from an image; use orrery/Dream-v0 or pass scene")
    unknown = set(options) - {"prompt", "scene"}
    if unknown:
        raise ValueError(f"reset options may be prompt and scene, got {sorted(map(str, unknown))[0]!r}")
    prompt = options.get("prompt")
    if prompt is None:
        return options.get("scene"), None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt must be text that says something, got {prompt!r}; for example 'a red ball'")
    if options.get("scene") is not None:
        return options["scene"], prompt
    said = parse(prompt)
    if not said.things:
        raise ValueError(f"prompt must name a thing by colour and shape such as 'a red ball', got {prompt!r}")
    asked = {"things": list(said.things), "floor": said.floor}
    if world == "Lab":
        asked["kind"] = said.kind
    elif world == "Orbit" and said.wall:
        asked["walls"] = said.wall
    return asked, prompt
