"""Reconstruction of an analytic scene with `orrery-nerf`, its refusals, its commands."""

import json
import math

import numpy as np
import pytest
import torch
from analytic_scene import render
from PIL import Image

from recon3d import asset, assets, nerf, sweeps
from recon3d.cameras import to_transforms
from recon3d.form import Form
from recon3d.mesh import cleaned, silhouettes
from recon3d.nerfstudio_shims import allow_checkpoint_scalars, no_perceptual_download, run
from recon3d.refinement import corrected
from recon3d.views import normals_from_depth
from recon3d.voxels import interpolate, sampled


@pytest.fixture(scope="module")
def sweep():
    cameras = sweeps.orbit(20, height=48, width=48)
    frames, depth = render(cameras)
    return frames, cameras, depth


@pytest.fixture(scope="module")
def result(sweep):
    frames, cameras, _ = sweep
    return nerf.reconstruct(frames, cameras, "tiny")


def short(seed: int = 0):
    preset = nerf.NerfPreset(4, 600, nerf.FieldConfig((4, 8), coarse_samples=16, fine_samples=8))
    return dict(config=nerf.method(preset, seed), steps=4, rays_per_step=600, seed=seed)


def test_held_out_views_beat_both_baselines(result):
    held = result.held_out
    assert held.views.tolist() == [4, 9, 14, 19]
    assert held.psnr.mean() > 24
    assert held.gain_db > 4
    assert held.ssim.mean() > 0.75


def test_depth_is_metric_camera_z_and_normals_are_those_of_the_scene(result, sweep):
    _, cameras, depth = sweep
    view = result.render(cameras[4])
    things = depth[4] < 1.4
    assert (view.depth[0] - depth[4])[things].abs().median() < 0.1
    assert view.opacity[0][things].min() > 0.9
    assert torch.allclose(view.normals.norm(dim=-1), torch.ones(1, 48, 48), atol=1e-3)
    exact = normals_from_depth(cameras[4], depth[4:5])
    cosine = (view.normals * exact).sum(-1)[0][things].clamp(-1, 1)
    assert torch.rad2deg(torch.acos(cosine)).median() < 20


def test_normals_for_nerfstudios_exporters_are_those_of_the_scene(result, sweep, monkeypatch):
    assert nerf.orrery_nerf.config.pipeline.model.normals, "ns-train's method renders them"
    monkeypatch.setattr(result.model.config, "normals", True)
    _, cameras, depth = sweep
    origins, directions = (rays.reshape(-1, 3) for rays in result.similarity.rays(cameras[4]))
    bundle = nerf._bundle(origins, directions, torch.zeros(len(origins), dtype=torch.int64))
    with torch.no_grad():
        coded = result.model(bundle)["normals"]
    assert coded.min() >= 0 and coded.max() <= 1, "nerfstudio takes normals as colours"
    exact = normals_from_depth(cameras[4], depth[4:5])[0]
    cosine = ((2 * coded - 1).view(48, 48, 3) * exact).sum(-1)[depth[4] < 1.4].clamp(-1, 1)
    assert torch.rad2deg(torch.acos(cosine)).median() < 25


def test_the_mesh_and_the_points_stand_where_the_scene_is(result):
    mesh, cloud = result.mesh(maps=result.depth_maps(side=48)), result.point_cloud()
    assert len(mesh.faces) > 1000
    assert mesh.vertices.abs().max() < 1.2
    assert cloud.points.shape == cloud.normals.shape == cloud.colours.shape


