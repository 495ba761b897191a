"""Several video frames in a control step: reference worlds, episodes, tokenizer, training and dream."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401
from envs.record import Recording, play
from simulator.clips import HELD_OUT_SEED, list_episodes, read_episode, write_episode
from simulator.fidelity import evaluate, held_out_episodes
from simulator.generate import generate
from simulator.time_factors import factors
from simulator.tokenizer import PRESETS as TOKENIZERS
from simulator.tokenizer import Tokenizer
from simulator.train import train
from simulator.train_tokenizer import train_tokenizer
from simulator.video import read_image, read_video
from simulator.world_model import WorldModel

WORLDS = ("Room", "Orbit", "Lab")


def make(world: str, **keywords) -> gymnasium.Env:
    keywords = {"height": 32, "width": 32, **keywords}
    return gymnasium.make(f"envs:orrery/{world}-v0", disable_env_checker=True, **keywords)


def actions_of(env: gymnasium.Env, count: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


@pytest.mark.parametrize("world", WORLDS)
def test_env_with_several_frames_a_step_passes_gymnasiums_own_check(world):
    with make(world, frames_per_step=2) as env:
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("world", WORLDS)
def test_an_action_is_held_for_all_frames_of_its_step_and_all_reach_info(world, factor):
    """Orbit and Lab reach at each step what they reach in one frame; Room, which walks an arc where one frame
    cuts the corner, reaches it when it does not turn and walk at once."""
    with make(world, frames_per_step=factor) as env, make(world) as plain:
        frame, info = env.reset(seed=5)
        assert np.array_equal(frame, plain.reset(seed=5)[0])
        assert info["frame_count"] == 1 and not info["frames"][1:].any()
        actions = actions_of(env, 5)
        if world == "Room":
            actions[:, :2], actions[:, 4] = 0, -1
        for action in actions:
            frame, reward, *_, info = env.step(action)
            expected, plain_reward, *_, plain_info = plain.step(action)
            assert info["frames"].shape == (factor, 32, 32, 3) and info["frame_count"] == factor
            assert np.array_equal(info["frames"][-1], frame)
            assert np.abs(frame.astype(int) - expected).max() <= 1
            assert np.allclose(info["c2w"], plain_info["c2w"], atol=1e-6)
            assert reward == pytest.approx(plain_reward, abs=2e-3)
        still = [np.array_equal(a, b) for a, b in zip(info["frames"], info["frames"][1:], strict=False)]
        assert not any(still), "every frame of the step moves on"


def test_a_walk_advances_alike_in_every_frame():
    with make("Orbit", frames_per_step=4) as env:
        env.reset(seed=1)
        env.step(np.array([1, 0, 0], np.float32))
        azimuths = [env.unwrapped.pose[0] for _ in env.unwrapped.moments()]
        assert np.allclose(np.diff(np.unwrap(azimuths)), np.radians(90) * 0.025)


def test_looking_back_at_the_frames_of_a_step_changes_nothing():
    with make("Lab", frames_per_step=4) as env, make("Lab", frames_per_step=4) as other:
        env.reset(seed=2)
        other.reset(seed=2)
        for action in actions_of(env, 8):
            _, *_, info = env.step(action)
            heights = [env.unwrapped.state_vector()[2] for _ in env.unwrapped.moments()]
            for _ in env.unwrapped.moments():
                env.unwrapped.depth()
                break
            assert len(set(heights)) == 4 and np.array_equal(other.step(action)[-1]["frames"], info["frames"])


def test_a_state_restored_replays_all_frames_whatever_the_frames_per_step():
    with make("Room", frames_per_step=2) as env:
        env.reset(seed=4)
        env.step(env.action_space.sample())
        state, action = env.unwrapped.save_state(), actions_of(env, 1)[0]
        first = env.step(action)[-1]["frames"]
        env.unwrapped.load_state(state)
        assert np.array_equal(env.step(action)[-1]["frames"], first)


def test_an_episode_keeps_all_frames_with_their_cameras_states_and_depths():
    recording = Recording("envs:orrery/Lab-v0", ".", "scripted", 3, 32, 32, depth=True, frames_per_step=4)
    with recording.make() as env:
        episode = play(env, recording, HELD_OUT_SEED)
    assert episode.frames_per_step == 4 and len(episode.frames) == 13 and len(episode.actions) == 3
    assert episode.c2w.shape == (13, 4, 4) and len(episode.states) == len(episode.depth) == 13
    heights = episode.states[:, 2]
    assert len(np.unique(heights)) > 8, "each frame has its own state"


@pytest.mark.parametrize("wrong", [0, 3])
def test_other_numbers_of_frames_a_step_are_refused(wrong):
    with pytest.raises(ValueError, match="frames_per_step must be 1, 2 or 4"):
        make("Orbit", frames_per_step=wrong)


# --- the tokenizer


@pytest.fixture(scope="module", params=[1, 2, 4])
def tokenizer(request) -> Tokenizer:
    """Random weights in every path, latents of uneven scale."""
    found = Tokenizer(replace(TOKENIZERS["tiny"], time_factor=request.param)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in found.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    found.latent_mean.copy_(torch.linspace(-0.2, 0.2, len(found.latent_mean)))
    found.latent_std.copy_(torch.linspace(0.3, 0.9, len(found.latent_std)))
    return found


def video(frames: int) -> torch.Tensor:
    return torch.rand(2, frames, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_streaming_gives_what_the_whole_clip_gives(tokenizer):
    factor = tokenizer.config.time_factor
    clip = video(1 + 5 * factor)
    whole = tokenizer.encode(clip)
    assert whole.shape == (2, 6, 8, 2, 3)
    cuts = [0, 1, 1 + 2 * factor, 1 + 3 * factor, 1 + 5 * factor]
    parts = [tokenizer.encode_stream(clip[:, start:end], start == 0) for start, end in pairwise(cuts)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    decoded, past, frames = tokenizer.decode(whole), None, []
    for step in range(6):
        part, past = tokenizer.decode_stream(whole[:, step : step + 1], past)
        assert part.shape[1] == (1 if step == 0 else factor)
        frames.append(part)
    assert decoded.shape == clip.shape
    assert torch.allclose(torch.cat(frames, dim=1), decoded, atol=1e-5)


def test_the_tokenizer_is_causal_and_its_first_frame_alone_is_an_image(tokenizer):
    factor = tokenizer.config.time_factor
    clip = video(1 + 3 * factor)
    other = clip.clone()
    other[:, 1 + factor :] = 0
    seen, others = tokenizer.encode(clip), tokenizer.encode(other)
    assert torch.allclose(seen[:, :2], others[:, :2], atol=1e-6) and not torch.allclose(seen, others)
    image = tokenizer.encode(clip[:, :1])
    assert torch.allclose(image, seen[:, :1], atol=1e-6)
    assert torch.allclose(tokenizer.decode(image), tokenizer.decode(seen)[:, :1], atol=1e-5)
    shown, shown_others = tokenizer.decode(seen), tokenizer.decode(others)
    assert torch.allclose(shown[:, : 1 + factor], shown_others[:, : 1 + factor], atol=1e-5)


def test_frames_that_do_not_fill_their_step_are_refused(tokenizer):
    factor = tokenizer.config.time_factor
    with pytest.raises(ValueError, match=f"a multiple of {factor} frames"):
        tokenizer.encode_stream(video(0), start=False)
    if factor > 1:
        with pytest.raises(ValueError, match=rf"1 \+ a multiple of {factor} frames .*, got {factor}; cut it"):
            tokenizer.encode(video(factor))


# --- training, fidelity and the dream


@pytest.fixture(scope="module", params=[2, 4])
def trained(request, tmp_path_factory) -> tuple[int, Path]:
    """Recorded Orbit episodes, a tiny tokenizer and a tiny world model of one factor."""
    factor, folder = request.param, tmp_path_factory.mktemp(f"factor{request.param}")
    for name, seed, held_out in (("data", 1, False), ("held_out", HELD_OUT_SEED, True)):
        size = (32, 32, held_out)
        recording = Recording("envs:orrery/Orbit-v0", ".", "scripted", 17, *size, frames_per_step=factor)
        with recording.make() as env:
            for number in range(2):
                write_episode(folder / name, play(env, recording, seed + number))
    given = {"preset": "tiny", "steps": 8, "track": False}
    train_tokenizer(folder / "data", folder / "tokenizer", time_factor=factor, **given)
    train(folder / "data", folder / "tokenizer", folder / "world", **given)
    return factor, folder


def test_training_and_fidelity_work_with_compressed_time(trained, capsys):
    factor, folder = trained
    assert read_video(folder / "world" / "preview.mp4")[0].shape[0] == 1 + 16 * factor
    assert read_video(folder / "world" / "preview.mp4")[1] == 10 * factor
    assert evaluate(str(folder / "world"), folder / "held_out", image=folder / "a.png", steps=1) == 0
    assert "| Orbit (2) | 16 |" in capsys.readouterr().out
    assert read_image(folder / "a.png").shape == (2 * 4 * 32, 2 * 9 * 32, 3)
    model = WorldModel.load(folder / "world")
    recorded = read_episode(list_episodes(folder / "data")[0])
    assert "env" in recorded.metadata and model.origins == {}, "one of Orrery's own worlds is not another env"
    plain = WorldModel(model.config, Tokenizer(TOKENIZERS["tiny"]), model.transformer)
    with pytest.raises(ValueError, match=r"16 steps of 1 frames, .*--frames-per-step 1"):
        held_out_episodes(plain, folder / "held_out")


def test_factors_are_compared_at_equal_time_in_one_table(trained, tmp_path, capsys):
    factor, folder = trained
    given = {"turns": 1, "steps": 1, "out": tmp_path / "table.json"}
    assert factors((str(folder / "world"),), folder / "held_out", **given) == 0
    row = json.loads((tmp_path / "table.json").read_text())[0]
    assert row["factor"] == factor and len(row["gains"]) == 3 and row["minutes"] > 0
    assert row["frames_per_s"] == pytest.approx(factor * row["steps_per_s"])
    assert row["delay_ms"] == pytest.approx(1000 / row["steps_per_s"])
    assert f"| {factor} | Orbit |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="turns must be at least 1"):
        factors((str(folder / "world"),), folder / "held_out", turns=0)


def test_episodes_of_another_factor_are_refused_by_name(trained):
    _, folder = trained
    given = {"preset": "tiny", "steps": 8, "track": False}
    train_tokenizer(folder / "data", folder / "other", time_factor=1, **given)
    with pytest.raises(ValueError, match=r"ep_.*record with --frames-per-step 1"):
        train(folder / "data", folder / "other", folder / "refused", **given)
    assert not (folder / "refused").exists()


def test_the_dream_gives_all_frames_of_a_step(trained):
    factor, folder = trained
    with gymnasium.make(
        "envs:orrery/Dream-v0", world="Orbit", checkpoint=folder / "world", disable_env_checker=True
    ) as env:
        _, info = env.reset(seed=1)
        assert info["frames"].shape == (factor, 32, 32, 3) and info["frame_count"] == 1
        state = env.unwrapped.save_state()
        action = env.action_space.sample()
        frame, *_, info = env.step(action)
        assert info["frame_count"] == factor and np.array_equal(info["frames"][-1], frame)
        env.unwrapped.load_state(state)
        assert np.array_equal(env.step(action)[-1]["frames"], info["frames"])
        recording = Recording("", ".", "random", 2, None, None)
        assert len(play(env, recording, 0).frames) == 1 + 2 * factor, "a dream is recorded whole too"


def test_generated_clips_run_at_the_models_frame_rate(trained):
    factor, folder = trained
    output = folder / "clip.mp4"
    asked = {"frames": 1 + 2 * factor, "world": "Orbit", "steps": 1, "checkpoint": str(folder / "world")}
    generate("a red ball on the table", output, **asked)
    clip, fps = read_video(output)
    assert len(clip) == 1 + 2 * factor and fps == 10 * factor
    with pytest.raises(ValueError, match=rf"1 \+ a multiple of {factor}"):
        generate("a red ball on the table", output, **{**asked, "frames": factor})
