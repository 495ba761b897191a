"""Runs of training: how they begin, stop, go on and say what is wrong."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_simulator_world_model import moving_square

import simulator.train
import simulator.train_detail
import simulator.train_tokenizer
from simulator.clips import write_episode
from simulator.optim import take_step
from simulator.train import train
from simulator.train_captioner import train_captioner
from simulator.train_detail import train_detail
from simulator.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with episodes, a hardly trained tokenizer and a hardly trained world model."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(4):
        write_episode(folder / "data", moving_square(seed))
    train_tokenizer(folder / "data", folder / "tokenizer", preset="tiny", steps=2, track=False)
    train(folder / "data", folder / "tokenizer", folder / "world", preset="tiny", steps=1, track=False)
    return folder


def command_of(kind: str, run: Path) -> Callable[..., int]:
    """One of the training commands, with all but where it writes and how far it goes."""
    same = {"data": run / "data", "preset": "tiny", "track": False}
    if kind == "tokenizer":
        return lambda **more: train_tokenizer(**same, **more)
    same |= {"tokenizer": run / "tokenizer"}
    if kind == "captioner":
        del same["track"]
        return lambda **more: train_captioner(**same, **more)
    if kind == "world":
        return lambda **more: train(**same, **more)
    return lambda **more: train_detail(**same, start_from=run / "world", pool=512, **more)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next(out.glob("world_model.safetensors"), out / "tokenizer.safetensors"))


@pytest.mark.parametrize("kind", ["tokenizer", "world", "detail"])
def test_an_interrupted_run_is_saved_and_goes_on_as_if_it_had_not_been(run, tmp_path, monkeypatch, kind):
    begin = command_of(kind, run)
    module = {"tokenizer": simulator.train_tokenizer, "world": simulator.train}.get(
        kind, simulator.train_detail
    )

    def ctrl_c_in_the_third_step(learner, ema_decay):
        if learner.clock.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        take_step(learner, ema_decay)

    with monkeypatch.context() as patch:
        patch.setattr(module, "take_step", ctrl_c_in_the_third_step)
        with pytest.raises(KeyboardInterrupt, match="interrupted at step 3; --resume goes on from there"):
            begin(out=tmp_path / "run", steps=6, minutes=0.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert weights_of(tmp_path / "run"), "what it had learnt can be used"
    begin(out=tmp_path / "run", steps=6, minutes=0.0, resume=True)
    if kind == "detail":  # a resumed one looks at a fresh pool
        return
    begin(out=tmp_path / "calm", steps=6, minutes=0.0)
    for name, value in weights_of(tmp_path / "calm").items():
        assert torch.equal(weights_of(tmp_path / "run")[name], value), name


def test_the_second_ctrl_c_stops_at_once(run, tmp_path, monkeypatch):
    def impatient(learner, ema_decay):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(simulator.train_tokenizer, "take_step", impatient)
    with pytest.raises(KeyboardInterrupt):
        command_of("tokenizer", run)(out=tmp_path / "run", steps=6, minutes=0.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("kind", ["tokenizer", "world", "detail", "captioner"])
def test_a_run_is_not_written_over(run, tmp_path, kind):
    begin, out = command_of(kind, run), tmp_path / "run"
    held = "captioner.json" if kind == "captioner" else "config.json"
    out.mkdir()
    (out / held).write_text("{}")
    with pytest.raises(ValueError, match=rf"--out .*run holds .* already \({held}\); .* another --out"):
        begin(out=out, steps=1)
    assert [path.name for path in out.iterdir()] == [held]


def test_an_interrupted_run_is_not_written_over_either(run, tmp_path):
    (tmp_path / "world_model.resume").mkdir()
    with pytest.raises(ValueError, match=r"holds a run already \(world_model.resume\); .* --resume"):
        command_of("world", run)(out=tmp_path, steps=1)
