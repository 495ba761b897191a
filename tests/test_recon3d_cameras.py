"""Cameras and sweeps: analytic answers, round trips, invariance under rigid motion."""

import json
import math

import pytest
import torch
from jaxtyping import TypeCheckError

from recon3d import sweeps
from recon3d.cameras import (
    Cameras,
    concatenate,
    from_transforms,
    intrinsics,
    look_at,
    rigid_inverse,
    to_transforms,
)


def some_motion() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    motion = torch.eye(4)
    motion[:3, :3] = rotation * torch.det(rotation).sign()
    motion[:3, 3] = torch.randn(3, generator=generator)
    return motion


def test_target_is_seen_at_the_centre_at_the_radius():
    cameras = sweeps.orbit(8, radius_m=1.4, height=48, width=80)
    pixels, depth = cameras.project(torch.tensor([[0.0, 0.0, 0.15]]))
    assert torch.allclose(pixels, torch.tensor([40.0, 24.0]).expand(8, 1, 2), atol=1e-4)
    assert torch.allclose(depth, torch.full((8, 1), 1.4), atol=1e-5)


def test_orbit_starts_on_x_and_turns_counter_clockwise_without_repeating_itself():
    cameras = sweeps.orbit(4, radius_m=2.0, elevation_deg=0.0, target=(0.0, 0.0, 0.0))
    expected = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [-2.0, 0, 0], [0, -2.0, 0]])
    assert torch.allclose(cameras.centres, expected, atol=1e-6)


def test_a_point_above_the_target_is_higher_in_the_picture_and_left_is_left():
    camera = sweeps.orbit(1)
    pixels, _ = camera.project(torch.tensor([[0.0, 0.0, 0.15], [0.0, 0.0, 0.4], [0.0, -0.3, 0.15]]))
    centre, above, left = pixels[0]
    assert above[1] < centre[1]
    assert left[0] < centre[0]


def test_vertical_field_of_view_spans_the_picture():
    K = intrinsics(60.0, 64, 96)
    assert K[1, 1].item() == pytest.approx(32 / math.tan(math.radians(30)), rel=1e-6)
    assert K[0, 2] == 48
    with pytest.raises(ValueError, match="fovy_deg"):
        intrinsics(180.0, 64, 64)


def test_unproject_undoes_project():
    cameras = sweeps.orbit(3, height=5, width=7)
    depth = 1 + torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    points = cameras.unproject(depth)
    for k in range(3):
        pixels, z = cameras[k].project(points[k].reshape(-1, 3))
        assert torch.allclose(z[0].reshape(5, 7), depth[k], atol=1e-5)
        assert torch.allclose(pixels[0].reshape(5, 7, 2)[2, 3], torch.tensor([3.5, 2.5]), atol=1e-4)


def test_rays_are_unit_and_meet_the_unprojected_points():
    cameras = sweeps.arc(2, height=4, width=6)
    origins, directions = cameras.rays()
    points = cameras.unproject(torch.full((2, 4, 6), 1.3))
    assert torch.allclose(directions.norm(dim=-1), torch.ones(2, 4, 6), atol=1e-6)
    distance = (points - origins).norm(dim=-1, keepdim=True)
    assert torch.allclose(origins + distance * directions, points, atol=1e-5)


def test_plucker_moment_is_normal_to_direction_and_does_not_depend_on_the_point_of_the_line():
    cameras = sweeps.orbit(3)
    lines = cameras.plucker(8, 8)
    assert lines.shape == (3, 6, 8, 8)
    direction, moment = lines[:, :3], lines[:, 3:]
    assert (direction * moment).sum(1).abs().max() < 1e-5
    origin = cameras.c2w[:, :3, 3, None, None]
    further = torch.linalg.cross(origin + 0.7 * direction, direction, dim=1)
    assert torch.allclose(further, moment, atol=1e-5)


def test_plucker_at_full_size_is_that_of_the_rays_and_coarse_cells_are_the_resized_camera():
    cameras = sweeps.orbit(2, height=16, width=24)
    _, directions = cameras.rays()
    assert torch.allclose(cameras.plucker(16, 24)[:, :3].permute(0, 2, 3, 1), directions, atol=1e-6)
    assert torch.allclose(cameras.plucker(4, 6), cameras.resized(4, 6).plucker(4, 6), atol=1e-6)


