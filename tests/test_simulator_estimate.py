"""What training costs, as told beforehand, against what it then costs; and the law of scale."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_simulator_world_model import moving_square
from torch.utils.flop_counter import FlopCounterMode

from simulator.batches import TRAININGS
from simulator.clips import write_episode
from simulator.distributed import Processes
from simulator.estimate import (
    Estimate,
    Live,
    Shape,
    check_fits,
    estimate,
    example,
    muon_flop,
    trace,
)
from simulator.memory import free_bytes
from simulator.optim import make_optimizers
from simulator.scaling import fit_power_law, fit_with_floor, of_width, scaling
from simulator.train_tokenizer import train_tokenizer
from simulator.transformer import PRESETS, Transformer

TINY = PRESETS["tiny"]
SHAPE = Shape(clips=2, frames=5, height=4, width=4, text_tokens=6)


def total_of(found) -> torch.Tensor:
    return found.data.sum() + found.reward.sum() + found.terminated.sum() + found.log_error.sum()


def test_the_trace_counts_what_a_real_pass_counts():
    model = Transformer(TINY)
    with FlopCounterMode(display=False) as counter:
        found = model(*example(TINY, SHAPE), causal=SHAPE.causal)
        forward = counter.get_total_flops()
        total_of(found).backward()
    traced = trace(TINY, SHAPE)
    assert (traced.forward_flop, traced.total_flop) == (forward, counter.get_total_flops())
    assert traced.parameters == sum(p.numel() for p in model.parameters())


def test_the_fullest_moment_is_found():
    with Live() as live:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b[:500] * 2  # a view is no new memory
        d = torch.cat([c, c])
        number = live.number_of(b)
    assert live.peak(set()) == 4 * (1000 + 500 + 1000) and live.peak({number}) == 4 * 1500
    assert d.shape == (1000,)


def test_a_wide_models_arithmetic_is_two_operations_a_parameter_and_token():
    """The textbook's count (Kaplan et al. 2020): 2 forward, 6 in all, for the blocks' parameters."""
    config = replace(TINY, width=512, heads=8, kv_heads=8, layers=4)
    shape = Shape(clips=1, frames=4, text_tokens=72, height=8, width=8)
    traced = trace(config, shape)
    with torch.device("meta"):
        blocks = sum(p.numel() for p in Transformer(config).blocks.parameters())
    tokens = shape.clips * shape.frames * (4 * 4 + 2)
    assert traced.forward_flop == pytest.approx(2 * blocks * tokens, rel=0.1)
    assert traced.total_flop == pytest.approx(6 * blocks * tokens, rel=0.1)


def test_weights_gradients_optimizer_and_average_are_the_bytes_that_a_step_leaves():
    model = Transformer(TINY)
    optimizers = make_optimizers(model, 1e-3, 1e-3)
    with FlopCounterMode(display=False) as counter:
        total_of(model(*example(TINY, SHAPE))).backward()
        before = counter.get_total_flops()
        for optimizer in optimizers:
            optimizer.step()
        muon = counter.get_total_flops() - before
    told = estimate(TINY, TRAININGS["tiny"], (4, 4), 6, Processes(), False)

    def size(tensors) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    state = [v for o in optimizers for s in o.state.values() for v in s.values() if v.ndim]
    assert told.weights == told.average == size(model.parameters())
    assert told.gradients == pytest.approx(
        size(p.grad for p in model.parameters() if p.grad is not None), rel=0.02
    )
    assert told.optimizer == pytest.approx(size(state), rel=0.02)
    assert muon == sum(muon_flop(p) for g in optimizers[0].param_groups for p in g["params"])


def test_processes_share_memory_and_recomputing_saves_it_for_more_arithmetic():
    training, config = replace(TRAININGS["tiny"], micro_batches=2), replace(TINY, layers=5)
    alone = estimate(config, training, (8, 8), 8, Processes(), False)
    four = estimate(config, training, (8, 8), 8, Processes(count=4), False)
    again = estimate(config, training, (8, 8), 8, Processes(), True)
    assert four.optimizer == alone.optimizer / 4 and four.gathered > alone.gathered == 0
    assert again.activations < 0.5 * alone.activations and 1.1 * alone.tflop < again.tflop < 1.4 * alone.tflop


def test_presets_grow_to_billions_of_parameters():
    counts = []
    for config in PRESETS.values():
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in Transformer(config).parameters()))
    assert counts == sorted(counts) and 2e9 < counts[-1] < 5e9
    assert list(PRESETS) == list(TRAININGS)


def test_what_does_not_fit_is_refused_with_what_would_help():
    needed = Estimate(10**9, 4e9, 4e9, 4e9, 4e9, 8e9, 0.0, 1e9, 5.0)
    check_fits(needed, 26e9, False)
    with pytest.raises(ValueError, match=r"needs 25.0 GB a process, 20.0 GB are free; add --checkpoint-act"):
        check_fits(needed, 20e9, False)
    with pytest.raises(ValueError, match="over 2 times as many GPUs or machines"):
        check_fits(needed, 20e9, True)
    with pytest.raises(ValueError, match="smaller --preset"):
        check_fits(needed, 5e9, True)
    assert 1e8 < free_bytes(torch.device("cpu")) < 1e14
    assert "1,000.0M parameters; 25.00 GB a process" in str(needed)


def test_a_power_law_is_found_with_an_interval_that_holds_it():
    compute = np.geomspace(1, 64, 7)
    exact = fit_power_law(compute, 2 * compute**-0.3)
    assert exact.exponent == pytest.approx(0.3) and exact.factor == pytest.approx(2)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = fit_power_law(compute, 2 * compute**-0.3 * np.exp(rng.normal(0, 0.02, 7))).interval
        held += low < 0.3 < high
    assert 180 <= held <= 199
    floored = fit_with_floor(compute, 0.5 + 2 * compute**-0.3)
    assert floored.floor == pytest.approx(0.5, abs=1e-3) and floored.exponent == pytest.approx(0.3, abs=1e-3)
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        fit_power_law(compute[:2], compute[:2])
    with pytest.raises(ValueError, match="floor must be below every loss"):
        fit_power_law(compute, compute, 1.0)


def test_the_series_trains_once_measures_on_held_out_episodes_and_is_drawn(tmp_path: Path, capsys):
    for seed in (0, 1, 900_000_000):
        write_episode(tmp_path / ("held" if seed > 1 else "data"), moving_square(seed))
    train_tokenizer(tmp_path / "data", tmp_path / "tokenizer", preset="tiny", steps=2, track=False)
    asked = {"widths": (16, 32, 48, 64), "tflop": 1e-4, "ratio": 1.5, "clips": 2, "windows": 2}
    places = [tmp_path / name for name in ("data", "held", "tokenizer", "out")]
    assert scaling(*places, **asked) == 0
    first = capsys.readouterr().out
    assert "loss ~ compute^" in first and (tmp_path / "out" / "scaling.png").exists()
    one = json.loads((tmp_path / "out" / "width_64.json").read_text())
    assert len(one["losses"]) == len(one["tflop"]) == 8 and len(one["windows"]) == 2
    assert np.mean(one["windows"]) == pytest.approx(one["losses"][-1])
    assert scaling(*places, **asked) == 0 and capsys.readouterr().out == first
    with pytest.raises(ValueError, match="at least 4 sizes"):
        scaling(*places, widths=(16, 32))
    with pytest.raises(ValueError, match="--widths 50 does not split"):
        of_width(50, 8)
