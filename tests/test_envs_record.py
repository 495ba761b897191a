"""Recording: exact, resumable, and careful with held-out seeds."""

import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401
from envs.record import Recording, play, record
from simulator.clips import HELD_OUT_SEED, list_episodes, read_episode

SMALL = {"steps": 5, "height": 32, "width": 32, "workers": 1}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("episodes")
    assert record("envs:orrery/Orbit-v0", 3, out, **SMALL) == 0
    return out


def test_an_episode_holds_what_the_env_showed(recorded):
    episode = read_episode(list_episodes(recorded)[1])
    with gymnasium.make("envs:orrery/Orbit-v0", height=32, width=32) as env:
        frame, info = env.reset(seed=1)
        assert np.array_equal(episode.frames[0], frame) and episode.prompt == info["prompt"]
        assert np.allclose(episode.c2w[0], info["c2w"]) and np.allclose(episode.K, info["K"])
        assert episode.captions == list(env.unwrapped.captions()) and len(episode.captions) >= 3
        for step, action in enumerate(episode.actions):
            frame, reward, *_ = env.step(action)
            assert np.array_equal(episode.frames[step + 1], frame)
            assert episode.rewards[step] == pytest.approx(reward)
    assert episode.metadata["scene"]["things"] and episode.metadata["versions"]["mujoco"]


def test_recording_goes_on_where_it_was_killed(recorded, tmp_path):
    first = Path(shutil.copy(list_episodes(recorded)[0], tmp_path))
    shutil.copy(list_episodes(recorded)[1], tmp_path / ".ep_000000001.zarr.zip.1.partial")
    before = first.stat().st_mtime_ns
    assert list_episodes(tmp_path) == [first]
    record("envs:orrery/Orbit-v0", 3, tmp_path, **SMALL)
    assert first.stat().st_mtime_ns == before
    assert [p.name for p in list_episodes(tmp_path)] == [p.name for p in list_episodes(recorded)]
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in lines} == {1, 2} and all(line["prompt"] for line in lines)
    for mine, other in zip(list_episodes(tmp_path), list_episodes(recorded), strict=True):
        assert np.array_equal(read_episode(mine).frames, read_episode(other).frames)


def test_a_truncated_episode_is_refused_by_name(recorded, tmp_path):
    whole = list_episodes(recorded)[0].read_bytes()
    broken = tmp_path / "ep_000000000.zarr.zip"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=broken.name):
        read_episode(broken)


@pytest.mark.parametrize("world", ["Room", "Orbit", "Lab"])
@pytest.mark.parametrize("policy", ["scripted", "random"])
def test_policies_stay_in_the_action_space(world, policy):
    recording = Recording(f"envs:orrery/{world}-v0", ".", policy, 20, 16, 16)
    with recording.make() as env:
        for seed in range(3):
            episode = play(env, recording, seed)
            assert episode.actions.shape[1:] == env.action_space.shape
            assert abs(episode.actions).max() <= 1 and len(episode.frames) == len(episode.actions) + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": HELD_OUT_SEED - 1}, "held-out"),
        ({"policy": "clever"}, "--policy"),
        ({"episodes": 0}, "--episodes"),
        ({"workers": 0}, "--workers"),
        ({"env_id": "envs:orrery/Sea-v0"}, "env id"),
        ({"env_id": "CartPole-v1", "policy": "scripted"}, "random"),
        ({"env_options": {"colour": 1}}, "does not take"),
        ({"height": 0}, "--height"),
    ],
)
def test_bad_requests_are_named_in_one_line(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        record(**{"env_id": "envs:orrery/Lab-v0", "episodes": 2, "out": tmp_path / "x", **SMALL, **changes})
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"env_id": "envs:orrery/Lab-v0"}, "orrery/Lab-v0 of 32x32 pixels, frames a step: 1"),
        ({"width": 48}, "orrery/Orbit-v0 of 32x48 pixels, frames a step: 1"),
        ({"frames_per_step": 2}, "orrery/Orbit-v0 of 32x32 pixels, frames a step: 2"),
        ({"policy": "random"}, "orrery/Orbit-v0 of 32x32 pixels, frames a step: 1, policy: random"),
        ({"env_id": "CartPole-v1", "policy": "random"}, "CartPole-v1 of 32x32 pixels, frames a step: 1"),
    ],
)
@pytest.mark.parametrize("episodes", [2, 5])
def test_a_folder_holds_episodes_of_one_kind(recorded, tmp_path, changes, asked, episodes):
    shutil.copy(list_episodes(recorded)[0], tmp_path)
    held = "holds episodes of orrery/Orbit-v0 of 32x32 pixels, frames a step: 1"
    request = {"env_id": "orrery/Orbit-v0", "episodes": episodes, "out": tmp_path, **SMALL, **changes}
    with pytest.raises(
        ValueError, match=f"{held}, policy: scripted .*, not of {asked}.*; give another --out"
    ):
        record(**request)
    assert len(list_episodes(tmp_path)) == 1 and not (tmp_path / "episodes.jsonl").exists()


def test_a_folder_inside_may_hold_episodes_of_another_kind(recorded, tmp_path):
    (tmp_path / "inside").mkdir()
    shutil.copy(list_episodes(recorded)[0], tmp_path / "inside")
    assert record("orrery/Lab-v0", 1, tmp_path, **SMALL) == 0
    assert len(list_episodes(tmp_path)) == 2


def test_evaluation_episodes_carry_the_exact_depth_of_every_frame():
    recording = Recording("envs:orrery/Lab-v0", ".", "scripted", 3, 32, 32, depth=True)
    with recording.make() as env:
        episode = play(env, recording, HELD_OUT_SEED)
        assert episode.depth.shape == (4, 32, 32)
        assert np.allclose(episode.depth[-1], env.unwrapped.depth(), atol=2e-3)
