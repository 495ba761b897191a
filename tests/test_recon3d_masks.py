"""Masks: what moves is not learned, nor scored, nor a surface; masks find their pictures, or say why not."""

import json

import numpy as np
import pytest
import torch
from analytic_scene import render
from PIL import Image
from test_recon3d_captures import write_listing, write_video

from recon3d import asset, nerf, sweeps
from recon3d.captures import Reading, read_capture
from recon3d.pictures import read_masks
from recon3d.refinement import psnr_after_gain
from recon3d.training_rays import training_rays
from recon3d.views import psnr, ssim

PRESET = nerf.NerfPreset(100, 1000, nerf.FieldConfig((16, 32), coarse_samples=32, fine_samples=16))
SIDE = 32


@pytest.fixture(scope="module")
def visited():
    """A sweep of a still scene, the same with something bright that walks through it, and where that is."""
    cameras = sweeps.orbit(20, height=SIDE, width=SIDE)
    frames = render(cameras)[0]
    seen, walker = frames.clone(), torch.zeros(20, SIDE, SIDE, dtype=torch.bool)
    rng = np.random.default_rng(0)
    for k, (row, column) in enumerate(rng.integers(0, SIDE - 12, (20, 2))):
        walker[k, row : row + 12, column : column + 12] = True
    seen[walker] = torch.tensor([255, 0, 255], dtype=torch.uint8)
    return frames, seen, walker, cameras


def trained(frames, cameras, ignored=None):
    config = nerf.method(PRESET, exposure=True)
    return nerf.train_and_score(config, frames, cameras, PRESET.steps, PRESET.rays_per_step, ignored=ignored)


def test_what_is_ignored_is_neither_learned_nor_scored_nor_a_surface(visited):
    frames, seen, walker, cameras = visited
    still, told, fooled = trained(frames, cameras), trained(seen, cameras, walker), trained(seen, cameras)
    held = cameras[told.held_out.views]
    truth = frames[told.held_out.views]
    clean, found, bad = (psnr(one.render(held).rgb, truth).mean().item() for one in (still, told, fooled))
    assert found > clean - 2.0 and found > bad + 2.0, (clean, found, bad)
    assert told.held_out.psnr.mean().item() == pytest.approx(found, abs=1.0), "the walker does not count"
    assert fooled.held_out.psnr.mean() < told.held_out.psnr.mean() - 4
    assert told.held_out.fitted_psnr is not None and told.held_out.fitted_psnr.isfinite().all()
    chosen, _, depth, _ = told.depth_maps(side=SIDE)
    known = (~nerf.held_out_views(seen, cameras, 5)).nonzero()[:, 0][chosen]
    assert (depth[walker[known]] == 0).all() and (depth[~walker[known]] > 0).any()


def test_rays_of_ignored_pixels_are_never_drawn(visited):
    _, seen, walker, cameras = visited
    similarity = nerf.focus_similarity(cameras)
    rays = training_rays(seen, cameras, similarity, walker)
    draws = torch.Generator().manual_seed(0)
    for drawn in (rays.draw(5000, draws), rays.draw_triplets(6000, draws)):
        assert not walker.flatten()[drawn].any()
        assert len(drawn) in (5000, 6000)
    lonely = torch.ones_like(walker)
    lonely[:, 3, 5] = False  # no triplet is whole
    drawn = training_rays(seen, cameras, similarity, lonely).draw_triplets(30, draws)
    assert len(drawn) == 30 and not lonely.flatten()[drawn].any()


def test_scores_of_kept_pixels_do_not_depend_on_the_others(visited):
    frames, seen, walker, _ = visited
    assert psnr(seen, frames, ~walker).isinf().all() and psnr(seen, frames).max() < 20
    noisy = (frames.int() + torch.randint(-9, 10, frames.shape)).clamp(0, 255).to(torch.uint8)
    everything = torch.ones_like(walker)
    for score in (psnr, ssim, psnr_after_gain):
        assert torch.allclose(score(noisy, frames, everything), score(noisy, frames), atol=1e-4)
    other = noisy.clone()
    other[walker] = 0
    for score in (psnr, psnr_after_gain):
        assert torch.equal(score(noisy, frames, ~walker), score(other, frames, ~walker))


