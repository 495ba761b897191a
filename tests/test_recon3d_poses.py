"""Cameras of unposed video: true ones from textured sweeps, refusals with their reason from all else."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probes.subjects import ReferenceSubject
from recon3d import dataset, poses, sweeps
from recon3d.cameras import OPENGL_FROM_OPENCV, Cameras
from recon3d.captures import FEWEST_MATCHES, FOCAL_FITS, WORST_MISFIT, read_capture
from recon3d.misfit import misfit
from recon3d.similarity import NothingReconstructed
from recon3d.trajectories import path_error
from recon3d.views import psnr
from simulator.video import write_video

SEED = 900_000_001
SIDE = 128


@pytest.fixture(scope="module")
def orbit():
    """Views all around a table scene whose floor registers: confetti, rich in corners."""
    cameras = sweeps.orbit(40, height=SIDE, width=SIDE)
    scene = {"floor": "confetti"}
    return ReferenceSubject("orrery/Orbit-v0", SIDE, SIDE, scene).sweep(None, cameras, SEED).video, cameras


def test_an_orbit_of_a_textured_scene_registers_where_it_was_filmed(orbit, capfd):
    frames, truth = orbit
    found = poses.register(frames)
    assert found.verdict == "registered" and found.registered.all() and not found.reason
    error = path_error(found.cameras, truth)
    assert error.rotation_deg < 0.5 and error.share < 0.02
    assert found.cameras.K.isfinite().all()
    assert found.focal_px == pytest.approx(truth.K[0, 0, 0].item(), rel=0.03)
    assert len(found.points) >= 100 and found.reprojection_px < 1
    assert found.cameras.c2w[:, 2, 3].std() < 0.02, "up is +Z: an orbit stays at one height"
    assert found.cameras.centres.norm(dim=-1).mean().item() == pytest.approx(1.0, abs=0.02)
    assert capfd.readouterr().err == ""


def seen_through(frames, focal_px, k):
    """What a lens of one radial coefficient, positive, sees of what a pinhole saw."""
    row, column = (torch.from_numpy(np.indices((SIDE, SIDE)) + 0.5 - SIDE / 2) / focal_px).float()
    bent = torch.stack([column, row], dim=-1)
    straight = bent.clone()
    for _ in range(100):
        straight = bent / (1 + k * straight.square().sum(-1, keepdim=True))
    grid = (straight * focal_px * 2 / SIDE).expand(len(frames), -1, -1, -1)
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    made = torch.nn.functional.grid_sample(pictures, grid, align_corners=False)
    return made.permute(0, 2, 3, 1).round().byte().numpy()


def test_a_lens_that_bends_is_found_with_the_cameras_and_a_straight_one_is_not(orbit, capfd):
    frames, truth = orbit
    focal_px = truth.K[0, 0, 0].item()
    found = poses.register(seen_through(frames, focal_px, 0.15), bent=True)
    assert found.verdict == "registered" and found.registered.all() and found.lens is not None
    assert found.lens.params[3] == pytest.approx(0.15, abs=0.03)
    assert found.focal_px == pytest.approx(focal_px, rel=0.01)
    assert path_error(found.cameras, truth).share < 0.02
    assert poses.register(frames, bent=True).lens is None
    assert capfd.readouterr().err == ""


def test_few_frames_with_their_focal_length_register_the_same_each_time(orbit):
    frames, truth = orbit[0][:12], orbit[1][:12]
    first, second = (poses.register(frames, focal_px=truth.K[0, 0, 0].item()) for _ in range(2))
    assert first.registered.all()
    assert torch.equal(first.cameras.c2w, second.cameras.c2w)
    assert path_error(first.cameras, truth).rotation_deg < 1.0


def test_a_wrong_focal_length_is_told(orbit):
    found = poses.register(orbit[0], focal_px=2.5 * SIDE)
    assert found.verdict == "wrong intrinsics" and "leave it out" in found.reason
    assert found.cameras.c2w.isnan().all()


def zoomed(cameras: Cameras, factor: float) -> Cameras:
    wide = Cameras(cameras.K * torch.tensor([factor, factor, 1.0])[:, None], cameras.c2w, SIDE, SIDE)
    wide.K[:, :2, 2] = SIDE / 2
    return wide


def test_cameras_that_fit_their_pictures_are_told_from_wrong_ones(orbit):
    frames, cameras = orbit
    flipped = Cameras(cameras.K, cameras.c2w @ OPENGL_FROM_OPENCV, SIDE, SIDE)
    true, axes = misfit(frames, cameras), misfit(frames, flipped)
    assert true.matches >= 100
    assert true.px < 0.5 * WORST_MISFIT * SIDE and true.focal_px > true.px
    assert axes.px > WORST_MISFIT * SIDE
    for factor in (0.6, 2.0):
        found = misfit(frames, zoomed(cameras, factor))
        assert found.focal_px < FOCAL_FITS * found.px
        assert found.focal_factor * factor == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("seed", [201, 211])
def test_a_wrong_focal_length_is_told_from_a_pattern_that_repeats(seed):
    """In the second scene checks match one another, and half the focal length fits better."""
    cameras = sweeps.orbit(40, height=SIDE, width=SIDE)
    frames = ReferenceSubject("orrery/Orbit-v0", SIDE, SIDE).sweep(None, cameras, seed).video
    true = misfit(frames, cameras)
    assert true.matches >= FEWEST_MATCHES and true.focal_px > FOCAL_FITS * true.px
    if seed == 201:
        wrong = misfit(frames, zoomed(cameras, 2.0))
        assert wrong.focal_px < FOCAL_FITS * wrong.px and wrong.focal_factor == 0.5


def test_cameras_that_a_repeating_pattern_bends_are_refused():
    """The planks of the floor match with one another, and half of the views come out 10 degrees off."""
    cameras = sweeps.orbit(40, height=256, width=256, elevation_deg=28.0)
    scene = {"floor": "wooden", "things": [{"shape": "L block", "colour": "red", "size": "large"}]}
    frames = ReferenceSubject("orrery/Orbit-v0", 256, 256, scene).sweep(None, cameras, 3).video
    found = poses.register(frames)
    assert found.verdict == "not one scene" and found.cameras.c2w.isnan().all()


def test_cameras_are_kept_as_a_dataset_that_reads_back(orbit, tmp_path, capsys):
    clip = write_video(tmp_path / "turn.mp4", orbit[0], 10)
    assert dataset.poses(clip, tmp_path / "kept") == 0
    assert "40 pictures and their cameras" in capsys.readouterr().out
    kept = read_capture(tmp_path / "kept", dataset.LARGE)
    assert path_error(kept.cameras, orbit[1]).share < 0.02 and not kept.metric
    assert psnr(kept.frames, torch.from_numpy(orbit[0])).min() > 20  # the clip lost colour, not places
    with pytest.raises(FileExistsError, match="kept is there already"):
        dataset.poses(clip, tmp_path / "kept")
    standing = write_video(tmp_path / "still.mp4", np.repeat(orbit[0][:1], 12, axis=0), 10)
    assert dataset.poses(standing, tmp_path / "none") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "still.mp4", "turn.mp4"]


def texture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((320, 320), Image.Resampling.BICUBIC)


def still() -> np.ndarray:
    return np.stack([np.asarray(texture().resize((160, 160)))] * 6)


def zoom() -> np.ndarray:
    boxes = [(4 * k, 4 * k, 320 - 4 * k, 320 - 4 * k) for k in range(0, 12, 2)]
    return np.stack([np.asarray(texture().resize((160, 160), box=box)) for box in boxes])


def blank() -> np.ndarray:
    return np.full((10, 96, 128, 3), 90, np.uint8)


def unrelated() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("film", "verdict", "word"),
    [
        (still, "no parallax", "stands still"),
        (zoom, "no parallax", "homography"),
        (blank, "no features", "texture"),
        (unrelated, "not one scene", "overlap"),
    ],
)
def test_what_holds_no_cameras_is_refused_with_the_reason(film, verdict, word):
    found = poses.register(film())
    assert (found.verdict, word in found.reason) == (verdict, True), found
    assert found.cameras.c2w.isnan().all()


def test_estimate_raises_the_reason():
    with pytest.raises(NothingReconstructed, match="no features"):
        poses.estimate(blank())


def test_mapping_that_takes_too_long_is_given_up(orbit):
    with pytest.raises(
        NothingReconstructed, match=r"out of time: .* in 0\.1 s.*allow more time \(--mapping-s\)"
    ):
        poses.estimate(orbit[0], mapping_s=0.1)


def test_masked_pixels_give_no_features(orbit):
    frames = orbit[0][:3]
    found = poses.register(frames, masks=np.ones(frames.shape[:3], bool))
    assert found.verdict == "no features"


def test_a_process_that_uses_colmap_is_ended_as_any_other():
    code = "import os, signal\nfrom recon3d import poses\nos.kill(os.getpid(), signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGTERM and done.stderr == b""


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        poses.estimate(blank()[:2])
    with pytest.raises(ValueError, match="focal length"):
        poses.estimate(blank(), focal_px=9000.0)
    with pytest.raises(ValueError, match="--mapping-s"):
        poses.estimate(blank(), mapping_s=0.0)
