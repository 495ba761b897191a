"""Captions of scenes, in several styles, and prompts read back (leaf: numpy and the words).

One small grammar, three uses: a caption is written from what the camera sees (`styles`), drawn from a seed
alone (`envs/captions.py`), or read back (`parse`). The thing that the prompt names comes first. Left, right,
behind and in front of are as seen from the camera at the first frame.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simulator.words import COLOURS, FLOORS, NUMBERS, SHAPES, SIZES, TEST_FLOORS, WALLS

STYLES = ("plain", "tags", "counting", "relational", "descriptive")

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
    """How `first` stands to `other` as seen from the camera, or None where no word clearly fits (or both have
    one name)."""
    if (first.colour, first.shape) == (other.colour, other.shape):
        return None
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


def _plain(world: str, things: list[Seen], floor: str, wall: str | None, kind: str | None) -> list[str]:
    """Short sentences, from naming the things alone to all that one sentence holds."""
    if world == "Lab":
        return _lab_sentences(things, kind or "drop", floor, False) + _lab_sentences(
            things, kind or "drop", floor, True
        )
    if world == "Orbit":
        found = [_list(things, False), f"{_arranged(things, False)} on a {floor} table"]
        found += [f"{_list(things, False)} on a table", f"{_arranged(things, True)} on a {floor} table"]
        if wall:
            found.append(f"{_arranged(things, True)} on a {floor} table, {wall} walls")
        return found
    found = [_list(things, False), f"a room with {_list(things, False)}"]
    found += [f"{_arranged(things, False)} in a room with a {floor} floor"]
    found += [f"a room with {_arranged(things, True)}, {floor} floor"]
    if wall:
        found.append(f"{_arranged(things, True)} on a {floor} floor before {_a(wall)} wall")
    return found


_LAB_TAGS = {
    "drop": "falling",
    "throw": "thrown",
    "collide": "colliding",
    "occluder": "rolling behind a screen",
    "mark": "standing still",
}


def _tags(world: str, things: list[Seen], floor: str, wall: str | None, kind: str | None) -> list[str]:
    """Bare words between commas: `large red ball, blue box, wooden table, rose walls`."""
    words = [phrase(thing, True).split(" ", 1)[1] for thing in things]
    if world == "Lab":
        return [", ".join([*words, _LAB_TAGS[kind or "drop"], f"{floor} floor"])]
    if world == "Orbit":
        return [", ".join([*words, f"{floor} table", *([f"{wall} walls"] if wall else [])])]
    return [", ".join([*words, "room", f"{floor} floor", *([f"{wall} wall"] if wall else [])])]


def _lab_clause(kind: str, several: bool) -> str:
    """What happens, as words that follow the things."""
    return {
        "drop": "fall" if several else "falls",
        "throw": "are thrown" if several else "is thrown",
        "collide": "collide" if several else "collides with another",
        "occluder": "roll behind a screen" if several else "rolls behind a screen",
        "mark": "stand still" if several else "stands still",
    }[kind]


def count_words(count: int) -> str:
    """`one thing`, `three things`; figures from ten on."""
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} thing{'' if count == 1 else 's'}"


def _counting(world: str, things: list[Seen], floor: str, kind: str | None) -> list[str]:
    """How many things there are, then which."""
    number = count_words(len(things))
    if world == "Lab":
        return [f"{number} {_lab_clause(kind or 'drop', len(things) > 1)}: {_list(things, False)}"]
    place = f"on a {floor} table" if world == "Orbit" else f"in a room with a {floor} floor"
    return [f"{number}: {_list(things, False)}", f"{number} {place}: {_list(things, True)}"]


def _the(thing: Seen) -> str:
    return f"the {thing.colour} {thing.shape}"


def _relational(world: str, things: list[Seen], kind: str | None) -> list[str]:
    """How each thing stands to the next, and what else is there; nothing where the first pair's is
    unclear."""
    if len(things) < 2 or relation(things[0], things[1]) is None:
        return []
    told, clauses = set(), []
    for first, other in pairwise(things):
        word = relation(first, other)
        if word is not None:
            names = [_the(t) if (t.colour, t.shape) in told else phrase(t) for t in (first, other)]
            told |= {(first.colour, first.shape), (other.colour, other.shape)}
            clauses.append(f"{names[0]} is {word} {names[1]}")
    rest = [thing for thing in things if (thing.colour, thing.shape) not in told]
    if rest:
        clauses.append(f"beside {_list(rest, False)}")
    if world == "Lab":
        clauses.append(f"they {_lab_clause(kind or 'drop', True)}")
    return [", ".join(clauses)]


def _place(thing: Seen, things: list[Seen]) -> str:
    """Where in the picture a thing is, and whether it is clearly the nearest or the furthest."""
    side = "on the left" if thing.x < -1 / 3 else "on the right" if thing.x > 1 / 3 else "in the middle"
    others = [other.depth_m for other in things if other is not thing]
    if others and thing.depth_m < min(others) - DEPTH_GAP_M:
        return f"{side}, nearest to the camera"
    return f"{side}, furthest away" if others and thing.depth_m > max(others) + DEPTH_GAP_M else side


def _descriptive(world: str, things: list[Seen], floor: str, wall: str | None, kind: str | None) -> list[str]:
    """A paragraph of at most 150 words: the place, how many things and which, where each is, and how they
    stand to each other."""
    several = len(things) > 1
    if world == "Lab":
        told = [f"A fixed camera looks level at a stage with a {floor} floor"]
    elif world == "Orbit":
        told = [f"The camera looks down on a {floor} table" + (f" between {wall} walls" if wall else "")]
    else:
        told = [
            f"The camera is in a room with a {floor} floor" + (f", facing {_a(wall)} wall" if wall else "")
        ]
    told.append(f"{count_words(len(things)).capitalize()} can be seen: {_list(things, True)}")
    told += [f"The {thing.colour} {thing.shape} is {_place(thing, things)}" for thing in things]
    for first, other in pairwise(things):
        word = relation(first, other)
        if word is not None:
            told.append(f"The {first.colour} {first.shape} is {word} {_the(other)}")
    if world == "Lab":
        told.append(f"{'They' if several else 'It'} {_lab_clause(kind or 'drop', several)}")
    return [". ".join(told) + "."]


def styles(
    world: str, things: list[Seen], *, floor: str, wall: str | None = None, kind: str | None = None
) -> dict[str, list[str]]:
    """All captions of one scene by style (`STYLES`), each from the shortest to the most descriptive.

    plain: one sentence, the first of which only names things. tags: words between commas. counting: how many,
    then which. relational: how the things stand to each other (empty where nothing is clear). descriptive: a
    paragraph of at most 150 words.

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
    told = {
        "plain": _plain(world, things, floor, wall, kind),
        "tags": _tags(world, things, floor, wall, kind),
        "counting": _counting(world, things, floor, kind),
        "relational": _relational(world, things, kind),
        "descriptive": _descriptive(world, things, floor, wall, kind),
    }
    return {style: list(dict.fromkeys(found)) for style, found in told.items()}


