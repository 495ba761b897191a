"""Uncertainty: how wrong a dream expects its pictures to be, in grey levels."""

from pathlib import Path

import numpy as np
import torch

from envs.record import record
from simulator import calibration, doubt
from simulator.carry import begun
from simulator.clips import list_episodes, read_episode
from simulator.tokenizer import Past
from simulator.world_model import WorldModel


def after(shown: torch.Tensor) -> Past:
    return Past(torch.zeros(len(shown), 2, 16, 8, 8), begun(shown))


def test_change_is_measured_in_grey_levels_from_the_frame_that_was_shown():
    shown = torch.zeros(2, 3, 8, 8)
    video = torch.stack([shown + 99, torch.stack([shown[0], shown[0] + 20 / 127.5])], dim=1)
    assert np.allclose(doubt.change(video, after(shown)), [0, 20], atol=1e-4), "of the last frame alone"


def test_the_expected_error_grows_with_doubt_and_with_change_and_ends():
    shown = torch.zeros(3, 3, 8, 8)
    video = torch.stack([shown[0], shown[0] + 0.2, shown[0] + 0.4])[:, None]
    alike = [doubt.expected_error(np.full(3, d), video, after(shown)) for d in (0.0, 0.01, 0.1, 1.0, 1e6)]
    assert (alike[0] == 0).all(), "nothing in doubt"
    assert (np.diff(alike, axis=0) > 0).all() and (np.diff(alike[1:], axis=1) > 0).all()
    assert np.max(alike) < 80, "two pictures are not farther apart than that"


def test_a_picture_that_nothing_was_shown_before_is_in_doubt_too():
    _, _, drawn = WorldModel.load().trying(1).start(["a red ball on a wooden table"], "Orbit", [0])
    assert 0 < drawn[0] < 80


def test_expected_errors_are_of_the_size_of_the_true_ones(tmp_path: Path):
    record("orrery/Orbit-v0", 12, tmp_path, steps=4, seed=900_000_300, held_out=True)
    episodes = [read_episode(path) for path in list_episodes(tmp_path)]
    for _, said, made, truth in calibration.rollouts(WorldModel.load(), "Orbit", episodes, 4):
        erred = ((made - truth) ** 2).mean(axis=(1, 2, 3)) ** 0.5
        assert 0.6 < said.mean() / erred.mean() < 1.7


def test_the_fit_finds_the_law_that_errors_follow():
    rng = np.random.default_rng(0)
    doubts, changed = rng.uniform(0.01, 2, 500), rng.uniform(0, 60, 500)
    shown, video = (
        torch.zeros(500, 3, 1, 1),
        torch.from_numpy(changed / 127.5)[:, None, None, None, None].float(),
    )
    erred = doubt.expected_error(doubts, video.expand(-1, 1, 3, 1, 1), after(shown)).astype(float)
    law = (doubt.SCALE, doubt.OF_DOUBT, doubt.OF_CHANGE)
    assert np.allclose(calibration.fitted(doubts, changed, erred - 0.5), law, rtol=1e-3)
    noisy = np.abs(erred * np.exp(0.3 * rng.normal(size=500)))
    assert np.allclose(calibration.fitted(doubts, changed, noisy), law, rtol=0.15)
