"""The shipped weights: what the README claims of them, on a few held-out episodes recorded here and now."""

import json

import pytest

from envs.record import record
from simulator.checkpoint import PRETRAINED
from simulator.fidelity import Row, measure
from simulator.world_model import WorldModel

EPISODES = 8


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load("default")


@pytest.fixture(scope="module")
def rows(model: WorldModel, tmp_path_factory) -> dict[tuple[str, int], Row]:
    folder = tmp_path_factory.mktemp("held_out")
    for world in model.worlds:
        record(
            f"orrery/{world}-v0",
            EPISODES,
            folder / world,
            steps=16,
            seed=950_000_000,
            held_out=True,
            workers=1,
        )
    return {(row.world, row.step): row for row in measure(model, folder)[0]}


def test_the_weights_are_small_and_say_how_they_were_made():
    total = sum(path.stat().st_size for path in PRETRAINED.iterdir())
    assert total < 24.5e6
    made = json.loads((PRETRAINED / "config.json").read_text())["made"]
    assert made["episodes"] > 1000 and made["steps"] > 1000 and made["tokenizer"]["steps"] > 1000


@pytest.mark.parametrize("world", ["Lab", "Orbit", "Room"])
def test_dreams_are_nearer_to_the_truth_than_the_first_frame_is(rows: dict, world: str):
    for step in (1, 4):
        row = rows[world, step]
        assert row.changed_psnr > row.changed_copy, f"step {step}: {row}"
        assert row.psnr < row.ceiling + 0.5, "nothing beats the tokenizer's own reconstruction"


@pytest.mark.parametrize("world", ["Orbit", "Room"])
def test_dreams_follow_their_actions(rows: dict, world: str):
    assert rows[world, 1].shuffled > 1.5


def test_no_world_is_dull(rows: dict):
    assert rows["Room", 4].changed_share > 10 and rows["Orbit", 4].changed_share > 10
    assert rows["Lab", 4].changed_share > 3
