"""Drift and calibration on clips whose values are known."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from simulator.calibration import ranks, spearman
from simulator.calibration import row_of as calibration_row
from simulator.clips import Episode
from simulator.drift import motion_energy, row_of
from simulator.rewards import row_of as rewards_row
from simulator.rewards import table as rewards_table
from simulator.tokenizer import PRESETS as TOKENIZERS
from simulator.tokenizer import Tokenizer
from simulator.transformer import PRESETS as TRANSFORMERS
from simulator.transformer import Transformer
from simulator.world_model import WorldModel, WorldModelConfig


def episode(frames: np.ndarray) -> Episode:
    steps = len(frames) - 1
    nothing = np.zeros(steps, np.float32)
    return Episode(frames, np.zeros((steps, 2), np.float32), nothing, nothing > 0, "x", 1, "orrery/Room-v0")


def moving(count: int = 20) -> np.ndarray:
    frames = np.full((count, 16, 16, 3), 60, np.uint8)
    for k in range(count):
        frames[k, 4:8, k % 8 + 3 : k % 8 + 7] = 200
    return frames


def test_a_frozen_picture_has_no_motion_and_the_truth_has_its_own():
    truth = moving()
    e = episode(truth)
    same = row_of("Room", 16, 1, [e], [truth[8:17]], 1.0)
    frozen = row_of("Room", 16, 1, [e], [np.repeat(truth[:1], 9, axis=0)], 1.0)
    assert same.psnr > 90 and same.motion == pytest.approx(1, abs=0.25) and same.with_truth == 1
    assert frozen.motion == 0 and frozen.psnr == frozen.copy
    assert frozen.sharpness == pytest.approx(1, abs=0.1) and same.colour < 0.5
    beyond = row_of("Room", 64, 1, [e], [truth[:9] // 2], 1.0)
    assert np.isnan(beyond.psnr) and beyond.with_truth == 0 and beyond.colour > 40
    assert motion_energy(np.repeat(truth[:1], 4, axis=0)) == 0


def test_rank_correlation_knows_order_and_ties_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    assert spearman(x, np.exp(3 * x)) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    assert ranks(np.array([2.0, 1.0, 2.0])).tolist() == [1.5, 0, 1.5]
    assert np.isnan(spearman(np.ones(5), x[:5]))
    row = calibration_row("Room", 4, x, x**2 + 10 * x + 100)
    assert row.correlation > 0.99 and row.low <= row.correlation <= row.high
    assert row.surest < row.least_sure
    noise = calibration_row("Room", 4, x, np.abs(rng.normal(size=50)))
    assert noise.low < 0 < noise.high


def test_rewards_are_compared_step_by_step_and_as_returns():
    truth = np.random.default_rng(0).normal(size=(40, 16))
    same = rewards_row("Room", 16, truth, truth)
    assert same.reward == pytest.approx((1, 1, 1)) and same.returns == pytest.approx((1, 1, 1))
    assert same.error == 0 and same.spread == pytest.approx(truth.sum(axis=1).std())
    late = truth.copy()
    late[:, :4] = np.roll(
        truth[:, :4], 1, axis=1
    )  # a reward that is late is wrong at its step, not in the sum
    shifted = rewards_row("Room", 4, late, truth)
    assert shifted.returns[0] == pytest.approx(1) and shifted.reward[1] < 0.3
    guess = rewards_row("Room", 4, np.tile(truth.mean(axis=0), (40, 1)), truth)
    assert np.isnan(guess.reward[0]) and guess.error == pytest.approx(guess.spread, rel=0.01)
    nothing = rewards_row("Lab", 4, truth, np.zeros_like(truth))
    shown = rewards_table([same, nothing]).splitlines()
    assert "1.00 [1.00, 1.00]" in shown[2] and "does not vary" in shown[3]


def test_two_thousand_steps_need_no_more_memory_than_twenty():
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZERS["tiny"])
    transformer = Transformer(replace(TRANSFORMERS["tiny"], window=4))
    config = WorldModelConfig(("Room",), {"Room": 2}, 16, 16, sampler_steps=1, commit=False)
    model = WorldModel(config, tokenizer, transformer)
    state, _, _ = model.start(["a ball"], "Room", [3])
    sizes, action = {}, np.zeros((1, 2), np.float32)
    for step in range(1, 2001):
        state, frames, *_ = model.step(state, action)
        if step in (20, 2000):
            sizes[step] = len(pickle.dumps(state))
    assert abs(sizes[2000] - sizes[20]) < 64 and np.isfinite(state.doubts).all()
    assert frames.shape == (1, 1, 16, 16, 3) and state.ages == (2001,)
