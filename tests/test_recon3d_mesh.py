"""Fusion, scores, pictures and files of meshes against an analytic scene."""

import numpy as np
import pytest
import torch
import trimesh
from analytic_scene import SPHERES, render
from jaxtyping import TypeCheckError

from recon3d import assets, sweeps
from recon3d.cameras import Cameras
from recon3d.mesh import (
    Mesh,
    cleaned,
    decimated,
    distances,
    fuse,
    keep_inside,
    picture,
    sample_surface,
    score,
    seen_by,
    silhouette_iou,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cube(side: float = 1.0, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
    box = trimesh.creation.box((side, side, side))
    vertices = torch.tensor(np.array(box.vertices), dtype=torch.float32) + torch.tensor(shift)
    colours = (vertices - vertices.amin(0)) / side * 255
    return Mesh(vertices, torch.tensor(np.array(box.faces)), colours.to(torch.uint8))


@pytest.fixture(scope="module")
def fused() -> tuple[Mesh, Cameras, torch.Tensor]:
    cameras = sweeps.orbit(12, height=96, width=96)
    frames, depth = render(cameras, supersampling=1)
    depth = keep_inside(cameras, depth, torch.tensor([0.0, 0.0, 0.15]), 0.7)
    return cleaned(fuse(frames, depth, cameras, voxel_m=0.015)), cameras, depth


def test_fused_exact_depth_lies_on_the_analytic_surface(fused):
    mesh, _, _ = fused
    for centre, radius, _ in SPHERES:
        gap = ((mesh.vertices - torch.tensor(centre)).norm(dim=-1) - radius).abs()
        assert gap[gap < 0.02].mean() < 0.005
    height = mesh.vertices[:, 2]
    assert height[height.abs() < 0.02].mean().abs() < 0.001  # half a pixel of offset would give 7 mm


def test_fused_colours_are_those_of_the_scene(fused):
    mesh, _, _ = fused
    centre, radius, _ = SPHERES[0]
    on_red = ((mesh.vertices - torch.tensor(centre)).norm(dim=-1) - radius).abs() < 0.005
    red, green, blue = mesh.colours[on_red].float().mean(0)
    assert on_red.sum() > 100
    assert red > 2 * green and red > 2 * blue


def test_no_known_depth_gives_an_empty_mesh():
    cameras = sweeps.orbit(2, height=8, width=8)
    mesh = fuse(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, 8, 8), cameras, voxel_m=0.1)
    assert len(mesh.vertices) == len(mesh.faces) == 0
    assert (picture(mesh, cameras[0]) == 255).all()


def test_distance_to_a_cube_is_the_distance_to_its_wall():
    points = torch.tensor([[0.0, 0.0, 0.8], [0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
    assert distances(points, cube()).tolist() == pytest.approx([0.3, 0.5, 1.0], abs=1e-5)


def test_surface_samples_lie_on_the_surface_and_cover_all_sides():
    points = sample_surface(cube(), 6000, seeded())
    assert distances(points, cube()).max() < 1e-5
    for side in range(3):
        assert ((points[:, side] - 0.5).abs() < 1e-5).float().mean().item() == pytest.approx(1 / 6, abs=0.03)


def everywhere_seen() -> tuple[Cameras, torch.Tensor]:
    cameras = sweeps.orbit(3, radius_m=6.0, target=(0.0, 0.0, 0.0), height=32, width=32)
    return cameras, torch.full((3, 32, 32), 100.0)


def compared(mesh: Mesh, truth: Mesh, **options):
    cameras, depth = everywhere_seen()
    settings = dict(thresholds_m=(0.02, 0.1), generator=seeded(), count=2000) | options
    return score(mesh, truth, cameras, settings.pop("depth", depth), **settings)


def plate(height: float, half: float = 1.0) -> Mesh:
    corners = torch.tensor(
        [[-half, -half, height], [half, -half, height], [half, half, height], [-half, half, height]]
    )
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), torch.zeros(4, 3, dtype=torch.uint8))


def test_a_perfect_mesh_scores_perfectly():
    result = compared(cube(), cube())
    assert result.chamfer_m < 1e-4
    assert min(result.f_score + result.precision + result.recall) > 0.999
    assert result.normal_consistency > 0.98  # at the edges either side is nearest
    assert result.support == 2000


def test_a_known_error_is_measured_in_metres():
    """A plate 3 cm too high is 3 cm off; half a plate leaves a known half of the truth uncovered."""
    result = compared(plate(0.03), plate(0.0))
    assert result.accuracy_m == pytest.approx(0.03, abs=1e-5)
    assert result.completeness_m == pytest.approx(0.03, abs=1e-5)
    assert result.f_score == (0.0, 1.0)
    assert result.normal_consistency == pytest.approx(1.0, abs=1e-5)
    small = compared(plate(0.0, half=0.5), plate(0.0))
    assert small.accuracy_m < 1e-5 and small.precision == (1.0, 1.0)
    assert small.recall[0] == pytest.approx(0.52**2, abs=0.03)  # the rim of 2 cm counts as covered
    side = Mesh(plate(0.0).vertices[:, [2, 0, 1]], plate(0.0).faces, plate(0.0).colours)
    assert compared(side, plate(0.0)).normal_consistency < 1e-5


def test_a_worse_mesh_scores_worse():
    results = [compared(cube(shift=(0.0, 0.0, z)), cube()) for z in (0.0, 0.03, 0.2)]
    for worse, better in zip(results[1:], results, strict=False):
        assert worse.accuracy_m > better.accuracy_m
        assert worse.completeness_m > better.completeness_m
        assert worse.chamfer_m > better.chamfer_m
        assert worse.f_score[0] < better.f_score[0]
        assert worse.normal_consistency < better.normal_consistency + 1e-3


def test_only_the_ball_and_the_faces_that_count_are_compared():
    near, far = cube(), cube(shift=(0.0, 0.0, 1.5))
    both = Mesh(
        torch.cat([near.vertices, far.vertices]),
        torch.cat([near.faces, far.faces + len(near.vertices)]),
        torch.cat([near.colours, far.colours]),
    )
    inside = compared(near, both, centre=torch.zeros(3), radius_m=0.9)
    assert inside.f_score[0] > 0.999
    chosen = torch.arange(len(both.faces)) < len(near.faces)
    assert compared(near, both, faces=chosen).f_score[0] > 0.999
    assert compared(near, both).recall[0] < 0.7


def test_no_evidence_scores_nan():
    nothing = Mesh(
        torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.uint8)
    )
    _, depth = everywhere_seen()
    for mesh, seen in ((nothing, depth), (cube(), depth * 0)):
        result = compared(mesh, cube(), depth=seen)
        assert result.support == 0
        assert np.isnan([result.chamfer_m, result.normal_consistency, *result.f_score]).all()


def test_points_behind_the_surface_are_not_seen():
    camera = sweeps.orbit(1, radius_m=2.0, target=(0.0, 0.0, 0.0))
    axis = camera.c2w[0, :3, 2]
    points = camera.centres + torch.tensor([[1.0], [1.4], [-1.0]]) * axis
    assert seen_by(points, camera, torch.full((1, 64, 64), 1.2)).tolist() == [1, 0, 0]


def test_a_picture_shows_the_mesh_where_it_projects():
    camera = sweeps.orbit(1, radius_m=3.0, target=(0.0, 0.0, 0.0), height=33, width=33)
    image = picture(cube(), camera)[0]
    assert (image[16, 16] < 255).any()
    assert (image[0, 0] == 255).all()
    assert torch.equal(image, picture(cube(), camera)[0])


def test_silhouettes_agree_by_the_area_that_they_share():
    """Squares of side 2 and 1.4 in a plane seen from above share 1.4^2 / 2^2."""
    above = sweeps.orbit(1, radius_m=3.0, elevation_deg=89.99, target=(0.0, 0.0, 0.0), height=128, width=128)
    large, small, aside = plate(0.0), plate(0.0, 0.7), cube(0.5, (-1.8, 0.0, 0.0))
    assert silhouette_iou(large, large, above).item() == 1
    assert silhouette_iou(small, large, above).item() == pytest.approx(0.49, abs=0.02)
    assert silhouette_iou(aside, large, above).item() == 0
    assert silhouette_iou(large, small, above) == silhouette_iou(small, large, above)


def test_small_pieces_are_cleaned_away_and_faces_limited(fused):
    mesh, _, _ = fused
    speck = cube(0.01, (0.0, 0.0, 2.0))
    both = Mesh(
        torch.cat([mesh.vertices, speck.vertices]),
        torch.cat([mesh.faces, speck.faces + len(mesh.vertices)]),
        torch.cat([mesh.colours, speck.colours]),
    )
    assert cleaned(both).vertices[:, 2].max() < 1.0
    assert len(decimated(mesh, 500).faces) <= 500
    with pytest.raises(ValueError, match="at least 4"):
        decimated(mesh, 1)


@pytest.mark.parametrize("suffix", assets.SUFFIXES)
def test_a_mesh_file_reads_back_as_it_was_written(tmp_path, suffix):
    mesh = cube(0.3, (0.1, 0.2, 0.5))
    back = assets.read(assets.write(mesh, tmp_path / f"thing{suffix}"))
    assert torch.allclose(back.vertices, mesh.vertices, atol=1e-5)
    assert torch.equal(back.faces, mesh.faces)
    assert (back.colours.int() - mesh.colours.int()).abs().max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == [f"thing{suffix}"]


def test_another_reader_finds_the_glb_standing_on_y(tmp_path):
    mesh = cube(0.2, (0.0, 0.0, 0.5))
    loaded = trimesh.load(assets.write(mesh, tmp_path / "thing.glb"), force="mesh")
    assert loaded.bounds[:, 1].tolist() == pytest.approx([0.4, 0.6], abs=1e-5)
    assert loaded.volume == pytest.approx(0.2**3, rel=1e-4)


def test_bad_mesh_files_say_what_is_wrong(tmp_path):
    empty = Mesh(
        torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.uint8)
    )
    with pytest.raises(ValueError, match="needs faces"):
        assets.write(empty, tmp_path / "a.glb")
    with pytest.raises(ValueError, match=r"\.glb"):
        assets.write(cube(), tmp_path / "a.stl")
    with pytest.raises(FileNotFoundError):
        assets.read(tmp_path / "a.ply")
    (tmp_path / "b.glb").write_bytes(b"not a mesh")
    with pytest.raises(ValueError, match="binary glTF"):
        assets.read(tmp_path / "b.glb")


def test_wrong_shape_is_refused_by_the_annotations():
    with pytest.raises(TypeCheckError):
        Mesh(torch.zeros(3, 2), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.uint8))
