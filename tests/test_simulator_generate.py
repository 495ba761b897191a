"""`orrery generate` and the canvas: what is held stays, what cannot be made is refused before any work."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simulator.generate as command
from orrery import main
from recon3d.sweeps import arc
from simulator.canvas import (
    Canvas,
    edit,
    extend,
    image_to_video,
    infill,
    loop,
    smaller,
    text_to_video,
    upscale,
)
from simulator.timing import estimate
from simulator.video import read_image, read_video, write_image, write_video
from simulator.world_model import WorldModel

NOISE = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)  # which no tokenizer rebuilds


def run(*words: str) -> object:
    """The exit code of `orrery generate` with these words."""
    with pytest.raises(SystemExit) as ended:
        main(["generate", *words])
    return ended.value.code


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load("default")


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: image_to_video(NOISE[0], "a red ball", 3),
        lambda: extend(NOISE[:2], "a red ball", 2),
        lambda: infill(NOISE[:1], NOISE[2:], None, 2),
        lambda: loop(None, 4, image=NOISE[0]),
    ],
    ids=["picture", "extend", "infill", "loop"],
)
def test_what_is_held_comes_back_to_the_last_pixel(model: WorldModel, request_of):
    request = request_of()
    made = model.generate(request, steps=1)
    assert np.array_equal(made[request.held_frames], request.frames[request.held_frames])
    assert not np.array_equal(made[~request.held_frames], request.frames[~request.held_frames])


def test_frames_of_a_held_latent_step_are_held():
    canvas = Canvas(None, np.zeros((9, 16, 16, 3), np.uint8), np.array([0, 1, 0], np.float32))
    assert canvas.held_frames.tolist() == [True, *[False] * 4, *[True] * 4]


@pytest.mark.parametrize(
    ("request_of", "rule"),
    [
        (lambda: text_to_video("x", 3, guidance=float("nan")), "guidance must be a number, got nan"),
        (lambda: text_to_video("x", 3, actions=np.full((2, 5), np.nan)), r"actions must lie in \[-1, 1\]"),
        (lambda: text_to_video("x", 3, actions=np.full((2, 5), 9.0)), r"actions must lie in \[-1, 1\]"),
        (lambda: Canvas("x", NOISE, np.ones(9, np.float32)), "4 frames cannot have 9 latent steps"),
        (lambda: Canvas("x", NOISE[:1], np.ones(2, np.float32)), "1 frames cannot have 2 latent steps"),
    ],
)
def test_a_canvas_that_means_nothing_is_refused(request_of, rule: str):
    with pytest.raises(ValueError, match=rule):
        request_of()


UNTYPED = """
import numpy as np
from simulator.canvas import edit, text_to_video
from simulator.world_model import WorldModel
model, pixels = WorldModel.load(), np.zeros((2, 64, 64, 3), np.uint8)
state = model.start([None], "Room", [0], images=pixels[:1])[0]
for attempt in (
    lambda: edit(pixels / 255.0, "x"),
    lambda: edit(pixels[..., :1], "x"),
    lambda: text_to_video("x", 3, actions=np.zeros(2)),
    lambda: model.observe(state, pixels[None, :1] / 255.0, np.zeros((1, 5), np.float32)),
):
    try:
        attempt()
    except ValueError as error:
        print(error)
"""


def test_pixels_of_another_type_are_refused_where_nothing_checks_types():
    """These tests check every annotation; a user's program does not."""
    done = subprocess.run([sys.executable, "-c", UNTYPED], capture_output=True, text=True, check=True)
    floats, grey, flat, seen = done.stdout.splitlines()
    assert "must be uint8 of shape (t, h, w, 3), got float64" in floats
    assert "got uint8 of shape (2, 64, 64, 1)" in grey
    assert "needs 2 actions, got 2 ((2,))" in flat
    assert "must be of shape (1, 1, 64, 64, 3) and uint8, got (1, 1, 64, 64, 3) of float64" in seen


