"""How Orrery's own worlds read actions, as the simulator knows it: asked of the true worlds and the dream."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from simulator.actions import BUTTONS, UNDONE, pressed
from simulator.world_model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load()


def test_the_true_world_goes_back_where_it_came_from_under_undone_actions():
    rng = np.random.default_rng(0)
    for world, factors in UNDONE.items():
        env: Any = gymnasium.make(f"envs:orrery/{world}-v0", disable_env_checker=True).unwrapped
        env.reset(seed=900_000_200)
        begun = env._pose.copy()
        actions = rng.uniform(-0.5, 0.5, (4, len(factors))) * (np.arange(len(factors)) < 4)
        poses = [env.step(action.astype(np.float32)) and env._pose.copy() for action in actions]
        for action in actions[::-1]:
            env.step((action * factors).astype(np.float32))
        assert np.abs(poses[-1] - begun).max() > 0.02
        assert np.allclose(env._pose, begun, atol=0.01)  # yaw turns before it goes


def stepped(world: str, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true world's states and last frame under some actions; in Lab something that can be marked."""
    options = {"scene": {"kind": "mark"}} if world == "Lab" else None
    with gymnasium.make(f"envs:orrery/{world}-v0", disable_env_checker=True) as env:
        env.reset(seed=900_000_210, options=options)
        frames = [env.step(action)[0] for action in actions.astype(np.float32)]
        return env.unwrapped.state_vector(), frames[-1]


@pytest.mark.parametrize("world", BUTTONS)
def test_the_true_world_reads_no_more_of_a_button_than_whether_it_is_on(world: str):
    width = {"Lab": 4}[world]
    looks = {}
    for level in (-1.0, -0.4, 0.0, 0.3, 1.0):
        actions = np.zeros((4, width))
        actions[:, list(BUTTONS[world])] = level
        looks[level] = stepped(world, actions)
        for as_told, plain in zip(stepped(world, pressed(actions, world)), looks[level], strict=True):
            assert np.array_equal(as_told, plain)
    assert np.array_equal(looks[-1.0][1], looks[0.0][1]) and np.array_equal(looks[0.3][1], looks[1.0][1])
    assert not np.array_equal(looks[0.0][1], looks[1.0][1])


def test_other_parts_and_other_worlds_are_told_as_they_are():
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 5, 5)).astype(np.float32)
    for world in ("Room", "Orbit", "HalfCheetah"):
        assert np.array_equal(pressed(actions, world), actions)
    assert np.array_equal(pressed(actions[..., :4], "Lab")[..., :3], actions[..., :3])
    assert set(np.unique(pressed(actions[..., :4], "Lab")[..., 3])) == {-1.0, 1.0}


@pytest.mark.parametrize("shape", ["box", "ball", "egg"])
def test_what_is_held_up_by_nothing_falls_in_the_dream_too_and_stays_whole(model: WorldModel, shape: str):
    """Doing nothing is an action of zeros, which recordings tell as a button at -1."""
    scene = {"kind": "drop", "things": [{"shape": shape, "colour": "red"}], "floor": "grey"}
    nothing = np.array([0, 0, 0, -1], np.float32)
    falls, missed, left = [], [], []
    with gymnasium.make("envs:orrery/Lab-v0", disable_env_checker=True) as env:
        for seed in range(900_000_220, 900_000_224):
            first, info = env.reset(seed=seed, options={"scene": scene})
            truth = [env.step(nothing)[0] for _ in range(6)][-1]
            ends = []
            for button in (0.0, -1.0):
                state, frames, _ = model.start([info["prompt"]], "Lab", [3], images=first[None])
                for _ in range(6):
                    state, frames, *_ = model.step(state, np.array([[0, 0, 0, button]], np.float32))
                ends.append(redness(frames[0, 0]))
            assert np.array_equal(*ends)
            falls.append(middle_row(ends[0]) - middle_row(redness(first)))
            missed.append(abs(middle_row(ends[0]) - middle_row(redness(truth))))
            left.append(ends[0].sum() / redness(truth).sum())
    assert min(falls) > 10 and np.mean(missed) < 8  # pixels; the true ones fall by 26 to 40
    assert np.mean(left) > 0.3


def test_actions_of_another_width_or_of_no_world_are_refused(model: WorldModel):
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    for world, width in (("Lab", 3), ("Orbit", 4), (None, 3)):
        state, *_ = model.start([None], world, [0], images=picture)
        with pytest.raises(ValueError, match=f"actions of width {width} do not fit world {world!r}"):
            model.step(state, np.zeros((1, width), np.float32))


def redness(frame: np.ndarray) -> np.ndarray:
    """How much more than 60 levels each pixel is red than anything else."""
    return np.clip(frame[..., 0].astype(float) - frame[..., 1:].max(axis=-1) - 60, 0, None)


def middle_row(weight: np.ndarray) -> float:
    return float((weight.sum(axis=1) * np.arange(len(weight))).sum() / max(1.0, weight.sum()))
