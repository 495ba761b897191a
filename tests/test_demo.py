"""The demo and the bench on the shipped weights: what they leave behind, and what they refuse."""

import json
import math
import re
import socket
from pathlib import Path

import mlflow
import pytest
import torch
import trimesh

import orrery
from probes.bench import bench
from probes.demo import demo
from probes.peers import peer_step
from recon3d import nerf
from recon3d.asset import asset
from recon3d.captures import Reading
from recon3d.sweeps import orbit

BESIDE_EACH_OTHER = ("rollout", "sweep", "fall")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"the network was called: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_demo_leaves_a_whole_report_and_never_calls_the_network(tmp_path, monkeypatch, no_network):
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "demo"
    assert demo(out, preset="tiny", steps=4, drops=1) == 0
    for name in BESIDE_EACH_OTHER:
        assert (out / f"{name}.mp4").stat().st_size > 1000
        assert (out / f"{name}-reference.mp4").stat().st_size > 1000
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "something half-made was left"
    assert len(trimesh.load(out / "asset.glb", force="mesh").faces) > 100
    body = json.loads((out / "measurements.json").read_text())
    names = [m["name"] for m in body["measurements"]]
    own = [name for name in names if not name.startswith("reference/")]
    assert "sweep_psnr" in own and "free_fall_acceleration" in own
    assert sorted(f"reference/{name}" for name in own) == sorted(set(names) - set(own))
    page = (out / "report.html").read_text()
    assert page.count("data:video/mp4") >= 7 and "reference: camera sweep" in page and "://" not in page
    mlflow.set_tracking_uri(store)
    runs = mlflow.search_runs(experiment_names=["demo"], output_format="list")
    assert len(runs) == 1 and any(name.startswith("reference/") for name in runs[0].data.metrics)


def test_a_prompt_becomes_a_capture_of_a_whole_turn_that_is_nearly_one_scene(capsys):
    capture = orrery.dream_the_prompt("a red mug on a wooden table", 0)
    asked = orbit(orrery.SWEEP_VIEWS)
    assert capture.metric and torch.equal(capture.cameras.c2w, asked.c2w)
    scores = nerf.reconstruct(capture.frames, capture.cameras, "tiny").held_out
    before = float(re.findall(r"predicted at ([0-9.]+) dB", capsys.readouterr().err)[0])
    assert scores.psnr.mean() > before + 2
    assert scores.psnr.mean() > scores.copy_psnr.mean()


@pytest.mark.parametrize(
    ("output", "reading", "says"),
    [("ball.foo", Reading(), ".glb, .ply"), ("ball.glb", Reading(views=20), "leave out")],
)
def test_nothing_is_dreamt_for_what_is_refused(output: str, reading: Reading, says: str):
    with pytest.raises(ValueError, match=says):
        asset("prompt:a red ball", Path(output), reading=reading, dream=lambda *_: pytest.fail("dreamt"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_its_preset_is_refused_at_once():
    with pytest.raises(ValueError, match=r"CUDA device.*--preset cpu"):
        asset("prompt:a red ball", Path("a.glb"), preset="gpu", dream=lambda *_: pytest.fail("dreamt"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"checkpoint": "nowhere"}, "nowhere"),
        ({"steps": 0}, "--steps"),
        ({"prompt": "justice and mercy", "steps": 1}, "prompt"),
    ],
)
def test_a_demo_that_cannot_be_made_leaves_nothing(tmp_path, wrong, says):
    out = tmp_path / "demo"
    with pytest.raises(ValueError, match=says):
        demo(out, track=False, **wrong)
    assert not out.exists()


def test_the_demo_does_not_write_over_a_file(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder"):
        demo(tmp_path / "demo", track=False)
    assert (tmp_path / "demo").read_text() == "mine"


def test_the_bench_says_what_its_numbers_rest_on(tmp_path, capsys):
    assert bench(what="dream", steps=1, turns=2, batch=2, out=tmp_path / "bench.json") == 0
    body = json.loads((tmp_path / "bench.json").read_text())
    kinds = 8  # one row and two, in fp32 and in bf16, pulled and not
    assert [timing["threads"] for timing in body["timings"]] == [1, 2] * kinds
    for timing in body["timings"]:
        assert 0 < timing["slowest"] <= timing["rate"] <= timing["fastest"] and timing["cpu_ms"] > 0
        assert timing["multiply_adds"] > 1
    assert "load" in capsys.readouterr().out


def test_reference_worlds_are_timed_without_weights(tmp_path):
    assert bench(what="worlds", checkpoint="nowhere", steps=1, turns=1, out=tmp_path / "b.json") == 0
    timings = json.loads((tmp_path / "b.json").read_text())["timings"]
    assert len(timings) == 3 and all(timing["multiply_adds"] is None for timing in timings)
    assert all(math.isfinite(timing["rate"]) for timing in timings)


def test_the_bench_refuses_no_turns():
    with pytest.raises(ValueError, match="--turns"):
        bench(turns=0)


@pytest.mark.parametrize(
    ("spec", "says"),
    [("diamond", "NAME=PATH"), ("sora=/tmp", "diamond"), ("diamond=nowhere", "inner_model.py is missing")],
)
def test_an_unknown_peer_is_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        peer_step(spec)
