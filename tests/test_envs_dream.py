"""The dream as an env, on a tiny real model with random weights."""

import json
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401
from envs.dream import Dream
from envs.rollout import rollout
from envs.vocabulary import STEP_LIMITS
from simulator import tokenizer as tokenizer_module
from simulator import transformer as transformer_module
from simulator.tokenizer import Tokenizer
from simulator.transformer import Transformer
from simulator.world_model import WorldModel, WorldModelConfig

WORLDS = {"Room": 5, "Orbit": 3, "Lab": 4}


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(tokenizer_module.PRESETS["tiny"])
    transformer = Transformer(transformer_module.PRESETS["tiny"])
    with torch.no_grad():
        for parameter in [*tokenizer.parameters(), *transformer.parameters()]:
            parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    return WorldModel(WorldModelConfig(tuple(WORLDS), dict(WORLDS), 32, 32), tokenizer, transformer)


def make(model: WorldModel, **keywords) -> gymnasium.Env:
    return gymnasium.make("envs:orrery/Dream-v0", disable_env_checker=True, model=model, **keywords)


@pytest.mark.parametrize("world", WORLDS)
def test_dream_passes_gymnasiums_own_check(model, world):
    check_env(Dream(world=world, model=model), skip_render_check=True)


@pytest.mark.parametrize("world", WORLDS)
def test_dream_has_the_spaces_and_limit_of_its_world(model, world):
    with (
        make(model, world=world) as env,
        gymnasium.make(f"envs:orrery/{world}-v0", height=32, width=32) as truth,
    ):
        assert env.action_space == truth.action_space and env.observation_space == truth.observation_space
        assert env.unwrapped.step_limit == truth.unwrapped.step_limit == STEP_LIMITS[world]
        _, info = env.reset(seed=0)
        _, true_info = truth.reset(seed=0)
    assert set(info) == {"prompt", "frames", "frame_count", "uncertainty"}
    assert set(true_info) == {"prompt", "frames", "frame_count", "K", "c2w"}
    assert info["frames"].shape == true_info["frames"].shape and info["frame_count"] == 1


def test_dream_starts_from_the_picture_that_it_is_given(model):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with make(model) as env:
        frame, info = env.reset(seed=0, options={"image": image, "prompt": "a red ball"})
        assert np.array_equal(frame, image) and info["prompt"] == "a red ball"


def test_dream_from_a_prompt_alone_depends_on_seed_only(model):
    with make(model, world="Orbit") as env:
        first, info = env.reset(seed=5)
        again, _ = env.reset(seed=5)
        other, _ = env.reset(seed=6)
        named, named_info = env.reset(seed=5, options={"prompt": info["prompt"]})
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(first, named) and named_info["prompt"] == info["prompt"]


def test_restored_dream_replays_the_same_frames_and_forks_differ(model):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (12, 5)).astype(np.float32)
    with make(model) as env, make(model) as other:
        env.reset(seed=1)
        for action in actions[:4]:
            env.step(action)
        left, right = (pickle.loads(pickle.dumps(state)) for state in env.unwrapped.fork(2))
        first = [env.step(action) for action in actions[4:]]
        other.reset(seed=9)
        other.unwrapped.load_state(left)
        second = [other.step(action) for action in actions[4:]]
        other.unwrapped.load_state(right)
        changed = [other.step(-action) for action in actions[4:]]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a[0], b[0]) and a[1] == b[1] and a[4]["uncertainty"] == b[4]["uncertainty"]
    assert not all(np.array_equal(a[0], c[0]) for a, c in zip(first, changed, strict=True))


