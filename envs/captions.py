"""Captions of scenes and the prompts that the dream understands (no MuJoCo here, so that a dream needs none).

One small grammar, three uses: a caption is written from what the camera sees (`captions`), drawn from a seed
alone (`random_prompt`), or read back (`parse`). The thing that the prompt names comes first. Left, right,
behind and in front of are as seen from the camera at the first frame.
"""

import re
from dataclasses import dataclass

import numpy as np

from envs.vocabulary import COLOURS, FLOORS, KINDS, SHAPES, SIZES, TEST_FLOORS, WALLS, WORLDS

SIDE_GAP = 0.22
"""Things stand left or right of each other when their pictures' centres are this far apart (half widths)."""

DEPTH_GAP_M = 0.3
"""Things stand behind each other when they are this far apart in depth and not left or right."""


@dataclass(frozen=True)
class Seen:
    """A thing as the camera sees it: `x` from -1 (left edge) to 1 (right edge), `depth_m` along the view."""

    shape: str
    colour: str
    size: str
    x: float = 0.0
    depth_m: float = 0.0


def _a(words: str) -> str:
    """The words with their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(thing: Seen, sized: bool = False) -> str:
    """`a red ball`, or with its size where that is not medium: `a large red ball`."""
    words = f"{thing.colour} {thing.shape}"
    if sized and thing.size != "medium":
        words = f"{thing.size} {words}"
    return _a(words)


def relation(first: Seen, other: Seen) -> str | None:
    """How `first` stands to `other` as seen from the camera, or None where no word clearly fits."""
    if abs(first.x - other.x) > SIDE_GAP:
        return "left of" if first.x < other.x else "right of"
    if abs(first.depth_m - other.depth_m) > DEPTH_GAP_M:
        return "behind" if first.depth_m > other.depth_m else "in front of"
    return None


def _list(things: list[Seen], sized: bool) -> str:
    words = [phrase(thing, sized) for thing in things]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _arranged(things: list[Seen], sized: bool) -> str:
    """The things with the first one's relation to the second, where there is one."""
    word = relation(things[0], things[1]) if len(things) > 1 else None
    if word is None:
        return _list(things, sized)
    rest = "" if len(things) == 2 else f", with {_list(things[2:], sized)}"
    return f"{phrase(things[0], sized)} {word} {phrase(things[1], sized)}{rest}"


def _lab_sentences(things: list[Seen], kind: str, floor: str, sized: bool) -> list[str]:
    first, all_things = phrase(things[0], sized), _list(things, sized)
    several = len(things) > 1
    ground = f"a {floor} floor"
    if kind == "drop":
        verb = "fall" if several else "falls"
        return [f"{all_things} {verb}", f"{all_things} {verb} onto {ground}"]
    if kind == "throw":
        return [
            f"{all_things} {'are' if several else 'is'} thrown",
            f"{all_things} {'fly' if several else 'flies'} over {ground}",
        ]
    if kind == "collide":
        second = phrase(things[1], sized) if several else "another thing"
        return [f"{all_things} collide", f"{first} rolls into {second} on {ground}"]
    if kind == "occluder":
        return [f"{first} rolls behind a screen", f"{first} rolls behind a screen on {ground}"]
    return [
        f"{all_things} {'stand' if several else 'stands'} still",
        f"{all_things} {'stand' if several else 'stands'} still on {ground}",
    ]


def captions(
    world: str, things: list[Seen], *, floor: str, wall: str | None = None, kind: str | None = None
) -> list[str]:
    """All captions of one scene, from the shortest to the most descriptive, without repetition.

    Args:
        world: one of Room, Orbit, Lab.
        things: what the camera sees, the named thing first; at least one.
        floor: material of the floor or table top.
        wall: paint of the wall ahead, where the world has one to speak of.
        kind: Lab's experiment.
    """
    if not things:
        raise ValueError(
            "a caption needs at least one thing, got none; pass the named thing even when it is hidden"
        )
    if world == "Lab":
        found = _lab_sentences(things, kind or "drop", floor, False) + _lab_sentences(
            things, kind or "drop", floor, True
        )
    elif world == "Orbit":
        found = [_list(things, False), f"{_arranged(things, False)} on a {floor} table"]
        found += [f"{_list(things, False)} on a table", f"{_arranged(things, True)} on a {floor} table"]
        if wall:
            found.append(f"{_arranged(things, True)} on a {floor} table, {wall} walls")
    else:
        found = [_list(things, False), f"a room with {_list(things, False)}"]
        found += [f"{_arranged(things, False)} in a room with a {floor} floor"]
        found += [f"a room with {_arranged(things, True)}, {floor} floor"]
        if wall:
            found.append(f"{_arranged(things, True)} on a {floor} floor before {_a(wall)} wall")
    return list(dict.fromkeys(found))


