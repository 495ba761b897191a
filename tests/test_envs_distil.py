"""Any env distilled into a dream of it: pictures, action spaces, and the whole way in small."""

import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from PIL import Image
from safetensors.torch import load_file

from envs.action_spaces import (
    as_values,
    check_space,
    draw_choice,
    from_unit,
    from_values,
    to_vector,
    vector_width,
)
from envs.dream import Dream
from envs.film import make_filmed, resized
from envs.record import Recording, play, record
from envs.vector_dream import VectorDream
from simulator.clips import list_episodes, read_episode, write_episode
from simulator.fidelity import dream
from simulator.train import train
from simulator.train_tokenizer import train_tokenizer
from simulator.world_model import WorldModel

SPACES = [
    spaces.Discrete(3),
    spaces.Discrete(2, start=5),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiDiscrete(np.array([[2, 2], [3, 3]])),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 2]),
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)),
    spaces.Box(0, 8, (2, 2), np.int64),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_action_has_a_vector_of_its_own_in_the_models_range(space):
    check_space(space, "test")
    space.seed(0)
    seen = {}
    for _ in range(40):
        action = space.sample()
        vector = to_vector(space, action)
        assert vector.shape == (vector_width(space),) and abs(vector).max() <= 1
        assert seen.setdefault(vector.tobytes(), np.asarray(action).tolist()) == np.asarray(action).tolist()
        if isinstance(space, spaces.Box):
            assert np.allclose(from_unit(space, vector), action, atol=1e-5)
        else:
            assert space.contains(draw_choice(space, np.random.default_rng(0)))
    assert len(seen) > 1
    assert from_values(json.loads(json.dumps(as_values(space)))) == space


def test_vectors_are_what_they_are_said_to_be():
    assert to_vector(spaces.Discrete(3, start=1), 2).tolist() == [0, 1, 0]
    assert to_vector(spaces.MultiDiscrete([2, 3]), [1, 0]).tolist() == [0, 1, 1, 0, 0]
    assert to_vector(spaces.MultiBinary(3), [1, 0, 1]).tolist() == [1, 0, 1]
    bounded = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    assert to_vector(bounded, [1.0, 10.0]).tolist() == [0.5, 1.0]
    own = np.random.default_rng(0).uniform(-1, 1, 5).astype(np.float32)
    assert np.array_equal(to_vector(spaces.Box(-1.0, 1.0, (5,)), own), own), "our own worlds' to the bit"


@pytest.mark.parametrize(
    ("space", "action", "words"),
    [
        (spaces.Discrete(2), 2, "must be in Discrete"),
        (spaces.Discrete(2), 0.5, "must be whole numbers"),
        (spaces.MultiBinary(2), [0, 2], "zeros and ones"),
        (spaces.MultiDiscrete([2, 2]), [0], "must be whole numbers"),
        (spaces.Box(-3.0, 3.0, (1,)), [4.0], r"finite and in \[-3, 3\]"),
    ],
)
def test_actions_outside_the_space_are_named(space, action, words):
    with pytest.raises(ValueError, match=words):
        to_vector(space, action)


def test_pictures_are_made_smaller_by_the_mean_of_what_each_pixel_covers():
    picture = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    means = picture.reshape(4, 3, 6, 3, 3).mean(axis=(1, 3))
    assert np.abs(resized(picture, 4, 6) - means).max() <= 1  # PIL rounds twice
    assert resized(picture, 12, 18) is picture


def test_an_env_is_filmed_as_it_renders_and_its_choices_are_kept():
    recording = Recording("CartPole-v1", ".", "random", 6, None, None)
    with recording.make() as env:
        episode = play(env, recording, 3)
    with gymnasium.make("CartPole-v1", render_mode="rgb_array") as truth:
        truth.reset(seed=3)
        pictures = [truth.render()]
        for vector in episode.actions:
            _, reward, *_ = truth.step(int(vector.argmax()))
            pictures.append(truth.render())
    small = [np.asarray(Image.fromarray(p).resize((64, 64), Image.Resampling.BOX)) for p in pictures]
    assert np.array_equal(episode.frames, small) and episode.prompt == "" and reward == episode.rewards[-1]
    assert set(episode.actions.sum(axis=1)) == {1.0} and len({*episode.actions.argmax(axis=1)}) == 2
    assert episode.metadata["env"] == {
        "action_space": {"kind": "Discrete", "n": 2, "start": 0},
        "step_limit": 500,
        "time_step_s": 1 / 50,
    }


