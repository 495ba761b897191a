"""Views that are nearly one scene become one, and what is no scene stays as it is."""

import pytest
import torch
from analytic_scene import render

from recon3d import nerf, sweeps
from recon3d.refinement import corrected
from recon3d.settle import LEVELS, settled
from recon3d.views import psnr

VIEWS = 16


def test_views_from_cameras_that_wobble_settle_into_a_scene_seen_by_steady_ones():
    """Drafts are taken as they are here, so what is left is what the rounds of fields agree on."""
    cameras = sweeps.orbit(VIEWS, height=32, width=32)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(VIEWS, 6, generator=generator) * torch.tensor([0.02] * 3 + [0.03] * 3)
    steady, wobbly = render(cameras)[0], render(corrected(cameras, noise))[0]
    asked = []

    def again(drafts, level):
        asked.append(level)
        return drafts

    frames, rounds, before = settled(wobbly, cameras, again)
    assert asked == list(LEVELS) and rounds == len(LEVELS) and before is not None
    after = nerf.reconstruct(frames, cameras, "tiny").held_out
    assert after.psnr.mean() > before.psnr.mean() + 4
    assert (after.psnr - after.copy_psnr).mean() > (before.psnr - before.copy_psnr).mean() + 2
    assert psnr(frames, steady).mean() > psnr(wobbly, steady).mean() + 1


def test_what_is_no_scene_stays_as_it_is(capsys):
    cameras = sweeps.orbit(VIEWS, height=32, width=32)
    noise = torch.randint(0, 256, (VIEWS, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    noise = noise.to(torch.uint8)
    frames, rounds, before = settled(noise, cameras, lambda *_: pytest.fail("asked for drafts"))
    assert torch.equal(frames, noise) and rounds == 0 and before is None
    assert "do not settle into one scene" in capsys.readouterr().err
