"""What a reconstruction is handed on as: the scene or one thing, colours or a texture, a mesh or a body."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import trimesh
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from recon3d import assets
from recon3d.cameras import Cameras
from recon3d.convex import check_parts
from recon3d.extraction import extract, level_turn
from recon3d.mesh import Mesh, cleaned, decimated
from recon3d.mjcf import check_density, write_mjcf
from recon3d.nerf import Reconstruction
from recon3d.texture import TEXTURE_LIMITS_PX, Shots, Textured, painted, seen_psnr, textured
from recon3d.views import resized

FACES, TEXTURED_FACES = 100_000, 10_000
BODY_TEXTURE_PX = 512


@dataclass(frozen=True)
class Form:
    """How the surface is written."""

    faces: int | None = None  # at most so many triangles; 100000, or 10000 under a texture
    extract: bool = False  # the thing alone, closed, without its table; an .xml always is
    texture: int | None = None  # width in pixels of a baked texture, 1024 is usual; else colours per vertex
    size_m: float | None = None  # scale to this longest side in metres, for captures without a scale
    density: float = 500.0  # of the body in an .xml, kg/m^3
    parts: int = 32  # at most so many convex parts in an .xml; 1 is the hull

    @property
    def most_faces(self) -> int:
        return self.faces or (TEXTURED_FACES if self.texture else FACES)


def checked(form: Form, output: Path) -> Form:
    """The form with what the output's suffix implies.

    Raises:
        ValueError: the suffix is unknown or does not go with the form, or a number is out of range.
    """
    low, high = TEXTURE_LIMITS_PX
    if form.faces is not None and form.faces < 4:
        raise ValueError(f"--faces must be at least 4, got {form.faces}; thousands are usual")
    if form.texture is not None and not low <= form.texture <= high:
        raise ValueError(f"--texture must be from {low} to {high} pixels, got {form.texture}; 1024 is usual")
    if form.size_m is not None and not 0 < form.size_m < 1e3:
        raise ValueError(f"--size-m must be positive and below 1000 m, got {form.size_m}; a mug has 0.1")
    suffix, known = output.suffix.lower(), (*assets.SUFFIXES, ".xml")
    if suffix not in known:
        raise ValueError(f"an asset ends in {', '.join(known)}, got {output.name}; rename the output")
    if suffix != ".xml":
        if form.texture and suffix == ".ply":
            raise ValueError(f"a PLY holds no texture, got {output.name}; name it .glb or .obj")
        return form
    check_density(form.density)
    check_parts(form.parts)
    return replace(form, extract=True, texture=form.texture or BODY_TEXTURE_PX)


@dataclass(frozen=True)
class Shape:
    """A surface in its final form.

    Attributes:
        solid: as fine as it was found; decimation may open what was closed.
        mesh: of so many faces as were asked for, with vertex colours.
        shown: the same, or under its texture.
        turn: the rotation that stands it on its base.
        extracted: whether it is one thing without its surroundings.
        own: whether it is the radiance field's own surface (`recon3d.mesh.DepthMaps`).
    """

    solid: Mesh
    mesh: Mesh
    shown: Mesh | Textured
    turn: Float[Tensor, "3 3"]
    extracted: bool
    own: bool = False


def shaped(
    result: Reconstruction,
    form: Form,
    masks: Bool[Tensor, "n h w"] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Shape:
    """The surface of a reconstruction in a form.

    Args:
        masks: of the thing, one per frame that it was made from, held-out ones among them.

    Raises:
        NothingExtracted: no thing can be told from its surroundings.
    """
    maps = result.depth_maps(progress=progress)
    if not form.extract and not form.texture:
        mesh = decimated(cleaned(result.mesh(maps=maps)), form.most_faces)
        return Shape(mesh, mesh, mesh, torch.eye(3, dtype=torch.float64), False, maps.own)
    maps = maps._replace(cameras=maps.cameras.to("cpu"), depth=maps.depth.cpu())
    chosen, cameras, depth, _ = maps
    pictures = result.frames[chosen.to(result.frames.device)].cpu()
    own, focus, voxel_m = (
        result.cameras[chosen].to("cpu"),
        result.similarity.centre.cpu(),
        result.voxel_m(cameras),
    )
    frames = resized(pictures, cameras.height, cameras.width)
    scene = cleaned(maps.fused(frames, focus, result.radius_m, voxel_m))
    turn = torch.eye(3, dtype=torch.float64)
    if form.extract and len(scene.faces):
        cut = None if masks is None else _masks_of(result, masks, chosen.cpu(), cameras)
        even = voxel_m * (2 if maps.own else 1)  # where views differ, tables are not quite flat
        found = extract(scene, depth, cameras, focus, even, frames=frames, masks=cut, seed=seed)
        scene, turn = found.mesh, level_turn(found.plane)
    if not len(scene.faces):
        return Shape(scene, scene, scene, turn, form.extract, maps.own)
    shots = Shots(pictures, depth, own, 2 * voxel_m)
    mesh = decimated(scene, form.most_faces)
    mesh = painted(mesh, shots) if form.extract else mesh
    shown = textured(mesh, form.texture, shots) if form.texture else mesh
    return Shape(scene, mesh, shown, turn, form.extract, maps.own)


def write_shape(shape: Shape, output: Path, form: Form, unit: str = "metres", seed: int = 0) -> list[str]:
    """Writes a surface in the format of the output's suffix; what is to be said about it, a line each."""
    longest = (shape.mesh.vertices.amax(0) - shape.mesh.vertices.amin(0)).max().item()
    factor = 1.0 if form.size_m is None else form.size_m / longest
    solid = replace(shape.solid, vertices=shape.solid.vertices * factor)
    mesh = replace(shape.mesh, vertices=shape.mesh.vertices * factor)
    shown = replace(shape.shown, vertices=shape.shown.vertices * factor)
    said = [f"{output}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces, {unit}"]
    if output.suffix.lower() == ".xml" and isinstance(shown, Textured):
        turn = shape.turn
        body = write_mjcf(solid, shown, output, density=form.density, parts=form.parts, turn=turn, seed=seed)
        closed = "closed" if body.watertight else "open: mass from its convex parts"
        said += [f"{body.mass_kg:.3g} kg at {form.density:g} kg/m^3, {body.parts} convex parts, {closed}"]
    else:
        assets.write(shown, output)
    if shape.extracted:
        fine, made = (
            trimesh.Trimesh(m.vertices.numpy(), m.faces.numpy(), process=False) for m in (solid, mesh)
        )
        size = " x ".join(f"{side:.3g}" for side in made.extents)
        metre = "m" if unit == "metres" else "units"
        volume = f"volume {fine.volume:.3g} {metre}^3" if fine.is_volume else "no volume"
        opened = fine.is_watertight and not made.is_watertight
        cure = f" (it was with {len(fine.faces)} faces; ask for more --faces)" if opened else ""
        said += [f"watertight: {'yes' if made.is_watertight else 'no'}{cure}, {volume}, {size} {metre}"]
    return said


def texture_gain(shape: Shape, frames: UInt8[Tensor, "n h w 3"], cameras: Cameras) -> tuple[float, float]:
    """PSNR (dB) of the mesh with vertex colours and with its texture, over pixels that it covers whole."""
    return tuple(seen_psnr(s, frames, cameras).item() for s in (shape.mesh, shape.shown))  # pyright: ignore[reportReturnType]


def _masks_of(
    result: Reconstruction, masks: Bool[Tensor, "n h w"], chosen: Int[Tensor, " m"], cameras: Cameras
) -> Bool[Tensor, "m h2 w2"]:
    """The masks of some of the training views, which are the frames without the held-out ones."""
    training = torch.ones(len(masks), dtype=torch.bool)
    training[result.held_out.views] = False
    picked = masks[training.nonzero()[chosen, 0]][:, None].float()
    size = (cameras.height, cameras.width)
    return torch.nn.functional.interpolate(picked, size, mode="nearest")[:, 0] > 0.5
