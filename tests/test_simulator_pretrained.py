"""The shipped weights: what the README claims of them, on a few held-out episodes recorded here and now."""

import json

import numpy as np
import pytest

from envs.record import record
from probes.task_scores import correlation
from simulator.canvas import BESIDE_LEVEL, DRAFT_LEVEL, from_draft, image_to_video, text_to_video, upscale
from simulator.checkpoint import PRETRAINED
from simulator.clips import list_episodes, read_episode
from simulator.fidelity import Row, measure
from simulator.metrics import gradient, psnr, sharpness
from simulator.video import resize
from simulator.walk import legs_of
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
    assert total < 26e6
    made = json.loads((PRETRAINED / "config.json").read_text())["made"]
    for part in (made, made["tokenizer"]):
        parts = [part]
        while "started_from" in parts[-1]:
            parts.append(parts[-1]["started_from"])
        assert sum(part["steps"] for part in parts) > 1000 and all(part["minutes"] > 0 for part in parts)
    assert made["episodes"] > 1000


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


def test_a_large_picture_has_its_drafts_layout_and_details_of_its_own(model: WorldModel):
    request = text_to_video("a red ball and a blue box on a table", 4, height=128, width=128, world="Orbit")
    small = model.draft_of(request)
    assert small is not None and small.frames.shape[1:3] == (64, 64) and model.draft_of(small) is None
    large, draft = model.generate(request, seed=1), model.generate(small, seed=1)
    shrunk = resize(large, 64, 64)
    assert correlation(shrunk, draft) > 0.9
    assert correlation(shrunk, draft) > correlation(shrunk, model.generate(small, seed=2)) + 0.1
    assert gradient(large).mean() > gradient(resize(draft, 128, 128)).mean()


def test_details_made_at_a_larger_size_are_as_many_as_the_truths(model: WorldModel, tmp_path):
    """True clips, shrunk and made again: sharper than enlarged, and no sharper than the truth is."""
    given = {"steps": 3, "seed": 950_000_100, "held_out": True, "height": 128, "width": 128, "workers": 1}
    record("orrery/Orbit-v0", EPISODES, tmp_path, **given)
    enlarged, again = [], []
    for episode in map(read_episode, list_episodes(tmp_path)):
        truth = episode.frames
        draft = resize(truth, 64, 64)
        video = model.generate(upscale(draft, episode.prompt, 128, 128, world="Orbit"), seed=episode.seed)
        assert correlation(draft, resize(video, 64, 64)) > 0.8
        enlarged.append(sharpness(resize(draft, 128, 128), truth).mean())
        again.append(sharpness(video, truth).mean())
    assert np.mean(enlarged) < np.mean(again) < 1.1


def test_what_follows_on_a_large_picture_is_nearer_and_sharper_than_its_draft(model: WorldModel, tmp_path):
    """Held-out clips of Room under their actions, beside the dream of the picture's square, enlarged."""
    given = {"steps": 5, "seed": 950_000_200, "held_out": True, "height": 128, "width": 128, "workers": 1}
    record("orrery/Room-v0", EPISODES // 2, tmp_path, **given)
    scores = []
    for episode in map(read_episode, list_episodes(tmp_path)):
        truth, how = episode.frames, {"world": "Room", "actions": episode.actions, "guidance": 1.0}
        small = resize(truth[:1], 64, 64)[0]
        large, draft = (
            model.generate(image_to_video(first, episode.prompt, len(truth), **how), seed=episode.seed)
            for first in (truth[0], small)
        )
        both = (video[1:] for video in (large, resize(draft, 128, 128)))
        scores.append([(psnr(each, truth[1:]).mean(), sharpness(each, truth[1:]).mean()) for each in both])
    (near, sharp), (draft_near, draft_sharp) = np.mean(scores, axis=0)
    assert near > draft_near + 0.2 and sharp > draft_sharp, scores


def test_what_a_large_canvas_holds_is_not_drafted(model: WorldModel):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    request = image_to_video(picture, None, 3)
    begun = from_draft(request, np.zeros((3, 64, 64, 3), np.uint8))
    assert np.array_equal(begun.frames[0], picture) and not begun.frames[1:].any()
    assert begun.start_level[0] == 0 and model.draft_of(begun) is None
    assert (begun.start_level[1:] == BESIDE_LEVEL).all() and legs_of(model, begun)
    alone = from_draft(text_to_video(None, 3, height=128, width=128), np.zeros((3, 64, 64, 3), np.uint8))
    assert (alone.start_level == DRAFT_LEVEL).all() and not legs_of(model, alone)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 192), (256, 256), (48, 512)])
def test_drafts_shrink_until_they_are_about_the_trainings_size(model: WorldModel, size: tuple[int, int]):
    request, pixels = text_to_video(None, 1, height=size[0], width=size[1]), [size[0] * size[1]]
    while (smaller := model.draft_of(request)) is not None:
        request = smaller
        pixels.append(smaller.frames[0, :, :, 0].size)
    assert pixels == sorted(pixels, reverse=True) and 0.5 < pixels[-1] / 64**2 <= 2
    model.generate(request, steps=1)


def test_a_large_dream_begins_with_the_drafted_picture_of_its_words(model: WorldModel):
    words, size = "a green cone on a wooden table", {"height": 128, "width": 128}
    _, first, uncertainty = model.start([words], "Orbit", [3], **size)
    picture = model.generate(text_to_video(words, 1, world="Orbit", **size), seed=3)
    assert np.array_equal(first[0], picture) and uncertainty == 0
