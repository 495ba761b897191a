"""What `orrery bench` says of reconstructions: times to a PSNR, costs, and scenes with their truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probes.nerf_bench import Cost, Fit, scaling_figure, scaling_table, sooner
from probes.poses_bench import PosesScore, summary, worst
from probes.scenes_bench import cut_out, reference_scene
from recon3d.mesh import DepthMaps, Mesh, cleaned, fuse, keep_inside, nearest


def fit(name: str, course: list[tuple[float, float]]) -> Fit:
    return Fit(name, course[-1][0], 1.0, 10, course[-1][1], 0.9, 20.0, 18.0, course)


def test_how_much_sooner_is_counted_to_the_peers_best_moment():
    peer = fit("peer", [(100.0, 18.0), (500.0, 22.0), (600.0, 21.0)])
    said = sooner(fit("ours", [(10.0, 19.0), (20.0, 24.0), (40.0, 30.0)]), peer)
    assert "22.0 dB, after 500 s" in said and "after 20.0 s, 25 times sooner" in said
    assert "did not reach it in 10 s" in sooner(fit("ours", [(10.0, 19.0)]), peer)


def test_costs_are_told_and_drawn(tmp_path):
    costs = [Cost(views, size, 400, 100.0, 1.2, 0.9) for views, size in ((10, 64), (40, 64), (40, 128))]
    assert scaling_table(costs).splitlines()[1].split() == ["10", "64x64", "400", "100", "40", "1.20", "0.90"]
    scaling_figure(costs, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_a_scenes_depth_lies_on_its_mesh():
    scene = reference_scene(5, 24, views=3)
    points = scene.cameras.unproject(scene.depth)[scene.depth < 2.0]
    distance, _, face = nearest(points, scene.mesh)
    assert distance.median().item() < 1e-3  # the rest lies on round things, whose mesh has flat faces
    assert distance.max().item() < 0.03
    assert (scene.owners[face] >= 0).float().mean().item() == pytest.approx(0.3, abs=0.29)
    assert torch.isfinite(scene.depth).float().mean() > 0.5


def test_the_thing_that_is_cut_out_covers_what_the_true_thing_covers():
    scene, focus, voxel_m = reference_scene(5, 96, views=16), torch.tensor([0.0, 0.0, 0.15]), 0.012
    near = keep_inside(scene.cameras, scene.depth, focus, 0.9)
    maps = DepthMaps(torch.arange(16), scene.cameras, scene.depth)
    fused = cleaned(fuse(scene.frames, near, scene.cameras, voxel_m))
    assert cut_out(scene, fused, maps, focus, voxel_m) > 0.9
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3, dtype=torch.uint8))
    assert cut_out(scene, empty, maps, focus, voxel_m) == 0


def test_the_worst_of_scores_has_the_fewest_points_and_the_largest_errors():
    scores = [
        PosesScore(1, 40, 900, 0.2, 0.01, 0.02, 0.3, 9.0),
        PosesScore(2, 38, 950, 0.1, 0.03, 0.01, 0.5, 8.0),
    ]
    assert summary(scores, worst) == PosesScore(1, 38, 900, 0.2, 0.03, 0.02, 0.5, 9.0)
    assert summary(scores, np.mean).share == pytest.approx(0.015)
    lost = replace(scores[0], rotation_deg=float("nan"))
    assert np.isnan(summary([scores[1], lost], worst).rotation_deg), "a path that is lost is no good score"