def test_an_episode_looks_the_same_whatever_was_played_before():
    """Also in Gymnasium's MuJoCo envs, whose camera depends on the first state that they render."""
    small = {"width": 64, "height": 64}
    recording = Recording("Reacher-v5", ".", "random", 2, None, None, env_options=small)
    with recording.make() as env:
        alone = play(env, recording, 7)
    with recording.make() as env:
        play(env, recording, 3)
        after = play(env, recording, 7)
    assert np.array_equal(alone.frames, after.frames) and np.array_equal(alone.actions, after.actions)
    assert alone.metadata["env"]["action_space"]["kind"] == "Box" and alone.actions.shape == (2, 2)


def test_recording_ends_where_the_renderer_listens_to_signals(tmp_path, monkeypatch):
    """SDL with a video driver takes SIGTERM for itself, so that its worker must end of its own accord."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert record("CartPole-v1", 2, tmp_path, steps=3, workers=1) == 0
    assert len(list_episodes(tmp_path)) == 2


class Silent(gymnasium.Env):
    """An env that shows nothing."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)


class Nested(Silent):
    action_space = spaces.Dict({"a": spaces.Discrete(2)})


class Unbounded(Silent):
    action_space = spaces.Box(-np.inf, np.inf, (2,))


for kind in (Silent, Nested, Unbounded):
    gymnasium.register(f"test/{kind.__name__}-v0", entry_point=kind)


@pytest.mark.parametrize(
    ("env_id", "keywords", "words"),
    [
        ("test/Silent-v0", {}, "no render mode rgb_array"),
        ("test/Nested-v0", {}, "actions must be Box, Discrete"),
        ("test/Unbounded-v0", {}, "actions must be bounded"),
        ("test/Silent-v0", {"colour": 3}, "does not take .*colour"),
    ],
)
def test_envs_that_cannot_be_filmed_are_named_in_one_line(env_id, keywords, words):
    with pytest.raises(ValueError, match=words) as caught:
        make_filmed(env_id, keywords)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Path:
    """CartPole, and the same episodes as a world of wider actions, larger rewards and words; trained in
    seconds."""
    folder = tmp_path_factory.mktemp("distilled")
    record("CartPole-v1", 8, folder / "data" / "a", steps=14, height=32, width=32, workers=1)
    wide = as_values(spaces.MultiDiscrete([5, 6]))
    for path in list_episodes(folder / "data" / "a"):
        episode = read_episode(path)
        actions = np.pad(episode.actions, ((0, 0), (0, 9)))
        told = {"prompt": "a cart", "captions": ["a cart"], "env_id": "test/Wide-v3", "actions": actions}
        metadata = {"env": {"action_space": wide, "step_limit": None, "time_step_s": 0.1}}
        write_episode(
            folder / "data" / "b", replace(episode, **told, rewards=-20 * episode.rewards, metadata=metadata)
        )
    train_tokenizer(folder / "data", folder / "tokenizer", preset="tiny", steps=8, track=False)
    train(folder / "data", folder / "tokenizer", folder / "world", preset="tiny", steps=4, track=False)
    return folder


