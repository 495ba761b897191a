"""The estimate of a generation's time, against the time it takes."""

import time

import numpy as np
import pytest

from recon3d.sweeps import orbit
from simulator.canvas import infill, loop, text_to_video
from simulator.timing import estimate
from simulator.world_model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load("default")


@pytest.mark.parametrize(("frames", "size", "guidance"), [(5, 64, 3.0), (9, 128, 1.0), (17, 64, 3.0)])
def test_the_estimate_is_near_what_it_takes(model, frames, size, guidance):
    """In CPU time, which other programs on the machine do not stretch."""
    cameras = orbit(frames, height=size, width=size)
    canvas = text_to_video(
        "a red mug", frames, height=size, width=size, guidance=guidance, cameras=cameras, world="Orbit"
    )
    expected = estimate(model, canvas, 4, clock=time.process_time)
    start = time.process_time()
    model.generate(canvas, steps=4)
    assert 0.5 < (time.process_time() - start) / expected.seconds < 2


def test_the_estimate_grows_with_steps_frames_and_known_pictures(model):
    canvas = loop("a tree", 4)  # made at once, and nobody can judge tries
    few, many = (estimate(model, canvas, steps, clock=time.process_time) for steps in (2, 40))
    assert many.seconds > 4 * few.seconds and many.steps == 40
    assert estimate(model, canvas).steps == model.steps_for(canvas)
    black = np.zeros((1, 64, 64, 3), np.uint8)
    assert estimate(model, infill(black, black, None, 2), 2).rest_s > 0
    assert "2 steps of" in few.words and "about" in few.words


def test_tries_are_counted(model):
    canvas = text_to_video("a red mug", 1)
    once, often = (estimate(model.trying(n), canvas, 4, clock=time.process_time) for n in (1, 8))
    assert 2 < often.seconds / once.seconds < 16
    clip = estimate(model.trying(8), loop("a red mug", 4), 4, clock=time.process_time)
    assert "for 8 first pictures" in clip.words


def test_what_is_soon_done_is_not_calibrated_for(model):
    canvas = text_to_video("a red mug", 1)
    assert estimate(model, canvas, 1, always=False, clock=lambda: 0.0).rest_s == 0
