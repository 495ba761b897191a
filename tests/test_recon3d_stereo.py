"""Depth corrected by neighbouring pictures: known errors shrink, contradicted depth goes."""

import numpy as np
import pytest
import torch
from analytic_scene import render

from recon3d import sweeps
from recon3d.stereo import (
    agreed,
    bends,
    corrected_depths,
    flattened,
    in_order,
    likely_offsets,
    neighbours,
    on_planes,
    smoothed,
    steadied,
    swept_costs,
    trusted,
    untold,
)

CENTRE = torch.tensor([0.0, 0.0, 0.15])


@pytest.fixture(scope="module")
def sweep():
    cameras = sweeps.orbit(14, height=48, width=48)
    frames, depth = render(cameras)
    return frames, cameras, depth.nan_to_num(posinf=10.0)


def test_depth_that_floats_before_the_surface_is_brought_back(sweep):
    """An error of 5 cm, and one that drifts over the picture, leave a median of less than 1 cm."""
    frames, cameras, depth = sweep
    near = depth < 2.0
    drift = torch.linspace(-0.06, 0.06, 48)[None, :, None].expand_as(depth)
    for error in (torch.full_like(depth, -0.05), drift):
        found = corrected_depths(frames, cameras, depth + error, CENTRE, 0.15, count=6)
        left = (found - depth).abs()[near]
        assert left.median() < 0.01
        assert (left > 0.03).float().mean() < 0.5 * (error.abs()[near] > 0.03).float().mean()


def test_depth_that_is_right_stays(sweep):
    frames, cameras, depth = sweep
    found = corrected_depths(frames, cameras, depth, CENTRE, 0.15, count=6)
    assert (found - depth).abs()[depth < 2.0].median() < 0.006


def test_pictures_without_texture_leave_depth_as_it_is(sweep):
    _, cameras, depth = sweep
    plain = torch.full((14, 48, 48, 3), 90, dtype=torch.uint8)
    found = corrected_depths(plain, cameras, depth, CENTRE, 0.15, count=6)
    inner = (slice(None), slice(12, 36), slice(12, 36))  # all offsets project into all pictures there
    assert (found - depth)[inner].abs().median() < 0.02


def test_pictures_without_texture_say_nothing_about_depth_up_to_their_borders(sweep):
    _, cameras, depth = sweep
    plain, offsets = torch.full((14, 3, 48, 48), 0.4), torch.linspace(-0.15, 0.15, 29)
    near = neighbours(cameras, CENTRE, 6)
    for i in (0, 5):
        costs = swept_costs(plain[i], cameras[i], depth[i], offsets, plain[near[i]], cameras[near[i]])
        assert likely_offsets(costs, offsets)[0].abs().max() < 1e-6


def test_costs_are_what_projecting_each_offset_by_itself_gives(sweep):
    """Places move linearly along a ray in what a camera sees before it divides by depth."""
    frames, cameras, depth = sweep
    pictures, offset = frames.permute(0, 3, 1, 2).float() / 255, torch.tensor([-0.1, 0.07, 0.1])
    near = neighbours(cameras, CENTRE, 6)[0]
    costs = swept_costs(pictures[0], cameras[0], depth[0], offset, pictures[near], cameras[near])
    differences, seen = [], []
    for each in offset:
        points = cameras[0].unproject((depth[0] + each)[None]).reshape(-1, 3)
        grid = (cameras[near].project(points)[0] / 24 - 1).reshape(6, 48, 48, 2)
        looked_up = torch.nn.functional.grid_sample(
            pictures[near], grid, align_corners=False, padding_mode="border"
        )
        differences.append((looked_up - pictures[0]).square().mean(1).clamp(max=0.05))
        seen.append((grid.abs() < 1).all(-1))
    pooled = torch.nn.functional.avg_pool2d(differences[1], 3, 1, 1, count_include_pad=False)
    wanted = torch.where(seen[0] & seen[2], pooled, torch.nan).sort(0).values[:3].nanmean(0)
    many = (seen[0] & seen[2]).sum(0) >= 2
    assert many.float().mean() > 0.5
    assert torch.allclose(costs[1][many], wanted[many], atol=1e-4)
    assert (costs[1][~many] == 0.05).all()


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_exchanges_of_neighbours_sort(count):
    values = torch.rand(count, 7, 5, generator=torch.Generator().manual_seed(count))
    values[values > 0.8] = torch.inf
    assert torch.equal(in_order(values), values.sort(0).values)


def test_depth_that_other_views_contradict_is_dropped(sweep):
    _, cameras, depth = sweep
    floating = depth.clone()
    floating[3, 22:28, 22:28] -= 0.4
    kept = agreed(cameras, floating, 0.03) > 0
    assert kept[3, 22:28, 22:28].float().mean() < 0.15  # a few lie on another thing by chance
    true = agreed(cameras, depth, 0.03) > 0
    assert true[depth < 1.5].float().mean() > 0.95


def test_depths_of_one_scene_are_trusted_where_views_agree_and_those_of_many_not_at_all(sweep):
    _, cameras, depth = sweep
    near = depth < 1.5
    known = trusted(cameras, depth, near, 1.4)
    assert known is not None and torch.equal(known, agreed(cameras, depth, 0.014))
    order = torch.randperm(len(depth), generator=torch.Generator().manual_seed(0))
    apart = depth + 0.05 * torch.linspace(-1, 1, len(depth))[order, None, None]
    assert trusted(cameras, apart, near, 1.4) is None


