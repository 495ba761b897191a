"""Captioning: how much of what a clip shows does its caption say, and how much of what it says is there?

Judged on facts, not on words: which things (by colour), of which shape and size, how many, how each two stand
to each other, and in what surroundings. Chance is what the captions score against each other's clips, and,
where a part can only be judged in things that were found, the share of the most frequent answer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from probes.measurement import Measurement, share

PAIRINGS = 40
"""So many other clips each caption is held against for the level of chance, at most."""


@dataclass(frozen=True)
class Facts:
    """What a caption says, or what a clip shows.

    things: (shape, size) by colour. relations: the word between two colours, where one clearly fits. around:
    what surrounds them by name (`floor`, `wall`, ...); what is not known is left out.
    """

    things: dict[str, tuple[str, str]]
    relations: dict[tuple[str, str], str] = field(default_factory=dict)
    around: dict[str, str] = field(default_factory=dict)


def captioning(told: Sequence[Facts], truth: Sequence[Facts]) -> list[Measurement]:
    """Accuracy of captions against the truth of their clips, pair by pair.

    Args:
        told: what each caption says.
        truth: what each clip shows.
    """
    if len(told) != len(truth):
        raise ValueError(f"each caption needs one clip, got {len(told)} captions and {len(truth)} clips")
    both = [
        (said.things[c], true.things[c])
        for said, true in zip(told, truth, strict=True)
        for c in true.things
        if c in said.things
    ]
    related = [
        (said.relations.get(pair, ""), word)
        for said, true in zip(told, truth, strict=True)
        for pair, word in true.relations.items()
        if set(pair) <= set(said.things)
    ]
    sideways = [(a, b) for a, b in related if b in ("left of", "right of")]
    shifted = [
        (told[(i + shift) % len(told)], true)
        for shift in range(1, min(len(told), PAIRINGS + 1))
        for i, true in enumerate(truth)
    ]
    straight = list(zip(told, truth, strict=True))
    names = sorted({name for true in truth for name in true.around})
    surroundings = {
        name: [(said.around.get(name), true.around[name]) for said, true in straight if name in true.around]
        for name in names
    }
    return [
        _against("caption_colour_found", _found(straight), _found(shifted), "things", "of the things there"),
        _against("caption_colour_right", _right(straight), _right(shifted), "things", "of the things said"),
        _equal("caption_count", [(len(a.things), len(b.things)) for a, b in straight], "clips"),
        _equal("caption_shape", [(a[0], b[0]) for a, b in both], "things", "of the things found"),
        _equal("caption_size", [(a[1], b[1]) for a, b in both], "things", "of the things found"),
        _equal("caption_relation", related, "pairs", "of pairs found, four words"),
        _equal("caption_left_right", sideways, "pairs", "of pairs found"),
        _against(
            "caption_things_exact", _exact(straight), _exact(shifted), "clips", "colours, shapes, count"
        ),
        *(_equal(f"caption_{name}", pairs, "clips") for name, pairs in surroundings.items()),
    ]


def _found(pairs: Iterable[tuple[Facts, Facts]]) -> list[bool]:
    return [colour in said.things for said, true in pairs for colour in true.things]


def _right(pairs: Iterable[tuple[Facts, Facts]]) -> list[bool]:
    return [colour in true.things for said, true in pairs for colour in said.things]


def _exact(pairs: Iterable[tuple[Facts, Facts]]) -> list[bool]:
    return [
        {colour: thing[0] for colour, thing in said.things.items()}
        == {colour: thing[0] for colour, thing in true.things.items()}
        for said, true in pairs
    ]


def _against(name: str, hits: list[bool], others: list[bool], unit: str, note: str) -> Measurement:
    chance = float(np.mean(others)) if others else None
    return share(name, np.array(hits, dtype=bool), unit, chance=chance, note=note)


def _equal(name: str, pairs: Sequence[tuple[object, object]], unit: str, note: str = "") -> Measurement:
    """The share of equal pairs, beside that of the most frequent truth."""
    answers = Counter(true for _, true in pairs)
    chance = answers.most_common(1)[0][1] / len(pairs) if pairs else None
    return share(name, np.array([a == b for a, b in pairs], dtype=bool), unit, chance=chance, note=note)