def test_views_that_do_not_show_one_scene_get_the_fields_own_surface_without_holes(result, sweep):
    """As dreamt views: cameras that wobble by 2 cm and 2 degrees."""
    _, cameras, depth = sweep
    generator = torch.Generator().manual_seed(0)
    wobble = torch.randn(len(cameras), 6, generator=generator) * torch.tensor([0.02] * 3 + [0.03] * 3)
    apart = nerf.reconstruct(render(corrected(cameras, wobble))[0], cameras, "tiny")
    assert not result.depth_maps(side=48).own
    maps = apart.depth_maps(side=48)
    assert maps.own
    things = depth < 1.3
    whole = silhouettes(cleaned(apart.mesh(maps=maps)), cameras)[things].float().mean()
    agreed = maps._replace(own=False)
    assert whole > 0.95
    assert whole > silhouettes(cleaned(apart.mesh(maps=agreed)), cameras)[things].float().mean() + 0.02


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(sweep):
    frames, cameras, _ = sweep
    one, same, other = (
        nerf.train_and_score(frames=frames, cameras=cameras, **short(s)).held_out.psnr for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_where_the_world_lies_does_not_matter(sweep):
    frames, cameras, _ = sweep
    motion = torch.eye(4)
    motion[:3, 3] = torch.tensor([5.0, -3.0, 1.0])
    here = nerf.train_and_score(frames=frames, cameras=cameras, **short()).held_out.psnr
    there = nerf.train_and_score(frames=frames, cameras=cameras.moved(motion), **short()).held_out.psnr
    assert torch.allclose(here, there, atol=0.05)


def test_unreconstructable_frames_are_refused(sweep):
    frames, cameras, _ = sweep
    noise = torch.randint(0, 256, frames.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with pytest.raises(nerf.NothingReconstructed, match="mean image"):
        nerf.reconstruct(noise, cameras, "tiny")
    with pytest.raises(nerf.NothingReconstructed, match="parallax"):
        nerf.reconstruct(frames[:5], sweeps.dolly(5, start_m=1.0, end_m=1.0, height=48, width=48), "tiny")


def test_frames_that_do_not_match_their_cameras_are_an_error(sweep):
    frames, cameras, _ = sweep
    with pytest.raises(ValueError, match="frames must match"):
        nerf.reconstruct(frames[:3], cameras)
    with pytest.raises(ValueError, match="held_out_every"):
        nerf.reconstruct(frames, cameras, held_out_every=1)


def test_the_peer_is_built_without_the_network(sweep):
    frames, cameras, _ = sweep
    done = nerf.train_and_score(nerf.nerfacto(), frames, cameras, 1, 32)
    assert done.steps == 1
    assert torch.isfinite(done.held_out.psnr).all()


def test_perceptual_metric_is_back_after_the_shim():
    from torchmetrics.image import lpip

    original = lpip.LearnedPerceptualImagePatchSimilarity
    with no_perceptual_download():
        assert math.isnan(lpip.LearnedPerceptualImagePatchSimilarity(normalize=True)(torch.zeros(1)))
    assert lpip.LearnedPerceptualImagePatchSimilarity is original


def test_checkpoints_of_nerfstudio_load_in_safe_mode(tmp_path):
    path = tmp_path / "step.ckpt"
    torch.save({"schedulers": {"fields": {"_last_lr": [np.float64(0.1)]}}}, path)
    allow_checkpoint_scalars()
    assert torch.load(path, weights_only=True)["schedulers"]["fields"]["_last_lr"] == [0.1]


def test_the_method_is_one_that_nerfstudio_can_register():
    assert isinstance(nerf.orrery_nerf, nerf.MethodSpecification)
    assert nerf.orrery_nerf.config.method_name == "orrery-nerf"
    with pytest.raises(ValueError, match="train, viewer"):
        run(["dance"])


def test_nerfstudios_exporter_gets_opacity_beside_colours(result):
    outputs = {"rgb": torch.rand(5, 3), "accumulation": torch.rand(5, 1)}
    rgba = result.model.get_rgba_image(outputs)
    assert torch.equal(rgba, torch.cat([outputs["rgb"], outputs["accumulation"]], dim=-1))


def test_voxels_and_their_gradients_are_looked_up_alike_as_a_gpu_and_as_a_cpu_does_it():
    draws = torch.Generator().manual_seed(0)
    table = torch.randn(5 * 6 * 7, 3, generator=draws).requires_grad_()
    points = (torch.randn(200, 3, generator=draws) * 0.7).requires_grad_()
    upstream = torch.randn(200, 3, generator=draws)
    one, other = (look_up(table, points, (5, 6, 7)) for look_up in (interpolate, sampled))
    assert torch.allclose(one, other, atol=2e-3)  # on the wall the CPU's is a thousandth of a voxel inside
    wanted = table, points
    gradients, references = (torch.autograd.grad((out * upstream).sum(), wanted) for out in (one, other))
    assert torch.allclose(gradients[0], references[0], atol=5e-3)
    inside = (points.abs() < 1).all(-1)
    assert inside.sum() > 50
    assert torch.allclose(gradients[1][inside], references[1][inside], atol=1e-3)


def write_capture(folder, frames, cameras, lost=()):
    folder.mkdir()
    names = [f"{k:03d}.png" for k in range(len(frames))]
    for k, (name, frame) in enumerate(zip(names, frames, strict=True)):
        if k not in lost:
            Image.fromarray(frame.numpy()).save(folder / name)
    (folder / "transforms.json").write_text(json.dumps(to_transforms(cameras, names)))
    return folder


def test_asset_writes_a_mesh_and_prints_the_held_out_psnr(tmp_path, sweep, capsys):
    frames, cameras, _ = sweep
    folder = write_capture(tmp_path / "capture", frames, cameras, lost=(3,))
    assert asset.asset(str(folder), tmp_path / "thing.glb", preset="tiny", form=Form(faces=3000)) == 0
    printed = capsys.readouterr()
    assert "003.png" in printed.err
    assert printed.out.strip().splitlines()[-1].startswith("PSNR 2")
    assert 0 < len(assets.read(tmp_path / "thing.glb").faces) <= 3000


def test_asset_refuses_with_3_where_nothing_can_be_reconstructed(tmp_path, sweep, capsys):
    frames, _, _ = sweep
    still = sweeps.dolly(20, start_m=1.0, end_m=1.0, height=48, width=48)
    assert asset.write_asset(frames, still, tmp_path / "thing.glb") == 3
    assert "parallax" in capsys.readouterr().out.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_bad_sources_say_what_is_wrong(tmp_path, sweep):
    frames, cameras, _ = sweep
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        asset.asset(str(tmp_path / "none"), tmp_path / "a.glb")
    with pytest.raises(ValueError, match=r"\.glb"):
        asset.asset(str(tmp_path), tmp_path / "a.txt")
    with pytest.raises(ValueError, match="no pictures"):
        asset.asset(str(tmp_path), tmp_path / "a.glb")
    folder = write_capture(tmp_path / "capture", frames, cameras, lost=range(12))
    with pytest.raises(ValueError, match="8 exist"):
        asset.asset(str(folder), tmp_path / "a.glb")
    (folder / "transforms.json").write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        asset.asset(str(folder), tmp_path / "a.glb")
