"""The spots that touches leave on things: model fields that MuJoCo's own state leaves out.

A world's spots are one array, a row per spot: the thing's index, the place in its frame (metres), and the
turn (wxyz) that takes +z to the surface's normal. A row of zeros is no spot. The model holds one hidden geom
per row and thing.
"""

import mujoco
import numpy as np
from jaxtyping import Float64, Int

from envs.scene_models import SPOTS
from envs.vocabulary import MARK_RGB

Spots = Float64[np.ndarray, "s 8"]
PARTS_ONLY = np.array([1, 0, 0, 0, 0, 0], np.uint8)


def no_spots() -> Spots:
    """What a scene starts with."""
    return np.zeros((SPOTS, 8))


def find_spot(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    thing_of_geom: Int[np.ndarray, " g"],
    eye: Float64[np.ndarray, "3"],
    aim: Float64[np.ndarray, "3"],
) -> Float64[np.ndarray, "8"] | None:
    """The spot where the ray from `eye` through `aim` first meets a thing; None where it meets none."""
    ray = aim - eye
    hit, normal = np.array([-1], np.int32), np.zeros(3)
    share = mujoco.mj_ray(model, data, np.ascontiguousarray(eye), ray, PARTS_ONLY, True, -1, hit, normal)
    thing = int(thing_of_geom[hit[0]])
    if thing < 0:
        return None
    body = model.body(f"thing{thing}").id
    turn = data.xmat[body].reshape(3, 3)
    towards = np.empty(4)
    mujoco.mju_quatZ2Vec(towards, turn.T @ normal)
    return np.array([thing, *(turn.T @ (eye + share * ray - data.xpos[body])), *towards])


def show_spots(model: mujoco.MjModel, spots: Spots, things: int) -> None:
    """Bring the model's hidden geoms into line with the array."""
    for number, spot in enumerate(spots):
        owner, shown = int(spot[0]), bool(np.any(spot[4:]))
        for thing in range(things):
            geom = model.geom(f"thing{thing}_spot{number}")
            geom.rgba[:] = (*MARK_RGB, float(shown and thing == owner))
            if shown and thing == owner:
                geom.pos[:], geom.quat[:] = spot[1:4], spot[4:]