def test_relative_cameras_are_invariant_under_rigid_motion():
    cameras = sweeps.orbit(5)
    moved = cameras.moved(some_motion())
    assert torch.allclose(moved.relative_to_first().c2w, cameras.relative_to_first().c2w, atol=1e-5)
    assert torch.allclose(cameras.relative_to_first().c2w[0], torch.eye(4), atol=1e-6)


def test_projection_is_invariant_under_rigid_motion():
    cameras, motion = sweeps.orbit(4), some_motion()
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 0.2
    there = points @ motion[:3, :3].T + motion[:3, 3]
    assert torch.allclose(cameras.moved(motion).project(there)[0], cameras.project(points)[0], atol=1e-3)


def test_rigid_inverse_is_the_inverse():
    pose = sweeps.orbit(4).c2w
    assert torch.allclose(rigid_inverse(pose) @ pose, torch.eye(4).expand(4, 4, 4), atol=1e-6)


def test_poses_are_rotations():
    rotation = concatenate([sweeps.orbit(6), sweeps.dolly(6), sweeps.arc(6)]).c2w[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(18, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(18), atol=1e-6)


def test_transforms_round_trip_through_json():
    cameras = sweeps.orbit(5, height=48, width=64)
    names = [f"images/{k}.png" for k in range(5)]
    back, paths = from_transforms(json.loads(json.dumps(to_transforms(cameras, names))))
    assert paths == names
    assert (back.height, back.width) == (48, 64)
    assert torch.allclose(back.K, cameras.K)
    assert torch.allclose(back.c2w, cameras.c2w, atol=1e-7)


def test_transforms_on_disk_look_along_minus_z():
    transforms = to_transforms(sweeps.orbit(1, elevation_deg=0.0, target=(0.0, 0.0, 0.0)), ["a.png"])
    pose = torch.tensor(transforms["frames"][0]["transform_matrix"])
    assert torch.allclose(-pose[:3, 2], torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(pose[:3, 1], torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"frames": []}, "frames"), ({"k1": 0.2}, "pinhole"), ({"h": None, "frames": [{}]}, "lacks")],
)
def test_bad_transforms_say_what_is_wrong(change, message):
    transforms = {**to_transforms(sweeps.orbit(1), ["a.png"]), **change}
    with pytest.raises(ValueError, match=message):
        from_transforms(transforms)


def test_revisit_comes_back_to_every_camera():
    cameras = sweeps.revisit(10)
    assert torch.allclose(cameras.c2w, cameras.c2w.flip(0))
    with pytest.raises(ValueError, match="even"):
        sweeps.revisit(9)


def test_dolly_changes_the_distance_only():
    cameras = sweeps.dolly(5, start_m=2.0, end_m=1.0)
    distance = (cameras.centres - torch.tensor([0.0, 0.0, 0.15])).norm(dim=-1)
    assert torch.allclose(distance, torch.linspace(2.0, 1.0, 5), atol=1e-5)
    assert torch.allclose(cameras.c2w[:, :3, :3], cameras.c2w[:1, :3, :3].expand(5, 3, 3), atol=1e-6)


def test_indexing_keeps_cameras():
    cameras = sweeps.orbit(6)
    assert len(cameras[1:4]) == 3
    assert torch.equal(cameras[torch.tensor([5, 0])].c2w[1], cameras.c2w[0])
    assert len(cameras[2]) == 1
    assert len(list(cameras)) == 6


def test_vertical_views_and_mixed_sizes_are_refused():
    with pytest.raises(ValueError, match="vertical"):
        look_at(torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="picture size"):
        concatenate([sweeps.orbit(1), sweeps.orbit(1, height=32)])


def test_wrong_shape_is_refused_by_the_annotations():
    with pytest.raises(TypeCheckError):
        Cameras(torch.zeros(2, 3, 3), torch.zeros(3, 4, 4), 8, 8)
