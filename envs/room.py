"""`orrery/Room-v0`: first person in a walled room with one to five things that can be pushed."""

import numpy as np
from jaxtyping import Float32, Float64

from envs.mujoco_world import MujocoWorld
from envs.renderer import look_along
from envs.scenes import ROOM_HALF_M, footprint

EYE_HEIGHT_M = 0.65
SPEED_M_S = 1.0
YAW_DEG_S, PITCH_DEG_S = 90.0, 60.0
PITCH_LIMITS_DEG = (-40.0, 25.0)
BODY_M = 0.2
REACHED_M = 0.3
PUSH_RANGE_M, PUSH_DEG, PUSH_M_S2 = 0.9, 30.0, 16.0
START_GAPS_M = (0.7, 2.4)
START_SHARE = 0.012


class Room(MujocoWorld):
    """Pose: x, y (metres), yaw (radians, 0 along +x, counter-clockwise from above), pitch (radians, up
    positive).

    Action: forward, strafe (to the right), yaw (to the left), pitch (up), push.
    """

    world = "Room"
    action_size = 5

    def _camera(self) -> Float64[np.ndarray, "4 4"]:
        return self._camera_of(self._pose)

    def _camera_of(self, pose: np.ndarray) -> Float64[np.ndarray, "4 4"]:
        x, y, yaw, pitch = pose
        forward = (np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch))
        return look_along(np.array([x, y, EYE_HEIGHT_M]), np.array(forward))

    def _gap(self, place: np.ndarray, index: int) -> float:
        """Metres of free floor between a place and a thing's footprint."""
        thing = self._scene.things[index]
        centre = self._thing_state(index)[:2]
        return float(np.linalg.norm(place - centre)) - footprint(thing)

    def _first_pose(self) -> Float64[np.ndarray, " p"] | None:
        self._gap_before = 0.0
        for _ in range(40):
            place = self.np_random.uniform(-1, 1, 2) * (ROOM_HALF_M - 0.35)
            towards = self._thing_state(0)[:2] - place
            yaw = np.arctan2(towards[1], towards[0]) + np.radians(self.np_random.uniform(-18, 18))
            pose = np.array([*place, yaw, np.radians(self.np_random.uniform(-14, -4))])
            gaps = [self._gap(place, index) for index in range(len(self._scene.things))]
            if not START_GAPS_M[0] < gaps[0] < START_GAPS_M[1] or min(gaps) < 0.45:
                continue
            if np.mean(self._segmentation(24, 24, self._camera_of(pose)) == 0) >= START_SHARE:
                self._gap_before = gaps[0]
                return pose
        return None

    def _act(self, action: Float32[np.ndarray, " a"], frame: int) -> None:
        forward, strafe, turn, tilt, push = map(float, action)
        x, y, yaw, pitch = self._pose
        if frame == 0:
            self._gap_before = self._gap(self._pose[:2], 0)
        yaw = (yaw + turn * np.radians(YAW_DEG_S) * self.frame_s + np.pi) % (2 * np.pi) - np.pi
        pitch = np.clip(pitch + tilt * np.radians(PITCH_DEG_S) * self.frame_s, *np.radians(PITCH_LIMITS_DEG))
        ahead = np.array([np.cos(yaw), np.sin(yaw)])
        right = np.array([ahead[1], -ahead[0]])
        place = np.array([x, y]) + SPEED_M_S * self.frame_s * (forward * ahead + strafe * right)
        if push > 0:
            self._push_ahead(place, ahead, push)
        self._advance(frame)
        self._pose = np.array([*self._free_place(place), yaw, pitch])

    def _push_ahead(self, place: np.ndarray, ahead: np.ndarray, strength: float) -> None:
        """Push the nearest thing within reach of the arm, along the view."""
        nearest, nearest_gap = None, PUSH_RANGE_M
        for index in range(len(self._scene.things)):
            towards = self._thing_state(index)[:2] - place
            facing = towards @ ahead > np.cos(np.radians(PUSH_DEG)) * np.linalg.norm(towards)
            if facing and self._gap(place, index) < nearest_gap:
                nearest, nearest_gap = index, self._gap(place, index)
        if nearest is not None:
            self._push(nearest, PUSH_M_S2 * strength * np.array([*ahead, 0.0]))

    def _free_place(self, place: np.ndarray) -> np.ndarray:
        """The nearest place that is inside the room and outside all things."""
        limit = ROOM_HALF_M - BODY_M
        for _ in range(2):
            for index in range(len(self._scene.things)):
                gap = self._gap(place, index)
                if gap < BODY_M:
                    away = place - self._thing_state(index)[:2]
                    place = place + (BODY_M - gap) * away / max(np.linalg.norm(away), 1e-6)
            place = np.clip(place, -limit, limit)
        return place

    def _judge(self) -> tuple[float, bool]:
        gap = self._gap(self._pose[:2], 0)
        reached = gap < REACHED_M
        return self._gap_before - gap + float(reached), reached

    def _wall_ahead(self) -> str | None:
        """The paint of the wall that the view's middle meets."""
        x, y, yaw, _ = self._pose
        ahead = np.array([np.cos(yaw), np.sin(yaw)])
        distances = [
            (ROOM_HALF_M - sign * place) / (sign * along) if sign * along > 1e-9 else np.inf
            for sign, place, along in (
                (1, x, ahead[0]),
                (1, y, ahead[1]),
                (-1, x, ahead[0]),
                (-1, y, ahead[1]),
            )
        ]
        return self._scene.walls[int(np.argmin(distances))]