def test_a_canvas_that_this_model_cannot_make_is_refused_before_any_work(model: WorldModel):
    for canvas, steps, rule in (
        (Canvas("x", np.zeros((5, 64, 64, 3), np.uint8), np.ones(3, np.float32)), None, "1 frames each"),
        (text_to_video("x", 2), 0, "steps must be at least 1, got 0"),
        (text_to_video("x", 2, height=70), None, "height must be a multiple of 16, got 70; use 64 or 80"),
        (text_to_video("x", 64, height=4096, width=4096), None, "GB are free; make a smaller picture"),
        (
            image_to_video(np.zeros((4096, 4096, 3), np.uint8), "x", 2),
            None,
            "2 latent steps needs .* smaller",
        ),
    ):
        for work in (model.generate, lambda c, steps: estimate(model, c, steps)):
            with pytest.raises(ValueError, match=rule):
                work(canvas, steps=steps)


@pytest.mark.parametrize("size", [(128, 96), (96, 128), (128, 128), (160, 96), (256, 64), (112, 80)])
def test_drafts_keep_the_shape_of_the_picture(size: tuple[int, int]):
    small = smaller(text_to_video(None, 1, height=size[0], width=size[1]), (64, 64), 16)
    assert small is not None
    height, width = small.frames.shape[1:3]
    assert abs(np.log(size[0] * width / (size[1] * height))) < 0.15
    assert 0.5 <= height * width / 64**2 <= 2


@pytest.mark.parametrize("size", [(32, 272), (16, 528), (1040, 16), (64, 208), (2048, 2048)])
def test_drafts_of_drafts_come_to_an_end(size: tuple[int, int]):
    request, sizes = text_to_video(None, 1, height=size[0], width=size[1]), [size]
    while (small := smaller(request, (64, 64), 16)) is not None:
        request = small
        sizes.append(small.frames.shape[1:3])
    areas = [height * width for height, width in sizes]
    assert len(areas) > 1 and areas == sorted(areas, reverse=True) and len(set(areas)) == len(areas)
    assert areas[-1] <= 2 * 64**2


def test_a_sweep_from_a_picture_is_timed(model: WorldModel):
    cameras = arc(4)
    request = image_to_video(NOISE[0], None, 4, world="Orbit", cameras=cameras)
    assert estimate(model, request).before is None and estimate(model, request).seconds > 0


def test_a_loop_from_words_does_not_show_its_first_frame_twice(tmp_path: Path):
    out = str(tmp_path / "loop.mp4")
    assert run("a red ball", "--task", "loop", "--frames", "6", "--steps", "2", "-o", out) == 0
    video = read_video(out)[0].astype(float)
    assert len(video) == 6 and np.abs(video[-1] - video[0]).mean() > 0


def test_a_clip_of_another_frame_rate_is_said_to_play_at_the_models(tmp_path: Path, capsys):
    clip = write_video(tmp_path / "clip.mp4", NOISE, 24)
    out = str(tmp_path / "longer.mp4")
    words = ["x", "--task", "extend", "--video", str(clip), "--frames", "1", "--steps", "1"]
    assert run(*words, "-o", out) == 0
    assert "24 frames a second are played at the model's 10" in capsys.readouterr().err
    assert read_video(out)[1] == 10


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--height", "-64"], "--height must be at least 1, got -64"),
        (["--scale", "0"], "--scale must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--level", "0.5"], "--level goes with --task edit, blend or upscale"),
        (["-o", "x.gif"], "must end in .mp4, .mov, .mkv, .avi"),
        (["-o", "x.png", "--task", "extend", "--frames", "1"], "must end in .mp4"),
        (["--task", "edit", "--frames", "3"], "--frames goes with other tasks than edit"),
        (["--tries", "0"], "--tries must be at least 1, got 0"),
        (["--guidance", "-1"], "--guidance must be 0 or more, got -1"),
        (["--level", "2"], "edit, blend or upscale, got none"),
        (["-o", "x.png"], "must end in .mp4, .mov, .mkv, .avi for a video; --frames 1 makes a picture"),
        (["--task", "blend", "--level", "2"], "--level must lie in (0, 1], got 2.0"),
    ],
)
def test_flags_that_say_nothing_are_refused_before_any_work(flags, rule, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command.WorldModel, "load", lambda *_: pytest.fail("loaded the model"))
    output = [] if "-o" in flags else ["-o", str(tmp_path / "x.mp4")]
    assert run("a red ball", *output, *flags) == 2
    assert rule in capsys.readouterr().err


