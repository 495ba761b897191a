"""Captions against the truth: all right is perfect, a known share of errors is that share, nothing is not
judged."""

import pytest

from probes.captioning import Facts, captioning
from probes.eval_captions import facts
from simulator.captions import Seen

BALL, BOX = Seen("ball", "red", "small", -0.5, 1.0), Seen("box", "blue", "large", 0.5, 2.0)
MUG = Seen("mug", "pink", "medium", 0.45, 1.0)
CLIPS = [facts((BALL, BOX), floor="wooden"), facts((MUG,), floor="tiled"), facts((BOX, MUG), floor="grey")]


def by_name(found):
    return {measurement.name: measurement for measurement in found}


def test_true_captions_are_perfect_and_beat_chance():
    found = by_name(captioning(CLIPS, CLIPS))
    assert {m.value for m in found.values()} == {1.0}
    assert all(m.chance is not None and m.chance <= 1 for m in found.values())
    assert found["caption_relation"].support == 2 and found["caption_left_right"].support == 1
    assert CLIPS[0].relations == {("red", "blue"): "left of"} or CLIPS[0].relations == {
        ("blue", "red"): "right of"
    }


def test_each_error_lowers_its_own_number_alone():
    wrong_shape = [facts((Seen("egg", "red", "small", -0.5, 1.0), BOX), floor="wooden"), *CLIPS[1:]]
    found = by_name(captioning(wrong_shape, CLIPS))
    assert found["caption_shape"].value == pytest.approx(4 / 5)
    assert found["caption_things_exact"].value == pytest.approx(2 / 3)
    assert found["caption_colour_found"].value == found["caption_count"].value == 1
    missed = by_name(captioning([facts((BALL,), floor="wooden"), *CLIPS[1:]], CLIPS))
    assert missed["caption_colour_found"].value == pytest.approx(4 / 5)
    assert missed["caption_colour_right"].value == 1 and missed["caption_count"].value == pytest.approx(2 / 3)
    mirrored = facts((Seen("ball", "red", "small", 0.5, 1.0), Seen("box", "blue", "large", -0.5, 2.0)))
    found = by_name(captioning([mirrored, *CLIPS[1:]], CLIPS))
    assert found["caption_left_right"].value == 0 and found["caption_floor"].value == pytest.approx(2 / 3)


def test_more_errors_score_lower():
    values = []
    for wrong in range(4):
        told = [Facts({"white": ("egg", "small")})] * wrong + CLIPS[wrong:]
        values.append(by_name(captioning(told, CLIPS))["caption_colour_found"].value)
    assert values == sorted(values, reverse=True) and values[0] == 1 and values[-1] == 0


def test_no_clips_are_not_judged():
    assert not any(measurement.judged for measurement in captioning([], []))
    with pytest.raises(ValueError, match="one clip"):
        captioning(CLIPS, CLIPS[1:])
