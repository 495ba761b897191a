"""Arrangement: does a picture show as many things as its prompt names, those things, and where the prompt
puts them?

A checker reads the picture: which colours have a thing, of which shape, and where. Things are told apart by
colour, so two things of one colour count as one. Chance is what the same pictures score against each other's
prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from probes.checker import ABSENT, Checker
from probes.measurement import Measurement, share

Side = Literal["left of", "right of"]
PAIRINGS = 40
"""So many other prompts each picture is held against for the level of chance, at most."""


@dataclass(frozen=True)
class Ask:
    """What a prompt names: (colour, shape) of each thing, and on which side of the second the first one
    is."""

    prompt: str
    seed: int
    things: tuple[tuple[str, str], ...]
    side: Side | None = None

    def __post_init__(self) -> None:
        if not self.things or (self.side is not None and len(self.things) < 2):
            raise ValueError(f"an ask needs a thing, and two for a side, got {self}; name more things")


@dataclass(frozen=True)
class Readings:
    """What the checker reads in n pictures: per colour 0 or 1 + a shape, and where across, from -1 to 1."""

    shapes: Int[np.ndarray, "n colours"]
    x: Float[np.ndarray, "n colours"]


Outcome = Callable[[Ask, Int[np.ndarray, " colours"], Float[np.ndarray, " colours"]], bool | None]


def arrangement(
    asks: Sequence[Ask], pictures: UInt8[np.ndarray, "n h w 3"], checker: Checker
) -> list[Measurement]:
    """Shares of pictures that show what was asked, each beside its chance level.

    Counts; all the colours asked for and no other; left and right over all pictures (a missing thing fails),
    and over those that show both things.

    Args:
        asks: what was asked.
        pictures: one per ask.
        checker: reads pictures.
    """
    if len(asks) != len(pictures):
        raise ValueError(f"each ask needs one picture, got {len(pictures)} for {len(asks)} asks")
    read = Readings(checker.read(pictures), checker.places(pictures))

    def column(colour: str) -> int:
        if colour not in checker.colours:
            raise ValueError(f"colour must be one of {', '.join(checker.colours)}, got {colour!r}")
        return checker.colours.index(colour)

    def counted(ask: Ask, shapes: np.ndarray, x: np.ndarray) -> bool:
        return int((shapes != ABSENT).sum()) == len(ask.things)

    def colours(ask: Ask, shapes: np.ndarray, x: np.ndarray) -> bool:
        return set(np.flatnonzero(shapes != ABSENT)) == {column(colour) for colour, _ in ask.things}

    def sided_if_seen(ask: Ask, shapes: np.ndarray, x: np.ndarray) -> bool | None:
        first, other = (column(colour) for colour, _ in ask.things[:2]) if ask.side else (0, 0)
        if not ask.side or ABSENT in (shapes[first], shapes[other]):
            return None
        return bool((x[first] < x[other]) == (ask.side == "left of"))

    def sided(ask: Ask, shapes: np.ndarray, x: np.ndarray) -> bool | None:
        return bool(sided_if_seen(ask, shapes, x)) if ask.side else None

    seen_chance = 0.5 if any(ask.side for ask in asks) else None
    return [
        _judged("prompt_count", counted, asks, read, note="as many things as named"),
        _judged("prompt_colours_exact", colours, asks, read, note="every colour named and no other"),
        _judged("prompt_left_right", sided, asks, read, note="both there, on the right sides"),
        share(
            "prompt_left_right_if_seen",
            outcomes(sided_if_seen, asks, read, 0),
            "pictures",
            chance=seen_chance,
            note="of pictures with both things",
        ),
    ]


def outcomes(
    outcome: Outcome, asks: Sequence[Ask], read: Readings, shift: int
) -> Bool[np.ndarray, " judged"]:
    """Whether picture i shows what ask i + shift asks for, where that can be said."""
    found = [
        outcome(asks[(i + shift) % len(asks)], read.shapes[i], read.x[i]) for i in range(len(read.shapes))
    ]
    return np.array([value for value in found if value is not None], dtype=bool)


def _judged(name: str, outcome: Outcome, asks: Sequence[Ask], read: Readings, note: str) -> Measurement:
    """The share of pictures with the outcome, beside the share with other pictures' prompts."""
    others = [outcomes(outcome, asks, read, shift) for shift in range(1, min(len(asks), PAIRINGS + 1))]
    pooled = np.concatenate(others) if others else np.zeros(0, bool)
    chance = float(pooled.mean()) if len(pooled) else None
    return share(name, outcomes(outcome, asks, read, 0), "pictures", chance=chance, note=note)
