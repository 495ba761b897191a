"""Depth -> surface, with Open3D: fusion, cleaning, pictures and scores of meshes. Metres, +Z up.

Open3D takes w2c and camera z as depth. Its block grid reads the pixel that a projection falls into, so pixel
centres are at 0.5 there as here (its older volumes round instead: centres at integers); a test measures it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import open3d
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from recon3d.cameras import Cameras


@dataclass(frozen=True)
class Mesh:
    """Triangles with a colour per vertex (sRGB)."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    colours: UInt8[Tensor, "v 3"]


@dataclass(frozen=True)
class PointCloud:
    """Points on surfaces with a colour (sRGB) and a unit normal each."""

    points: Float[Tensor, "p 3"]
    colours: UInt8[Tensor, "p 3"]
    normals: Float[Tensor, "p 3"]


@dataclass(frozen=True)
class MeshScore:
    """How well a surface agrees with the truth.

    Accuracy and completeness as in DTU (Jensen et al. 2014, "Large Scale Multi-view Stereopsis Evaluation",
    means, without its cap on outliers); precision, recall and F-score as in Tanks and Temples (Knapitsch et
    al. 2017); normal consistency as in Occupancy Networks (Mescheder et al. 2019).

    Attributes:
        accuracy_m: mean distance from the surface to the truth.
        completeness_m: mean distance from the truth to the surface.
        chamfer_m: mean of the two.
        thresholds_m: distances that count as agreement in what follows.
        precision: share of the surface that lies so near to the truth, for each threshold.
        recall: share of the truth that lies so near to the surface, for each threshold.
        f_score: harmonic mean of the two, for each threshold.
        normal_consistency: mean absolute cosine between normals of nearest points, both ways.
        support: points of the truth that were compared.
    """

    accuracy_m: float
    completeness_m: float
    chamfer_m: float
    thresholds_m: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f_score: tuple[float, ...]
    normal_consistency: float
    support: int


class DepthMaps(NamedTuple):
    """How deep some of the training views see.

    Attributes:
        chosen: which of the training views.
        cameras: theirs, at the maps' size.
        depth: camera z, metres; 0 where unknown, inf where there is no surface.
        own: whether it is a radiance field's own depth, of one scene already, that no picture corrects.
    """

    chosen: Int[Tensor, " n"]
    cameras: Cameras
    depth: Float[Tensor, "n h w"]
    own: bool = False

    def fused(
        self, frames: UInt8[Tensor, "n h w 3"], centre: Float[Tensor, " 3"], radius_m: float, voxel_m: float
    ) -> Mesh:
        """The surface inside a ball around a point, of the colours of the chosen frames, at the maps' size.
        Where depth is a field's own, one view's is enough, and as much of it is averaged as can be."""
        near = keep_inside(self.cameras, self.depth, centre, radius_m)
        how = {"truncation_voxels": 8.0, "fewest_views": 1} if self.own else {}
        return fuse(frames, near, self.cameras, voxel_m, **how)


def fuse(
    rgb: UInt8[Tensor, "n h w 3"],
    depth: Float[Tensor, "n h w"],
    cameras: Cameras,
    voxel_m: float,
    *,
    truncation_voxels: float = 4.0,
    fewest_views: int = 2,
) -> Mesh:
    """Fuses depth (camera z, metres; 0 where unknown) into one surface (TSDF; Curless and Levoy 1996).

    Open3D's block grid is used; its older `ScalableTSDFVolume` comes back empty in 0.20.

    Args:
        fewest_views: surface that fewer views saw is left out.

    Raises:
        ValueError: the voxels are not of positive size.
    """
    if not voxel_m > 0:
        raise ValueError(f"voxel_m must be positive, got {voxel_m}; half a pixel's footprint is usual")
    core, float32 = open3d.core, open3d.core.float32
    grid = open3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(float32, float32, float32),
        attr_channels=((1), (1), (3)),  # pyright: ignore[reportArgumentType]
        voxel_size=voxel_m,
        block_resolution=8,
        block_count=20000,
    )
    known = torch.nan_to_num(depth.float(), posinf=0.0).cpu()
    reach = dict(
        depth_scale=1.0, depth_max=float(known.max()) + 1.0, trunc_voxel_multiplier=truncation_voxels
    )
    intrinsics, poses = cameras.K.double().cpu(), cameras.w2c.double().cpu()
    for picture, z, K, w2c in zip(rgb.cpu().float() / 255, known, intrinsics, poses, strict=True):
        if not z.any():
            continue
        image = open3d.t.geometry.Image(core.Tensor(z.numpy()))
        colour = open3d.t.geometry.Image(core.Tensor(np.ascontiguousarray(picture.numpy())))
        K_, w2c_ = core.Tensor(K.numpy()), core.Tensor(w2c.numpy())
        blocks = grid.compute_unique_block_coordinates(image, K_, w2c_, **reach)
        grid.integrate(blocks, image, colour, K_, K_, w2c_, **reach)
    if not known.any():
        return Mesh(
            torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.uint8)
        )
    return _from_open3d(grid.extract_triangle_mesh(weight_threshold=fewest_views - 0.5).to_legacy())


