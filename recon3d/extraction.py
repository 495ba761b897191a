"""The thing without its table: found by masks or by the plane that it stands on, then closed by carving.

The surface is carved from rendered depth, not cut out of the fused mesh: what some view saw to be empty is
empty, everything else is solid (Curless and Levoy 1996, section 4). So the result is closed where nothing was
seen, too: the underside stands on the plane. Metres, the world's axes.
"""

from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor

from recon3d.cameras import Cameras
from recon3d.mesh import Mesh, camera_depths, large_planes, sample_surface, seen_by, silhouettes
from recon3d.outlines import beyond_outlines, made_solid, outlines, pixels_of

LEAST_PLANE_SHARE = 0.05  # of the surface around the focus; less is no table
LEAST_PIECE_SHARE = 0.05  # of the largest piece; less is a speck
ROUNDS = 2  # of outlines; what the first brings nearer the second may reach
GROWN = 0.1  # of its extent a thing may grow by on each side to its outlines
LOW = 0.2  # of a thing's height: its surface below may be the shadow that it stands in
EVEN = 1e-4  # emptiness that is taken for none at all
SHARP_PX = 4.0  # beyond an outline, where all is equally outside
MASK_SHARE = 0.5  # of the views that see a point; more of them must say that it is the thing


class NothingExtracted(RuntimeError):
    """No thing can be told from its surroundings; the message says why."""


@dataclass(frozen=True)
class Extraction:
    """One thing of a scene.

    Attributes:
        mesh: its closed surface, in the world; grey until painted.
        plane: (a, b, c, d) of the plane that it stands on: a x + b y + c z + d is the height above it, and
            (a, b, c) of length 1; None where no plane was found.
    """

    mesh: Mesh
    plane: Float[Tensor, " 4"] | None


def extract(
    scene: Mesh,
    depth: Float[Tensor, "n h w"],
    cameras: Cameras,
    focus: Float[Tensor, " 3"],
    voxel_m: float,
    *,
    frames: UInt8[Tensor, "n h w 3"] | None = None,
    masks: Bool[Tensor, "n h w"] | None = None,
    cells: int = 96,
    seed: int = 0,
) -> Extraction:
    """The thing that the cameras look at (or that the masks show), closed, without what it stands on.

    Args:
        scene: the fused surface, in which the thing is searched.
        depth: camera z of the surface that each pixel sees, metres; inf where it sees none, 0 where unknown.
        focus: the point that the cameras look at; of several things the largest near it is taken.
        voxel_m: of the fused surface; what is nearer to the plane than twice as much counts as the plane.
        frames: the pictures, of the cameras' size; the thing is made to end where they show it to.
        masks: true on the thing; then no outlines are sought.
        cells: of the carved grid along the thing's longest side.
        seed: of the search for the plane.

    Raises:
        NothingExtracted: no plane under anything, nothing on it, or masks that agree with no surface.
    """
    plane = support_plane(scene, cameras, voxel_m, seed)
    if masks is not None:
        found = masked_surface(scene, cameras, depth, masks)
    elif plane is None:
        raise NothingExtracted("no flat support was found under anything; add masks of the thing")
    else:
        found = standing_surface(scene, plane, 2 * voxel_m, focus)
    thing = carved(found, depth, cameras, plane, voxel_m, masks=masks, cells=cells)
    if frames is not None and masks is None:
        for _ in range(ROUNDS):
            thing, depth = outlined(thing, frames, depth, cameras, plane, voxel_m, cells=cells)
    return Extraction(thing, plane)


def support_plane(
    scene: Mesh, cameras: Cameras, tolerance_m: float, seed: int = 0
) -> Float[Tensor, " 4"] | None:
    """The plane that things stand on: large, level in the cameras' pictures, with all cameras above it; None
    where there is none. A wall may be larger.

    Returns:
        (a, b, c, d) with (a, b, c) of length 1 and pointing to the cameras.
    """
    if len(scene.faces) < 10:
        return None
    surface = sample_surface(scene, 8000, torch.Generator().manual_seed(seed))
    up = -cameras.c2w[:, :3, 1].cpu().double().mean(0)
    for plane in large_planes(surface, tolerance_m, LEAST_PLANE_SHARE, seed):
        height = cameras.centres.cpu().double() @ plane[:3] + plane[3]
        plane, height = (plane, height) if height.mean() > 0 else (-plane, -height)
        if plane[:3] @ up > 0.5 * up.norm() and bool((height > 0).all()):
            return plane.float()
    return None


