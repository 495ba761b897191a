"""The prompt's pull on a rollout's steps: how strong it is, and on whom."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from simulator.canvas import image_to_video
from simulator.state import State, rows, stacked
from simulator.timing import estimate
from simulator.world_model import WorldModel

PICTURE = np.full((64, 64, 3), 120, np.uint8)
PROMPT = "a red ball falls onto a wooden floor"


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load("default").with_config(context_noise=0.0, step_guidance={})


def begun(model: WorldModel, world: str, prompt: str | None = PROMPT) -> State:
    return model.start([prompt], world, [7], images=PICTURE[None])[0]


def pulled(model: WorldModel, state: State, **guidance: float) -> torch.Tensor:
    """The latents of the next step, nobody doing anything."""
    fresh = model.with_config(step_guidance=guidance).step(state, None)[0].fresh
    assert fresh is not None
    return fresh.latents


def test_what_a_step_makes_goes_with_the_pull(model: WorldModel):
    state = begun(model, "Lab")
    one, two, three = (pulled(model, state, Lab=pull) for pull in (1.0, 2.0, 3.0))
    assert (two - one).abs().max() > 0.05
    assert torch.allclose(three - one, 2 * (two - one), atol=1e-4)
    assert torch.equal(one, pulled(model, state))


def test_other_worlds_and_silent_dreams_are_not_pulled(model: WorldModel):
    for world, prompt in (("Room", PROMPT), ("Orbit", PROMPT), ("Lab", None)):
        state = begun(model, world, prompt)
        assert torch.equal(pulled(model, state, Lab=3.0), pulled(model, state))


def test_a_row_is_pulled_as_it_would_be_alone(model: WorldModel):
    alone = [begun(model, "Lab"), begun(model, "Orbit"), begun(model, "Lab", "a blue box stands still")]
    together = pulled(model, stacked(alone), Lab=3.0)
    for row, state in zip(together, alone, strict=True):
        assert torch.allclose(row[None], pulled(model, state, Lab=3.0), atol=2e-3)


def test_a_fork_of_a_pulled_dream_goes_on_as_the_dream(model: WorldModel):
    pulling = model.with_config(step_guidance={"Lab": 3.0})
    state = pulling.step(begun(model, "Lab"), None)[0]
    (fork,) = rows(state)
    assert np.array_equal(pulling.step(fork, None)[1], pulling.step(state, None)[1])


def test_the_mean_of_what_may_come_is_not_pulled(model: WorldModel):
    assert WorldModel.load("default").config.step_guidance == {"Lab": 3.0}
    state = begun(model, "Lab")
    mean, plain = (m.averaging().step(state, None)[1] for m in (WorldModel.load("default"), model))
    kept = replace(WorldModel.load("default").averaging().config, context_noise=0.0)
    assert kept == model.averaging().config and np.abs(mean.astype(int) - plain).max() <= 2


def test_the_foretold_time_counts_both_calls(model: WorldModel):
    """Calls of the network, from hooks, not seconds."""
    canvas, calls = image_to_video(PICTURE, PROMPT, 9, world="Lab"), []
    hook = model.transformer.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for guidance in ({}, {"Lab": 3.0}):
        calls.clear()
        estimate(model.with_config(step_guidance=guidance), canvas)
        counts.append(len(calls))
    hook.remove()
    assert counts == [3, 6]  # of three steps
