"""`orrery/Orbit-v0`: a camera that circles one to five things on a table. Nothing moves but the camera."""

import numpy as np
from jaxtyping import Float32, Float64

from envs.mujoco_world import MujocoWorld
from envs.renderer import look_along

TARGET_M = (0.0, 0.0, 0.15)
AZIMUTH_DEG_S, ELEVATION_DEG_S, DISTANCE_M_S = 90.0, 45.0, 0.5
ELEVATION_LIMITS_DEG = (10.0, 60.0)
DISTANCE_LIMITS_M = (1.1, 2.0)
START_ELEVATION_DEG, START_DISTANCE_M = (15.0, 50.0), (1.2, 1.8)


class Orbit(MujocoWorld):
    """Pose: azimuth, elevation (radians), distance (metres): eye = target + d (cos e cos a, cos e sin a, sin
    e).

    Action: azimuth (counter-clockwise seen from above), elevation (up), distance (away).
    """

    world = "Orbit"
    action_size = 3

    def _camera(self) -> Float64[np.ndarray, "4 4"]:
        azimuth, elevation, distance = self._pose
        outwards = np.array(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        )
        return look_along(np.array(TARGET_M) + distance * outwards, -outwards)

    def _first_pose(self) -> Float64[np.ndarray, " p"] | None:
        for _ in range(20):
            azimuth = self.np_random.uniform(-np.pi, np.pi)
            elevation = np.radians(self.np_random.uniform(*START_ELEVATION_DEG))
            self._pose = np.array([azimuth, elevation, self.np_random.uniform(*START_DISTANCE_M)])
            if np.mean(self._segmentation(24, 24) == 0) >= 0.01:
                return self._pose
        return None

    def _act(self, action: Float32[np.ndarray, " a"], frame: int) -> None:
        rates = np.array([np.radians(AZIMUTH_DEG_S), np.radians(ELEVATION_DEG_S), DISTANCE_M_S])
        azimuth, elevation, distance = self._pose + self.frame_s * rates * action.astype(np.float64)
        self._pose = np.array(
            [
                (azimuth + np.pi) % (2 * np.pi) - np.pi,
                np.clip(elevation, *np.radians(ELEVATION_LIMITS_DEG)),
                np.clip(distance, *DISTANCE_LIMITS_M),
            ]
        )

    def _judge(self) -> tuple[float, bool]:
        return float(np.mean(self.segmentation() == 0)), False
