"""A closed surface as a MuJoCo body: `thing.xml` with `thing_visual.obj` and `thing_visual.png` beside it.

The body has a free joint, its picture (geom group 2, no contacts) and its convex parts (group 3, not drawn).
Its frame is the world's, +Z up and metres, moved to the middle of the thing's base. Mass and inertia are
those of the volume at one density. There is no floor: include or attach the body where there is one.
"""

import xml.etree.ElementTree as xml
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from torch import Tensor

from recon3d.assets import png_bytes, textured_obj, write_files
from recon3d.convex import convex_parts
from recon3d.mesh import Mesh, decimated
from recon3d.texture import Textured

SOLID_FACES = 1500  # of the surface that is decomposed; the time that takes grows faster than they do
FRICTION = "0.8 0.01 0.003"  # sliding, spinning, rolling: enough of the last that a ball comes to rest


@dataclass(frozen=True)
class Solid:
    """What a thing weighs, and of how many convex parts it is made.

    Attributes:
        volume_m3: enclosed by the surface where that is closed, else by its convex parts.
        watertight: whether it is.
        mass_kg: volume times density.
        parts: how many collide.
    """

    volume_m3: float
    watertight: bool
    mass_kg: float
    parts: int


def write_mjcf(
    solid: Mesh,
    visual: Textured,
    path: Path,
    *,
    density: float = 500.0,
    parts: int = 32,
    turn: Float[Tensor, "3 3"] | None = None,
    seed: int = 0,
) -> Solid:
    """Writes a thing that MuJoCo loads and simulates; either all of its files are written or none.

    Args:
        solid: its surface, in the world.
        visual: the same for the eye.
        density: kg / m^3; wood is 500, water 1000.
        parts: at most so many convex parts; 1 is the hull.
        turn: the rotation that stands it upright; the world's axes without it.
        seed: of the decomposition.

    Raises:
        ValueError: density or parts out of range, or the surface encloses nothing.
    """
    check_density(density)
    standing = (torch.eye(3) if turn is None else turn).to(torch.float64)
    points = solid.vertices.cpu().double() @ standing.T
    low, high = points.amin(0), points.amax(0)
    base = torch.stack([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    moved = replace(solid, vertices=(points - base).float())
    shown = replace(visual, vertices=(visual.vertices.cpu().double() @ standing.T - base).float())
    coarse = decimated(moved, SOLID_FACES)
    hulls = convex_parts(coarse.vertices.numpy(), coarse.faces.numpy(), parts, seed=seed)
    surface = trimesh.Trimesh(moved.vertices.numpy(), moved.faces.numpy(), process=False)
    closed = bool(surface.is_volume)
    weighed = surface if closed else _together(hulls)
    weighed.density = density
    document = _document(path.stem, weighed, hulls)
    write_files(
        {
            path.with_name(f"{path.stem}_visual.png"): png_bytes(shown),
            path.with_name(f"{path.stem}_visual.obj"): textured_obj(shown).encode(),
            path: document.encode(),
        }
    )
    return Solid(float(weighed.volume), closed, float(weighed.mass), len(hulls))


def check_density(density: float) -> None:
    """Raises ValueError if nothing is that heavy."""
    if not 0 < density < 1e5:
        raise ValueError(
            f"density (--density) must be positive and below 100000 kg/m^3, got {density}; wood has 500"
        )


def _together(hulls: list[np.ndarray]) -> trimesh.Trimesh:
    """All hulls as one surface, whose volume is the sum of theirs."""
    solids = [trimesh.PointCloud(hull).convex_hull for hull in hulls]
    starts = np.cumsum([0] + [len(solid.vertices) for solid in solids])
    faces = [solid.faces + start for solid, start in zip(solids, starts, strict=False)]
    return trimesh.Trimesh(
        np.concatenate([solid.vertices for solid in solids]), np.concatenate(faces), process=False
    )


def _document(name: str, weighed: trimesh.Trimesh, hulls: list[np.ndarray]) -> str:
    root = xml.Element("mujoco", model=name)
    assets = xml.SubElement(root, "asset")
    xml.SubElement(assets, "texture", name=f"{name}_paint", type="2d", file=f"{name}_visual.png")
    xml.SubElement(
        assets, "material", name=f"{name}_paint", texture=f"{name}_paint", specular="0", shininess="0"
    )
    xml.SubElement(assets, "mesh", name=f"{name}_visual", file=f"{name}_visual.obj", inertia="shell")
    for number, hull in enumerate(hulls):
        xml.SubElement(assets, "mesh", name=f"{name}_part{number}", vertex=_numbers(hull, "{:.6g}"))
    body = xml.SubElement(xml.SubElement(root, "worldbody"), "body", name=name)
    xml.SubElement(body, "freejoint", name=f"{name}_free")
    m = np.asarray(weighed.moment_inertia)
    inertia = np.array([m[0, 0], m[1, 1], m[2, 2], m[0, 1], m[0, 2], m[1, 2]])
    xml.SubElement(
        body,
        "inertial",
        pos=_numbers(np.asarray(weighed.center_mass), "{:.6g}"),
        mass=f"{weighed.mass:.6g}",
        fullinertia=_numbers(inertia, "{:.9g}"),
    )
    look = {"type": "mesh", "contype": "0", "conaffinity": "0", "group": "2", "mass": "0"}
    names = {"name": f"{name}_visual", "mesh": f"{name}_visual", "material": f"{name}_paint"}
    xml.SubElement(body, "geom", names | look)
    touch = {"type": "mesh", "group": "3", "condim": "6", "friction": FRICTION, "rgba": "0.5 0.6 0.7 0.5"}
    for number in range(len(hulls)):
        part = f"{name}_part{number}"
        xml.SubElement(body, "geom", {"name": part, "mesh": part} | touch)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"


def _numbers(array: np.ndarray, form: str) -> str:
    return " ".join(form.format(x) for x in np.asarray(array).ravel())
