"""Things from files: bodies that `orrery asset ... -o thing.xml` wrote, as things of a reference world.

Any MJCF with one body in its world serves, whose frame lies at the middle of its base, +Z up, in metres. What
stands in geom groups 0 to 2 is drawn.
"""

from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from mujoco import MjSpec

from envs.tessellate import scene_mesh
from envs.vocabulary import COLOURS, SIZES, Thing

LEAST_M, TALLEST_M = 0.05, 1.0
WIDEST = 1.4
"""Footprints may be this much wider than the usual radius of a thing where so many stand."""


def asset_thing(asked: dict[str, Any], usual_m: float) -> Thing:
    """A thing as a file describes it, without a place.

    Args:
        asked: `asset`, the path of an .xml; `shape`, the word that captions call it, else the file's name;
            `colour`, else the nearest to the mean of its texture.
        usual_m: radius of a medium thing in this scene, metres.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MJCF with one body, or it does not fit.
    """
    path = Path(asked["asset"]).expanduser().resolve()
    model = _read(path).compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    points, _, _ = scene_mesh(model, data, np.zeros(model.ngeom, int))
    points = points - data.xpos[1]
    radius, height = float(np.linalg.norm(points[:, :2], axis=1).max()), float(points[:, 2].max())
    if not (LEAST_M <= radius <= WIDEST * usual_m and height <= TALLEST_M):
        raise ValueError(
            f"asset {path.name} is {2 * radius:.2f} m across and {height:.2f} m high, here it must be "
            f"{2 * LEAST_M:.1f} to {2 * WIDEST * usual_m:.2f} m across and at most {TALLEST_M:.0f} m high; "
            "write it again with --size-m"
        )
    size = min(SIZES, key=lambda word: abs(SIZES[word] * usual_m - radius))
    name = str(asked.get("shape") or path.stem.replace("_", " ").replace("-", " "))
    return Thing(name, asked.get("colour") or _colour(model), size, radius, asset=str(path))


def add_asset(spec: MjSpec, thing: Thing, index: int, free: bool, contact: dict, hidden: int) -> Any:
    """The thing's body in a world's model, named as the world names things.

    Args:
        free: whether it can move.
        contact: fields of its solid geoms.
        hidden: geom group of what is not drawn.
    """
    child = _read(Path(str(thing.asset)))
    body = child.worldbody.first_body()
    for joint in list(body.joints):
        child.delete(joint)
    for geom in body.geoms:
        geom.group = 0 if geom.group <= 2 else hidden
        if geom.contype or geom.conaffinity:
            for name, value in contact.items():
                setattr(geom, name, value)
    body = spec.worldbody.add_frame().attach_body(body, f"thing{index}_", "")
    body.name, body.pos, body.quat = f"thing{index}", list(thing.position), list(thing.quaternion)
    if free:
        body.add_freejoint(name=f"thing{index}_free")
    return body


def _read(path: Path) -> MjSpec:
    """The file's model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MJCF with exactly one body in its world.
    """
    if path.suffix.lower() != ".xml":
        raise ValueError(
            f"an asset is an .xml, got {path.name}; write it with orrery asset SOURCE -o thing.xml"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no asset at {path}; write it with orrery asset SOURCE -o thing.xml")
    try:
        spec = MjSpec.from_file(str(path))
        spec.compile()
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"MuJoCo cannot read asset {path.name} ({said}); write it again") from error
    bodies = len(spec.bodies) - 1
    if bodies != 1:
        raise ValueError(f"an asset holds one body, {path.name} holds {bodies}; split it")
    return spec


def _colour(model: mujoco.MjModel) -> str:
    """The word for the mean colour of what is drawn, by hue before lightness."""
    found = np.array([0.5, 0.5, 0.5])
    if model.ntex:
        count = int(model.tex_height[0]) * int(model.tex_width[0]) * int(model.tex_nchannel[0])
        found = model.tex_data[:count].reshape(-1, int(model.tex_nchannel[0]))[:, :3].mean(0) / 255
    return min(COLOURS, key=lambda word: float(np.linalg.norm(_hue(found) - _hue(np.array(COLOURS[word])))))


def _hue(rgb: np.ndarray) -> np.ndarray:
    """A colour as bright as it can be: the light of the scene that it was seen in taken off."""
    return rgb / max(float(rgb.max()), 1e-3)
