"""Prompt following: what is read as asked counts, what is not does not, no pictures are not judged."""

import json
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

import envs  # noqa: F401 (registers the ids)
from probes.checker import (
    ABSENT,
    UNKNOWN,
    Checker,
    CheckerTraining,
    LabelledFrames,
    accuracy,
    fit_checker,
    prepared,
    save_checker,
)
from probes.prompt_following import Swap, prompt_following
from probes.subjects import held_out_swaps
from simulator.words import COLOURS, SHAPES


class ScriptedChecker(Checker):
    """A checker that reads what is written into the first pixels of a picture."""

    def read(self, pictures, batch=64):
        return pictures[:, 0, : len(self.colours), 0].astype(np.int64)


def written(*things):
    """A picture in which the scripted checker reads the given (colour, shape) things."""
    picture = np.zeros((64, 64, 3), np.uint8)
    for colour, shape in things:
        picture[0, list(COLOURS).index(colour), 0] = 1 + SHAPES.index(shape)
    return picture


COLOUR_SWAP = Swap("a red ball", "a blue ball", "colour", ("red", "blue"), ("ball", "ball"), 1)
SHAPE_SWAP = Swap("a red ball", "a red mug", "shape", ("red", "red"), ("ball", "mug"), 2)


@pytest.fixture
def checker():
    return ScriptedChecker(tuple(COLOURS), SHAPES)


def by_name(found):
    return {measurement.name: measurement for measurement in found}


def test_pictures_that_show_what_was_asked_get_the_perfect_value(checker):
    originals = np.stack([written(("red", "ball"), ("white", "egg")), written(("red", "ball"))])
    changed = np.stack([written(("blue", "ball"), ("white", "egg")), written(("red", "mug"))])
    found = by_name(prompt_following([COLOUR_SWAP, SHAPE_SWAP], originals, changed, checker))
    assert {m.value for m in found.values()} == {1.0}
    assert found["prompt_swap_success"].support == found["prompt_swap_success_one_thing"].support == 2
    assert found["prompt_colour_read"].support == 4


@pytest.mark.parametrize(
    ("swap", "original", "changed"),
    [
        (COLOUR_SWAP, written(("red", "ball")), written(("red", "ball"))),
        (COLOUR_SWAP, written(("red", "ball"), ("blue", "egg")), written(("blue", "ball"))),
        (COLOUR_SWAP, written(("red", "ball")), written(("red", "egg"), ("blue", "ball"))),
        (SHAPE_SWAP, written(("red", "ball")), written(("red", "ball"))),
        (SHAPE_SWAP, written(("red", "mug")), written(("red", "mug"))),
        (SHAPE_SWAP, written(), written()),
    ],
)
def test_a_swap_that_is_not_seen_in_the_pictures_fails(checker, swap, original, changed):
    found = by_name(prompt_following([swap], original[None], changed[None], checker))
    assert found["prompt_swap_success"].value == 0
    assert found["prompt_swap_success"].verdict == "inconsistent"


def test_a_known_share_of_failures_gives_that_share_and_more_failures_less(checker):
    swaps = [COLOUR_SWAP] * 10
    originals = np.stack([written(("red", "ball"))] * 10)
    values = []
    for failures in (0, 3, 7):
        changed = np.stack([written(("red" if k < failures else "blue", "ball")) for k in range(10)])
        found = by_name(prompt_following(swaps, originals, changed, checker))["prompt_swap_success"]
        values.append(found.value)
        assert found.interval[0] < found.value < found.interval[1] or failures == 0
    assert values == [1.0, 0.7, 0.3]


def test_a_wrong_shape_passes_a_colour_swap_but_not_the_strict_one(checker):
    original, changed = written(("red", "egg")), written(("blue", "egg"))
    found = by_name(prompt_following([COLOUR_SWAP], original[None], changed[None], checker))
    assert found["prompt_swap_success_colour"].value == 1.0
    assert found["prompt_swap_success_strict"].value == 0.0
    assert math.isnan(found["prompt_swap_success_shape"].value)


def test_no_swaps_are_not_judged(checker):
    none = np.zeros((0, 64, 64, 3), np.uint8)
    assert not any(measurement.judged for measurement in prompt_following([], none, none, checker))


def test_missing_pictures_and_unknown_colours_are_named(checker):
    with pytest.raises(ValueError, match="two pictures"):
        prompt_following([COLOUR_SWAP], written()[None], np.zeros((0, 64, 64, 3), np.uint8), checker)
    odd = replace(COLOUR_SWAP, colours=("red", "beige"))
    with pytest.raises(ValueError, match="beige"):
        prompt_following([odd], written()[None], written()[None], checker)


def test_held_out_swaps_change_one_word_and_repeat_under_their_seed():
    swaps = held_out_swaps(40, 3)
    assert swaps == held_out_swaps(40, 3) and swaps != held_out_swaps(40, 4)
    for swap in swaps:
        assert swap.seed >= 900_000_000
        pairs = {"colour": swap.colours, "shape": swap.shapes}
        kept = pairs.pop("shape" if swap.attribute == "colour" else "colour")
        ((old, new),) = pairs.values()
        assert kept[0] == kept[1] and old != new
        assert (
            old in swap.prompt and new in swap.changed_prompt and new not in swap.prompt.replace(old, "", 1)
        )


def test_the_shipped_checker_is_small_and_reads_reference_pictures():
    checker = Checker.load()
    env = gymnasium.make("orrery/Orbit-v0")
    seen, labels = [], []
    for index, (colour, shape) in enumerate(zip(COLOURS, (*SHAPES, "mug", "box"), strict=True)):
        picture, _ = env.reset(seed=910_000_000 + index, options={"prompt": f"a {colour} {shape}"})
        label = np.zeros(len(COLOURS), np.int64)
        label[index] = 1 + SHAPES.index(shape)
        seen.append(picture)
        labels.append(label)
    env.close()
    found = accuracy(checker, np.stack(seen), np.stack(labels))
    assert found["colour"] >= 8 / 9 and found["shape"] >= 7 / 9 and found["absence"] > 0.97
    assert sum(weight.numel() for weight in checker.parameters()) * 2 < 400_000


def test_a_checker_learns_survives_its_file_and_a_broken_file_is_named(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (64, 2))
    pictures = generator.integers(90, 110, (64, 64, 64, 3), dtype=np.uint8)
    places = np.zeros((64, 32, 32), np.int64)
    for column, (place, colour) in enumerate([(8, (250, 10, 10)), (36, (10, 10, 250))]):
        there = labels[:, column] == 1
        pictures[there, place : place + 16, place : place + 16] = colour
        places[there, place // 2 : place // 2 + 8, place // 2 : place // 2 + 8] = 1 + column
    labels[0, 0] = UNKNOWN
    training = CheckerTraining(paint_steps=20, steps=20, batch=8)
    checker = fit_checker(LabelledFrames(pictures, labels, places), ("red", "blue"), ("box",), training)
    assert accuracy(checker, pictures, labels)["colour"] > 0.9
    save_checker(checker, tmp_path, {"steps": 40})
    assert (Checker.load(tmp_path).read(pictures) == checker.read(pictures)).mean() > 0.99
    assert json.loads((tmp_path / "config.json").read_text())["colours"] == ["red", "blue"]
    (tmp_path / "checker.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="train_checker"):
        Checker.load(tmp_path)


def test_larger_pictures_are_averaged_down_and_odd_sizes_are_named():
    small = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    assert torch.allclose(prepared(large), prepared(small))
    with pytest.raises(ValueError, match="multiple of 64"):
        prepared(small[:, :60])
    assert ABSENT == 0
