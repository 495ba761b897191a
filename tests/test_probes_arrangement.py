"""Counts and sides: what is read as asked counts, a mirrored picture does not, no pictures are not judged."""

import math

import numpy as np
import pytest

import envs  # noqa: F401 (registers the ids)
from probes.arrangement import Ask, arrangement
from probes.checker import Checker
from probes.subjects import ReferenceSubject, ask_of, held_out_asks
from simulator.words import COLOURS, SHAPES


class ScriptedChecker(Checker):
    """A checker that reads what is written into the first two rows of a picture."""

    def read(self, pictures, batch=64):
        return pictures[:, 0, : len(self.colours), 0].astype(np.int64)

    def places(self, pictures, batch=64):
        return pictures[:, 1, : len(self.colours), 0] / 127.5 - 1


def written(*things):
    """A picture in which the scripted checker reads the given (colour, shape) things, from left to right."""
    picture = np.zeros((64, 64, 3), np.uint8)
    for place, (colour, shape) in enumerate(things):
        picture[:2, COLOURS.index(colour), 0] = 1 + SHAPES.index(shape), 50 * place
    return picture


RED, BLUE, PINK = ("red", "ball"), ("blue", "box"), ("pink", "mug")
PAIR = Ask("a red ball left of a blue box", 1, (RED, BLUE), "left of")
THREE = Ask("a blue box right of a red ball, with a pink mug", 2, (BLUE, RED, PINK), "right of")
ONE = Ask("a pink mug", 3, (PINK,))
RIGHT = np.stack([written(RED, BLUE), written(PINK, RED, BLUE), written(PINK)])


@pytest.fixture
def checker():
    return ScriptedChecker(COLOURS, SHAPES)


def by_name(found):
    return {measurement.name: measurement for measurement in found}


def test_pictures_as_asked_get_the_perfect_value_above_chance(checker):
    found = by_name(arrangement([PAIR, THREE, ONE] * 4, np.concatenate([RIGHT] * 4), checker))
    assert {m.value for m in found.values()} == {1.0}
    assert all(m.chance is not None and m.chance < 1 and m.interval[0] > 0.5 for m in found.values())
    assert found["prompt_count"].support == 12 and found["prompt_left_right"].support == 8
    assert found["prompt_count"].verdict == "consistent"


def test_mirrored_pictures_fail_the_sides_alone(checker):
    mirrored = np.stack([written(BLUE, RED), written(BLUE, RED, PINK), written(PINK)])
    found = by_name(arrangement([PAIR, THREE, ONE], mirrored, checker))
    assert found["prompt_left_right"].value == found["prompt_left_right_if_seen"].value == 0
    assert found["prompt_count"].value == found["prompt_colours_exact"].value == 1
    assert found["prompt_left_right"].verdict == "inconsistent"


def test_a_known_number_of_wrong_counts_gives_that_share(checker):
    values = []
    for wrong in (0, 3, 7):
        pictures = np.stack([written(RED) if k < wrong else written(RED, BLUE) for k in range(10)])
        found = by_name(arrangement([PAIR] * 10, pictures, checker))
        values.append(found["prompt_count"].value)
        assert math.isnan(found["prompt_left_right_if_seen"].value) == (wrong == 10)
        assert found["prompt_left_right_if_seen"].support == 10 - wrong
    assert values == [1.0, 0.7, 0.3]


def test_pictures_that_do_not_depend_on_their_prompt_score_chance(checker):
    asks, others = held_out_asks(200, 0), held_out_asks(200, 9)
    order = np.random.default_rng(0).permutation(200)
    pictures = np.stack([written(*others[k].things) for k in order])
    for m in arrangement(asks, pictures, checker):
        assert m.chance is not None and m.interval[0] - 0.1 < m.chance < m.interval[1] + 0.1, m
        assert m.verdict == "inconsistent" or m.name == "prompt_left_right_if_seen"


def test_nothing_asked_is_not_judged_and_mismatches_are_named(checker):
    none = np.zeros((0, 64, 64, 3), np.uint8)
    assert not any(m.judged for m in arrangement([], none, checker))
    with pytest.raises(ValueError, match="one picture"):
        arrangement([PAIR], none, checker)
    with pytest.raises(ValueError, match="beige"):
        arrangement([Ask("a beige ball", 1, (("beige", "ball"),))], RIGHT[:1], checker)
    with pytest.raises(ValueError, match="two for a side"):
        Ask("a red ball", 1, (RED,), "left of")


def test_held_out_asks_say_what_their_prompts_say():
    asks = held_out_asks(40, 1)
    assert asks == held_out_asks(40, 1) and asks != held_out_asks(40, 2)
    assert {len(ask.things) for ask in asks} == {1, 2, 3, 4}
    assert {ask.side for ask in asks} == {None, "left of", "right of"}
    assert ask_of("a red ball behind a blue box", 0).side is None
    assert ask_of("a red ball right of a blue box on a grey table", 0) == Ask(
        "a red ball right of a blue box on a grey table", 0, (RED, BLUE), "right of"
    )


def test_the_shipped_checker_reads_counts_and_sides_of_reference_pictures():
    """The checker is judged where the truth is known; its mirror image must read as wrong."""
    asks, pictures = ReferenceSubject("orrery/Orbit-v0").asks(60, 3)
    found = by_name(arrangement(asks, pictures, Checker.load()))
    assert found["prompt_count"].value > 0.8 > 0.45 > found["prompt_count"].chance
    assert found["prompt_left_right"].value > 0.9 and found["prompt_left_right"].support >= 15
    assert found["prompt_left_right_if_seen"].value > 0.95
    mirrored = by_name(arrangement(asks, pictures[:, :, ::-1], Checker.load()))
    assert mirrored["prompt_left_right_if_seen"].value < 0.1