def keep_inside(
    cameras: Cameras, depth: Float[Tensor, "n h w"], centre: Float[Tensor, " 3"], radius_m: float
) -> Float[Tensor, "n h w"]:
    """Depth with 0 (unknown) wherever the surface lies outside a ball around a point."""
    inside = (cameras.unproject(depth) - centre).norm(dim=-1) <= radius_m
    return torch.where(inside, depth, torch.zeros_like(depth))


def cleaned(mesh: Mesh, smallest_share: float = 0.02, smoothing: int = 0) -> Mesh:
    """Without pieces of less than a share of the largest one's faces; optionally smoothed (Taubin 1995)."""
    surface = _to_open3d(mesh)
    labels, counts, _ = surface.cluster_connected_triangles()
    labels, counts = np.asarray(labels), np.asarray(counts)
    if len(counts):
        surface.remove_triangles_by_mask(counts[labels] < smallest_share * counts.max())
    surface.remove_degenerate_triangles()
    surface.remove_unreferenced_vertices()
    if smoothing:
        surface = surface.filter_smooth_taubin(smoothing)
    return _from_open3d(surface)


def large_planes(
    points: Float[Tensor, "p 3"], tolerance_m: float, least_share: float, seed: int = 0, rounds: int = 6
) -> Iterator[Float[Tensor, " 4"]]:
    """The planes near which much of some points lies, taken off one after the other (RANSAC; Fischler and
    Bolles 1981).

    Yields:
        (a, b, c, d) with (a, b, c) of length 1, float64: a x + b y + c z + d is how far above it a point is.
    """
    rest, least = points.cpu().double(), max(least_share * len(points), 10)
    open3d.utility.random.seed(seed)
    for _ in range(rounds):
        if len(rest) < least:
            return
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(rest.numpy()))
        found, inliers = cloud.segment_plane(tolerance_m, 3, 500)
        plane = torch.from_numpy(np.asarray(found))
        if len(inliers) >= least:
            yield plane / plane[:3].norm()
        keep = torch.ones(len(rest), dtype=torch.bool)
        keep[torch.tensor(inliers)] = False
        rest = rest[keep]


def decimated(mesh: Mesh, faces: int) -> Mesh:
    """At most so many faces (quadric errors; Garland and Heckbert 1997)."""
    if faces < 4:
        raise ValueError(f"faces must be at least 4, got {faces}; thousands are usual")
    if len(mesh.faces) <= faces:
        return mesh
    return _from_open3d(_to_open3d(mesh).simplify_quadric_decimation(faces))