def test_a_correction_is_the_mean_of_two_guesses_off_planes_whole_on_them_and_whole_where_it_is_far(sweep):
    """Errors of the two guesses are drawn apart here, as those of outlines and of matches are."""
    _, cameras, depth = sweep
    noise = 0.01 * torch.randn(2, *depth.shape, generator=torch.Generator().manual_seed(0))
    fogged = depth > 1.9
    own, corrected = depth + noise[0] + 0.5 * fogged, depth + noise[1]
    found = steadied(corrected, own, on_planes(cameras, corrected, depth < 1.5, 0.02), 1.5)
    height = cameras.unproject(depth)[..., 2]
    table, things = (height.abs() < 1e-3) & ~fogged, (height > 0.06) & (depth < 1.5)
    assert torch.equal(found[fogged], corrected[fogged])
    assert (found == corrected)[table].float().mean() > 0.9
    assert (found == (own + corrected) / 2)[things].float().mean() > 0.9

    def error(guess):
        return (guess - depth)[things].square().mean().sqrt()

    assert error(found) < 0.8 * min(error(own), error(corrected))


def test_a_plain_wall_could_be_anywhere_behind_and_things_and_patterns_could_not():
    """The walls that look alike from everywhere are drawn far too near, as a field may put them; the cameras
    go around them, or hardly move."""
    cameras = sweeps.orbit(24, elevation_deg=10.0, height=48, width=48)
    frames, depth = render(cameras)
    wall = depth.isinf()  # the sky is of one colour at each height
    height = cameras.unproject(depth)[..., 2]
    things = (height > 0.06) & (depth < 1.5)
    found = untold(frames, cameras, torch.where(wall, 0.8, depth), CENTRE, 1.5)
    assert found[wall].float().mean() > 0.7
    assert found[things].float().mean() < 0.05
    few = sweeps.arc(24, degrees=30.0, height=48, width=48)
    frames, depth = render(few)
    assert not untold(frames, few, depth.nan_to_num(posinf=0.8), CENTRE, 1.5).any()


def test_offsets_are_those_of_least_cost_and_vary_where_costs_are_flat():
    offsets = torch.linspace(-0.1, 0.1, 21)
    sharp = ((offsets - 0.034) ** 2)[:, None, None]
    costs = torch.cat([sharp, torch.full_like(sharp, 1e-4)], dim=-1)
    mean, variance = likely_offsets(costs, offsets)
    assert mean[0, 0].item() == pytest.approx(0.034, abs=0.005)
    assert mean[0, 1].item() == pytest.approx(0.0, abs=1e-6)
    assert variance[0, 0] < 0.02**2 and variance[0, 1] > 0.05**2


def test_smoothing_follows_trusted_values_along_links_only():
    values = torch.tensor([[0.0, 5.0, 2.0, 7.0]])
    weights = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    no_link = torch.zeros(0, 4)
    apart = smoothed(values, weights, torch.zeros(1, 3), no_link)
    assert torch.allclose(apart[:, [0, 2, 3]], values[:, [0, 2, 3]])
    linked = smoothed(values, weights, torch.tensor([[100.0, 100.0, 0.0]]), no_link, sweeps=2000)
    assert torch.allclose(linked, torch.tensor([[1.0, 1.0, 1.0, 7.0]]), atol=0.02)


def test_neighbours_are_the_next_on_the_circle():
    cameras = sweeps.orbit(18)
    near = neighbours(cameras, torch.tensor([0.0, 0.0, 0.15]), 4)
    assert sorted(near[5].tolist()) == [3, 4, 6, 7]


def test_a_plane_that_is_told_at_its_rim_alone_is_found_whole():
    row, column = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    plane = 1 / (0.4 + 0.004 * column - 0.002 * row)
    weights = torch.full((40, 48), 1e4)
    weights[6:-6, 6:-6] = 0.0
    bulge = 0.1 * (torch.pi * row / 39).sin() * (torch.pi * column / 47).sin()
    links = torch.ones(40, 47), torch.ones(39, 48)
    found = flattened(plane + bulge, plane, weights, *links, 0.004, 0.02, sweeps=3000)
    assert bulge.max() > 0.09 and (found - plane).abs().max() < 0.002


def test_depth_stays_creased_where_pictures_say_so_and_apart_where_nothing_links():
    column = torch.arange(48.0).expand(40, 48)
    roof = 2 + 0.02 * (column - 24).abs()
    links = torch.ones(40, 47), torch.ones(39, 48)
    trusted = torch.full((40, 48), 1e4)
    found = flattened(roof, roof, trusted, *links, crease_m=0.004, outlier_m=0.02)
    assert (found - roof).abs().max() < 0.004
    step = torch.where(column < 24, 2.0, 2.5)
    across = links[0].clone()
    across[:, 23] = 0
    found = flattened(step, step, torch.full_like(trusted, 1.0), across, links[1], 0.004, 0.02)
    assert (found - step).abs().max() < 0.002


@pytest.mark.parametrize("height, width", [(5, 7), (6, 3)])
def test_what_is_linear_in_pixels_does_not_bend(height, width):
    row, column = np.mgrid[:height, :width]
    assert np.abs(bends(height, width) @ (3 + 0.5 * row - 2.0 * column).ravel()).max() < 1e-12
    bend = bends(height, width) @ (row * column + 0.5 * row**2).ravel()
    assert (bend**2).sum() == pytest.approx((height - 2) * width + 2 * (height - 1) * (width - 1))
