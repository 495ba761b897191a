"""Exposures and poses per frame: what was put in is found again, and only where it was asked for."""

import pytest
import torch
from analytic_scene import render

from recon3d import nerf, sweeps
from recon3d.refinement import corrected, psnr_after_gain, rotations
from recon3d.voxels import contract, interpolate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PRESET = nerf.NerfPreset(100, 1000, nerf.FieldConfig((16, 32), coarse_samples=32, fine_samples=16))


def trained(frames, cameras, **options):
    config = nerf.method(PRESET, **options)
    return nerf.train_and_score(config, frames, cameras, PRESET.steps, PRESET.rays_per_step)


@pytest.fixture(scope="module")
def wobbly():
    """A sweep whose training frames have gains that vary by 15 % and cameras off by 1.5 cm and 1.2 degrees a
    component (all with mean zero); trained without and with what is to find them."""
    cameras = sweeps.orbit(20, height=32, width=32)
    frames = render(cameras)[0]
    known = ~nerf.held_out_views(frames, cameras, 5)
    log_gain = 0.15 * torch.randn(20, 3, generator=seeded(3))
    noise = torch.randn(20, 6, generator=seeded(4)) * torch.tensor([0.015] * 3 + [0.02] * 3)
    for wobble in (log_gain, noise):
        wobble[~known] = 0.0
        wobble[known] -= wobble[known].mean(0)
    seen = (frames.float() * 0.7 * log_gain.exp()[:, None, None]).round().clamp(0, 255).to(torch.uint8)
    noisy = corrected(cameras, noise)
    plain, refined = trained(seen, noisy), trained(seen, noisy, exposure=True, poses=True)
    return plain, refined, cameras[known], log_gain[known]


def test_points_get_the_gradient_of_finite_differences():
    table = torch.randn(5 * 6 * 7, 3, generator=seeded(), dtype=torch.float64)
    points = (torch.rand(4, 3, generator=seeded(1), dtype=torch.float64) * 1.6 - 0.8).requires_grad_()
    table.requires_grad_()

    def look_up(points, table):
        return interpolate(table, contract(points, 0.5, 0.7), (5, 6, 7))

    assert torch.autograd.gradcheck(look_up, (points, table))


def test_rotations_turn_by_their_angle_about_their_axis():
    turn = torch.tensor([[0.0, 0.0, torch.pi / 2], [0.3, -0.2, 0.5]])
    matrix = rotations(turn)
    assert torch.allclose(matrix[0] @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3).expand(2, 3, 3), atol=1e-6)
    angle = torch.acos((matrix[1].trace() - 1) / 2)
    assert angle.item() == pytest.approx(turn[1].norm().item(), abs=1e-5)


def test_a_gain_is_seen_through_and_other_differences_are_not():
    truth = torch.randint(20, 160, (2, 16, 16, 3), generator=seeded(), dtype=torch.uint8)
    brighter = (truth.float() * torch.tensor([1.2, 0.9, 1.1])).round().to(torch.uint8)
    assert psnr_after_gain(brighter, truth).min() > 50
    assert psnr_after_gain(truth.flip(1), truth).max() < 20


def test_known_gains_are_recovered(wobbly):
    """Within 5 % (standard deviation) of gains that vary by 15 %."""
    _, refined, _, log_gain = wobbly
    found = refined.model.exposure.log_gain.detach()
    assert (found - log_gain).std() < 0.05
    assert found.mean(0).abs().max() < 1e-5


def test_known_noise_of_the_poses_is_reduced(wobbly):
    """To less than half, in pixels at points around the focus, where a turn and a shift look much alike."""
    plain, refined, truth, _ = wobbly
    points = torch.tensor([0.0, 0.0, 0.15]) + 0.6 * (torch.rand(50, 3, generator=seeded(5)) - 0.5)

    def off(found):
        return (found.project(points)[0] - truth.project(points)[0]).norm(dim=-1).mean()

    assert off(refined.cameras) < 0.5 * off(plain.cameras)


def test_refinement_gains_decibels_on_views_that_were_held_out(wobbly):
    plain, refined, _, _ = wobbly
    assert refined.held_out.psnr.mean() > plain.held_out.psnr.mean() + 1
    assert refined.held_out.fitted_psnr.mean() > refined.held_out.psnr.mean()
    assert plain.held_out.fitted_psnr is None