def picture(mesh: Mesh, camera: Cameras) -> UInt8[Tensor, "n h w 3"]:
    """Shaded pictures of a mesh on white, cast ray by ray: no window, no graphics driver.

    Vertex colours, dimmed where the surface turns away from the camera.
    """
    hit, directions = _cast(mesh, camera), camera.rays()[1]
    seen = torch.from_numpy(np.isfinite(hit["t_hit"].numpy()))
    face = torch.from_numpy(hit["primitive_ids"].numpy().astype(np.int64))
    uv = torch.from_numpy(hit["primitive_uvs"].numpy())
    normal = torch.from_numpy(hit["primitive_normals"].numpy())
    if not len(mesh.faces):
        return torch.full((*seen.shape, 3), 255, dtype=torch.uint8)
    corner_colours = mesh.colours.cpu().float()[mesh.faces.cpu()[torch.where(seen, face, 0)]]
    barycentric = torch.cat([1 - uv.sum(-1, keepdim=True), uv], dim=-1)
    colour = (corner_colours * barycentric[..., None]).sum(-2)
    shade = 0.55 + 0.45 * (normal * directions.cpu()).sum(-1, keepdim=True).abs()
    return torch.where(seen[..., None], colour * shade, 255.0).round().clamp(0, 255).to(torch.uint8)


def camera_depths(mesh: Mesh, cameras: Cameras) -> Float[Tensor, "n h w"]:
    """Camera z of a surface at pixels' middles, metres; inf where it covers none."""
    along = torch.from_numpy(_cast(mesh, cameras)["t_hit"].numpy())
    return along * (cameras.rays()[1] * cameras.c2w[:, None, None, :3, 2]).sum(-1).cpu()


def silhouettes(mesh: Mesh, cameras: Cameras) -> Bool[Tensor, "n h w"]:
    """Which pixels' middles a surface covers."""
    return torch.from_numpy(np.isfinite(_cast(mesh, cameras)["t_hit"].numpy()))


