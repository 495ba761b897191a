"""What pulls on a rollout's steps: words or actions, how strongly, on whom, and to what end."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from envs.policies import smooth
from simulator.canvas import image_to_video
from simulator.guidance import Pull
from simulator.metrics import psnr, sharpness
from simulator.state import State, rows, stacked
from simulator.timing import estimate
from simulator.transformer import Prediction
from simulator.world_model import WorldModel

PICTURE = np.full((64, 64, 3), 120, np.uint8)
PROMPT = "a red ball falls onto a wooden floor"
WIDTHS = {"Lab": 4, "Orbit": 3, "Room": 5}


@pytest.fixture(scope="module")
def model() -> WorldModel:
    plain = {"word_guidance": {}, "action_guidance": {}}
    return WorldModel.load("default").with_config(context_noise=0.0, **plain)


def begun(model: WorldModel, world: str, prompt: str | None = PROMPT) -> State:
    return model.start([prompt], world, [7], images=PICTURE[None])[0]


def made(model: WorldModel, state: State, actions: np.ndarray | None = None, **settings) -> torch.Tensor:
    """The latents of the next step."""
    fresh = model.with_config(**settings).step(state, actions)[0].fresh
    assert fresh is not None
    return fresh.latents


KINDS = [("Lab", "word_guidance", None), ("Orbit", "action_guidance", np.array([[1, 0.3, 0]], np.float32))]


@pytest.mark.parametrize(("world", "kind", "actions"), KINDS)
def test_a_step_goes_with_the_pull(model: WorldModel, world, kind, actions):
    """Of actions from the mean of what may come; of words from something else than that or a drawn step."""
    state = begun(model, world)
    low, middle, high = (made(model, state, actions, **{kind: {world: pull}}) for pull in (1.5, 2.0, 2.5))
    assert (middle - low).abs().max() > 0.02
    assert torch.allclose(high - middle, middle - low, atol=1e-4)
    mean, drawn = made(model.averaging(), state, actions), made(model, state, actions)
    assert torch.equal(drawn, made(model, state, actions, **{kind: {world: 1.0}}))
    unpulled = 2 * low - middle
    if kind == "action_guidance":
        assert torch.allclose(unpulled, mean, atol=1e-4)
    else:
        assert 0.1 < (unpulled - mean).norm() / (drawn - mean).norm() < 0.9


def blurred(latents: torch.Tensor) -> torch.Tensor:
    """By one convolution with the binomial kernel of 3 x 3; edges are repeated."""
    line = torch.tensor([0.25, 0.5, 0.25])
    cells = latents.flatten(0, 2)[:, None]
    padded = torch.nn.functional.pad(cells, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(padded, torch.outer(line, line)[None, None]).view_as(latents)


def test_what_all_cells_share_of_a_pull_is_taken_off_and_what_one_has_alone_stays():
    one = torch.ones(1, 1, 1, 1, 1)
    nothing = torch.zeros(1, 1)
    found = Prediction(torch.zeros(1, 1, 2, 8, 8), nothing, nothing, nothing, memory=())
    pull = Pull(3 * one, one, without=(), told=nothing)

    def moved(apart: torch.Tensor) -> torch.Tensor:
        return pull.on(found, found._replace(data=-apart)).data

    shared, alone = torch.ones_like(found.data), torch.zeros_like(found.data)
    alone[..., 3, 4] = 1.0
    assert moved(shared).abs().max() < 1e-6
    assert moved(alone)[..., 3, 4] == pytest.approx(2 * (1 - 0.25))
    random = torch.randn(found.data.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(moved(random), 2 * (random - blurred(random)), atol=1e-5)


@pytest.mark.parametrize(("world", "kind", "actions"), KINDS)
def test_the_pull_is_the_harder_the_more_is_in_doubt(model: WorldModel, world, kind, actions):
    """From a fifth of it where all was seen to all of it where nothing is known any more."""
    state = begun(model, world)
    first, quarter, whole, more = (
        made(model, replace(state, doubts=(doubt,)), actions, **{kind: {world: 2.0}})
        for doubt in (0.0, 0.25, 1.0, 2.0)
    )
    assert torch.equal(more, whole)
    assert (first - whole).norm() > 0.1
    grown = 0.25 ** {"word_guidance": 0.5, "action_guidance": 0.25}[kind]
    assert torch.allclose(quarter, torch.lerp(first, whole, grown), atol=1e-4)
    harder = made(model, replace(state, doubts=(0.0,)), actions, **{kind: {world: 6.0}})
    assert torch.allclose(harder, whole, atol=1e-4)  # a fifth of five times as much


def test_where_nothing_is_told_nothing_pulls(model: WorldModel):
    both = {"word_guidance": {"Lab": 3.0}, "action_guidance": {"Orbit": 1.3}}
    for world, prompt, told in (("Room", PROMPT, True), ("Orbit", PROMPT, False), ("Lab", None, True)):
        state = begun(model, world, prompt)
        actions = np.zeros((1, WIDTHS[world]), np.float32) if told else None
        assert torch.equal(made(model, state, actions, **both), made(model, state, actions))


def test_a_row_is_pulled_as_it_would_be_alone(model: WorldModel):
    alone = [begun(model, "Lab"), begun(model, "Orbit"), begun(model, "Lab", "a blue box stands still")]
    together = made(model, stacked(alone), word_guidance={"Lab": 3.0})
    for row, state in zip(together, alone, strict=True):
        assert torch.allclose(row[None], made(model, state, word_guidance={"Lab": 3.0}), atol=2e-3)


def test_a_fork_of_a_pulled_dream_goes_on_as_the_dream(model: WorldModel):
    pulling = model.with_config(word_guidance={"Lab": 3.0})
    state = pulling.step(begun(model, "Lab"), None)[0]
    (fork,) = rows(state)
    assert np.array_equal(pulling.step(fork, None)[1], pulling.step(state, None)[1])


@pytest.mark.parametrize("world", ["Orbit", "Room"])
def test_pulled_steps_are_nearer_to_the_truth_than_drawn_ones_and_as_sharp(world: str):
    """Four steps of eight held-out scenes."""
    steps, scenes, shipped = 4, range(930_000_000, 930_000_008), WorldModel.load("default")
    drawn = shipped.with_config(action_guidance={})
    frames, actions, prompts = [], [], []
    with gymnasium.make(f"envs:orrery/{world}-v0") as env:
        for seed in scenes:
            first, info = env.reset(seed=seed)
            policy = smooth(env, np.random.default_rng(seed))
            taken = [policy() for _ in range(steps)]
            frames.append([first, *(env.step(action)[0] for action in taken)])
            actions.append(taken)
            prompts.append(info["prompt"])
    truth, told = np.array(frames), np.array(actions)
    scores = []
    for model in (shipped, drawn):
        state, *_ = model.start(prompts, world, list(scenes), images=truth[:, 0])
        for step in range(steps):
            state, last, *_ = model.step(state, told[:, step])
        scores.append((psnr(last[:, 0], truth[:, -1]).mean(), sharpness(last[:, 0], truth[:, -1]).mean()))
    (near, sharp), (far, drawn_sharp) = scores
    assert near > far + 0.3 and sharp > 0.9 * drawn_sharp, scores


def test_the_mean_of_what_may_come_is_not_pulled():
    shipped = WorldModel.load("default")
    assert shipped.config.word_guidance and shipped.config.action_guidance
    assert not shipped.averaging().config.word_guidance and not shipped.averaging().config.action_guidance


def test_the_foretold_time_counts_both_calls(model: WorldModel):
    """Calls of the network, from hooks, not seconds."""
    canvas, calls = image_to_video(PICTURE, PROMPT, 9, world="Lab"), []
    hook = model.transformer.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for guidance in ({}, {"Lab": 3.0}):
        calls.clear()
        estimate(model.with_config(word_guidance=guidance), canvas)
        counts.append(len(calls))
    hook.remove()
    assert counts == [3, 6]  # of three steps


@pytest.mark.parametrize("world", ["Orbit", "Room"])
def test_both_takes_of_one_call_are_those_of_two(model: WorldModel, world: str):
    """On rows of two ages, over two steps."""
    mean, pull = model.averaging(), {world: 2.0}
    rng, states = np.random.default_rng(3), [begun(model, world) for _ in range(2)]
    told, later = (rng.uniform(-1, 1, (2, WIDTHS[world])).astype(np.float32) for _ in range(2))
    states[1] = mean.step(states[1], told[1:])[0]
    state = stacked(states)
    for actions in (told, later):
        doubt = torch.tensor(state.doubts).clamp(max=1)[:, None, None, None, None]
        found, without = made(mean, state, actions), made(mean, state, None)
        pulled = made(model, state, actions, action_guidance=pull)
        apart = found - without
        assert apart.abs().max() > 0.05
        own = apart - 1.3 * blurred(apart)
        assert torch.allclose(pulled, found + (0.2 + 0.8 * doubt**0.25) * own, atol=2e-3)
        state = mean.step(state, actions)[0]