def standing_surface(
    scene: Mesh, plane: Float[Tensor, " 4"], tolerance_m: float, focus: Float[Tensor, " 3"]
) -> Float[Tensor, "p 3"]:
    """Vertices of the largest piece near the focus among those above the plane.

    Raises:
        NothingExtracted: nothing stands there.
    """
    height = scene.vertices @ plane[:3] + plane[3]
    parts = _pieces(scene, (height > tolerance_m)[scene.faces].all(-1))
    if not parts:
        raise NothingExtracted("nothing stands on the plane that was found; look at the thing, or add masks")
    middle = focus.cpu().numpy()
    gap = np.array([np.linalg.norm(part.vertices - middle, axis=-1).min() for part in parts])
    size = np.sqrt([part.area for part in parts])
    return torch.from_numpy(parts[int((size / (size.max() + gap)).argmax())].vertices.astype(np.float32))


def masked_surface(
    scene: Mesh, cameras: Cameras, depth: Float[Tensor, "n h w"], masks: Bool[Tensor, "n h w"]
) -> Float[Tensor, "p 3"]:
    """Vertices of the surface that most of the views which see it say is the thing.

    Raises:
        NothingExtracted: no surface is.
    """
    near = torch.where(masks, depth, torch.zeros_like(depth))
    agree, seen = seen_by(scene.vertices, cameras, near), seen_by(scene.vertices, cameras, depth)
    parts = _pieces(scene, (agree > MASK_SHARE * seen)[scene.faces].all(-1))
    if not parts:
        raise NothingExtracted("the masks lie on no surface that was reconstructed; check that they fit")
    largest = max(part.area for part in parts)
    kept = [part.vertices for part in parts if part.area >= LEAST_PIECE_SHARE * largest]
    return torch.from_numpy(np.concatenate(kept).astype(np.float32))


@dataclass(frozen=True)
class Grid:
    """Voxels around a thing, upright on its plane.

    Attributes:
        axes: where their middles are along the turned axes, metres.
        step: between them, metres.
        turn: from the world to axes of which the third is the plane's normal.
        floor: height of the plane along that; None without one.
        reach_m: how far before a surface all is equally empty.
        layer: how many voxels from below tell the plane from the thing no better than the one above them.
    """

    axes: list[Float[Tensor, " _"]]
    step: float
    turn: Float[Tensor, "3 3"]
    floor: float | None
    reach_m: float
    layer: int

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def points(self) -> Float[Tensor, "p 3"]:
        """The middles, in the world."""
        return (torch.stack(torch.meshgrid(*self.axes, indexing="ij"), -1).reshape(-1, 3) @ self.turn).float()

    def lifted(self, outside: Float[Tensor, " p"]) -> Float[Tensor, "x y z"]:
        """The layer above the plane as what is above it."""
        field = outside.reshape(self.counts).clone()
        if self.floor is not None:
            field[:, :, : self.layer] = field[:, :, self.layer : self.layer + 1]
        return field


def grid_around(
    points: Float[Tensor, "p 3"],
    plane: Float[Tensor, " 4"] | None,
    voxel_m: float,
    cells: int = 96,
    grown: float = 0.0,
) -> Grid:
    """A grid around points, `grown` by a share of their extent, of `cells` along its longest side."""
    turn = level_turn(plane)
    turned = points.double() @ turn.T
    low, high = turned.amin(0), turned.amax(0)
    more = grown * (high - low).max()
    low, high = low - more, high + more
    floor = None if plane is None else -plane[3].item()
    if floor is not None:
        low[2] = floor
    step = max(((high - low).max() / cells).item(), 1e-6)
    margin = 3
    counts = [int(n) for n in ((high - low) / step).ceil() + 1 + 2 * margin]
    axes = [low[k] + step * (torch.arange(counts[k], dtype=torch.float64) - margin) for k in range(3)]
    layer = min(int(np.ceil(2 * voxel_m / step)) + margin, counts[2] - 2)
    return Grid(axes, step, turn, floor, max(3 * step, 3 * voxel_m), layer)


