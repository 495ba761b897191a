"""Runs of training: how they begin, stop, go on and say what is wrong."""

import json
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
from simulator.flags import bounds
from simulator.optim import Clock, rate_factor, take_step
from simulator.train import train
from simulator.train_captioner import train_captioner
from simulator.train_detail import train_detail
from simulator.train_tokenizer import TRAININGS, train_tokenizer

MODULES = {
    "tokenizer": simulator.train_tokenizer,
    "world": simulator.train,
    "detail": simulator.train_detail,
}


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C as in a terminal; processes that run tests side by side ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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

    def ctrl_c_in_the_third_step(learner, ema_decay):
        if learner.clock.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        take_step(learner, ema_decay)

    with monkeypatch.context() as patch:
        patch.setattr(MODULES[kind], "take_step", ctrl_c_in_the_third_step)
        with pytest.raises(KeyboardInterrupt, match="interrupted at step 3; --resume goes on from there"):
            begin(out=tmp_path / "run", steps=6)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert weights_of(tmp_path / "run"), "what it had learnt can be used"
    begin(out=tmp_path / "run", steps=6, resume=True)
    if kind == "detail":  # a resumed one looks at a fresh pool
        return
    begin(out=tmp_path / "calm", steps=6)
    for name, value in weights_of(tmp_path / "calm").items():
        assert torch.equal(weights_of(tmp_path / "run")[name], value), name


def test_the_second_ctrl_c_stops_at_once(run, tmp_path, monkeypatch):
    def impatient(learner, ema_decay):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(simulator.train_tokenizer, "take_step", impatient)
    with pytest.raises(KeyboardInterrupt):
        command_of("tokenizer", run)(out=tmp_path / "run", steps=6)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("kind", ["tokenizer", "world", "detail"])
def test_a_slow_run_shows_each_step_and_what_is_left_and_ends_at_100_percent(
    run, tmp_path, capsys, monkeypatch, kind
):
    monkeypatch.setattr(MODULES[kind], "SHOW_S", 0.0)
    command_of(kind, run)(out=tmp_path / "run", steps=4)
    said = capsys.readouterr().err.replace("\n", "\r").split("\r")
    name = "world model" if kind == "world" else kind
    for step, percent in enumerate(("25%", "50%", "75%", "100%"), start=1):
        assert any(s.startswith(name) and f"{percent}, step {step} " in s for s in said), (percent, said)
    last = [line for line in said if line.startswith(name)][-1]
    assert "100%, step 4 " in last and "left 00:00" in last


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


def test_what_is_given_alone_ends_a_run():
    assert bounds(None, None) == {}
    minutes, steps = Clock(**of_clock(bounds(0.5, None))), Clock(**of_clock(bounds(None, 10)))
    both = Clock(**of_clock(bounds(0.5, 10)))
    for clock in (minutes, steps, both):
        clock.step, clock.earlier_s = 9, 15.0
    assert minutes.progress == pytest.approx(0.5, abs=0.01)
    assert steps.progress == both.progress == pytest.approx(0.9)


def test_the_first_step_teaches_and_the_last_moment_does_not():
    assert rate_factor(0.0) == pytest.approx(0.1) and rate_factor(1.0) == 0
    assert rate_factor(0.01) == rate_factor(0.6) == 1


def of_clock(given: dict) -> dict:
    return {f"max_{name}": value for name, value in given.items()}


@pytest.mark.parametrize("kind", ["tokenizer", "world", "detail", "captioner"])
@pytest.mark.parametrize("flag", ["minutes", "steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_training_at_all_is_refused_before_any_work(run, tmp_path, kind, flag, value):
    value = float(value) if flag == "minutes" else value
    with pytest.raises(ValueError, match=f"--{flag} must be above 0, got {value}"):
        command_of(kind, run)(out=tmp_path / "no", **{flag: value})
    assert not (tmp_path / "no").exists()


def test_minutes_alone_are_all_used(run, tmp_path):
    """The tiny preset's own steps take a fraction of these."""
    command_of("tokenizer", run)(out=tmp_path / "run", minutes=0.25)
    made = json.loads((tmp_path / "run" / "config.json").read_text())["made"]
    assert made["minutes"] >= 0.25 and made["steps"] > TRAININGS["tiny"].steps


@pytest.mark.parametrize("kind", ["tokenizer", "world", "detail"])
def test_a_finished_run_says_so_when_it_is_resumed(run, tmp_path, capsys, kind):
    begin = command_of(kind, run)
    begin(out=tmp_path / "run", steps=2)
    before = (tmp_path / "run" / "config.json").stat().st_mtime_ns
    assert begin(out=tmp_path / "run", steps=2, resume=True) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert "run is already finished (2 steps, " in said and "give more --minutes or --steps" in said
    assert (tmp_path / "run" / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["world", "detail"])
@pytest.mark.parametrize("flag", ["world_weights", "sweep_weights", "picture_weights"])
@pytest.mark.parametrize("weights", [(1.0, 2.0, 3.0), (-1.0,), (0.0,), (float("nan"),)])
def test_weights_that_are_not_those_of_the_worlds_are_refused(run, tmp_path, kind, flag, weights):
    got = " ".join(map(str, weights))
    rule = rf"--{flag.replace('_', '-')} needs one number for each of the 1 worlds \(Square\), .* got {got}"
    with pytest.raises(ValueError, match=rule):
        command_of(kind, run)(out=tmp_path / "no", steps=1, **{flag: weights})
    assert not (tmp_path / "no").exists()
