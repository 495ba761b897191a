"""Voxels, volume rendering, views: analytic answers and reference implementations."""

import pytest
import torch
from jaxtyping import TypeCheckError

from recon3d import sweeps
from recon3d.cameras import Cameras
from recon3d.field import FieldConfig, RadianceField
from recon3d.similarity import NothingReconstructed, Similarity, focus_similarity
from recon3d.training_rays import training_rays
from recon3d.views import nearest_views, normals_from_depth, psnr, score_held_out, ssim
from recon3d.volume import bend, distortion, even_colour, median_distance, resample, spread, weights_of
from recon3d.voxels import VoxelPyramid, contract, interpolate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_interpolation_and_its_gradient_equal_grid_sample():
    table = torch.randn(5 * 6 * 7, 3, generator=seeded(), requires_grad=True)
    points = torch.rand(50, 3, generator=seeded(1)) * 2 - 1
    ours = interpolate(table, points, (5, 6, 7))
    grid = table.view(1, 5, 6, 7, 3).permute(0, 4, 1, 2, 3)
    theirs = torch.nn.functional.grid_sample(grid, points.flip(-1).view(1, -1, 1, 1, 3), align_corners=True)
    assert torch.allclose(ours, theirs[0, :, :, 0, 0].T, atol=1e-5)
    upstream = torch.randn(50, 3, generator=seeded(2))
    (gradient,) = torch.autograd.grad((ours * upstream).sum(), table, retain_graph=True)
    (reference,) = torch.autograd.grad((theirs[0, :, :, 0, 0].T * upstream).sum(), table)
    assert torch.allclose(gradient, reference, atol=1e-5)


def test_a_linear_function_is_interpolated_exactly_and_points_outside_count_as_on_the_wall():
    line = torch.linspace(-1, 1, 9)
    table = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).view(-1, 3)
    points = torch.tensor([[0.1, -0.7, 0.33], [1.0, -1.0, 1.0], [3.0, 0.0, -5.0]])
    expected = points.clamp(-1, 1)
    assert torch.allclose(interpolate(table, points, (9, 9, 9)), expected, atol=1e-3)


def test_a_pyramid_is_the_sum_of_its_levels_and_bakes_to_the_same():
    pyramid = VoxelPyramid((3, 5), 2)
    for table in pyramid.tables:
        torch.nn.init.normal_(table, generator=seeded())
    points = torch.rand(20, 3, generator=seeded(1)) * 2 - 1
    levels = [interpolate(t, points, r) for t, r in zip(pyramid.tables, pyramid.resolutions, strict=True)]
    assert torch.allclose(pyramid(points, 2), levels[0] + levels[1])
    assert torch.allclose(pyramid(points, 1), levels[0])
    corners = torch.tensor([[-1.0, -1, -1], [0, 0.5, -0.5], [1, 1, 1]])
    assert torch.allclose(
        interpolate(pyramid.baked(5, 2), corners, (5, 5, 5)), pyramid(corners, 2), atol=1e-3
    )


def test_contraction_is_linear_inside_continuous_and_bounded():
    assert torch.allclose(contract(torch.tensor([0.3, 0.0, -0.6]), 0.6, 0.8), torch.tensor([0.4, 0.0, -0.8]))
    near = contract(torch.tensor([0.59999, 0.60001, 0.0]), 0.6, 0.8)
    assert abs(near[0] - near[1]) < 1e-4
    assert contract(torch.tensor([1e9, -1e9, 5.0]), 0.6, 0.8).abs().max() <= 1


def test_weights_follow_beer_lambert_in_a_homogeneous_medium():
    edges = torch.linspace(0, 2, 101)[None]
    weights = weights_of(torch.full((1, 100), 1.5), edges)
    assert weights.sum().item() == pytest.approx(1 - torch.exp(torch.tensor(-3.0)).item(), abs=1e-5)
    half = -torch.log(1 - (1 - torch.exp(torch.tensor(-3.0))) / 2) / 1.5
    assert median_distance(weights, edges).item() == pytest.approx(half.item(), abs=1e-2)


def test_distortion_equals_the_double_sum():
    edges = torch.rand(4, 9, generator=seeded()).cumsum(-1)
    weights = torch.rand(4, 8, generator=seeded(1)) / 8
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    pairs = (weights[:, :, None] * weights[:, None] * (middle[:, :, None] - middle[:, None]).abs()).sum(
        (1, 2)
    )
    own = (weights.square() * edges.diff(dim=-1)).sum(-1) / 3
    assert torch.allclose(distortion(weights, edges), (pairs + own).mean(), atol=1e-5)


def test_resampling_goes_where_the_weight_is_and_stays_sorted():
    edges = torch.linspace(0, 1, 33).repeat(3, 1)
    weights = torch.full((3, 32), 1e-4)
    weights[:, 20] = 1.0
    new = resample(edges, weights, 16, seeded())
    assert (new.diff(dim=-1) >= 0).all()
    assert ((new > 18 / 32) & (new < 23 / 32)).float().mean() > 0.9


def test_spread_covers_near_to_far_monotonically():
    distance = spread(torch.linspace(0, 1, 100), 0.1, 2.0, 30.0)
    assert (distance.diff() > 0).all()
    assert distance[0].item() == pytest.approx(0.1)
    assert distance[-1].item() == pytest.approx(30.0, rel=1e-4)