def silhouette_iou(mesh: Mesh, truth: Mesh, cameras: Cameras) -> Float[Tensor, " n"]:
    """Pixels that both surfaces cover over those that either does, per camera; NaN where neither does."""
    one, other = silhouettes(mesh, cameras), silhouettes(truth, cameras)
    return (one & other).sum((1, 2)) / (one | other).sum((1, 2))


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
    """Points spread evenly over the area of a mesh."""
    corners = mesh.vertices[mesh.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    face = torch.multinomial(area, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, 1, generator=generator)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    a, b, c = corners[face].unbind(1)
    return a + u * (b - a) + v * (c - a)


def distances(points: Float[Tensor, "p 3"], mesh: Mesh) -> Float[Tensor, " p"]:
    """Distance of each point to the nearest point of a surface, metres."""
    return nearest(points, mesh)[0]


def nearest(
    points: Float[Tensor, "p 3"], mesh: Mesh
) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"], Int[Tensor, " p"]]:
    """Distance (metres) to the nearest point of a surface, the unit normal there, and which face it is on.

    The normal is NaN where that face has no area.
    """
    scene = _raycasting(mesh)
    query = open3d.core.Tensor(points.cpu().numpy().astype(np.float32))  # pyright: ignore[reportCallIssue]
    found = scene.compute_closest_points(query)
    place, normal = (torch.from_numpy(found[k].numpy()) for k in ("points", "primitive_normals"))
    face = torch.from_numpy(found["primitive_ids"].numpy().astype(np.int64))
    return (points.cpu() - place).norm(dim=-1), torch.nn.functional.normalize(normal, dim=-1), face


def seen_by(
    points: Float[Tensor, "p 3"], cameras: Cameras, depth: Float[Tensor, "n h w"], tolerance_m: float = 0.02
) -> Int[Tensor, " p"]:
    """How many cameras see each point: it projects into the picture, no deeper than the depth there says."""
    pixels, z = cameras.project(points)
    column, row = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
    view = torch.arange(len(cameras))[:, None].expand_as(row)
    found = depth[view, row.clamp(0, cameras.height - 1), column.clamp(0, cameras.width - 1)]
    return (inside & (z <= found + tolerance_m)).sum(0)


def score(
    mesh: Mesh,
    truth: Mesh,
    cameras: Cameras,
    depth: Float[Tensor, "n h w"],
    *,
    thresholds_m: tuple[float, ...],
    generator: torch.Generator,
    centre: Float[Tensor, " 3"] | None = None,
    radius_m: float = float("inf"),
    faces: Bool[Tensor, " f"] | None = None,
    count: int = 20000,
) -> MeshScore:
    """Compares a mesh with the truth on surfaces that at least three views see.

    Args:
        depth: the truth's depth at the cameras (metres), which decides what is seen.
        thresholds_m: distances that count as agreement in the F-score.
        centre: with `radius_m`, a ball outside of which nothing is compared.
        faces: only these faces of the truth count, and only what of the mesh is nearest to one of them.
        count: points on each surface, fewer where most of the truth lies outside of the ball.

    Returns:
        NaN scores with support 0 where nothing is left to compare.
    """
    middle = torch.zeros(3) if centre is None else centre
    wanted = truth if faces is None else Mesh(truth.vertices, truth.faces[faces], truth.colours)
    real = sample_surface(wanted, 10 * count, generator)  # walls far outside get most of them
    real = real[(real - middle).norm(dim=-1) <= radius_m]
    real = real[seen_by(real, cameras, depth) >= 3][:count]
    made = sample_surface(mesh, count, generator) if len(mesh.faces) else torch.zeros(0, 3)
    made = made[(made - middle).norm(dim=-1) <= radius_m]
    to_truth, truth_normal, face = nearest(made, truth)
    if faces is not None:
        of_these = faces[face]
        made, to_truth, truth_normal = made[of_these], to_truth[of_these], truth_normal[of_these]
    if not len(made) or not len(real):
        nan, nans = float("nan"), (float("nan"),) * len(thresholds_m)
        return MeshScore(nan, nan, nan, thresholds_m, nans, nans, nans, nan, 0)
    to_mesh, mesh_normal, _ = nearest(real, mesh)
    precision = [(to_truth <= threshold).float().mean().item() for threshold in thresholds_m]
    recall = [(to_mesh <= threshold).float().mean().item() for threshold in thresholds_m]
    f_score = [2 * p * r / max(p + r, 1e-9) for p, r in zip(precision, recall, strict=True)]
    accuracy, completeness = to_truth.mean().item(), to_mesh.mean().item()
    there = (truth_normal * nearest(made, mesh)[1]).sum(-1).abs().nanmean().item()
    back = (mesh_normal * nearest(real, truth)[1]).sum(-1).abs().nanmean().item()
    return MeshScore(
        accuracy,
        completeness,
        (accuracy + completeness) / 2,
        thresholds_m,
        tuple(precision),
        tuple(recall),
        tuple(f_score),
        (there + back) / 2,
        len(real),
    )


def _cast(mesh: Mesh, cameras: Cameras) -> dict[str, open3d.core.Tensor]:
    """Where the rays through the pixels' middles meet a surface (Open3D's names)."""
    rays = torch.cat(cameras.rays(), dim=-1).cpu().numpy().astype(np.float32)
    return _raycasting(mesh).cast_rays(open3d.core.Tensor(rays))  # pyright: ignore[reportCallIssue]


def _raycasting(mesh: Mesh) -> open3d.t.geometry.RaycastingScene:
    scene = open3d.t.geometry.RaycastingScene()
    vertices = open3d.core.Tensor(mesh.vertices.cpu().numpy().astype(np.float32))  # pyright: ignore[reportCallIssue]
    faces = open3d.core.Tensor(mesh.faces.cpu().numpy().astype(np.uint32))  # pyright: ignore[reportCallIssue]
    scene.add_triangles(vertices, faces)
    return scene


def _to_open3d(mesh: Mesh) -> open3d.geometry.TriangleMesh:
    surface = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(mesh.vertices.double().cpu().numpy()),
        open3d.utility.Vector3iVector(mesh.faces.cpu().numpy().astype(np.int32)),
    )
    surface.vertex_colors = open3d.utility.Vector3dVector(mesh.colours.double().cpu().numpy() / 255)
    return surface


def _from_open3d(surface: open3d.geometry.TriangleMesh) -> Mesh:
    colours = np.asarray(surface.vertex_colors).reshape(-1, 3)
    return Mesh(
        torch.from_numpy(np.asarray(surface.vertices).astype(np.float32)).reshape(-1, 3),
        torch.from_numpy(np.asarray(surface.triangles).astype(np.int64)).reshape(-1, 3),
        torch.from_numpy((colours * 255).round().clip(0, 255).astype(np.uint8)),
    )