def captions(
    world: str, things: list[Seen], *, floor: str, wall: str | None = None, kind: str | None = None
) -> list[str]:
    """All captions of one scene in every style, without repetition; the first only names the things."""
    told = styles(world, things, floor=floor, wall=wall, kind=kind)
    return list(dict.fromkeys(caption for found in told.values() for caption in found))


@dataclass(frozen=True)
class Parsed:
    """What a prompt says, in the library's words; what it leaves open is None or empty.

    `relations`: (i, word, j) for `things[i]` left of, right of, behind or in front of `things[j]`. `count`:
    the number that it gives (`three things`)."""

    things: tuple[dict, ...]
    floor: str | None
    kind: str | None
    wall: str | None
    relations: tuple[tuple[int, str, int], ...] = ()
    count: int | None = None


_NAME = rf"(?:(?:{'|'.join(SIZES)}) )?(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
_THING = re.compile(
    rf"(?:\b(an?|the) )?\b(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b",
    flags=re.IGNORECASE,
)
_SHARED = re.compile(  # a red and a blue ball: one shape for both
    rf"\b(an?|the) ((?:{'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) and ((?:an?|the) "
    rf"(?:(?:{'|'.join(SIZES)}) )?(?:{'|'.join(COLOURS)}) ({'|'.join(SHAPES)}))\b",
    flags=re.IGNORECASE,
)
_RELATION = re.compile(
    rf"\b({_NAME}) (?:(?:is|stands|lies) )?(?:to the )?(left of|right of|behind|in front of) "
    rf"(?:an?|the) ({_NAME})\b",
    flags=re.IGNORECASE,
)
_COUNT = re.compile(rf"\b({'|'.join(NUMBERS[1:])}) things?\b", flags=re.IGNORECASE)
_FLOOR = re.compile(rf"\b({'|'.join(FLOORS + TEST_FLOORS)}) (?:floor|table)\b", flags=re.IGNORECASE)
_WALL = re.compile(rf"\b({'|'.join(WALLS)}) walls?\b", flags=re.IGNORECASE)
_KIND_WORDS = {
    "drop": r"\b(?:fall|falls|falling|drop|drops|dropped)\b",
    "throw": r"\b(?:thrown|throw|flies|fly|flying)\b",
    "occluder": r"\bbehind a screen\b",
    "collide": r"\b(?:collide|collides|colliding|rolls into|hits)\b",
    "mark": r"\b(?:stand|stands|standing|touched|marked)\b",
}
_SHAPE_CASE = {shape.lower(): shape for shape in SHAPES}


