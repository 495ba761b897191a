"""`orrery/Lab-v0`: one physics experiment before a fixed camera: drop, throw, collide, occluder, mark.

The camera's numbers are in `envs.lab_camera`. Things start in the plane y = 0, between panes of glass to the
left, the right and in front, and a wall behind.
"""

import numpy as np
from jaxtyping import Float32, Float64

from envs import lab_camera
from envs.mujoco_world import MujocoWorld
from envs.renderer import look_along

FORCE_M_S2 = 12.0
"""A full action accelerates the named thing by this much (force = mass times this)."""


class Lab(MujocoWorld):
    """Action: force along x (right), y (away from the camera), z (up) on the named thing; touch leaves a
    spot at the end of the control step.

    A touch lands where the camera's ray to the thing lands, moved by the action's x and z; a hidden thing
    cannot be touched.
    """

    world = "Lab"
    action_size = 4
    fovy_deg = lab_camera.FOVY_DEG

    def _camera(self) -> Float64[np.ndarray, "4 4"]:
        eye = np.array(lab_camera.EYE)
        return look_along(eye, np.array(lab_camera.TARGET) - eye)

    def _first_pose(self) -> Float64[np.ndarray, " p"] | None:
        return np.zeros(0)

    def _act(self, action: Float32[np.ndarray, " a"], frame: int) -> None:
        action = action.astype(np.float64)
        if np.any(action[:3]):
            self._push(0, FORCE_M_S2 * action[:3])
        self._advance(frame)
        if action[3] > 0 and frame == self.frames_per_step - 1:
            self._touch(0, action[0], action[2])

    def _judge(self) -> tuple[float, bool]:
        return 0.0, False
