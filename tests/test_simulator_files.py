"""What is kept on disk: episodes, videos, weights; whole or not at all, and damage is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from simulator.canvas import (
    Canvas,
    blend,
    edit,
    extend,
    extend_back,
    image_to_video,
    infill,
    loop,
    multi_shot,
    shots_of,
    text_to_video,
    upscale,
)
from simulator.checkpoint import as_config, load_weights, save_weights
from simulator.clips import Episode, list_episodes, read_episode, write_episode
from simulator.metrics import psnr, sharpness, ssim
from simulator.tokenizer import PRESETS, Tokenizer, TokenizerConfig
from simulator.video import read_image, read_video, resize, to_uint8, to_unit, write_image, write_video
from simulator.world_model import WorldModel

ORIENTATION = 0x0112  # in a photo's Exif


def episode(seed: int = 3, steps: int = 20, **changes) -> Episode:
    rng = np.random.default_rng(seed)
    values = {
        "frames": rng.integers(0, 256, (steps + 1, 16, 24, 3), dtype=np.uint8),
        "actions": rng.random((steps, 5), dtype=np.float32),
        "rewards": rng.random(steps, dtype=np.float32),
        "terminated": rng.random(steps) < 0.1,
        "prompt": "a red ball",
        "seed": seed,
        "env_id": "orrery/Room-v0",
        "captions": ["a red ball", "a red ball left of a mug"],
        "metadata": {"policy": "random"},
        "K": np.eye(3, dtype=np.float32),
        "c2w": rng.random((steps + 1, 4, 4), dtype=np.float32),
    }
    return Episode(**{**values, **changes})


def test_an_episode_comes_back_exactly(tmp_path):
    written = episode()
    read = read_episode(write_episode(tmp_path, written))
    for name in ("frames", "actions", "rewards", "terminated", "K", "c2w"):
        assert np.array_equal(getattr(read, name), getattr(written, name)), name
    assert (read.prompt, read.seed, read.captions, read.metadata) == (
        written.prompt,
        written.seed,
        written.captions,
        written.metadata,
    )
    assert read.states is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_episode_is_refused_by_name(tmp_path, share: float):
    path = write_episode(tmp_path, episode())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{path.name} is not a whole episode.*record that seed again"):
        read_episode(path)


def test_what_is_half_written_is_never_listed(tmp_path):
    path = write_episode(tmp_path / "room", episode())
    (path.parent / f".{path.name}.17.partial").write_bytes(b"half")
    assert list_episodes(tmp_path) == [path]
    assert not list(tmp_path.rglob(".*.partial"))[1:]


def test_lengths_that_contradict_are_refused():
    with pytest.raises(ValueError, match=r"6 actions need 1 \+ a multiple of 6 frames, got 21"):
        episode(
            actions=np.zeros((6, 5), np.float32),
            rewards=np.zeros(6, np.float32),
            terminated=np.zeros(6, bool),
        )


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no episode"):
        list_episodes(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        list_episodes(tmp_path / "nowhere")


def test_pixels_survive_the_way_to_floats_and_back():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    assert np.array_equal(to_uint8(to_unit(frames)), frames)


def test_a_video_and_a_picture_come_back_from_disk(tmp_path):
    row = np.linspace(0, 255, 32).astype(np.uint8)
    ramp = np.broadcast_to(row[:, None], (32, 32, 3))
    frames = np.stack([np.roll(ramp, k, axis=1) for k in range(6)])
    read, fps = read_video(write_video(tmp_path / "a.mp4", frames, 10, scale=2))
    assert read.shape == (6, 64, 64, 3) and fps == 10
    assert np.abs(read[:, ::2, ::2].astype(int) - frames).mean() < 4
    assert np.array_equal(read_image(write_image(tmp_path / "a.png", frames[0])), frames[0])
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"bad\.mp4 does not decode"):
        read_video(tmp_path / "bad.mp4")


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (96, 64), (192, 192)])
def test_the_same_frames_make_the_same_file(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 255, (16, *size, 3), dtype=np.uint8)
    frames = resize(resize(noise, 16, 16), *size)
    files = {write_video(tmp_path / "a.mp4", frames, 10).read_bytes() for _ in range(12)}
    assert len(files) == 1


def test_pictures_of_any_kind_are_read_upright_in_rgb(tmp_path):
    red = Image.new("RGB", (32, 16), (210, 30, 30))
    exif = red.getexif()
    exif[ORIENTATION] = 6  # the camera was turned by a quarter
    red.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (32, 16, 3)
    grey = (84, 84, 84)  # luma of that red
    for mode, name, colour in (
        ("RGBA", "a.png", (210, 30, 30)),
        ("P", "b.png", (210, 30, 30)),
        ("CMYK", "c.jpg", (210, 30, 30)),
        ("L", "d.png", grey),
        ("LA", "e.png", grey),
    ):
        red.convert(mode).save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.shape == (16, 32, 3) and np.abs(read.mean(axis=(0, 1)) - colour).max() < 8, mode
    red.convert("1").save(tmp_path / "f.png")
    assert set(np.unique(read_image(tmp_path / "f.png"))) == {0, 255}
    red.save(tmp_path / "moves.png", save_all=True, append_images=[Image.new("RGB", (32, 16))])
    with pytest.raises(ValueError, match=r"moves\.png moves"):
        read_image(tmp_path / "moves.png")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png is not an 8-bit picture \(mode I;16\)"):
        read_image(tmp_path / "deep.png")
    (tmp_path / "words.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"words\.png does not decode as a picture"):
        read_image(tmp_path / "words.png")


def test_weights_come_back_and_a_pickle_is_refused(tmp_path):
    model, other = Tokenizer(PRESETS["tiny"]), Tokenizer(PRESETS["tiny"])
    save_weights(tmp_path / "a.safetensors", model)
    load_weights(tmp_path / "a.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    torch.save(model.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"not a safetensors file.*pickled checkpoints"):
        load_weights(tmp_path / "b.safetensors", other)
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        load_weights(tmp_path / "a.safetensors", Tokenizer(PRESETS["small"]))


@pytest.mark.parametrize(
    ("change", "words"), [({"extra": 1}, "unknown keys"), ({"channels": None}, "lacks the keys")]
)
def test_a_config_of_another_version_is_refused(tmp_path, change: dict, words: str):
    values = {**vars(PRESETS["tiny"]), **change}
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        as_config(TokenizerConfig, values, tmp_path / "config.json")


def test_missing_and_broken_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        WorldModel.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        WorldModel.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        WorldModel.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'tokenizer'"):
        WorldModel.load(tmp_path)


def test_impossible_canvases_are_refused():
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    for level, words in (
        ([0, 0, 0, 0], "no unknown frame"),
        ([0, 0, 2, 0], r"must lie in \[0, 1\]"),
        ([], "no frame"),
    ):
        with pytest.raises(ValueError, match=words):
            Canvas("x", pixels[: len(level)], np.array(level, np.float32))
    with pytest.raises(ValueError, match="needs 3 actions, got 2"):
        text_to_video("x", 4, actions=np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"1 \+ a multiple of 4, got 8; use 9"):
        text_to_video("x", 8, time_factor=4)
    assert image_to_video(pixels[0], "x", 4).held.tolist() == [True, False, False, False]


def test_every_task_is_a_way_to_fill_in_the_canvas():
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    other = 255 - clip
    for canvas, level in (
        (text_to_video("x", 3), [1, 1, 1]),
        (text_to_video("x", 1), [1]),
        (extend(clip[:2], "x", 2), [0, 0, 1, 1]),
        (extend_back(clip[:2], "x", 2), [1, 1, 0, 0]),
        (infill(clip[:1], clip[:2], "x", 2), [0, 1, 1, 0, 0]),
        (loop("x", 4), [1, 1, 1, 1]),
        (loop("x", 4, image=clip[0]), [0, 1, 1, 0]),
        (blend(clip[:1], other[:1], "x", 2, level=0.5), [0, 0.5, 0.5, 0]),
        (edit(clip, "x", level=0.5), [0.5] * 5),
        (upscale(clip, "x", 32, 48, level=0.5), [0.5] * 5),
        (multi_shot(("x", "y"), 4), [1, 1, 1, 1]),
        (extend(clip, "x", 4, time_factor=4), [0, 0, 1]),
        (infill(clip[:1], clip[1:], "x", 4, time_factor=4), [0, 1, 0]),
    ):
        assert canvas.start_level.tolist() == level
    middle = blend(clip[:1], other[:1], "x", 1).frames[1].astype(float)
    assert np.abs(middle - (clip[0] / 2 + other[0] / 2)).max() <= 0.5
    assert multi_shot(("x", "y"), 5).shot.tolist() == [0, 0, 0, 1, 1]
    assert shots_of("Shot 1: a ball. shot 2: a box") == ("a ball.", "a box") and shots_of("a ball") == (
        "a ball",
    )
    assert upscale(clip, "x", 32, 48).frames.shape == (5, 32, 48, 3)
    for make, words in (
        (lambda: infill(clip, clip[:, :8], "x", 2), "one size"),
        (lambda: extend(clip[:3], "x", 2, time_factor=4), "whole latent steps of 4"),
        (lambda: upscale(clip, "x", 8, 8), "at least 16x24"),
        (lambda: edit(clip, "x", level=0.0), r"level must lie in \(0, 1\]"),
        (lambda: multi_shot(("x", "y", "z"), 5), "at least 6 latent steps"),
        (lambda: shots_of("shot 1: shot 2: x"), "with words for each"),
        (lambda: extend(clip, "x", 0), "no unknown frame"),
        (lambda: Canvas(("x", "y"), clip, np.ones(5, np.float32)), "need `shot`"),
        (lambda: Canvas("x", clip, np.array([0, 1, 1, 1, 1], np.float32), closed=True), "start alike"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_metrics_have_their_known_values_and_fall_with_damage():
    rng = np.random.default_rng(0)
    truth = rng.integers(60, 200, (2, 32, 32, 3), dtype=np.uint8)
    off = (truth + 16).astype(np.uint8)
    assert np.allclose(psnr(off, truth), 20 * np.log10(255 / 16))
    assert np.allclose(ssim(truth, truth), 1) and np.all(ssim(off, truth) < 1)
    blurred = truth.copy()
    blurred[:, 1:-1] = ((truth[:, :-2].astype(int) + truth[:, 1:-1] + truth[:, 2:]) // 3).astype(np.uint8)
    assert np.all(sharpness(blurred, truth) < 0.9) and np.allclose(sharpness(truth, truth), 1)
    half = np.zeros((2, 32, 32), bool)
    half[:, :16] = True
    part = truth.copy()
    part[:, 16:] = 0
    assert np.all(psnr(part, truth, half) == 100) and np.isnan(psnr(part, truth, half & False)).all()


def test_ssim_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    noisy = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    _, full = metrics.structural_similarity(
        truth[0],
        noisy[0],
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
        data_range=255,
        full=True,
    )
    assert abs(ssim(noisy, truth)[0] - full[5:-5, 5:-5].mean()) < 1e-6
