"""The world model put together: training, whole canvases, rollouts as values. Small and real."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recon3d.sweeps import orbit
from simulator.batches import (
    TRAININGS,
    Batch,
    draw_levels,
    make_batch,
    text_room,
    with_large_steps,
    with_own_past,
)
from simulator.canvas import image_to_video, text_to_video
from simulator.clips import Episode, write_episode
from simulator.distributed import last_checkpoint
from simulator.fidelity import evaluate, seen_in
from simulator.flow import add_noise
from simulator.generate import generate
from simulator.latents import draw, load_latents
from simulator.metrics import psnr
from simulator.tokenizer import load_tokenizer
from simulator.train import loss_of, train
from simulator.train_detail import error_of, pooled, train_detail
from simulator.train_tokenizer import train_tokenizer
from simulator.transformer import PRESETS, frames_before
from simulator.video import read_image, read_video
from simulator.world_model import WorldModel


def moving_square(seed: int, steps: int = 20) -> Episode:
    """A square that goes where the action says, before a camera that circles: a world that fits in a test."""
    rng = np.random.default_rng(seed)
    frames, actions, place = [], rng.uniform(-1, 1, (steps, 2)).astype(np.float32), np.array([14.0, 14.0])
    colour, back = rng.integers(100, 256, 3), rng.integers(0, 90, 3)
    for k in range(steps + 1):
        frame = np.broadcast_to(back, (32, 32, 3)).astype(np.uint8).copy()
        y, x = place.round().astype(int)
        frame[y : y + 6, x : x + 6] = colour
        frames.append(frame)
        if k < steps:
            place = np.clip(place + 3 * actions[k], 0, 26)
    cameras = orbit(steps + 1, height=32, width=32)
    return Episode(
        np.stack(frames),
        actions,
        np.zeros(steps, np.float32),
        np.zeros(steps, bool),
        "a square",
        seed,
        "test/Square-v0",
        ["a square", "a square that moves"],
        K=cameras.K[0].numpy(),
        c2w=cameras.c2w.numpy(),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with episodes, a trained tiny tokenizer and a trained tiny world model."""
    folder = tmp_path_factory.mktemp("trained")
    for seed in range(6):
        write_episode(folder / "data", moving_square(seed))
    for seed in (900_000_000, 900_000_001):
        write_episode(folder / "held_out", moving_square(seed))
    train_tokenizer(folder / "data", folder / "tokenizer", preset="tiny", steps=160, track=False)
    train(folder / "data", folder / "tokenizer", folder / "world", preset="tiny", steps=12, track=False)
    return folder


@pytest.fixture(scope="module")
def model(trained: Path) -> WorldModel:
    return WorldModel.load(trained / "world")


def test_training_writes_a_whole_model_that_says_how_it_was_made(trained: Path, model: WorldModel):
    made = json.loads((trained / "world" / "config.json").read_text())["made"]
    assert made["steps"] == 12 and made["episodes"] == 6 and made["frames"] == 6 * 21
    assert (
        model.worlds == ("Square",)
        and model.action_size("Square") == 2
        and (model.height, model.width) == (32, 32)
    )
    assert (trained / "world" / "preview.mp4").exists()
    assert not list(trained.rglob("*.partial*"))