SHOTS = "shot 1: a ball. shot 2: a box"


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["x", "--video", "CLIP"], "--video with 4 frames needs another --task than none"),
        (["x", "--task", "animate", "--video", "CLIP"], "needs another --task than animate: extend goes on"),
        (["x", "--image", "PICTURE", "--frames", "1", "-o", "OUT.png"], "--frames must be at least 2"),
        ([SHOTS, "--video", "CLIP", "--task", "extend"], "shots are made from words alone"),
        ([SHOTS, "--task", "loop"], "shots are made from words alone"),
        ([SHOTS, "--frames", "3"], "--frames must be at least 4 for this, got 3"),
        (["x", "--task", "loop", "--frames", "1"], "--frames must be at least 2 for this, got 1"),
        (["x", "--height", "64000", "--width", "64000"], "16 frames of 64000x64000 need 196.6 GB"),
        (["x", "--scale", "9999"], "16 frames of 639936x639936 need"),
        (["x", "-o", "FOLDER"], "is a folder; give a file"),
        (["x", "--task", "infill"], "--task infill takes 2 --video, got 0"),
    ],
)
def test_what_the_flags_cannot_mean_is_refused_in_their_own_words(words, rule, capsys, tmp_path: Path):
    clip, picture = write_video(tmp_path / "clip.mp4", NOISE, 10), write_image(tmp_path / "in.png", NOISE[0])
    (folder := tmp_path / "folder.mp4").mkdir()
    named = {"CLIP": str(clip), "PICTURE": str(picture), "OUT.png": str(tmp_path / "out.png")}
    named |= {"FOLDER": str(folder)}
    output = [] if "-o" in words else ["-o", str(tmp_path / "out.mp4")]
    assert run(*[named.get(word, word) for word in words], *output) == 2
    assert rule in capsys.readouterr().err and not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("suffix", [".png", ".mp4"])
def test_a_picture_that_is_made_anew_is_a_picture_or_a_clip_of_one(suffix, tmp_path: Path):
    picture, out = write_image(tmp_path / "in.png", NOISE[0]), tmp_path / f"out{suffix}"
    words = ["x", "--task", "upscale", "--image", str(picture), "--steps", "1"]
    assert run(*words, "--height", "96", "--width", "96", "-o", str(out)) == 0
    made = read_image(out)[None] if suffix == ".png" else read_video(out)[0]
    assert made.shape == (1, 96, 96, 3)


@pytest.mark.parametrize(("prompt", "known"), [("an elephant", False), ("a red egg", True)])
def test_words_that_name_nothing_known_are_said_to(prompt, known, capsys, tmp_path: Path):
    out = tmp_path / "x.png"
    assert run(prompt, "--frames", "1", "--steps", "1", "--tries", "1", "-o", str(out)) == 0
    said = capsys.readouterr()
    assert ("it knows box, ball" in said.err) != known and said.out == f"{out}\n" and out.exists()


def test_shots_are_numbered_in_their_order(capsys, tmp_path: Path):
    assert run("shot 2: a ball shot 1: a box", "-o", str(tmp_path / "x.mp4")) == 2
    assert "numbered 1, 2, ... in their order, got [2, 1]" in capsys.readouterr().err


def test_a_picture_file_is_animated_from_itself(tmp_path: Path):
    picture = write_image(tmp_path / "in.png", np.full((64, 64, 3), (200, 30, 40), np.uint8))
    out = str(tmp_path / "out.mp4")
    assert run("x", "--image", str(picture), "--frames", "3", "--steps", "1", "-o", out) == 0
    first = read_video(out)[0][0].astype(float)
    assert np.abs(first - (200, 30, 40)).mean() < 4  # but for the codec


def test_prompts_that_name_nothing_known_are_told_of_where_words_decide(capsys):
    clip = np.zeros((2, 64, 64, 3), np.uint8)
    for request, told in (
        (text_to_video("a castle", 2), True),
        (edit(clip, "a castle"), True),
        (text_to_video("a red ball", 2), False),
        (edit(clip, "a red ball", guidance=1.0), False),
        (upscale(clip, "a castle", 128, 128), False),
        (extend(clip, "a castle", 2), False),
    ):
        command.tell_unknown(request)
        assert ("names no thing that the model knows" in capsys.readouterr().err) == told