def test_a_dream_of_an_env_has_its_actions_its_limit_and_its_clock(distilled):
    model = WorldModel.load(distilled / "world")
    assert model.worlds == ("CartPole", "Wide") and model.transformer.config.action_width == 11
    assert model.origins["CartPole"].reward_scale == 1 and model.origins["Wide"].reward_scale == 20
    with gymnasium.make(
        "envs:orrery/Dream-v0", disable_env_checker=True, world="CartPole", checkpoint=distilled / "world"
    ) as env:
        check_env(env.unwrapped, skip_render_check=True)
        assert env.action_space == spaces.Discrete(2) and env.metadata["render_fps"] == 50
        assert env.unwrapped.step_limit == 500 and env.unwrapped.wordless
        frame, info = env.reset(seed=0)
        assert frame.shape == (32, 32, 3) and info["prompt"] == ""
        left, right = ([env.reset(seed=0), env.step(action)][1][0] for action in (0, 1))
        assert not np.array_equal(left, right)
        with pytest.raises(ValueError, match="recorded without words"):
            env.reset(options={"prompt": "a cart"})
        with pytest.raises(ValueError, match="must be in Discrete"):
            env.unwrapped.step(2)


def test_a_dream_of_an_env_can_begin_from_a_model_of_other_worlds(distilled, tmp_path):
    """All that it knows is kept but what it knows of its own worlds and actions."""
    record("Acrobot-v1", 3, tmp_path / "data", steps=14, height=32, width=32, workers=1)
    run = {"data": tmp_path / "data", "tokenizer": distilled / "tokenizer", "preset": "tiny", "track": False}
    with pytest.raises(ValueError, match="add --other-worlds"):
        train(**run, out=tmp_path / "no", start_from=distilled / "world")
    train(**run, out=tmp_path / "world", steps=1, start_from=distilled / "world", other_worlds=True)
    first, now = (load_file(folder / "world" / "world_model.safetensors") for folder in (distilled, tmp_path))
    assert (
        set(first) == set(now) and now["action_in.0.weight"].shape[1] < first["action_in.0.weight"].shape[1]
    )
    for name in first:
        if not name.startswith(("world.", "action_in.0.")):
            assert (first[name] - now[name]).abs().max() < 0.05, name
    assert (first["world.weight"] - now["world.weight"]).abs().max() > 0.02
    model = WorldModel.load(tmp_path / "world")
    assert model.worlds == ("Acrobot",) and model.action_size("Acrobot") == 3


def test_a_dream_with_words_and_wide_actions_takes_them(distilled):
    env = VectorDream(2, "Wide", model=WorldModel.load(distilled / "world"))
    _, info = env.reset(seed=0, options={"prompt": "a cart"})
    assert list(info["prompt"]) == ["a cart"] * 2 and env.single_action_space == spaces.MultiDiscrete([5, 6])
    frames, rewards, _, cut, _ = env.step(env.action_space.sample())
    assert frames.shape == (2, 32, 32, 3) and np.isfinite(rewards).all() and not cut.any()


def test_fidelity_dreams_episodes_that_have_no_words(distilled):
    episodes = [read_episode(path) for path in list_episodes(distilled / "data" / "a")[:2]]
    actions = np.stack([episode.actions[:5] for episode in episodes])
    model = WorldModel.load(distilled / "world")
    assert dream(model, "CartPole", episodes, actions).shape == (2, 6, 32, 32, 3)


def test_one_world_from_two_versions_of_an_env_is_refused(distilled, tmp_path):
    first, second = (read_episode(path) for path in list_episodes(distilled / "data" / "a")[:2])
    other = {**second.metadata, "env": {**second.metadata["env"], "step_limit": 9}}
    for episode in (first, replace(second, metadata=other)):
        write_episode(tmp_path / "data", episode)
    with pytest.raises(ValueError, match="step_limit of world CartPole is 9, other episodes have 500"):
        train(tmp_path / "data", distilled / "tokenizer", tmp_path / "out", preset="tiny", track=False)


def test_the_dream_of_an_env_is_an_env_that_can_be_recorded(distilled, tmp_path):
    options = {"world": "CartPole", "checkpoint": str(distilled / "world")}
    recording = Recording("envs:orrery/Dream-v0", ".", "random", 3, None, None, env_options=options)
    with recording.make() as env:
        episode = play(env, recording, 0)
    assert episode.actions.shape[1] == 2 and isinstance(env.unwrapped, Dream)