def test_dream_ends_at_the_step_limit_also_after_restoring(model):
    with make(model, world="Lab") as env:
        env.reset(seed=0)
        still = np.zeros(4, np.float32)
        for _ in range(47):
            assert not env.step(still)[3]
        state = env.unwrapped.save_state()
        assert env.step(still)[3]
        env.unwrapped.load_state(state)
        assert env.step(still)[3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": " "}, "prompt must be text that says something"),
        ({"prompt": 3}, "prompt must be text that says something"),
        (
            {"image": np.zeros((16, 16, 3), np.uint8)},
            r"shape \(32, 32, 3\), got uint8 of shape \(16, 16, 3\)",
        ),
        ({"image": np.zeros((32, 32, 3), np.float32)}, "image must be uint8"),
        ({"image": "cat.png"}, "image must be a uint8 array"),
        ({"scene": {}}, "no scene to set"),
        ({"sene": {}}, "reset options"),
    ],
)
def test_bad_reset_options_are_named_in_one_line(model, options, words):
    with make(model) as env, pytest.raises(ValueError, match=words) as caught:
        env.reset(seed=0, options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("action", [np.full(5, np.nan), np.full(5, 1.5), np.zeros(2)])
def test_bad_actions_are_named_in_one_line(model, action):
    with make(model) as env:
        env.reset(seed=0)
        with pytest.raises(ValueError, match="action must") as caught:
            env.unwrapped.step(action.astype(np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"world": "Sea"}, "world must be one of"),
        ({"checkpoint": "/no/such/folder"}, "/no/such/folder"),
        ({"height": 0}, "height must be a whole number of at least 1, got 0"),
        ({"width": -8}, "width must be a whole number of at least 1, got -8"),
        ({"height": 65}, "height must be a multiple of 16, got 65; use 64 or 80"),
        ({"step_limit": 0}, "step_limit must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_worlds_checkpoints_and_numbers_are_named(keywords, words):
    with pytest.raises(ValueError, match=words) as caught:
        Dream(**keywords)
    assert "\n" not in str(caught.value)


def test_foreign_states_are_refused(model):
    with make(model) as env, make(model, world="Lab") as lab:
        env.reset(seed=0)
        lab.reset(seed=0)
        with pytest.raises(ValueError, match="state must be of Room"):
            env.unwrapped.load_state(lab.unwrapped.save_state())
        with pytest.raises(ValueError, match="save_state of a dream"):
            env.unwrapped.load_state({})


def test_the_dream_needs_no_mujoco():
    code = "import sys; sys.modules['mujoco'] = None; import envs.dream"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rollout_writes_videos_and_returns(tmp_path):
    out = tmp_path / "rollouts"
    assert (
        rollout("envs:orrery/Orbit-v0", "scripted", 2, out, steps=4, height=32, width=32, prompt="a red ball")
        == 0
    )
    found = json.loads((out / "returns.json").read_text())
    assert [episode["steps"] for episode in found["episodes"]] == [4, 4]
    assert found["mean_return"] == pytest.approx(
        np.mean([episode["return"] for episode in found["episodes"]])
    )
    assert all((out / episode["video"]).stat().st_size > 500 for episode in found["episodes"])
    assert {episode["prompt"] for episode in found["episodes"]} == {"a red ball"}


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"env_id": "envs:orrery/Sea-v0"}, "env id"),
        ({"policy": "clever"}, "--policy"),
        ({"checkpoint": "x"}, "--checkpoint"),
        ({"episodes": 0}, "--episodes"),
        ({"prompt": ""}, "prompt must be text that says something"),
    ],
)
def test_bad_rollouts_are_named_in_one_line(keywords, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        rollout(**{"env_id": "envs:orrery/Room-v0", "out": tmp_path / "x", **keywords})
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


@pytest.mark.parametrize("world", WORLDS)
def test_the_shipped_dream_passes_gymnasiums_own_check(world):
    with gymnasium.make("envs:orrery/Dream-v0", disable_env_checker=True, world=world) as env:
        check_env(env.unwrapped, skip_render_check=True)
        observation, info = env.reset(seed=0)
    assert observation.shape == (64, 64, 3) and np.isfinite(info["uncertainty"])


def test_a_dream_that_saw_what_happened_is_nearer_to_it_than_one_that_dreamt_it():
    """Six control steps of the reference Room, seen or dreamt; then one step is dreamt."""
    seen, dreamt = (gymnasium.make("envs:orrery/Dream-v0", disable_env_checker=True).unwrapped for _ in "ab")
    nearer = []
    with gymnasium.make("envs:orrery/Room-v0", disable_env_checker=True) as truth:
        for seed in range(900_000_400, 900_000_406):
            frame, info = truth.reset(seed=seed)
            for env in (seen, dreamt):
                env.reset(seed=seed, options={"prompt": info["prompt"], "image": frame})
            actions = np.random.default_rng(seed).uniform(-1, 1, (7, 5)).astype(np.float32)
            for action in actions[:-1]:
                frame = truth.step(action)[0]
                seen.observe(action, frame)
                dreamt.step(action)
                assert np.array_equal(seen.render(), frame)
            frame = truth.step(actions[-1])[0].astype(int)
            errors = [np.square(env.step(actions[-1])[0] - frame).mean() for env in (seen, dreamt)]
            nearer.append(errors[0] < 0.7 * errors[1])
    assert np.mean(nearer) > 0.6


def test_an_observed_step_counts_and_must_fit(model):
    env = make(model, step_limit=2).unwrapped
    action, frame = np.zeros(5, np.float32), np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="call reset first"):
        env.observe(action, frame)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"one observed step must be of shape \(1, 1, 32, 32, 3\)"):
        env.observe(action, frame[:16])
    env.observe(action, frame)
    *_, truncated, info = env.step(action)
    assert truncated and info["uncertainty"] > 0