def test_impossible_masks_are_refused_before_training(visited):
    _, seen, walker, cameras = visited
    with pytest.raises(ValueError, match=r"must be \(20, 32, 32\), as the frames"):
        nerf.reconstruct(seen, cameras, "tiny", ignored=walker[:, :-1])
    whole = walker.clone()
    whole[7] = True
    with pytest.raises(ValueError, match=r"nothing is left of views \[7\]"):
        nerf.reconstruct(seen, cameras, "tiny", ignored=whole)


def write_masks(folder, names, height=48, width=64):
    """The k-th is white in its first k rows."""
    folder.mkdir()
    for k, name in enumerate(names):
        white = np.zeros((height, width), np.uint8)
        white[:k] = 255
        Image.fromarray(white).save(folder / name)
    return folder


@pytest.mark.parametrize("names", ["{}.png", "{}.png.png", "mask{:03d}.png"])
def test_masks_go_with_their_pictures_by_name_or_in_order(tmp_path, names):
    write_listing(tmp_path)
    (tmp_path / "4.png").unlink()
    masks = write_masks(tmp_path / "masks", [names.format(k) for k in range(12)])
    capture = read_capture(tmp_path, Reading(masks=masks, ignore=masks))
    rows = [64 * k for k in range(12) if k != 4]
    for part in (capture.masks, capture.ignored):
        assert part is not None and part.sum((1, 2)).tolist() == rows
    small = read_capture(tmp_path, Reading(longest_side=16, ignore=masks)).ignored
    assert small is not None and small.shape == (11, 12, 16)
    assert small[0].sum() == 0 and small[1].sum() == 16, "one row of four is enough to be ignored"


def test_masks_of_a_listing_give_way_to_those_that_are_asked_for(tmp_path):
    write_listing(tmp_path)
    masks = write_masks(tmp_path / "masks", [f"{k}.png" for k in range(12)])
    listing = json.loads((tmp_path / "transforms.json").read_text())
    for frame in listing["frames"]:
        frame["mask_path"] = "masks/11.png"
    (tmp_path / "transforms.json").write_text(json.dumps(listing))
    listed, asked = read_capture(tmp_path).masks, read_capture(tmp_path, Reading(masks=masks)).masks
    assert listed.sum() == 12 * 11 * 64 and asked.sum() == 66 * 64


def test_a_video_masks_the_frames_of_a_video(tmp_path):
    film = np.zeros((12, 48, 64, 3), np.uint8)
    for k in range(12):
        film[k, : 4 * k] = 255
    masks = read_masks(write_video(tmp_path / "masks.mp4", film), [], [0, 5, 11], 12, (64, 48))
    assert [(np.asarray(mask) > 127).sum() for mask in masks] == [0, 20 * 64, 44 * 64]


def test_missing_masks_are_named(tmp_path):
    write_listing(tmp_path)
    with pytest.raises(ValueError, match="add --extract"):
        asset.asset(str(tmp_path), tmp_path / "thing.glb", reading=Reading(masks=tmp_path))
    few = write_masks(tmp_path / "few", [f"{k}.png" for k in range(12) if k != 3])
    with pytest.raises(ValueError, match=r"3\.png has none\), or 12 in their order, got 11"):
        read_capture(tmp_path, Reading(ignore=few))
    with pytest.raises(FileNotFoundError, match="no masks at"):
        read_capture(tmp_path, Reading(masks=tmp_path / "nowhere"))
    film = write_video(tmp_path / "short.mp4", np.zeros((5, 48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="must hold 12 frames"):
        read_capture(tmp_path, Reading(masks=film))