def test_the_tokenizer_beats_each_frames_mean_colour(trained: Path):
    frames = np.concatenate([moving_square(seed).frames for seed in range(3)])
    flat = np.broadcast_to(frames.mean(axis=(1, 2), keepdims=True), frames.shape).astype(np.uint8)
    lines = (trained / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["psnr_db"] > psnr(flat, frames).mean() + 1


def test_a_run_goes_on_where_it_stopped(trained: Path):
    train(trained / "data", trained / "tokenizer", trained / "world2", preset="tiny", steps=4, track=False)
    before = load_file(trained / "world2" / "world_model.safetensors")
    assert last_checkpoint(trained / "world2" / "world_model.resume").name == "step_000000004"
    train(
        trained / "data",
        trained / "tokenizer",
        trained / "world2",
        preset="tiny",
        steps=6,
        track=False,
        resume=True,
    )
    after = load_file(trained / "world2" / "world_model.safetensors")
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    lines = [json.loads(x) for x in (trained / "world2" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6] and lines[1]["seconds"] >= lines[0]["seconds"]
    assert last_checkpoint(trained / "world2" / "world_model.resume").name == "step_000000006"
    with pytest.raises(ValueError, match=r"--resume: .* is missing"):
        train(
            trained / "data",
            trained / "tokenizer",
            trained / "nowhere",
            preset="tiny",
            resume=True,
            track=False,
        )


def test_training_can_go_on_from_a_models_weights_and_only_where_they_mean_the_same(trained: Path):
    same = {"data": trained / "data", "tokenizer": trained / "tokenizer", "preset": "tiny", "track": False}
    train(**same, out=trained / "further", steps=1, start_from=trained / "world")
    first, further, fresh = (
        load_file(trained / run / "world_model.safetensors")["patch_out.weight"]
        for run in ("world", "further", "world2")
    )
    assert 0 < (further - first).abs().max() < 0.1 * (fresh - first).abs().max()
    made = json.loads((trained / "further" / "config.json").read_text())["made"]
    assert made["steps"] == 1 and made["started_from"]["steps"] == 12
    train_tokenizer(trained / "data", trained / "tokenizer2", preset="tiny", steps=2, seed=1, track=False)
    with pytest.raises(ValueError, match="another tokenizer's latents"):
        train(
            **{**same, "tokenizer": trained / "tokenizer2"}, out=trained / "no", start_from=trained / "world"
        )
    for seed in range(2):
        write_episode(trained / "others", replace(moving_square(seed), env_id="test/Other-v0"))
    with pytest.raises(ValueError, match=r"worlds \['Square'\], the data \['Other'\]"):
        train(**{**same, "data": trained / "others"}, out=trained / "no", start_from=trained / "world")
    with pytest.raises(ValueError, match=r"of another shape"):
        train(**{**same, "preset": "small"}, out=trained / "no", start_from=trained / "world")
    assert not (trained / "no").exists()


def test_the_last_convolutions_learn_alone_from_what_the_frozen_layers_say(trained: Path):
    run = {"data": trained / "data", "tokenizer": trained / "tokenizer", "preset": "tiny", "track": False}
    same = {**run, "start_from": trained / "world", "out": trained / "detail", "pool": 1024}
    train_detail(**same, steps=10)
    train_detail(**same, steps=42, resume=True)
    first, now = (load_file(trained / name / "world_model.safetensors") for name in ("world", "detail"))
    changed = {name for name in first if not torch.equal(first[name], now[name])}
    assert {"detail.bank.weight", "detail.drawn.weight", "detail.from_tokens.weight"} <= changed
    assert all(name.startswith("detail.") for name in changed) and "detail.look.weight" not in changed
    assert not any(name.startswith(("detail.widen.0", "detail.to_tokens")) for name in changed)
    lines = [json.loads(x) for x in (trained / "detail" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 42]
    assert lines[1]["detail"] < 0.9 * lines[0]["detail"]
    with pytest.raises(ValueError, match="at least a step's 512 frames, got 100"):
        train_detail(**{**same, "pool": 100})


def test_training_can_go_on_in_a_wider_network(trained: Path, monkeypatch: pytest.MonkeyPatch):
    wide = replace(PRESETS["tiny"], width=128, heads=4, kv_heads=2)
    monkeypatch.setitem(PRESETS, "tiny", wide)
    run = {"data": trained / "data", "tokenizer": trained / "tokenizer", "preset": "tiny", "track": False}
    train(**run, out=trained / "wide", steps=1, start_from=trained / "world")
    first, wider = (
        load_file(trained / name / "world_model.safetensors")["patch_in.weight"] for name in ("world", "wide")
    )
    assert len(wider) == 2 * len(first)
    assert (wider[: len(first)] - first).abs().max() < 0.01 and wider[len(first) :].abs().max() < 0.01


def test_the_faster_dream_is_the_same_but_for_rounding():
    model = WorldModel.load()
    prompts, seeds, push = ["a red ball on the floor"] * 4, [3, 4, 5, 6], np.full((4, 5), 0.5, np.float32)
    _, first, _ = model.start(prompts, "Room", seeds)
    videos = []
    for kind in (model, model.faster()):
        state, *_ = kind.start(prompts, "Room", seeds, images=first[:, 0])
        for _ in range(2):
            state, frames, reward, *_ = kind.step(state, push)
        videos.append(frames.astype(float))
        assert frames.dtype == np.uint8 and reward.dtype == np.float32
    assert model.transformer.patch_in.weight.dtype == torch.float32, "the model itself stays as it was"
    away = videos[1] - videos[0]
    assert 0 < (away**2).mean() ** 0.5 < 2 and videos[0].std() > 20


def test_held_out_seeds_are_not_trained_on(trained: Path):
    with pytest.raises(ValueError, match="holds only held-out seeds"):
        train_tokenizer(trained / "held_out", trained / "refused", preset="tiny", track=False)
    assert not (trained / "refused").exists()


def test_windows_carry_the_action_that_led_to_each_frame(trained: Path):
    (data,) = load_latents(trained / "data", load_tokenizer(trained / "tokenizer"), "test", 8)
    episode = moving_square(2)
    rows = slice(data.starts[2], data.starts[3])
    assert np.array_equal(data.actions[rows][1:, :2].numpy(), episode.actions)
    assert data.actions[rows][0].abs().sum() == 0 and data.actions[:, 2:].abs().sum() == 0


def test_a_clip_in_shots_stays_within_its_episode_and_tells_at_length_of_its_start_alone(trained: Path):
    (data,) = load_latents(trained / "data", load_tokenizer(trained / "tokenizer"), "test", 8)
    episodes = np.arange(data.episodes).repeat(40)
    numbered = replace(data, rewards=torch.arange(len(data.rewards)).float())  # so that a row shows its place
    windows = draw(numbered, episodes, 9, np.random.default_rng(0), from_start=0.5, max_stride=2, shots=3)
    rows, cut = windows.rewards.numpy().astype(int), np.diff(windows.shot.numpy(), axis=1)
    assert (rows >= data.starts[episodes][:, None]).all() and (
        rows < data.starts[episodes + 1][:, None]
    ).all()
    assert set(cut.ravel()) == {0, 1} and {1, 2, 3} == {len(told) for told in windows.captions}
    for row, parts, told, episode in zip(rows, cut, windows.captions, episodes, strict=True):
        assert len(set(np.diff(row)[parts == 0])) == 1, "one stride in all shots of a clip"
        at_start, (naming, *_) = row[0] == data.starts[episode], data.captions[episode]
        assert told[1:] == [naming] * (len(told) - 1) and (at_start or told[0] == naming)
    assert len({told[0] for told in windows.captions}) > 1
    follows = windows.follows.numpy()
    assert not follows[:, 0].any() and (follows[:, 1:] == (np.diff(rows, axis=1) == 1)).all()


def tiny_batch(trained: Path, kind: str) -> Batch:
    (data,) = load_latents(trained / "data", load_tokenizer(trained / "tokenizer"), "test", 8)
    return make_batch(data, TRAININGS["tiny"], kind, 8, text_room(data), np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["rollout", "clip"])
def test_a_pool_of_frames_has_the_error_of_the_whole_network(trained: Path, model: WorldModel, kind: str):
    batch = tiny_batch(trained, kind)
    with torch.no_grad():
        pool = pooled(model.transformer, batch)
        _, whole, _ = loss_of(model.transformer, batch)
        assert error_of(model.transformer, pool.rows(torch.arange(len(pool.grid)))).item() == pytest.approx(
            whole.item(), rel=0.01
        )


def test_one_large_step_of_a_perfect_model_is_the_flow_itself(trained: Path):
    """Where the prediction is the data, two steps and one lead to the same place, and known frames stay."""
    batch = tiny_batch(trained, "clip")
    learnt = with_large_steps(
        batch, lambda batch, noisy, level, next_level: batch.data, np.random.default_rng(1)
    )
    assert torch.allclose(learnt.target, batch.data, atol=1e-4)
    known = batch.noise_level <= 0.12
    assert known.any() and torch.equal(learnt.next_level[known], batch.noise_level[known])
    assert (learnt.next_level[~known] < batch.noise_level[~known]).all()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("generations", [1, 2, 3])
def test_a_past_of_the_models_own_stands_where_the_truth_stood(trained: Path, generations: int, large: bool):
    batch = tiny_batch(trained, "rollout")
    asked = []

    def predict(seen, noisy, level, next_level):
        asked.append((seen, level, next_level))
        return torch.full_like(batch.data, 7.0)

    learnt = with_own_past(batch, predict, np.random.default_rng(1), generations, large)
    own = (learnt.data == 7.0).flatten(2).all(dim=2)
    seen, level, next_level = asked[generations - 1]
    assert own[:, 1:].float().mean() > 0.3 and torch.equal(own, level == 1)
    assert torch.equal(learnt.data[~own], batch.data[~own]) and (learnt.noise_level[own] <= 0.12).all()
    assert torch.equal(next_level[own], torch.zeros_like(level)[own] if large else level[own])
    assert len(asked) == generations + 2 * large, "a large step is learnt from two smaller ones"
    follows = learnt.noise_level > 0.12
    assert follows.any() and torch.equal(
        learnt.next_level[follows] < learnt.noise_level[follows], follows[follows] & large
    )
    for told in (seen, learnt, asked[-1][0]):
        assert told.forced is not None and not told.forced.any(), "the truth says nothing of the frame before"
    assert torch.equal(asked[-1][0].data == 7.0, learnt.data == 7.0) or not large


def test_forced_windows_are_told_the_true_frame_before_and_others_see_their_own(trained: Path):
    (data,) = load_latents(trained / "data", load_tokenizer(trained / "tokenizer"), "test", 8)
    half = replace(TRAININGS["tiny"], forced=0.5, rollout_clips=16)
    batch = make_batch(data, half, "rollout", 8, text_room(data), np.random.default_rng(0))
    noisy = add_noise(batch.data, batch.noise, batch.noise_level)
    seen, own = batch.before(noisy, batch.noise_level), frames_before(noisy, batch.noise_level)
    assert seen is not None and batch.forced is not None and 2 < batch.forced.sum() < 14
    off = (seen.latents[:, 1:] - batch.data[:, :-1]).square().mean(dim=(2, 3, 4)).sqrt()
    assert (off[batch.forced] < 0.25).all() and (seen.noise_level[batch.forced][:, 1:] <= 0.12).all()
    assert torch.equal(seen.latents[~batch.forced], own.latents[~batch.forced])
    assert (batch.noise_level[batch.forced] == 1).float().mean() > 0.5
    assert tiny_batch(trained, "clip").before(noisy, batch.noise_level) is None


def test_shots_are_cut_from_one_episode_and_each_has_its_words(trained: Path):
    batch = tiny_batch(trained, "shots")
    c = batch.conditions
    assert c.shot.max() >= 1 and (c.shot.diff(dim=1) >= 0).all()
    for row in range(len(c.shot)):
        assert set(c.shot[row].tolist()) == set(
            c.text_shot[row][: int(c.text_known[row].sum())].tolist()
        ) or (not c.text_known[row].any())
    cut = c.shot.diff(dim=1, prepend=c.shot[:, :1]) > 0
    assert not c.actions_known[cut].any() or c.shot.max() == 0


@pytest.mark.parametrize("kind", ["rollout", "clip", "shots", "sweep", "picture"])
def test_noise_levels_cover_what_sampling_meets(kind: str):
    level = draw_levels(np.random.default_rng(0), 4000, 9, kind)
    assert level.min() >= 0 and level.max() == 1 and (level == 1).mean() > 0.03
    if kind == "rollout":
        past_clean = (level[:, :-1] < 0.12).all(axis=1)
        assert past_clean.mean() > 0.05 and (level[past_clean, -1] > 0.5).any()
    if kind == "sweep":
        assert (level == level[:, :1]).all(axis=1).mean() > 0.25


def test_a_seed_makes_the_same_video_and_another_seed_another(model: WorldModel):
    canvas = text_to_video(
        "a square", 9, world="Square", cameras=orbit(9, height=32, width=32), height=32, width=32
    )
    first = model.generate(canvas, seed=5, steps=3)
    assert first.shape == (9, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, model.generate(canvas, seed=5, steps=3))
    assert not np.array_equal(first, model.generate(canvas, seed=6, steps=3))


def test_prompt_actions_and_cameras_reach_the_picture(model: WorldModel):
    def make(prompt="a square", turn=0.0, elevation=30.0):
        cameras = orbit(5, height=32, width=32, elevation_deg=elevation)
        actions = np.full((4, 2), turn, np.float32)
        return model.generate(
            text_to_video(prompt, 5, world="Square", height=32, width=32, cameras=cameras, actions=actions),
            seed=1,
            steps=2,
        )

    base = make()
    for other in (make(prompt="a blue ball on a table"), make(turn=1.0), make(elevation=60.0)):
        assert not np.array_equal(base, other)


def test_a_held_picture_stays(model: WorldModel):
    picture = moving_square(1).frames[0]
    video = model.generate(image_to_video(picture, None, 5, world="Square"), seed=0, steps=2)
    rebuilt = model.generate(image_to_video(picture, None, 2, world="Square"), seed=9, steps=1)
    assert np.abs(video[0].astype(int) - rebuilt[0]).max() <= 1, (
        "the first frame does not depend on what follows"
    )


def test_a_rollout_is_a_value_it_replays_forks_and_survives_pickling(model: WorldModel):
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 1, 2)).astype(np.float32)
    state, first, uncertainty = model.start(["a square"], "Square", [3])
    assert first.shape == (1, 1, 32, 32, 3) and np.isfinite(uncertainty).all()
    for action in actions[:3]:
        state, *_ = model.step(state, action)
    forks = [state, pickle.loads(pickle.dumps(state))]
    ends = []
    for fork in forks:
        for action in actions[3:]:
            fork, frames, reward, terminated, uncertainty = model.step(fork, action)
        ends.append(frames)
        assert reward.shape == terminated.shape == uncertainty.shape == (1,) and terminated.dtype == bool
    assert np.array_equal(ends[0], ends[1])
    _, other, *_ = model.step(state, -actions[3])
    assert not np.array_equal(other, model.step(state, actions[3])[1])


def test_a_row_dreams_the_same_alone_and_beside_others(model: WorldModel):
    """To one grey level: matrix products of another batch size round differently."""
    together, a, _ = model.start(["a square", "a square"], "Square", [1, 2])
    alone, b, _ = model.start(["a square"], "Square", [2])
    action = np.array([[0.5, -0.5], [0.1, 0.9]], np.float32)
    for _ in range(3):
        together, a, *_ = model.step(together, action)
        alone, b, *_ = model.step(alone, action[1:])
    assert np.abs(a[1].astype(int) - b[0]).max() <= 1


def test_memory_of_a_rollout_stops_growing(model: WorldModel):
    state, *_ = model.start(["a square"], "Square", [0])
    sizes = []
    for _ in range(3 * model.transformer.config.window):
        state, *_ = model.step(state, np.zeros((1, 2), np.float32))
        sizes.append(len(pickle.dumps(state)))
    assert max(sizes[model.transformer.config.window :]) - min(sizes[model.transformer.config.window :]) < 64


def test_what_the_first_frame_saw_of_a_wall_is_what_the_shift_leaves():
    wall = np.full((2, 32, 32), 4.0, np.float16)
    K = np.array([[32, 0, 16], [0, 32, 16], [0, 0, 1]], np.float32)
    c2w = np.stack([np.eye(4, dtype=np.float32)] * 2)
    c2w[1, 0, 3] = 1.0  # a metre to the right at 4 m and 32 pixels focal length: 8 pixels of 32
    shifted = replace(moving_square(0, steps=1), depth=wall, K=K, c2w=c2w, captions=[])
    assert seen_in(shifted, 0, 0).all()
    assert seen_in(shifted, 0, 1).mean() == 0.75 and not seen_in(shifted, 0, 1)[:, -8:].any()
    assert not seen_in(replace(shifted, depth=None), 0, 1).any(), "without depth there is no evidence"


def test_fidelity_prints_its_table_and_refuses_what_was_trained_on(trained: Path, capsys):
    assert (
        evaluate(
            str(trained / "world"),
            trained / "held_out",
            out=trained / "rows.json",
            image=trained / "a.png",
            steps=2,
        )
        == 0
    )
    assert read_image(trained / "a.png").shape == (2 * 4 * 32, 2 * 9 * 32, 3)
    assert "| Square (2) | 16 |" in capsys.readouterr().out
    rows = json.loads((trained / "rows.json").read_text())
    assert [row["step"] for row in rows] == [1, 4, 16] and all(0 < row["changed_share"] < 100 for row in rows)
    with pytest.raises(ValueError, match="is not held out"):
        evaluate(str(trained / "world"), trained / "data")


def test_generate_writes_videos_and_pictures_and_names_bad_input(trained: Path, tmp_path):
    checkpoint = str(trained / "world")
    generate("a square", tmp_path / "a.mp4", frames=5, world="Square", steps=1, checkpoint=checkpoint)
    generate("a square", tmp_path / "a.png", frames=1, world="Square", steps=1, checkpoint=checkpoint)
    assert read_video(tmp_path / "a.mp4")[0].shape == (5, 32, 32, 3)
    assert read_image(tmp_path / "a.png").shape == (32, 32, 3)
    clip, size = tmp_path / "a.mp4", (32, 32, 3)
    for name, count, changes in (
        ("words", 4, {"prompt": "shot 1: a square. shot 2: a red square"}),
        ("loop", 5, {"task": "loop", "frames": 5}),
        ("animate", 4, {"image": tmp_path / "a.png"}),
        ("extend", 9, {"task": "extend", "video": (clip,)}),
        ("extend-back", 9, {"task": "extend-back", "video": (clip,)}),
        ("back", 9, {"task": "loop", "video": (clip,)}),
        ("infill", 14, {"task": "infill", "video": (clip, clip)}),
        ("blend", 14, {"task": "blend", "video": (clip, clip)}),
        ("edit", 5, {"task": "edit", "video": (clip,), "level": 0.5, "frames": None}),
        ("upscale", 5, {"task": "upscale", "video": (clip,), "frames": None}),
    ):
        made = tmp_path / f"{name}.mp4"
        values = {"prompt": "a square", "output": made, "frames": 4, "world": "Square", **changes}
        generate(**values, steps=1, checkpoint=checkpoint)
        big = (64, 64, 3) if name == "upscale" else size
        assert read_video(made)[0].shape == (count, *big), name
    for words, changes in (
        ("takes 2 --video, got 1", {"task": "infill", "video": (clip,)}),
        ("takes 1 --video .* got 0", {"task": "edit", "frames": None}),
        ("--sweep goes with words", {"task": "extend", "video": (clip,), "sweep": "orbit"}),
        ("not both", {"image": tmp_path / "a.png", "video": (clip,)}),
        (r"level must lie in \(0, 1\]", {"task": "edit", "video": (clip,), "level": 2.0, "frames": None}),
        ("--image.*|a.png is 32x32, asked for 64x32", {"image": tmp_path / "a.png", "height": 64}),
        ("up to 4 shots", {"prompt": "".join(f"shot {k}: x " for k in range(1, 6)), "frames": 12}),
        ("prompt is empty", {"prompt": "  "}),
        ("world must be one of Square", {"world": "Room"}),
        ("height must be a multiple of 16, got 20; use 16 or 32", {"height": 20}),
        ("--sweep must be one of", {"sweep": "spin"}),
        ("must end in .mp4", {"output": tmp_path / "b.txt"}),
        ("cannot be made: .*a.mp4 is a file", {"output": tmp_path / "a.mp4" / "b.mp4"}),
        ("at least 1, got 0", {"frames": 0}),
    ):
        values = {
            "prompt": "a square",
            "output": tmp_path / "b.mp4",
            "frames": 5,
            "world": "Square",
            **changes,
        }
        with pytest.raises(ValueError, match=words):
            generate(**values, checkpoint=checkpoint)
    assert not (tmp_path / "b.mp4").exists()
