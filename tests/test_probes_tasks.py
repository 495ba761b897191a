"""The table of tasks: what counts as beating a baseline, and that a tiny model goes through every task."""

import json
from pathlib import Path

import numpy as np
import pytest

from envs.record import record
from probes.task_scores import TASKS, Task
from probes.tasks import half_width, row_of, table, tasks
from simulator.checkpoint import PRETRAINED
from simulator.clips import list_episodes, read_episode
from simulator.drift import drifts
from simulator.drift import table as drift_table
from simulator.fidelity import evaluate
from simulator.video import read_image
from simulator.world_model import WorldModel

PSNR = Task(lambda held: [], "PSNR dB", "still", "episodes")


def test_a_difference_within_its_interval_beats_nothing():
    rng = np.random.default_rng(0)
    scores = rng.normal(20, 3, 30)
    better = row_of("x", PSNR, [(s + 1 + e, s) for s, e in zip(scores, rng.normal(0, 0.5, 30), strict=True)])
    same = row_of("x", PSNR, [(s + e, s) for s, e in zip(scores, rng.normal(0, 0.5, 30), strict=True)])
    worse = row_of("x", PSNR, [(s - 1, s) for s in scores])
    assert [r.verdict for r in (better, same, worse)] == ["beats", "does not beat", "does not beat"]
    assert better.difference == pytest.approx(1, abs=0.3)
    # pairing takes out what the episodes share: far narrower than the scores' own interval
    assert better.difference_interval < better.score_interval / 3
    assert better.score_interval == pytest.approx(1.96 * scores.std(ddof=1) / 30**0.5, rel=0.1)


def test_no_episodes_is_cannot_judge_and_says_what_is_needed():
    row = row_of("128x128", TASKS["128x128"], [])
    assert row.verdict == "cannot judge" and np.isnan(row.score)
    assert "needs episodes" in table([row]) and np.isnan(half_width(np.ones(1)))


def test_recordings_of_one_world_alone_leave_the_others_tasks_unjudged(held: Path, capsys):
    tasks("default", held / "Room-64", only=("text to image", "extend"), episodes=2)
    judged = {line.split(" | ")[0][2:]: line for line in capsys.readouterr().out.splitlines()[2:]}
    assert "cannot judge" in judged["text to image"] and "beat" in judged["extend"]


def test_a_model_of_other_worlds_is_refused(tmp_path: Path):
    for path in PRETRAINED.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    config = (PRETRAINED / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"Orbit"', '"CartPole"'))
    with pytest.raises(ValueError, match=r"judged in Orbit and Room, and .* knows no Orbit"):
        tasks(str(tmp_path), Path("held"))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held")
    for name, size, steps in (("Orbit", (64, 64), 65), ("Orbit", (64, 96), 16), ("Room", (64, 64), 20)):
        record(
            f"orrery/{name}-v0",
            episodes=2,
            out=folder / f"{name}-{size[1]}",
            steps=steps,
            policy="random",
            seed=900_000_000,
            height=size[0],
            width=size[1],
            workers=1,
            held_out=True,
        )
    return folder


def test_the_shipped_weights_go_through_tasks_and_print_each_beside_its_baseline(
    held: Path, tmp_path, capsys
):
    names = ("text to image", "infill", "blend", "edit a colour", "shots", "64x96", "128x128")
    assert (
        tasks("default", held, only=names, episodes=2, out=tmp_path / "rows.json", image=tmp_path / "s.png")
        == 0
    )
    picture = read_image(tmp_path / "s.png")  # a label and eight frames; no strip for what was not made
    assert picture.shape == (64 * (len(names) - 1), 96 + 8 * 96, 3)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["task"] for row in rows] == list(names)
    judged = [row for row in rows if row["verdict"] != "cannot judge"]
    assert {row["task"] for row in rows} - {row["task"] for row in judged} == {"128x128"}
    assert all(np.isfinite(row["score"]) and np.isfinite(row["baseline"]) for row in judged)
    assert "cross-fade" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--only may name text to image"):
        tasks("default", held, only=("fly",))
    with pytest.raises(ValueError, match="at least 2 to give an interval, got 1"):
        tasks("default", held, episodes=1)


def test_fidelity_is_read_at_another_size_than_the_models_own(held: Path, tmp_path, capsys):
    out, picture = tmp_path / "rows.json", tmp_path / "a.png"
    assert evaluate("default", held, width=96, out=out, image=picture) == 0
    rows = json.loads(out.read_text())
    assert [(row["world"], row["episodes"], row["step"]) for row in rows] == [
        ("Orbit", 2, step) for step in (1, 4, 16)
    ]
    assert rows[0]["psnr"] > rows[0]["copy"] and rows[0]["ceiling"] > 27
    assert read_image(picture).shape == (2 * 4 * 64, 2 * 9 * 96, 3)
    with pytest.raises(ValueError, match=r"no episode of .*128x64 pixels.*--height 128 --width 64"):
        evaluate("default", held, height=128)
    with pytest.raises(ValueError, match="height must be a multiple of 16, got 100; use 96 or 112"):
        evaluate("default", held, height=100)


def test_drift_uncertainty_and_rewards_are_read_from_long_and_short_episodes(held: Path, tmp_path, capsys):
    episodes = [read_episode(path) for path in list_episodes(held / "Orbit-64")]
    near, far = drifts(WorldModel.load(), "Orbit", episodes, (4, 70))
    assert (near.with_truth, far.with_truth) == (2, 0) and near.psnr > 10
    assert near.motion > 0 and far.motion > 0 and far.sharpness > 0
    assert "none lasts" in drift_table([near, far])
    assert evaluate("default", held, table="uncertainty", out=tmp_path / "said.json") == 0
    rows = json.loads((tmp_path / "said.json").read_text())
    assert {row["world"] for row in rows} == {"Orbit", "Room"}
    assert all(-1 <= row["correlation"] <= 1 for row in rows)
    assert evaluate("default", held, table="rewards", out=tmp_path / "earned.json") == 0
    rows = json.loads((tmp_path / "earned.json").read_text())
    assert {(row["world"], row["step"]) for row in rows} >= {("Orbit", 1), ("Room", 16)}
    assert all(row["error"] < 1 for row in rows)
    with pytest.raises(ValueError, match="--image goes with --table fidelity"):
        evaluate("default", held, table="drift", image=tmp_path / "x.png")