def _named(match: re.Match) -> tuple[str, str]:
    """Colour and shape of a mention, in the library's spelling."""
    return match.group(3).lower(), _SHAPE_CASE[match.group(4).lower()]


def parse(prompt: str) -> Parsed:
    """Read a prompt back: `a large red ball on a wooden table` -> things, floor, kind, wall, relations,
    count.

    `the red ball` is the red ball named before, if there was one.
    """
    names, things, prompt = [], [], _SHARED.sub(r"\1 \2\3 \5 and \4", prompt)
    for match in _THING.finditer(prompt):
        colour, shape = _named(match)
        if (match.group(1) or "").lower() == "the" and (colour, shape) in names:
            continue
        names.append((colour, shape))
        things.append({"size": (match.group(2) or "medium").lower(), "colour": colour, "shape": shape})
    relations = []
    for first, word, other in _RELATION.findall(prompt):
        ends = [_THING.search(end) for end in (first, other)]
        i, j = (names.index(_named(end)) for end in ends if end is not None)
        relations.append((i, word.lower(), j))
    floor, wall, count = _FLOOR.search(prompt), _WALL.search(prompt), _COUNT.search(prompt)
    kind = next((k for k, words in _KIND_WORDS.items() if re.search(words, prompt, re.IGNORECASE)), None)
    return Parsed(
        tuple(things),
        floor.group(1).lower() if floor else None,
        kind,
        wall.group(1).lower() if wall else None,
        tuple(dict.fromkeys(relations)),
        NUMBERS.index(count.group(1).lower()) if count else None,
    )


def swap(prompt: str, attribute: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """Change the first thing's `colour` or `shape` in a prompt: (new prompt, old word, new word).

    The new word is one that no thing of the prompt has yet. Later mentions (`the red ball`) change with it.
    """
    choices = {"colour": COLOURS, "shape": SHAPES}
    if attribute not in choices:
        raise ValueError(f"attribute must be colour or shape, got {attribute!r}")
    first = _THING.search(prompt)
    if first is None:
        raise ValueError(
            f"prompt names no thing that can be swapped, got {prompt!r}; say for example 'a red ball'"
        )
    used = {thing[attribute] for thing in parse(prompt).things}
    new = str(rng.choice([word for word in choices[attribute] if word not in used]))
    name = _named(first)

    def changed(match: re.Match) -> str:
        article, size, colour, shape = match.groups()
        later = match.start() != first.start()
        if _named(match) != name or (later and (article or "").lower() != "the"):
            return match.group(0)
        words = (size, new if attribute == "colour" else colour, new if attribute == "shape" else shape)
        if article and article.lower() != "the":
            fitting = "an" if (size or words[1])[0].lower() in "aeiou" else "a"
            article = fitting.capitalize() if article[0].isupper() else fitting
        return " ".join(word for word in (article, *words) if word)

    old = first.group(3 if attribute == "colour" else 4)
    return _THING.sub(changed, prompt), old, new