def carved(
    found: Float[Tensor, "p 3"],
    depth: Float[Tensor, "n h w"],
    cameras: Cameras,
    plane: Float[Tensor, " 4"] | None,
    voxel_m: float,
    *,
    masks: Bool[Tensor, "n h w"] | None = None,
    cells: int = 96,
) -> Mesh:
    """The closed surface between what views saw to be empty and the rest, around points found on it.

    Args:
        plane: the thing ends there; the layer of twice `voxel_m` above it is as the layer above that.

    Raises:
        NothingExtracted: nothing solid is left.
    """
    grid = grid_around(found, plane, voxel_m, cells)
    return closed(grid, grid.lifted(emptiness(grid.points, depth, cameras, grid.reach_m, masks)))


def outlined(
    rough: Mesh,
    frames: UInt8[Tensor, "n h w 3"],
    depth: Float[Tensor, "n h w"],
    cameras: Cameras,
    plane: Float[Tensor, " 4"] | None,
    voxel_m: float,
    *,
    cells: int = 96,
) -> tuple[Mesh, Float[Tensor, "n h w"]]:
    """A carved thing as the outlines (`recon3d.outlines`) near its silhouettes demand, and the depth without
    what they say is only its shadow; both as they were where that does not agree with the outlines better,
    because they contradict one another."""
    distance = camera_depths(rough, cameras)
    covered = distance.isfinite()
    hidden = covered & (depth > 0) & (depth < distance - 4 * voxel_m)
    low, ground = low_parts(rough, distance, cameras, plane)
    masks = outlines(frames, covered, hidden, low)
    corrected = torch.where(low & ~masks & ~hidden, ground, depth)
    grid = grid_around(rough.vertices, plane, voxel_m, cells, GROWN)
    points = grid.points
    beyond = beyond_outlines(points, corrected, cameras, grid.reach_m, masks).reshape(grid.counts)
    empty, within = grid.lifted(emptiness(points, corrected, cameras, grid.reach_m)), beyond < 0
    empty = made_solid(empty, within, points[within.flatten()], cameras, masks & ~hidden)
    try:
        made = closed(grid, torch.maximum(empty, (beyond / SHARP_PX).clamp(-1, 1)))
    except NothingExtracted:
        return rough, depth

    def agreement(shown: Bool[Tensor, "n h w"]) -> float:
        return (((shown & masks) & ~hidden).sum() / ((shown | masks) & ~hidden).sum()).item()

    better = agreement(silhouettes(made, cameras)) > agreement(covered)
    return (made, corrected) if better else (rough, depth)


