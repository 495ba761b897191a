"""Prompt following: does a word that changes in the prompt change in the picture, at a fixed seed?

Pictures are made twice from text alone, once from a prompt and once with the colour or the shape of its first
thing swapped. A checker reads both. A swap succeeds where the asked word is read in both pictures, and for
colours where neither picture shows the other's.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8

from probes.checker import ABSENT, Checker
from probes.measurement import Measurement, share

NEEDED_SHARE = 0.8
PAIRINGS = 40
"""So many other prompts each pair of pictures is held against for the level of chance, at most."""

Pictures = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True)
class Swap:
    """A prompt, the same with one word of its first thing changed, and the words of that thing.

    `colours` and `shapes` are of the first thing, before and after; `things` is how many the prompt names.
    """

    prompt: str
    changed_prompt: str
    attribute: Literal["colour", "shape"]
    colours: tuple[str, str]
    shapes: tuple[str, str]
    seed: int
    things: int = 1


def prompt_following(
    swaps: list[Swap], originals: Pictures, changed: UInt8[np.ndarray, "m h w 3"], checker: Checker
) -> list[Measurement]:
    """Share of swaps that succeed, for both words, colours and shapes, and how well single pictures follow.

    Args:
        swaps: what was asked.
        originals: one picture per swap, from its prompt and seed.
        changed: one picture per swap, from its changed prompt and the same seed.
        checker: reads pictures.
    """
    if not len(swaps) == len(originals) == len(changed):
        raise ValueError(
            f"each swap needs two pictures, got {len(originals)} and {len(changed)} for {len(swaps)} swaps"
        )
    readings = (checker.read(originals), checker.read(changed))
    found = _outcomes(swaps, readings, checker)
    chances = _chances(swaps, readings, checker)

    def judged(
        name: str, outcome: str, unit: str, *, needed: float | None = None, note: str = ""
    ) -> Measurement:
        return share(name, found[outcome], unit, needed=needed, chance=chances.get(outcome), note=note)

    return [
        judged("prompt_swap_success", "swaps", "swaps", needed=NEEDED_SHARE),
        judged("prompt_swap_success_colour", "colour swaps", "swaps", needed=NEEDED_SHARE),
        judged("prompt_swap_success_shape", "shape swaps", "swaps", needed=NEEDED_SHARE),
        judged("prompt_swap_success_one_thing", "alone", "swaps", note="prompts of one thing"),
        judged(
            "prompt_swap_success_strict", "strict", "swaps", note="colour and shape right in both pictures"
        ),
        judged("prompt_colour_read", "colours", "pictures", note="the named colour is there"),
        judged("prompt_shape_read", "shapes", "pictures", note="with the named shape"),
    ]


def _outcomes(
    swaps: list[Swap], readings: tuple[Int[np.ndarray, "n colours"], ...], checker: Checker
) -> dict[str, Bool[np.ndarray, " _"]]:
    """What succeeded, by what is judged; pictures are in two halves, originals first."""
    right_colour = np.stack([_colour_read(swaps, readings[side], checker, side) for side in (0, 1)])
    right_shape = np.stack([_shape_read(swaps, readings[side], checker, side) for side in (0, 1)])
    of_colour = np.array([swap.attribute == "colour" for swap in swaps], dtype=bool)
    alone = np.array([swap.things == 1 for swap in swaps], dtype=bool)
    gone = ~_other_colour_read(swaps, readings, checker)
    succeeded = np.where(of_colour, right_colour.all(axis=0) & gone, right_shape.all(axis=0))
    return {
        "swaps": succeeded,
        "colour swaps": succeeded[of_colour],
        "shape swaps": succeeded[~of_colour],
        "alone": succeeded[alone],
        "strict": right_shape.all(axis=0) & (gone | ~of_colour),
        "colours": right_colour.flatten(),
        "shapes": right_shape.flatten(),
    }


def _chances(
    swaps: list[Swap], readings: tuple[Int[np.ndarray, "n colours"], ...], checker: Checker
) -> dict[str, float]:
    """The same shares where each pair of pictures is held against other pairs' prompts; none for one swap."""
    shifts = range(1, min(len(swaps), PAIRINGS + 1))
    found = [_outcomes(swaps[shift:] + swaps[:shift], readings, checker) for shift in shifts]
    pooled = {name: np.concatenate([one[name] for one in found]) for name in (found[0] if found else ())}
    return {name: float(values.mean()) for name, values in pooled.items() if len(values)}


def _column(checker: Checker, colour: str) -> int:
    if colour not in checker.colours:
        raise ValueError(f"colour must be one of {', '.join(checker.colours)}, got {colour!r}")
    return checker.colours.index(colour)


def _colour_read(
    swaps: list[Swap], reading: Int[np.ndarray, "n colours"], checker: Checker, side: int
) -> Bool[np.ndarray, " n"]:
    """Is a thing of the asked colour there?"""
    columns = [_column(checker, swap.colours[side]) for swap in swaps]
    return np.array([row[column] != ABSENT for row, column in zip(reading, columns, strict=True)], dtype=bool)


def _shape_read(
    swaps: list[Swap], reading: Int[np.ndarray, "n colours"], checker: Checker, side: int
) -> Bool[np.ndarray, " n"]:
    """Is the thing of the asked colour there, and has it the asked shape?"""
    wanted = [
        (_column(checker, swap.colours[side]), 1 + checker.shapes.index(swap.shapes[side])) for swap in swaps
    ]
    return np.array(
        [row[column] == shape for row, (column, shape) in zip(reading, wanted, strict=True)], dtype=bool
    )


def _other_colour_read(
    swaps: list[Swap], readings: tuple[Int[np.ndarray, "n colours"], ...], checker: Checker
) -> Bool[np.ndarray, " n"]:
    """Does either picture show the colour that only the other one was asked for?"""
    found = []
    for index, swap in enumerate(swaps):
        old, new = (_column(checker, colour) for colour in swap.colours)
        found.append(old != new and (readings[0][index, new] != ABSENT or readings[1][index, old] != ABSENT))
    return np.array(found, dtype=bool)
