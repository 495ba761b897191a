"""Subjects: equal questions get comparable clips, exact worlds stay exact, the rest is refused aloud."""

import json
import sys
from dataclasses import asdict

import gymnasium
import numpy as np
import pytest
import torch
from analytic_scene import render

from envs import lab_camera
from probes.free_fall import combine_falls, free_fall
from probes.subjects import (
    CannotAnswer,
    DreamSubject,
    FileSubject,
    ReferenceSubject,
    drop_prompts,
    lab_cameras,
    labelled_frames,
    pictures_from_text,
    subjects_of,
)
from recon3d.cameras import to_transforms
from recon3d.sweeps import orbit
from simulator import tokenizer as tokenizer_module
from simulator import transformer as transformer_module
from simulator.checkpoint import CONFIG, save_weights, write_json
from simulator.clips import Episode, write_episode
from simulator.tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.tokenizer import Tokenizer
from simulator.transformer import Transformer
from simulator.video import write_image, write_video
from simulator.world_model import WEIGHTS, WorldModel, WorldModelConfig

ACTION_SIZES = {"Room": 5, "Orbit": 3, "Lab": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny world model with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    generator = torch.Generator().manual_seed(0)
    parts = {
        TOKENIZER_WEIGHTS: Tokenizer(tokenizer_module.PRESETS["tiny"]),
        WEIGHTS: Transformer(transformer_module.PRESETS["tiny"]),
    }
    with torch.no_grad():
        for name, part in parts.items():
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            save_weights(folder / name, part)
    config = WorldModelConfig(tuple(ACTION_SIZES), ACTION_SIZES, 32, 32)
    write_json(
        folder / CONFIG,
        {
            "world_model": asdict(config),
            "transformer": asdict(parts[WEIGHTS].config),
            "tokenizer": asdict(parts[TOKENIZER_WEIGHTS].config),
            "made": {},
        },
    )
    return folder


def dream(checkpoint, world):
    return DreamSubject(WorldModel.load(checkpoint), world, str(checkpoint))


def test_a_drop_in_the_reference_lab_falls_with_earths_gravity():
    (prompt,) = drop_prompts(1, 0)
    clip = ReferenceSubject("orrery/Lab-v0").rollout(prompt, np.zeros((14, 4), np.float32), 900_000_000)
    assert clip.prompt == prompt and clip.fps == 10 and clip.truth["states"].shape == (15, 13)
    value = free_fall(clip.video, clip.fps, clip.cameras)[0]
    assert value.verdict == "consistent" and value.value == pytest.approx(9.81, rel=0.08)


def test_drops_that_are_not_seen_whole_are_not_read_as_another_gravity():
    """White on white, and shadows on the wall: three of these eight read 16 to 29 m/s^2."""
    subject, prompts, found = ReferenceSubject("orrery/Lab-v0"), drop_prompts(33, 1), []
    for index in (0, 1, 2, 5, 6, 7, 8, 32):
        clip = subject.rollout(prompts[index], np.zeros((16, 4), np.float32), 900_000_001 + index)
        found.append(free_fall(clip.video, clip.fps, clip.cameras))
    assert [values[0].judged for values in found] == [True] * 5 + [False] * 3
    assert all("not seen whole: its area" in values[0].reason for values in found[5:])
    assert combine_falls(found)[0].value == pytest.approx(9.81, rel=0.05)


def test_lab_cameras_are_the_reference_worlds_own():
    clip = ReferenceSubject("orrery/Lab-v0").rollout(None, np.zeros((1, 4), np.float32), 900_000_001)
    cameras = lab_cameras(2, 64, 64)
    assert torch.allclose(cameras.K, clip.cameras.K, atol=1e-4)
    assert torch.allclose(cameras.c2w, clip.cameras.c2w, atol=1e-5)
    assert lab_camera.PLANE_Y_M == 0


def test_a_reference_sweep_shows_one_scene_from_the_asked_cameras():
    cameras = orbit(4)
    subject = ReferenceSubject("orrery/Orbit-v0")
    first = subject.sweep("a red ball", cameras, 900_000_000)
    again = subject.sweep("a red ball", cameras, 900_000_000)
    assert first.video.shape == (4, 64, 64, 3) and first.truth["depth"].shape == (4, 64, 64)
    assert (first.video == again.video).all() and first.cameras is cameras


@pytest.mark.parametrize("world", ACTION_SIZES)
def test_a_dream_answers_all_three_questions_and_repeats_under_its_seed(checkpoint, world):
    subject = dream(checkpoint, world)
    actions = np.zeros((3, ACTION_SIZES[world]), np.float32)
    clip = subject.rollout("a red ball", actions, 7)
    assert 2 <= len(clip.video) <= 4 and clip.video.dtype == np.uint8 and clip.fps == 10
    assert (clip.video == subject.rollout("a red ball", actions, 7).video).all()
    assert (clip.cameras is not None) == (world == "Lab")
    sweep = subject.sweep("a red ball", orbit(5, height=32, width=32), 7)
    assert sweep.video.shape == (5, 32, 32, 3) and len(sweep.cameras) == 5
    assert subject.continuation(clip.video, 3, 7).video.shape == (3, 32, 32, 3)


def test_what_cannot_be_answered_is_refused_with_the_reason(tmp_path):
    file = FileSubject(write_video(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8), 10))
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    for refused in (
        lambda: file.rollout("a ball", np.zeros((1, 3), np.float32), 0),
        lambda: file.sweep("a ball", orbit(3), 0),
        lambda: file.continuation(frames, 2, 0),
        lambda: ReferenceSubject("orrery/Lab-v0").continuation(frames, 2, 0),
    ):
        with pytest.raises(CannotAnswer, match="cannot"):
            refused()
    with pytest.raises(ValueError, match="must be one of"):
        ReferenceSubject("CartPole-v1")


