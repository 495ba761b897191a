"""Lenses that bend: straightened pictures against the scene that a pinhole sees."""

import json

import numpy as np
import pytest
from PIL import Image

from recon3d import sweeps
from recon3d.cameras import to_transforms
from recon3d.captures import Reading, read_capture

HEIGHT, WIDTH, FOCAL, VIEWS = 60, 80, 50.0, 10


def scene(x, y):
    """Grey levels of a smooth scene at image points x / z, y / z."""
    return 128 + 100 * np.sin(5 * x + 1) * np.cos(4 * y - 2 * x)


def perspective(x, y, k1=0.0, k2=0.0, k3=0.0, p1=0.0, p2=0.0):
    """OpenCV's documented model of a lens."""
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def fisheye(x, y, k1=0.0, k2=0.0, k3=0.0, k4=0.0):
    """OpenCV's documented model of a fisheye."""
    r = np.maximum(np.hypot(x, y), 1e-9)
    angle = np.arctan(r)
    bent = angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8)
    return x * bent / r, y * bent / r


def points(height, width, cx, cy):
    row, column = np.indices((height, width)) + 0.5
    return (column - cx) / FOCAL, (row - cy) / FOCAL


def taken(model, coefficients):
    """What the lens sees: each pixel's image point is the one that the lens bends to it."""
    wanted = points(HEIGHT, WIDTH, WIDTH / 2, HEIGHT / 2)
    x, y = wanted
    for _ in range(200):
        bent = model(x, y, **coefficients)
        x, y = x + 0.5 * (wanted[0] - bent[0]), y + 0.5 * (wanted[1] - bent[1])
    return np.rint(scene(x, y)).astype(np.uint8)


def write_capture(folder, grey, **values):
    names = [f"{k}.png" for k in range(VIEWS)]
    for name in names:
        Image.fromarray(grey).convert("RGB").save(folder / name)
        Image.fromarray(np.where(grey > 128, 255, 0).astype(np.uint8)).save(folder / f"mask-{name}")
    cameras = sweeps.orbit(VIEWS, height=HEIGHT, width=WIDTH)
    listing = to_transforms(cameras, names)
    for frame in listing["frames"]:
        frame |= {"fl_x": FOCAL, "fl_y": FOCAL, "mask_path": f"mask-{frame['file_path']}"}
    (folder / "transforms.json").write_text(json.dumps({**listing, **values}))
    return listing


LENSES = [
    (perspective, {"k1": -0.2, "k2": 0.03}),
    (perspective, {"k1": 0.15, "k3": 0.01, "p1": 0.004, "p2": -0.003}),
    (fisheye, {}),
    (fisheye, {"k1": -0.03, "k2": 0.004}),
]


@pytest.mark.parametrize(("model", "coefficients"), LENSES)
def test_a_straightened_picture_is_what_a_pinhole_sees(tmp_path, model, coefficients):
    kind = {"camera_model": "OPENCV_FISHEYE"} if model is fisheye else {}
    grey = taken(model, coefficients)
    write_capture(tmp_path, grey, **kind, **coefficients)
    capture = read_capture(tmp_path)
    K, shape = capture.cameras.K[0], capture.frames.shape[1:3]
    assert (K[0, 0], K[1, 1]) == (FOCAL, FOCAL) and shape == (capture.cameras.height, capture.cameras.width)
    truth = scene(*points(*shape, K[0, 2].item(), K[1, 2].item()))
    error = np.abs(capture.frames[0, ..., 0].numpy() - truth)[1:-1, 1:-1]
    assert error.mean() < 1.0 and error.max() < 8, "a pixel's grey changes by up to 10"
    bent = np.abs(grey - scene(*points(HEIGHT, WIDTH, WIDTH / 2, HEIGHT / 2)))
    assert bent.max() > 30, "or the lens would be none"
    assert capture.masks is not None
    assert (capture.masks[0].numpy() == (truth > 128))[1:-1, 1:-1].mean() > 0.97, "masks are straightened too"


def test_a_lens_is_of_the_pictures_before_they_are_brought_down(tmp_path):
    grey = np.kron(taken(perspective, {"k1": -0.1}), np.ones((16, 16), np.uint8))  # 1280 px, kept at 768
    write_capture(tmp_path, grey, k1=-0.1, w=WIDTH, h=HEIGHT)
    capture = read_capture(tmp_path, Reading(longest_side=80))
    K, shape = capture.cameras.K[0], capture.frames.shape[1:3]
    row, column = np.indices(shape) + 0.5
    truth = scene((column - K[0, 2].item()) / K[0, 0].item(), (row - K[1, 2].item()) / K[1, 1].item())
    assert np.abs(capture.frames[0, ..., 0].numpy() - truth)[1:-1, 1:-1].mean() < 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k1": -0.2, "k4": 0.1}, "k4 is for OPENCV_FISHEYE alone"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model must be one of"),
    ],
)
def test_lenses_that_nothing_is_known_of_are_named(tmp_path, values, message):
    write_capture(tmp_path, taken(perspective, {}), **values)
    with pytest.raises(ValueError, match=message):
        read_capture(tmp_path)


def test_frames_of_several_lenses_are_refused(tmp_path):
    listing = write_capture(tmp_path, taken(perspective, {}))
    for k, frame in enumerate(listing["frames"]):
        frame["k1"] = 0.01 * k
    (tmp_path / "transforms.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match="must share one lens"):
        read_capture(tmp_path)
