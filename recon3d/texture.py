"""Colours of surfaces from the frames that saw them: per vertex, or as a texture over an atlas (xatlas).

A point takes the colours of the pixels that it projects into, weighted by how squarely and from how near each
camera sees it. A view counts where the depth there, and at the pixels beside it (which mix colours at an
edge), is no nearer than the point.
"""

from dataclasses import dataclass, replace

import numpy as np
import open3d
import torch
import trimesh
import xatlas
from einops import rearrange, reduce
from jaxtyping import Float, Int, UInt8
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from recon3d.cameras import Cameras
from recon3d.mesh import Mesh

SHARPNESS = 4.0  # power of the weights: views from the side hardly count beside one from the front
LEAST_COSINE = 0.1  # of the angle under which a surface is seen at all
EDGE_SHARE = 0.02  # what a pixel counts beside the background, whose colour it mixes in
TEXTURE_LIMITS_PX = (64, 4096)


@dataclass(frozen=True)
class Shots:
    """Pictures of a scene, with how deep they see.

    Attributes:
        frames: what the cameras saw (sRGB).
        depth: camera z of the surface that each pixel sees, metres; inf where none; any size.
        cameras: of the size of the frames.
        tolerance_m: how far behind that depth a point may lie and still be seen.
    """

    frames: UInt8[Tensor, "n h w 3"]
    depth: Float[Tensor, "n h2 w2"]
    cameras: Cameras
    tolerance_m: float


