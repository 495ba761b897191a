"""The world model without its cache, and the bench that times it beside the cache and beside peers."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probes.bench import COST_ONLY, bench, peer_contestants, race, speed_table
from probes.peers import peer_step
from simulator.full_window import FullWindow, WindowState
from simulator.tokenizer import PRESETS as TOKENIZERS
from simulator.tokenizer import Tokenizer
from simulator.transformer import PRESETS, Transformer
from simulator.world_model import WorldModel, WorldModelConfig

WINDOW = 6


@pytest.fixture(scope="module")
def model() -> WorldModel:
    """Random weights in every path, two full layers."""
    torch.manual_seed(0)
    transformer = Transformer(replace(PRESETS["tiny"], layers=4, full_every=2, window=WINDOW))
    tokenizer = Tokenizer(TOKENIZERS["tiny"])
    with torch.no_grad():
        for parameter in (*transformer.parameters(), *tokenizer.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    config = WorldModelConfig(("Room",), {"Room": 5}, 32, 32, sampler_steps=4)
    return WorldModel(config, tokenizer, transformer)


def rollout(model: WorldModel, steps: int, seed: int = 0):
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 2, 5)).astype(np.float32)
    state, first, _ = model.start(["a red ball", "a blue box"], "Room", [3, 4])
    frames, rewards = [first], []
    for action in actions:
        state, new, reward, *_ = model.step(state, action)
        frames.append(new)
        rewards.append(reward)
    return state, np.concatenate(frames, axis=1).astype(int), np.stack(rewards)


def test_without_the_cache_the_same_weights_make_the_same_frames_until_the_window_slides(model):
    _, cached, rewards = rollout(model, WINDOW - 1)
    state, whole, whole_rewards = rollout(
        FullWindow(model.config, model.tokenizer, model.transformer), WINDOW - 1
    )
    assert np.abs(cached - whole).max() <= 1, "to one grey level: sums are taken in another order"
    assert np.allclose(rewards, whole_rewards, atol=1e-4)
    assert isinstance(state, WindowState) and np.abs(np.diff(cached, axis=1)).max() > 3


def test_the_window_stops_growing_and_can_be_filled_at_once(model):
    uncached = FullWindow(model.config, model.tokenizer, model.transformer)
    state, *_ = rollout(uncached, 2 * WINDOW)
    filled = uncached.filled(uncached.start(["a red ball"], "Room", [1])[0])
    for found in (state, filled):
        assert found.window.latents.shape[1] == found.window.actions.shape[1] == WINDOW - 1
    assert np.isfinite(uncached.step(filled, np.zeros((1, 5), np.float32))[2]).all()


def test_the_cache_saves_about_the_windows_length_in_multiply_adds(model):
    contestants = peer_contestants(model, (), (32,), (1, 2), (1,), 1, 0)
    assert [c.setting for c in contestants[:4:2]] == ["32x32, 1 row, 1 thread", "32x32, 2 rows, 1 thread"]
    cached, whole = contestants[:2]
    assert 2 < whole.multiply_adds / cached.multiply_adds < WINDOW + 1
    timings = race(contestants, 1)
    table = speed_table(timings)
    assert all(timing.rate > 0 for timing in timings) and table.count("1.00") >= 2
    assert "32x32, 2 rows, 1 thread: dream without cache, window 6" in table


PEER = """
from dataclasses import dataclass
import torch
@dataclass
class InnerModelConfig:
    img_channels: int
    num_steps_conditioning: int
    cond_channels: int
    depths: list
    channels: list
    attn_depths: list
    num_actions: int
class InnerModel(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.conv = torch.nn.Conv2d(5 * config.img_channels, 3, 3, padding=1)
    def forward(self, noisy, level, seen, actions):
        assert len(noisy) == len(level) == len(seen) == len(actions)
        return self.conv(torch.cat([noisy, seen], dim=1))
"""


def test_a_peers_own_code_runs_from_its_checkout_at_any_size_and_batch(model, tmp_path: Path):
    file = tmp_path / "src" / "models" / "diffusion" / "inner_model.py"
    file.parent.mkdir(parents=True)
    file.write_text(PEER)
    name, step = peer_step(f"diamond={tmp_path}", size=16, rows=3)
    step()
    assert name == "DIAMOND, 3 calls, random weights"
    found = peer_contestants(model, (f"diamond={tmp_path}",), (32,), (2,), (1,), 1, 0)
    assert found[2].multiply_adds == 3 * 32 * 32 * 9 * 15 * 3, "three calls of one convolution, per row"
    assert not [name for name in sys.modules if name.startswith("diffusion.inner_model")]


def test_the_bench_says_that_random_weights_compare_cost_only(capsys):
    given = {"what": "peers", "steps": 1, "turns": 1, "sizes": (32,), "rows": (1,), "threads": (1,)}
    assert bench(**given) == 0
    assert COST_ONLY in capsys.readouterr().out
    for wrong, says in (({"rows": (0,)}, "--rows"), ({"sizes": ()}, "--sizes")):
        with pytest.raises(ValueError, match=says):
            bench(**{**given, **wrong})
    with pytest.raises(ValueError, match="--peer goes with --what peers"):
        bench(what="nerf", peer=("diamond=x",))