def random_things(rng: np.random.Generator, count: int) -> list[Seen]:
    """Things of different colours, at random places in the picture."""
    colours = rng.choice(list(COLOURS), size=count, replace=False)
    sizes = rng.choice(list(SIZES), size=count)
    shapes = rng.choice(list(SHAPES), size=count)
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
    floor = str(rng.choice(list(FLOORS)))
    wall = str(rng.choice(list(WALLS)))
    return str(rng.choice(captions(world, things, floor=floor, wall=wall, kind=kind)))


@dataclass(frozen=True)
class Parsed:
    """What a prompt says, in the library's words; what it leaves open is None or empty."""

    things: tuple[dict, ...]
    floor: str | None
    kind: str | None
    wall: str | None


_THING = re.compile(
    rf"\b(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", flags=re.IGNORECASE
)
_FLOOR = re.compile(rf"\b({'|'.join(FLOORS + TEST_FLOORS)}) (?:floor|table)\b", flags=re.IGNORECASE)
_WALL = re.compile(rf"\b({'|'.join(WALLS)}) walls?\b", flags=re.IGNORECASE)
_KIND_WORDS = {
    "drop": r"\b(?:fall|falls|falling|drop|drops|dropped)\b",
    "throw": r"\b(?:thrown|throw|flies|fly|flying)\b",
    "occluder": r"\bbehind a screen\b",
    "collide": r"\b(?:collide|collides|rolls into|hits)\b",
    "mark": r"\b(?:stand|stands|touched|marked)\b",
}
_SHAPE_CASE = {shape.lower(): shape for shape in SHAPES}


def parse(prompt: str) -> Parsed:
    """Read a prompt back: `a large red ball on a wooden table` -> things, floor, kind, wall."""
    things = tuple(
        {"size": (size or "medium").lower(), "colour": colour.lower(), "shape": _SHAPE_CASE[shape.lower()]}
        for size, colour, shape in _THING.findall(prompt)
    )
    floor, wall = _FLOOR.search(prompt), _WALL.search(prompt)
    kind = next((k for k, words in _KIND_WORDS.items() if re.search(words, prompt, re.IGNORECASE)), None)
    return Parsed(
        things, floor.group(1).lower() if floor else None, kind, wall.group(1).lower() if wall else None
    )


def swap(prompt: str, attribute: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """Change the first thing's `colour` or `shape` in a prompt: (new prompt, old word, new word).

    The new word is one that no thing of the prompt has yet.
    """
    choices = {"colour": tuple(COLOURS), "shape": SHAPES}
    if attribute not in choices:
        raise ValueError(f"attribute must be colour or shape, got {attribute!r}")
    match = _THING.search(prompt)
    if match is None:
        raise ValueError(
            f"prompt names no thing that can be swapped, got {prompt!r}; say for example 'a red ball'"
        )
    used = {thing[attribute] for thing in parse(prompt).things}
    new = str(rng.choice([word for word in choices[attribute] if word not in used]))
    group = 2 if attribute == "colour" else 3
    old = match.group(group)
    start = match.start()
    changed = prompt[: match.start(group)] + new + prompt[match.end(group) :]
    if attribute == "colour" and match.group(1) is None:
        article = "an" if new[0] in "aeiou" else "a"
        changed = re.sub(r"\ban? $", f"{article} ", changed[:start]) + changed[start:]
    return changed, old, new
