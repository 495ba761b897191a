"""Reading captures: videos, photos as phones write them, listings; bad input is told in one line."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from recon3d import asset, sweeps
from recon3d.cameras import to_transforms
from recon3d.captures import Reading, read_capture
from recon3d.pictures import read_photos, read_video


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def picture(height=48, width=64, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_listing(folder, count=12, height=48, width=64, name="transforms.json", **changes):
    cameras = sweeps.orbit(count, height=height, width=width)
    names = [f"{k}.png" for k in range(count)]
    for k, file in enumerate(names):
        picture(height, width, k).save(folder / file)
    (folder / name).write_text(json.dumps({**to_transforms(cameras, names), **changes}))
    return cameras


def test_masks_follow_the_pictures_that_exist_and_their_size(tmp_path):
    write_listing(tmp_path)
    listing = json.loads((tmp_path / "transforms.json").read_text())
    for k, frame in enumerate(listing["frames"]):
        frame["mask_path"] = f"mask{k}.png"
        white = np.zeros((24, 32), np.uint8)
        white[: 2 * k] = 255
        Image.fromarray(white).save(tmp_path / f"mask{k}.png")
    (tmp_path / "1.png").unlink()
    (tmp_path / "transforms.json").write_text(json.dumps(listing))
    masks = read_capture(tmp_path, Reading(longest_side=32)).masks
    assert masks.shape == (11, 24, 32)
    assert masks.sum((1, 2)).tolist() == [64 * k for k in range(12) if k != 1]
    (tmp_path / "mask0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"mask0\.png is not a mask"):
        read_capture(tmp_path)
    del listing["frames"][2]["mask_path"]
    (tmp_path / "transforms.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=r"to all frames or to none; 2\.png has none"):
        read_capture(tmp_path)


def test_of_a_long_video_the_sharpest_frame_of_each_part_is_read(tmp_path):
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(100, 110, (60, 8, 8, 3), dtype=np.uint8), 8, 1).repeat(8, 2)
    frames[2::6, ::2] = 255  # one frame of six is striped, and so the sharpest
    read = read_video(write_video(tmp_path / "a.mp4", frames), 10, 768).images
    assert len(read) == 10
    assert all(np.asarray(frame)[::2].mean() > 200 for frame in read)


def test_a_short_video_is_read_whole(tmp_path):
    frames = np.repeat(np.arange(0, 240, 20, dtype=np.uint8), 64 * 64 * 3).reshape(12, 64, 64, 3)
    read = read_video(write_video(tmp_path / "a.mp4", frames), 40, 768).images
    assert np.allclose([np.asarray(frame).mean() for frame in read], frames.mean((1, 2, 3)), atol=3)


def test_photos_are_turned_upright_and_name_their_focal_length(tmp_path):
    for k in (2, 10, 1):
        image = picture(seed=k)
        exif = image.getexif()
        exif[0x0112] = 6  # turn clockwise to see it upright
        exif.get_ifd(0x8769)[0xA405] = 36
        image.save(tmp_path / f"photo{k}.png", exif=exif)
    photos, _, focal_px, *_ = read_photos(tmp_path, 768)
    assert [photo.size for photo in photos] == [(48, 64)] * 3
    assert focal_px == pytest.approx(64.0)
    turned = np.rot90(np.asarray(picture(seed=1)), -1)
    assert np.array_equal(np.asarray(photos[0]), turned), "photo1 comes before photo2 and photo10"


def test_photos_of_another_size_are_named_and_left_out(tmp_path, capsys):
    for k in range(3):
        picture(seed=k).save(tmp_path / f"{k}.png")
    picture(64, 48).save(tmp_path / "tall.png")
    photos = read_photos(tmp_path, 768).images
    assert len(photos) == 3 and "tall.png" in capsys.readouterr().err


def test_large_pictures_are_brought_down_and_keep_their_aspect_and_field_of_view(tmp_path):
    cameras = write_listing(tmp_path, height=96, width=160)
    capture = read_capture(tmp_path, Reading(longest_side=80))
    assert capture.frames.shape == (12, 48, 80, 3) and capture.metric
    assert torch.allclose(capture.cameras.K, cameras.resized(48, 80).K)


def test_blender_s_listing_needs_no_size_and_no_suffix(tmp_path):
    write_listing(tmp_path)
    listing = json.loads((tmp_path / "transforms.json").read_text())
    frames = [
        {"file_path": f"./{k}", "transform_matrix": frame["transform_matrix"]}
        for k, frame in enumerate(listing["frames"])
    ]
    (tmp_path / "transforms.json").unlink()
    (tmp_path / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames}))
    Image.new("RGBA", (64, 48), (200, 0, 0, 0)).save(tmp_path / "0.png")
    capture = read_capture(tmp_path)
    assert capture.frames.shape == (12, 48, 64, 3)
    assert (capture.frames[0] == 255).all(), "what is transparent is white"
    assert capture.cameras.K[0, 0, 0].item() == pytest.approx(32 / np.tan(0.4), rel=1e-5)


def broken_video(folder):
    (folder / "a.mp4").write_bytes(b"no video at all" * 100)
    return folder / "a.mp4"


def two_frames(folder):
    return write_video(folder / "a.mp4", np.zeros((2, 64, 64, 3), np.uint8))


def no_pictures(folder):
    (folder / "notes.txt").write_text("nothing here")
    return folder


def two_photos(folder):
    for k in range(2):
        picture(seed=k).save(folder / f"{k}.png")
    return folder


def broken_photo(folder):
    (folder / "a.jpg").write_bytes(b"no photo")
    return folder


def lost_pictures(folder):
    write_listing(folder)
    for k in range(7):
        (folder / f"{k}.png").unlink()
    return folder


def no_json(folder):
    (folder / "transforms.json").write_text("{")
    return folder


def no_object(folder):
    (folder / "transforms.json").write_text("[1, 2]")
    return folder


def no_pose(folder):
    write_listing(folder)
    listing = json.loads((folder / "transforms.json").read_text())
    listing["frames"][3]["transform_matrix"][0][3] = float("nan")
    (folder / "transforms.json").write_text(json.dumps(listing))
    return folder


def scaled_pose(folder):
    write_listing(folder)
    listing = json.loads((folder / "transforms.json").read_text())
    listing["frames"][3]["transform_matrix"][0][:3] = [2.0, 0.0, 0.0]
    (folder / "transforms.json").write_text(json.dumps(listing))
    return folder


def some_text(folder):
    (folder / "notes.txt").write_text("nothing here")
    return folder / "notes.txt"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (broken_video, "does not decode as a video"),
        (two_frames, "holds 2 pictures of one size, at least 10"),
        (no_pictures, "holds no pictures"),
        (two_photos, "holds 2 pictures"),
        (broken_photo, "a.jpg is not a picture"),
        (lost_pictures, "12 pictures, of which 5 exist"),
        (no_json, "JSON"),
        (no_object, "an object with a list of frames"),
        (no_pose, "3.png must be a rotation and a position"),
        (scaled_pose, "3.png must be a rotation and a position"),
        (some_text, "a source is a video"),
    ],
)
def test_a_bad_source_is_one_line_and_nothing_is_written(source, expected, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match=expected) as caught:
        asset.asset(str(source(tmp_path / "source")), tmp_path / "thing.glb")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "thing.glb").exists()


def test_options_that_do_not_apply_are_refused(tmp_path):
    write_listing(tmp_path)
    with pytest.raises(ValueError, match="leave out --focal-px"):
        read_capture(tmp_path, Reading(focal_px=100.0))
    with pytest.raises(ValueError, match="--views at least 10"):
        read_capture(tmp_path, Reading(views=2))


def test_a_video_without_parallax_ends_with_3_and_the_reason(tmp_path, capsys):
    still = np.asarray(picture(16, 16).resize((128, 128), Image.Resampling.BICUBIC))
    film = write_video(tmp_path / "still.mp4", np.stack([still] * 12))
    assert asset.asset(str(film), tmp_path / "thing.glb") == 3
    assert "the camera stands still" in capsys.readouterr().out.strip().splitlines()[-1]
    assert not (tmp_path / "thing.glb").exists()