@dataclass(frozen=True)
class Textured:
    """Triangles with a picture on them; a vertex on a seam stands there once per side.

    Attributes:
        uv: place in the picture, (0, 0) its upper left corner, (1, 1) its lower right.
        texture: sRGB.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    uv: Float[Tensor, "v 2"]
    texture: UInt8[Tensor, "t t 3"]


def painted(mesh: Mesh, shots: Shots) -> Mesh:
    """The mesh with vertex colours from the shots."""
    colours = colours_at(mesh.vertices, _vertex_normals(mesh), shots)
    return replace(mesh, colours=colours)


def textured(mesh: Mesh, size: int, shots: Shots | None = None) -> Textured:
    """The mesh under a square texture, from the shots or, without any, from its vertex colours.

    Raises:
        ValueError: the texture's size is out of range, or the mesh has no faces.
    """
    low, high = TEXTURE_LIMITS_PX
    if not low <= size <= high:
        raise ValueError(f"a texture must be from {low} to {high} pixels wide, got {size}; 1024 is usual")
    if not len(mesh.faces):
        raise ValueError("a texture needs faces to lie on, got none; reconstruct from more or sharper views")
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy().astype(np.uint32))
    options = xatlas.PackOptions()
    options.padding, options.resolution = 2, size
    atlas.generate(pack_options=options)
    source, faces, uv = atlas[0]
    split = torch.from_numpy(source.astype(np.int64))
    faces, uv = torch.from_numpy(faces.astype(np.int64)), torch.from_numpy(uv.astype(np.float32))
    face, corners = _texels(faces, uv, size)
    hit = face >= 0
    original, weights = split[faces[face[hit]]], corners[hit][..., None]
    points = (mesh.vertices.cpu()[original] * weights).sum(1)
    if shots is None:
        inner = (mesh.colours.cpu().float()[original] * weights).sum(1).round().to(torch.uint8)
    else:
        normals = (_vertex_normals(mesh)[original] * weights).sum(1)
        inner = colours_at(points, torch.nn.functional.normalize(normals, dim=-1), shots)
    texture = torch.zeros(size, size, 3, dtype=torch.uint8)
    texture[hit] = inner
    row, column = ndimage.distance_transform_edt(~hit.numpy(), return_distances=False, return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
    return Textured(
        mesh.vertices.cpu()[split], faces, uv, texture[torch.from_numpy(row), torch.from_numpy(column)]
    )


def colours_at(
    points: Float[Tensor, "p 3"], normals: Float[Tensor, "p 3"], shots: Shots
) -> UInt8[Tensor, "p 3"]:
    """Colours of points on a surface; one that no shot sees takes that of the nearest that some shot does."""
    cameras = shots.cameras
    total, weight = torch.zeros(len(points), 3), torch.zeros(len(points))
    for view in range(len(cameras)):
        pixels, z = (x[0] for x in cameras[view].project(points))
        place = 2 * pixels / torch.tensor([cameras.width, cameras.height]) - 1
        towards = cameras.centres[view] - points
        squarely = (normals * torch.nn.functional.normalize(towards, dim=-1)).sum(-1)
        near, far = (_sampled(borders, place, "nearest") for borders in _borders(shots.depth[view]))
        seen = (z > 0) & (place.abs() <= 1).all(-1) & (squarely > LEAST_COSINE)
        seen &= z <= near[:, 0] + shots.tolerance_m
        share = (squarely.clamp(min=0) / z.clamp(min=1e-6)) ** SHARPNESS
        share = torch.where(z >= far[:, 0] - 4 * shots.tolerance_m, share, EDGE_SHARE * share)
        share = torch.where(seen, share, torch.zeros_like(share))
        picture = rearrange(shots.frames[view].float(), "h w c -> 1 c h w")
        total += share[:, None] * _sampled(picture, place, "bilinear")
        weight += share
    known = weight > 0
    colours = total / weight[:, None].clamp(min=1e-30)
    if known.any() and not known.all():
        _, nearest = KDTree(points[known].numpy()).query(points[~known].numpy())
        colours[~known] = colours[known][torch.from_numpy(nearest)]
    elif not known.any():
        colours[:] = 128.0
    return colours.round().clamp(0, 255).to(torch.uint8)


def rendered(
    surface: Mesh | Textured, cameras: Cameras, supersampling: int = 2
) -> tuple[UInt8[Tensor, "n h w 3"], Float[Tensor, "n h w"]]:
    """Unlit pictures of a surface on black, and the share of each pixel that it covers."""
    scene = _raycasting(surface.vertices, surface.faces)
    pictures, covers = [], []
    for view in range(len(cameras)):
        camera = cameras[view].resized(cameras.height * supersampling, cameras.width * supersampling)
        rays = torch.cat(camera.rays(), dim=-1).float().cpu().numpy()
        hit = scene.cast_rays(open3d.core.Tensor(rays))  # pyright: ignore[reportCallIssue]
        seen = torch.from_numpy(np.isfinite(hit["t_hit"].numpy()))
        second = torch.from_numpy(hit["primitive_uvs"].numpy())[seen]
        weights = torch.cat([1 - second.sum(-1, keepdim=True), second], dim=-1)[..., None]
        corner = surface.faces.cpu()[torch.from_numpy(hit["primitive_ids"].numpy().astype(np.int64))[seen]]
        picture = torch.zeros(*seen.shape, 3)
        if isinstance(surface, Mesh):
            picture[seen] = (surface.colours.cpu().float()[corner] * weights).sum(1)
        else:
            texture = rearrange(surface.texture.float(), "h w c -> 1 c h w")
            picture[seen] = _sampled(texture, 2 * (surface.uv[corner] * weights).sum(1) - 1, "bilinear")
        shape = dict(h=cameras.height, w=cameras.width)
        pictures.append(reduce(picture, "1 (h a) (w b) c -> h w c", "mean", **shape))
        covers.append(reduce(seen.float(), "1 (h a) (w b) -> h w", "mean", **shape))
    return torch.stack(pictures).round().to(torch.uint8), torch.stack(covers)


def seen_psnr(
    surface: Mesh | Textured, frames: UInt8[Tensor, "n h w 3"], cameras: Cameras
) -> Float[Tensor, ""]:
    """PSNR of an unlit surface against frames, dB, over all pixels that it covers whole; NaN without any."""
    pictures, cover = rendered(surface, cameras)
    whole = cover > 0.999
    error = (pictures[whole].float() - frames.cpu()[whole].float()) / 255
    return -10 * torch.log10(error.square().mean())


def _borders(
    depth: Float[Tensor, "h w"],
) -> tuple[Float[Tensor, "1 1 h w"], Float[Tensor, "1 1 h w"]]:
    """The nearest and the furthest depth at and beside each pixel."""
    far = torch.nn.functional.max_pool2d(depth[None, None], 3, stride=1, padding=1)
    near = -torch.nn.functional.max_pool2d(-depth[None, None], 3, stride=1, padding=1)
    return near, far


def _sampled(
    picture: Float[Tensor, "1 c h w"], place: Float[Tensor, "p 2"], mode: str
) -> Float[Tensor, "p c"]:
    found = torch.nn.functional.grid_sample(
        picture, place.clamp(-1, 1)[None, None], mode=mode, padding_mode="border", align_corners=False
    )
    return rearrange(found, "1 c 1 p -> p c")


def _texels(
    faces: Int[Tensor, "f 3"], uv: Float[Tensor, "v 2"], size: int
) -> tuple[Int[Tensor, "size size"], Float[Tensor, "size size 3"]]:
    """Which triangle covers the middle of each texel (-1: none), and where: rays onto the flat atlas."""
    flat = torch.cat([uv, torch.zeros_like(uv[:, :1])], dim=-1)
    scene = _raycasting(flat, faces)
    middle = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(middle, middle, indexing="ij")
    above, down = torch.ones_like(u), torch.zeros_like(u)
    rays = torch.stack([u, v, above, down, down, -above], dim=-1)
    hit = scene.cast_rays(open3d.core.Tensor(rays.numpy()))  # pyright: ignore[reportCallIssue]
    face = torch.from_numpy(hit["primitive_ids"].numpy().astype(np.int64))
    missed = torch.from_numpy(~np.isfinite(hit["t_hit"].numpy()))
    second = torch.from_numpy(hit["primitive_uvs"].numpy())
    corners = torch.cat([1 - second.sum(-1, keepdim=True), second], dim=-1)
    return torch.where(missed, -1, face), corners


def _raycasting(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]
) -> open3d.t.geometry.RaycastingScene:
    scene, core = open3d.t.geometry.RaycastingScene(), open3d.core
    corners = core.Tensor(vertices.cpu().numpy())  # pyright: ignore[reportCallIssue]
    scene.add_triangles(corners, core.Tensor(faces.cpu().numpy().astype(np.uint32)))  # pyright: ignore[reportCallIssue]
    return scene


def _vertex_normals(mesh: Mesh) -> Float[Tensor, "v 3"]:
    surface = trimesh.Trimesh(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy(), process=False)
    return torch.from_numpy(np.array(surface.vertex_normals, dtype=np.float32))
