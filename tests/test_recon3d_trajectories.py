"""Errors of camera paths: perfect, known, without evidence, worse."""

import math

import pytest
import torch

from recon3d import sweeps
from recon3d.cameras import Cameras
from recon3d.trajectories import path_error, umeyama


def turned(degrees: float, axis: tuple[float, float, float]) -> torch.Tensor:
    """A rotation by Rodrigues' formula."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    angle = math.radians(degrees)
    return torch.eye(3).double() + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def seen_elsewhere(cameras: Cameras) -> Cameras:
    """The same path in a world of another scale, turn and origin."""
    turn = turned(73, (1.0, -2.0, 0.5)).float()
    c2w = cameras.c2w.clone()
    c2w[:, :3, :3] = turn @ c2w[:, :3, :3]
    c2w[:, :3, 3] = 0.31 * cameras.centres @ turn.T + torch.tensor([2.0, 3.0, -1.0])
    return Cameras(cameras.K, c2w, cameras.height, cameras.width)


def moved(cameras: Cameras, centres: torch.Tensor) -> Cameras:
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] = centres
    return Cameras(cameras.K, c2w, cameras.height, cameras.width)


def test_a_path_in_another_world_has_no_error():
    truth = sweeps.orbit(20)
    error = path_error(seen_elsewhere(truth), truth)
    assert error.frames == 20
    assert max(error.position, error.share, error.step) < 1e-5
    assert max(error.rotation_deg, error.step_rotation_deg) < 1e-3


def test_a_known_error_of_position_is_found_in_metres_and_as_share_of_the_radius():
    truth = sweeps.orbit(40, radius_m=2.0)
    signs = torch.tensor([1.0, -1.0]).repeat(20)[:, None]  # up and down in turn: no similarity absorbs it
    error = path_error(moved(truth, truth.centres + signs * torch.tensor([0.0, 0.0, 0.05])), truth)
    assert error.position == pytest.approx(0.05, rel=1e-3)
    assert error.share == pytest.approx(0.025, rel=1e-3)
    assert error.step == pytest.approx(0.1, rel=1e-3)


def test_a_known_error_of_rotation_is_found_in_degrees():
    truth = sweeps.orbit(30)
    c2w = truth.c2w.clone()
    c2w[:, :3, :3] = c2w[:, :3, :3] @ turned(1.5, (0.2, 1.0, -0.4)).float()
    error = path_error(Cameras(truth.K, c2w, 64, 64), truth)
    assert error.rotation_deg == pytest.approx(1.5, abs=1e-3)
    assert error.position < 1e-5


def test_frames_without_a_pose_do_not_count():
    truth = sweeps.orbit(20)
    c2w = truth.c2w.clone()
    c2w[::4] = torch.nan
    assert path_error(Cameras(truth.K, c2w, 64, 64), truth).frames == 15
    assert path_error(Cameras(truth.K, c2w, 64, 64), truth).position < 1e-5


@pytest.mark.parametrize("kept", [0, 2])
def test_too_few_poses_give_nan(kept):
    truth = sweeps.orbit(20)
    c2w = truth.c2w.clone()
    c2w[kept:] = torch.nan
    error = path_error(Cameras(truth.K, c2w, 64, 64), truth)
    assert error.frames == kept
    assert all(math.isnan(x) for x in (error.position, error.share, error.rotation_deg, error.step))


def test_a_path_on_a_line_gives_nan():
    """Its roll about the line is not determined."""
    truth = sweeps.dolly(12)
    assert math.isnan(path_error(truth, truth).rotation_deg)


def test_more_noise_is_a_larger_error():
    truth = sweeps.orbit(40)
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    found = [path_error(moved(truth, truth.centres + s * noise), truth) for s in (0.01, 0.02, 0.05)]
    assert found[0].position < found[1].position < found[2].position
    assert found[0].step < found[1].step < found[2].step


def test_alignment_does_not_mirror():
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).double()
    alignment = umeyama(points, points * torch.tensor([1.0, 1.0, -1.0]))
    assert alignment is not None
    assert torch.linalg.det(alignment[0]).item() == pytest.approx(1.0)


def test_paths_of_different_length_are_an_error():
    with pytest.raises(ValueError, match="20 and 10"):
        path_error(sweeps.orbit(20), sweeps.orbit(10))