def test_a_video_file_keeps_its_frames_but_its_clock_is_not_trusted(tmp_path):
    video = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
    clip = FileSubject(write_video(tmp_path / "a.mp4", video, 12)).recorded()
    assert clip.video.shape == video.shape and clip.fps == 12 and not clip.fps_known and clip.cameras is None


def test_a_folder_of_posed_pictures_keeps_its_cameras(tmp_path):
    cameras = orbit(3, height=32, width=32)
    pictures = render(cameras)[0].numpy()
    names = [write_image(tmp_path / f"{k}.png", picture).name for k, picture in enumerate(pictures)]
    (tmp_path / "transforms.json").write_text(json.dumps(to_transforms(cameras, names)))
    clip = subjects_of(str(tmp_path))[""].recorded()
    assert (clip.video == pictures).all() and torch.allclose(clip.cameras.c2w, cameras.c2w, atol=1e-6)


def test_targets_are_found_and_unknown_ones_named(checkpoint, tmp_path):
    assert list(subjects_of("orrery/Lab-v0")) == ["Lab"]
    assert set(subjects_of(str(checkpoint))) == set(ACTION_SIZES)
    with pytest.raises(ValueError, match="no-such-thing"):
        subjects_of("no-such-thing")
    with pytest.raises(ValueError, match="holds neither a transforms"):
        subjects_of(str(tmp_path))


def test_pictures_from_text_need_no_mujoco(checkpoint):
    pictures = pictures_from_text(str(checkpoint), ["a red ball", "a red ball", "a blue mug"], [5, 5, 5])
    assert pictures.shape == (3, 32, 32, 3)
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()
    assert sys.modules.get("mujoco", "absent") is not None


def test_labels_of_recorded_frames_are_what_the_episode_shows(tmp_path):
    env = gymnasium.make("orrery/Orbit-v0")
    frame, info = env.reset(seed=3, options={"prompt": "a red ball left of a blue mug"})
    scene, state = env.unwrapped.scene(), env.unwrapped.state_vector()
    env.close()
    things = [{key: np.asarray(value).tolist() for key, value in thing.items()} for thing in scene["things"]]
    episode = Episode(
        np.stack([frame, frame]),
        np.zeros((1, 3), np.float32),
        np.zeros(1, np.float32),
        np.zeros(1, bool),
        info["prompt"],
        3,
        "orrery/Orbit-v0",
        K=info["K"],
        c2w=np.stack([info["c2w"]] * 2),
        states=np.stack([state] * 2),
        metadata={"scene": {"things": things}},
    )
    write_episode(tmp_path, episode)
    found = labelled_frames(tmp_path, episodes=1, frames_per_episode=2, seed=0)
    labels = found.labels
    assert found.pictures.shape == (2, 64, 64, 3) and set(np.unique(found.places)) == {-1, 0, 1, 6}
    assert (labels[:, 0] == 2).all() and (labels[:, 5] == 7).all() and (labels > 0).sum() == 4