def test_a_slanted_plane_has_no_bend_and_a_step_has():
    directions = torch.nn.functional.normalize(
        torch.tensor([[-0.1, 0.2, 1], [0.0, 0.2, 1], [0.1, 0.2, 1]]), dim=-1
    )
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 1.0]), dim=0)
    disparity = directions @ normal / 1.7
    assert bend(disparity, directions).item() < 2e-4
    step = disparity * torch.tensor([1.0, 1.2, 1.0])
    assert bend(step, directions).item() == pytest.approx(0.2 / 2.2, abs=2e-3)
    assert torch.allclose(bend(step * 3, directions), bend(step, directions))
    colours = torch.tensor([[0.5, 0.5, 0.5]] * 3 + [[0.0, 0, 0], [0, 0, 0], [1, 1, 1]])
    assert even_colour(colours).tolist() == pytest.approx([1.0, 0.0], abs=1e-3)


def test_psnr_and_ssim_have_their_known_values():
    truth = torch.randint(0, 256, (2, 32, 32, 3), generator=seeded(), dtype=torch.uint8)
    assert torch.isinf(psnr(truth, truth)).all()
    assert torch.allclose(ssim(truth, truth), torch.ones(2), atol=1e-5)
    grey = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    assert psnr(grey + 10, grey).item() == pytest.approx(
        20 * torch.log10(torch.tensor(25.5)).item(), abs=1e-4
    )


def test_ssim_equals_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    a = torch.randint(0, 256, (1, 40, 40, 3), generator=seeded(), dtype=torch.uint8)
    b = (a.float() * 0.8 + 20).to(torch.uint8)
    options = dict(
        channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    _, full = metrics.structural_similarity(a[0].numpy(), b[0].numpy(), full=True, **options)
    assert ssim(a, b).item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_copying_the_nearest_view_is_perfect_where_a_camera_repeats():
    cameras = sweeps.revisit(10)
    frames = torch.randint(0, 256, (5, 12, 12, 3), generator=seeded(), dtype=torch.uint8)
    frames = torch.cat([frames, frames.flip(0)])
    held_out = torch.arange(10) == 7
    scores = score_held_out(frames[held_out], frames, cameras, held_out)
    assert torch.isinf(scores.copy_psnr).all() and torch.isinf(scores.psnr).all()
    assert scores.mean_image_psnr.item() < 20
    assert nearest_views(cameras[7], cameras[:5]).item() == 2


def test_normals_of_a_plane_face_the_camera():
    camera = sweeps.orbit(2, height=9, width=9)
    _, directions = camera.rays()
    origins = camera.c2w[:, None, None, 2, 3]
    distance = -origins / directions[..., 2]
    depth = distance * (directions * camera.c2w[:, None, None, :3, 2]).sum(-1)
    normals = normals_from_depth(camera, depth)
    assert torch.allclose(normals, torch.tensor([0.0, 0.0, 1.0]).expand_as(normals), atol=1e-3)


def test_the_focus_of_an_orbit_is_its_target_wherever_the_world_is_moved():
    cameras = sweeps.orbit(12, radius_m=1.6, target=(0.3, -0.2, 0.1))
    similarity = focus_similarity(cameras)
    assert torch.allclose(similarity.centre, torch.tensor([0.3, -0.2, 0.1]), atol=1e-3)
    assert similarity.scale == pytest.approx(1 / 1.6, rel=1e-3)
    assert similarity.metres(torch.ones(1)).item() == pytest.approx(1.6, rel=1e-3)


def test_cameras_that_look_outwards_have_the_scene_around_them():
    inwards = sweeps.orbit(12, elevation_deg=0.0)
    turned = inwards.c2w.clone()
    turned[:, :3, [0, 2]] *= -1
    outwards = focus_similarity(Cameras(inwards.K, turned, 64, 64))
    assert torch.allclose(outwards.centre, inwards.centres.mean(0), atol=1e-4)


def test_cameras_on_the_spot_are_refused():
    with pytest.raises(NothingReconstructed, match="parallax"):
        focus_similarity(sweeps.dolly(8, start_m=1.0, end_m=1.0))


def test_triplets_are_evenly_spaced_pixels_of_one_frame():
    cameras = sweeps.orbit(3, height=20, width=24)
    frames = torch.zeros(3, 20, 24, 3, dtype=torch.uint8)
    rays = training_rays(frames, cameras, Similarity(torch.zeros(3), 1.0))
    index = rays.draw_triplets(300, seeded()).view(-1, 3)
    assert (index[:, 1] - index[:, 0] == index[:, 2] - index[:, 1]).all()
    assert (rays.frame[index] == rays.frame[index[:, :1]]).all()
    a, b, c = rays.directions[index].unbind(1)
    assert torch.linalg.det(torch.stack([a, b, c], 1)).abs().max() < 1e-5


def test_rendering_one_ray_does_not_depend_on_the_others():
    field = RadianceField(FieldConfig((4, 8), coarse_samples=16, fine_samples=8, baked_resolution=8))
    for table in (*field.density.tables, *field.colour.tables):
        torch.nn.init.normal_(table, generator=seeded())
    field.bake()
    origins, directions = (x.reshape(-1, 3) for x in sweeps.orbit(1, height=4, width=4).rays())
    whole, one = field(origins, directions), field(origins[5:6], directions[5:6])
    for name in ("rgb", "opacity", "median", "expected", "disparity"):
        assert torch.allclose(whole[name][5:6], one[name], atol=1e-5), name


def test_wrong_shape_is_refused_by_the_annotations():
    with pytest.raises(TypeCheckError):
        weights_of(torch.zeros(2, 5), torch.zeros(2, 5, 1))
