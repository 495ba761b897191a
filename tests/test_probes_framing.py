"""Framing: what counts as cut by the edge, and the comparison of whole pictures with their middle squares."""

import json

import gymnasium
import numpy as np
import pytest
import torch

import envs  # noqa: F401
from envs.record import Recording, play
from probes.checker import Checker
from probes.framing import framed, framing, framing_of, middle_square
from recon3d.cameras import Cameras
from simulator.clips import HELD_OUT_SEED, write_episode
from simulator.train_tokenizer import train_tokenizer


def orbit(width: int = 96) -> gymnasium.Env:
    return gymnasium.make("envs:orrery/Orbit-v0", width=width, disable_env_checker=True)


def episode(seed: int):
    with orbit() as env:
        return play(env, Recording("orrery/Orbit-v0", "", "random", 4, 64, 96), seed)


def test_a_thing_is_whole_inside_cut_at_each_edge_and_missing_when_tiny():
    place = np.zeros((32, 48), bool)
    place[10:14, 20:24] = True
    assert framing_of(place) == "whole"
    for rows, columns in ((slice(0, 4), 20), (slice(28, 32), 20), (20, slice(0, 4)), (20, slice(44, 48))):
        edge = np.zeros((32, 48), bool)
        edge[rows, columns] = True
        assert framing_of(edge) == "cut"
    assert framing_of(np.eye(32, 48, dtype=bool) & (np.arange(48) < 3)) == "missing"


def test_the_middle_square_keeps_each_pixels_ray():
    wide = episode(4)
    square = middle_square(wide)
    assert np.array_equal(square.frames, wide.frames[:, :, 16:80])
    rays = []
    for each in (wide, square):
        assert each.K is not None and each.c2w is not None
        K, c2w = (torch.from_numpy(np.asarray(x, np.float32))[None] for x in (each.K, each.c2w[0]))
        rays.append(Cameras(K, c2w, *each.frames.shape[1:3]).rays()[1])
    torch.testing.assert_close(rays[1], rays[0][:, :, 16:80])
    with pytest.raises(ValueError, match="wider than high"):
        middle_square(square)


def test_the_painter_calls_cut_what_the_true_segmentation_says_is_cut():
    checker, agreed = Checker.load(), []
    with orbit() as env:
        for seed in range(HELD_OUT_SEED + 900, HELD_OUT_SEED + 930):
            frame, _ = env.reset(seed=seed)
            ids, things = env.unwrapped.segmentation(), env.unwrapped.scene()["things"]
            paint = checker.paint(frame[None])[0]
            for index, thing in enumerate(things):
                mask = ids == index
                if mask.sum() < 100:
                    continue
                at_edge = mask[[0, -1]].any() or mask[:, [0, -1]].any()
                found = framing_of(paint[checker.colours.index(thing["colour"])])
                agreed.append(found == ("cut" if at_edge else "whole"))
    assert len(agreed) > 40 and np.mean(agreed) > 0.9


def test_named_things_are_counted_one_by_one():
    checker = Checker.load()
    grey = np.full((2, 64, 96, 3), 128, np.uint8)
    row = framed("grey", grey, [["red", "blue"], ["green"]], checker)
    assert (row.things, row.whole, row.cut, row.missing) == (3, 0.0, 0.0, 1.0)
    assert np.isnan(row.cut_of_found)


def test_the_comparison_runs_from_episodes_to_its_table(tmp_path, capsys):
    for seed in (*range(6), HELD_OUT_SEED, HELD_OUT_SEED + 1):
        write_episode(tmp_path / "data", episode(seed))
    train_tokenizer(tmp_path / "data", tmp_path / "tokenizer", preset="tiny", steps=2, track=False)
    framing(tmp_path / "data", tmp_path / "tokenizer", tmp_path / "out", minutes=0.05, preset="tiny")
    assert "recorded: middle squares | 64x64" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out/framing.json").read_text())["rows"]
    assert [row["picture"] for row in rows] == ["64x96", "64x96", "64x64", "64x96", "64x64"]
    assert all(abs(row["whole"] + row["cut"] + row["missing"] - 1) < 1e-9 for row in rows)