def low_parts(
    rough: Mesh, distance: Float[Tensor, "n h w"], cameras: Cameras, plane: Float[Tensor, " 4"] | None
) -> tuple[Bool[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Pixels that see so low a part of a surface, by its camera z there, that it may be the plane in the
    surface's shadow, and the plane's camera z; none without a plane."""
    if plane is None:
        return torch.zeros_like(distance, dtype=torch.bool), torch.zeros_like(distance)
    top = (rough.vertices @ plane[:3] + plane[3]).max()
    height = cameras.unproject(distance) @ plane[:3] + plane[3]
    return distance.isfinite() & (height < LOW * top), plane_depths(plane, cameras)


def plane_depths(plane: Float[Tensor, " 4"], cameras: Cameras) -> Float[Tensor, "n h w"]:
    """Camera z of a plane at pixels' middles, metres; inf where it is behind the camera."""
    origins, directions = cameras.rays()
    along = -(origins @ plane[:3] + plane[3]) / (directions @ plane[:3])
    z = along * (directions * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    return torch.where(along > 0, z, torch.full_like(z, torch.inf))


def closed(grid: Grid, empty: Float[Tensor, "x y z"]) -> Mesh:
    """The surface of the largest piece of what is not empty (below 0), closed at the grid's border and plane.
    On a plane, voxels count by their height: where it seems to bulge, it is wide but flat.

    Raises:
        NothingExtracted: nothing is solid.
    """
    outside = ndimage.gaussian_filter(empty.numpy(), 0.7)
    if grid.floor is not None:
        outside = np.maximum(outside, ((grid.floor - grid.axes[2]) / grid.reach_m).numpy()[None, None])
    for side in range(3):
        np.moveaxis(outside, side, 0)[[0, -1]] = 1.0
    outside[np.abs(outside) < EVEN] = EVEN  # or faces without area tear the surface
    labels, count = ndimage.label(outside < 0)  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        raise NothingExtracted("nothing solid is left of the thing; reconstruct from more or sharper views")
    height = np.ones(1) if grid.floor is None else (grid.axes[2] - grid.floor).numpy().clip(min=grid.step)
    sizes = np.bincount(labels.ravel(), np.broadcast_to(height, labels.shape).ravel())[1:]
    outside = np.where((labels > 0) & (labels != sizes.argmax() + 1), -outside, outside)
    vertices, faces, _, _ = marching_cubes(outside, 0.0)
    corner = torch.stack([axis[0] for axis in grid.axes])
    world = (corner + grid.step * torch.from_numpy(vertices.astype(np.float64))) @ grid.turn
    grey = torch.full((len(vertices), 3), 128, dtype=torch.uint8)
    return Mesh(world.float(), torch.from_numpy(faces.astype(np.int64)), grey)


def emptiness(
    points: Float[Tensor, "p 3"],
    depth: Float[Tensor, "n h w"],
    cameras: Cameras,
    reach_m: float,
    masks: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, " p"]:
    """Mean over views of how far points lie before the surface that is seen, in [-1, 1] in units of reach.

    Views from which a point is hidden say nothing; a point that is hidden from all is solid (-1). A pixel
    outside of the thing's mask says that everything before its surface is empty. Behind the edge of a nearer
    surface a pixel says nothing, because half of it may be that surface.
    """
    nearest = -torch.nn.functional.max_pool2d(-depth[:, None], 3, stride=1, padding=1)[:, 0]
    total, weight = torch.zeros(len(points)), torch.zeros(len(points))
    for view in range(len(cameras)):
        inside, pixel, z = pixels_of(points, cameras[view])
        surface = depth[view].flatten()[pixel]
        before = (surface - z) / reach_m
        near = nearest[view].flatten()[pixel]
        known = inside & (surface > 0) & (before > -1) & ((surface - near < reach_m) | (z < near))
        value = before.clamp(max=1.0)
        if masks is not None:
            value = torch.where(masks[view].flatten()[pixel], value, torch.ones_like(value))
        total += torch.where(known, value, torch.zeros_like(value))
        weight += known
    return torch.where(weight > 0, total / weight.clamp(min=1), -torch.ones_like(total))


def level_turn(plane: Float[Tensor, " 4"] | None) -> Float[Tensor, "3 3"]:
    """A rotation (float64) that takes a plane's normal to +Z and leaves +X near where it was."""
    normal = torch.tensor([0.0, 0.0, 1.0]) if plane is None else plane[:3].cpu()
    up = torch.nn.functional.normalize(normal.double(), dim=0)
    side = torch.eye(3, dtype=torch.float64)[2 if up[1].abs() > 0.9 else 1]
    x = torch.nn.functional.normalize(torch.linalg.cross(side, up), dim=0)
    return torch.stack([x, torch.linalg.cross(up, x), up])


def _pieces(scene: Mesh, chosen: Bool[Tensor, " f"]) -> list[trimesh.Trimesh]:
    """The connected pieces that some of the faces make up."""
    whole = trimesh.Trimesh(scene.vertices.cpu().numpy(), scene.faces.cpu().numpy(), process=False)
    whole.update_faces(chosen.cpu().numpy())
    whole.remove_unreferenced_vertices()
    return list(whole.split(only_watertight=False))
