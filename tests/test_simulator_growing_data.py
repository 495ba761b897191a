"""Data that grow while a model trains on them, and models trained further on what has changed."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import simulator.train
from simulator.background import beside
from simulator.checkpoint import PRETRAINED
from simulator.clips import Episode, training_episodes, write_episode
from simulator.export import export
from simulator.frames import draw, load_frames
from simulator.latents import Library, load_latents
from simulator.predicted import predictions
from simulator.tokenizer import PRESETS as TOKENIZERS
from simulator.tokenizer import load_tokenizer
from simulator.train import train
from simulator.train_tokenizer import train_tokenizer
from simulator.video import read_image, to_unit
from simulator.world_model import WorldModel


def blinking(seed: int, size: int = 32, env_id: str = "test/Blink-v0") -> Episode:
    """A plain picture whose brightness the action sets: a world that fits in a test."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (12, 2)).astype(np.float32)
    levels = np.concatenate([[128], 128 + 100 * actions[:, 0]]).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (13, size, size, 3)).copy()
    still = np.zeros(12, bool)
    prompt = f"a blink of kind {seed}"
    return Episode(
        frames, actions, actions[:, 1].copy(), still, prompt, seed, env_id, [prompt, prompt + ", at length"]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with episodes of two sizes and a hardly trained tokenizer."""
    folder = tmp_path_factory.mktemp("growing")
    for seed in range(4):
        write_episode(folder / "data" / "small", blinking(seed))
    train_tokenizer(folder / "data", folder / "tokenizer", preset="tiny", steps=2, track=False)
    for seed in range(4, 6):
        write_episode(folder / "data" / "large", blinking(seed, size=48))
    return folder


def test_a_library_filled_in_parts_holds_what_one_filled_at_once_holds(run: Path):
    tokenizer, paths = load_tokenizer(run / "tokenizer"), training_episodes(run / "data")
    library = Library(tokenizer, "test", 8)
    assert library.add(paths[:3]) == 3 and len(library.buckets()[0].words) > 0
    assert library.add(paths) == 3 and library.add(paths) == 0, "what is there is not read again"
    parts, whole = library.buckets(), load_latents(run / "data", tokenizer, "test", 8)
    assert len(parts) == 2
    for ours, theirs in zip(parts, whole, strict=True):
        for name in ("latents", "actions", "rewards", "terminated", "world", "words"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.captions == theirs.captions and np.array_equal(ours.phrases, theirs.phrases)
        assert np.array_equal(ours.starts, theirs.starts) and ours.episodes in (2, 4)


def test_what_is_made_beside_comes_once_and_its_error_is_raised():
    counted = iter(range(3))

    def make() -> int | None:
        number = next(counted, None)
        if number == 2:
            raise ValueError("two")
        return number

    found, threads = [], threading.active_count()
    with pytest.raises(ValueError, match="two"), beside(make, 0.05) as newest:
        for _ in range(200):
            found += [newest()]
            time.sleep(0.01)
    assert set(found) <= {None, 0, 1} and found.count(0) <= 1 and 0 < sum(f is not None for f in found) <= 2
    with beside(lambda: 1, None) as newest:
        assert newest() is None, "never asked, it makes nothing"
    assert threading.active_count() == threads


def test_episodes_recorded_during_training_join_it(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(simulator.train, "FOLLOW_S", 0.5)
    for seed in range(3):
        write_episode(tmp_path / "data", blinking(seed))
    threading.Timer(2.0, lambda: write_episode(tmp_path / "data", blinking(7))).start()
    train(
        tmp_path / "data",
        run / "tokenizer",
        tmp_path / "world",
        preset="tiny",
        steps=10_000,
        minutes=0.25,
        follow=True,
        track=False,
    )
    made = json.loads((tmp_path / "world" / "config.json").read_text())["made"]
    assert made["episodes"] == 4 and made["frames"] == 4 * 13


def test_a_tokenizer_trains_further_and_the_world_model_learns_its_new_latents(run: Path, tmp_path: Path):
    same = {"data": run / "data" / "small", "preset": "tiny", "track": False}
    train(run / "data", run / "tokenizer", tmp_path / "world", preset="tiny", steps=2, track=False)
    train_tokenizer(**same, out=tmp_path / "whole", start_from=run / "tokenizer", steps=3, batch_scale=0.5)
    train_tokenizer(**same, out=tmp_path / "decoder", start_from=run / "tokenizer", only="decoder", steps=3)
    train_tokenizer(**same, out=tmp_path / "carry", start_from=run / "tokenizer", only="carry", steps=3)
    before, whole, decoder, carry = (
        load_file(folder / "tokenizer.safetensors")
        for folder in (run / "tokenizer", tmp_path / "whole", tmp_path / "decoder", tmp_path / "carry")
    )
    encoder = [name for name in before if name.startswith("encoder") and before[name].ndim == 2]
    assert all(0 < (whole[name] - before[name]).abs().max() < 0.1 for name in encoder)
    assert all(torch.equal(decoder[name], before[name]) for name in encoder)
    assert not torch.equal(decoder["decoder_in.weight"], before["decoder_in.weight"])
    changed = {name for name in before if not torch.equal(carry[name], before[name])}
    assert "carry.flow.weight" in changed and all(name.startswith("carry.") for name in changed)
    assert json.loads((tmp_path / "whole" / "metrics.jsonl").read_text())["step"] == 3
    made = json.loads((tmp_path / "decoder" / "config.json").read_text())["made"]
    assert made["steps"] == 3 and made["started_from"]["steps"] == 2
    again = {"data": run / "data", "preset": "tiny", "track": False, "start_from": tmp_path / "world"}
    with pytest.raises(ValueError, match="--other-latents"):
        train(**again, tokenizer=tmp_path / "whole", out=tmp_path / "no")
    train(**again, tokenizer=tmp_path / "whole", out=tmp_path / "on", steps=2, other_latents=True)
    assert (tmp_path / "on" / "world_model.safetensors").exists() and not (tmp_path / "no").exists()


def test_a_tokenizer_learns_pictures_of_several_sizes_each_by_its_pixels(run: Path, tmp_path: Path):
    sizes = load_frames(run / "data", 1000, 4, np.random.default_rng(0), progress=False)
    assert [frames.pixels.shape for frames in sizes] == [(52, 32, 32, 3), (26, 48, 48, 3)]
    rng = np.random.default_rng(0)
    drawn = [tuple(draw(sizes, TOKENIZERS["tiny"], 9, 4, 0.1, rng).video.shape) for _ in range(2000)]
    assert set(drawn) == {(9, 4, 3, 32, 32), (4, 4, 3, 48, 48)}, "as many pixels of either"
    pixels = 52 * 32**2, 26 * 48**2
    assert drawn.count((9, 4, 3, 32, 32)) / 2000 == pytest.approx(pixels[0] / sum(pixels), abs=0.04)
    train_tokenizer(run / "data", tmp_path / "both", preset="tiny", steps=4, track=False)
    last = json.loads((tmp_path / "both" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 3 < last["psnr_db"] < 60 and 3 < last["psnr_db_48x48"] < 60
    assert read_image(tmp_path / "both" / "reconstruction.png").shape == (2 * 2 * 32, 2 * 8 * 32, 3)
    write_episode(tmp_path / "odd", blinking(9, size=36))
    with pytest.raises(ValueError, match="multiple of 8, got 36"):
        train_tokenizer(tmp_path / "odd", tmp_path / "no", preset="tiny", steps=1, track=False)


def test_episodes_shorter_than_a_clip_are_left_out(tmp_path: Path):
    for steps, size in ((4, 32), (9, 32), (5, 48)):
        whole = blinking(steps, size=size)
        parts = {name: getattr(whole, name)[:steps] for name in ("actions", "rewards", "terminated")}
        write_episode(tmp_path / str(steps), replace(whole, frames=whole.frames[: steps + 1], **parts))
    (found,) = load_frames(tmp_path, 1000, 8, np.random.default_rng(0), progress=False)
    assert found.pixels.shape == (10, 32, 32, 3) and list(found.starts) == [0, 10]
    with pytest.raises(ValueError, match=r"at least 11 frames, and the longest in .* has 10"):
        load_frames(tmp_path, 1000, 11, np.random.default_rng(0), progress=False)


def test_a_model_trained_further_samples_as_the_one_it_comes_from(run: Path, tmp_path: Path):
    same = {"data": run / "data", "tokenizer": run / "tokenizer", "preset": "tiny", "track": False}
    train(**same, out=tmp_path / "world", steps=2)
    config = tmp_path / "world" / "config.json"
    config.write_text(config.read_text().replace('"sampler_steps": 1', '"sampler_steps": 2'))
    train(**same, out=tmp_path / "further", steps=1, start_from=tmp_path / "world")
    assert WorldModel.load(tmp_path / "further").config.sampler_steps == 2


def test_what_ships_is_rounded_and_may_lie_half_way_to_what_it_went_on_from(run: Path, tmp_path: Path):
    same = {"data": run / "data", "tokenizer": run / "tokenizer", "preset": "tiny", "track": False}
    train(**same, out=tmp_path / "world", steps=2)
    train(**same, out=tmp_path / "further", steps=2, start_from=tmp_path / "world")
    assert export(tmp_path / "further", tmp_path / "plain") == 0
    assert export(tmp_path / "further", tmp_path / "mean", mean_with=tmp_path / "world") == 0
    old, new, plain, mean = (
        load_file(tmp_path / folder / "world_model.safetensors")
        for folder in ("world", "further", "plain", "mean")
    )
    for name, weights in new.items():
        assert torch.equal(plain[name], weights.bfloat16())
        assert torch.allclose(mean[name].float(), (old[name] + weights) / 2, rtol=0.01, atol=1e-4), name
    assert "mean" in json.loads((tmp_path / "mean" / "config.json").read_text())["made"]["weights"]
    assert WorldModel.load(tmp_path / "mean").worlds == WorldModel.load(tmp_path / "world").worlds
    for other in (PRETRAINED, tmp_path / "further"):
        with pytest.raises(ValueError, match=r"is not what .* went on from"):
            export(tmp_path / "further", tmp_path / "no", mean_with=other)
    assert not (tmp_path / "no").exists()


def test_a_decoder_learns_from_what_a_world_model_predicts(run: Path, tmp_path: Path):
    same = {"preset": "tiny", "track": False}
    train(run / "data", run / "tokenizer", tmp_path / "world", steps=2, **same)
    model, rng = WorldModel.load(tmp_path / "world"), np.random.default_rng(0)
    found = predictions(model, model.tokenizer, run / "data", 1000, rng)
    assert [frames.pixels.shape for frames in found] == [(4 * 9, 32, 32, 3), (2 * 9, 48, 48, 3)]
    for frames in found:
        assert frames.errors is not None and len(frames.errors) == len(frames.pixels)
        assert not frames.errors[::9].any() and all(frames.errors[step::9].any() for step in range(1, 9))
        bounded = model.tokenizer.encode_bounded(to_unit(frames.pixels[None, 1:9], "cpu"))[0]
        assert (bounded + torch.from_numpy(frames.errors[1:9].astype(np.float32))).abs().max() < 1.001
    assert sum(map(len, (f.pixels for f in predictions(model, model.tokenizer, run / "data", 8, rng)))) < 54
    given = {
        "start_from": run / "tokenizer",
        "only": "carry",
        "predicted_by": tmp_path / "world",
        "steps": 3,
        **same,
    }
    train_tokenizer(run / "data", tmp_path / "finished", **given)
    assert export(tmp_path / "world", tmp_path / "with", tokenizer=tmp_path / "finished") == 0
    shipped = load_file(tmp_path / "with" / "tokenizer.safetensors")
    trained = load_file(tmp_path / "finished" / "tokenizer.safetensors")
    assert all(torch.equal(shipped[name], trained[name].bfloat16()) for name in trained)
    assert json.loads((tmp_path / "with" / "config.json").read_text())["made"]["tokenizer"]["steps"] == 3
    train_tokenizer(run / "data", tmp_path / "other", steps=1, seed=1, **same)
    with pytest.raises(ValueError, match="of other latents"):
        export(tmp_path / "world", tmp_path / "no", tokenizer=tmp_path / "other")
    with pytest.raises(ValueError, match="of the same latents"):
        given["start_from"] = tmp_path / "other"
        train_tokenizer(run / "data", tmp_path / "no", **given)
    write_episode(tmp_path / "elsewhere", blinking(7, env_id="test/Other-v0"))
    with pytest.raises(ValueError, match="no episode of 8 steps in a world of the model"):
        predictions(model, model.tokenizer, tmp_path / "elsewhere", 8, rng)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "flags, rule",
    [
        ({"batch_scale": 0.0}, "--batch-scale must be above 0, got 0.0"),
        ({"only": "carry"}, "--only carry needs --start-from"),
        ({"start_from": Path("a"), "predicted_by": Path("b")}, "--predicted-by goes with --only"),
        ({"start_from": Path("a"), "time_factor": 2}, "--time-factor is that of the tokenizer"),
    ],
)
def test_a_tokenizers_training_is_refused_before_it_starts(run: Path, tmp_path: Path, flags: dict, rule: str):
    with pytest.raises(ValueError, match=rule):
        train_tokenizer(run / "data", tmp_path / "no", preset="tiny", track=False, **flags)
    for name in ("batch_scale", "rate_scale"):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be above 0, got -1.0"):
            train(
                run / "data", run / "tokenizer", tmp_path / "no", preset="tiny", track=False, **{name: -1.0}
            )
    assert not (tmp_path / "no").exists()
