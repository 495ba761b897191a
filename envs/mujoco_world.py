"""What all MuJoCo reference worlds share: named state, exact cameras, pictures, depth, ids, save and fork.

World right-handed, +Z up, metres; cameras OpenCV, `c2w` 4x4; the first pixel's centre is at 0.5. One control
step is 0.1 s and `frames_per_step` video frames, all under its one action. A world is a scene
(`envs.vocabulary.Scene`), a physics state, and a camera pose of a few numbers; `save_state` writes these and
nothing else is needed to go on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Float32, Float64, Int, UInt8

from envs.marks import Spots, find_spot, no_spots, show_spots
from envs.renderer import Renderer, cast_rays, intrinsics
from envs.scene_models import TIME_STEP_S, build
from envs.scenes import asked_scene, random_scene
from envs.tessellate import scene_mesh
from envs.vocabulary import STEP_LIMITS, Scene
from recon3d.cameras import Cameras
from simulator.captions import Seen, styles

CONTROL_STEP_S = 0.1
SUBSTEPS = round(CONTROL_STEP_S / TIME_STEP_S)
FRAMES_PER_STEP = (1, 2, 4)
INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION.value
HINT_PX = 32
"""Captions judge what is in sight on a square picture of this size."""

SEEN_SHARE = 0.003
"""A thing is in sight when it covers this share of the picture."""


@dataclass(frozen=True)
class WorldState:
    """A reference world's whole state as a value: keep it to fork, pickle it to save."""

    scene: Scene
    prompt: str
    captions: tuple[str, ...]
    physics: Float64[np.ndarray, " n"]
    pose: Float64[np.ndarray, " p"]
    spots: Spots
    spot_count: int
    step_count: int
    generator: dict


@dataclass(frozen=True)
class Moment:
    """Where everything is and how it moves at one video frame."""

    pose: Float64[np.ndarray, " p"]
    qpos: Float64[np.ndarray, " q"]
    qvel: Float64[np.ndarray, " v"]


class MujocoWorld(gymnasium.Env):
    """A reference world; Room, Orbit and Lab say where the camera stands and what an action does."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    world: str
    action_size: int
    fovy_deg: float = 60.0
    _scene: Scene
    _model: mujoco.MjModel
    _data: mujoco.MjData
    _pose: Float64[np.ndarray, " p"]
    _moments: list[Moment]

    def __init__(
        self,
        height: int = 64,
        width: int = 64,
        render_mode: str | None = "rgb_array",
        frames_per_step: int = 1,
    ) -> None:
        if frames_per_step not in FRAMES_PER_STEP:
            raise ValueError(f"frames_per_step must be 1, 2 or 4, got {frames_per_step!r}")
        for name, value in (("height", height), ("width", width)):
            if not isinstance(value, int) or not 16 <= value <= 2048:
                raise ValueError(f"{name} must be a whole number of pixels from 16 to 2048, got {value!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
        self.step_limit, self.frames_per_step = STEP_LIMITS[self.world], frames_per_step
        self.height, self.width, self.render_mode = height, width, render_mode
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (self.action_size,), np.float32)
        self._renderer: Renderer | None = None
        self._started = False

    # -- what a world says about itself

    def _camera(self) -> Float64[np.ndarray, "4 4"]:
        """Camera-to-world of the current pose."""
        raise NotImplementedError

    def _first_pose(self) -> Float64[np.ndarray, " p"] | None:
        """Draw the camera's pose at the start; None when the scene allows none and must be drawn again."""
        raise NotImplementedError

    def _act(self, action: Float32[np.ndarray, " a"], frame: int) -> None:
        """Move the camera and the physics to the given video frame of the control step, `frame_s` further."""
        raise NotImplementedError

    def _judge(self) -> tuple[float, bool]:
        """Reward and termination of the step just made."""
        raise NotImplementedError

    # -- Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start a new scene. Options: `prompt` (the scene is made to fit it), `scene` (see `random_scene`).

        Raises:
            ValueError: an option is unknown, or a prompt names nothing that this world can build.
        """
        super().reset(seed=seed)
        options = options or {}
        asked, prompt = asked_scene(self.world, options)
        for _ in range(50):
            self._load_scene(random_scene(self.np_random, self.world, asked))
            pose = self._first_pose()
            if pose is not None:
                break
        else:
            raise ValueError(
                f"no place shows the named thing in scene {asked!r}; ask for fewer or smaller things"
            )
        self._pose = pose
        self._step_count = self._spot_count = 0
        self._spots, self._moments = no_spots(), [self._moment()]
        told = self._write_captions()
        self._captions = tuple(dict.fromkeys(caption for style in told.values() for caption in style))
        drawn = str(self.np_random.choice(told["plain"]))
        self._prompt = drawn if prompt is None else prompt
        self._judge()
        frame = self._frame()
        return frame, self._info([frame])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step of 0.1 s: `frames_per_step` new frames, of which the last is the observation.

        Raises:
            ValueError: the action is not `action_size` finite numbers in [-1, 1].
        """
        self._must_have_started()
        action = np.asarray(action, np.float32)
        if action.shape != (self.action_size,):
            raise ValueError(f"action must have shape ({self.action_size},), got {action.shape}")
        if not (np.isfinite(action).all() and (abs(action) <= 1.0).all()):
            raise ValueError(
                f"action must be finite and in [-1, 1], got {action.tolist()}; clip it before step"
            )
        frames, moments = [], []
        for frame in range(self.frames_per_step):
            self._act(action, frame)
            frames.append(self._frame())
            moments.append(self._moment())
        self._moments = moments
        self._step_count += 1
        reward, terminated = self._judge()
        cut = self._step_count >= self.step_limit
        return frames[-1], float(reward), bool(terminated), cut, self._info(frames)

    def render(self) -> np.ndarray | None:
        """The current picture."""
        return None if self.render_mode is None else self._frame()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # -- truth

    def moments(self) -> Iterator[int]:
        """Go through the video frames of the last step: inside the loop, `c2w`, `depth`, `segmentation`,
        `scene` and `state_vector` tell of that frame; after it, of the last one again."""
        self._must_have_started()
        try:
            for frame, moment in enumerate(self._moments):
                self._place(moment)
                yield frame
        finally:
            self._place(self._moments[-1])

    @property
    def frame_s(self) -> float:
        """Seconds between two video frames."""
        return CONTROL_STEP_S / self.frames_per_step

    @property
    def K(self) -> Float32[np.ndarray, "3 3"]:
        """Intrinsics in pixels."""
        return intrinsics(self.fovy_deg, self.height, self.width).astype(np.float32)

    @property
    def c2w(self) -> Float32[np.ndarray, "4 4"]:
        """Camera-to-world, OpenCV, metres."""
        return self._camera().astype(np.float32)

    @property
    def pose(self) -> Float64[np.ndarray, " p"]:
        """The camera's pose in the world's own numbers."""
        return self._pose.copy()

    def cameras(self) -> Cameras:
        """The current camera as `Cameras` of length one."""
        return Cameras(
            torch.from_numpy(self.K[None]), torch.from_numpy(self.c2w[None]), self.height, self.width
        )

    def depth(self) -> Float32[np.ndarray, "h w"]:
        """Exact camera z in metres per pixel centre; inf where the sky is."""
        self._must_have_started()
        return cast_rays(self._model, self._data, self.K, self._camera(), self.height, self.width)[0]

    def segmentation(self) -> Int[np.ndarray, "h w"]:
        """Index into `scene()["things"]` per pixel; -1 where there is no thing."""
        self._must_have_started()
        return self._segmentation(self.height, self.width)

    def render_at(self, cameras: Any) -> tuple[UInt8[np.ndarray, "n h w 3"], Float32[np.ndarray, "n h w"]]:
        """Pictures and depths of the current state from any cameras (`recon3d.cameras.Cameras`)."""
        self._must_have_started()
        frames, depths = [], []
        for K, c2w in zip(np.asarray(cameras.K), np.asarray(cameras.c2w), strict=True):
            K, c2w = K.astype(np.float64), c2w.astype(np.float64)
            frames.append(self._draw(K, c2w, cameras.height, cameras.width))
            depths.append(cast_rays(self._model, self._data, K, c2w, cameras.height, cameras.width)[0])
        return np.stack(frames), np.stack(depths)

    def scene(self) -> dict[str, Any]:
        """Everything there is, by name; poses and velocities are current (metres, seconds, wxyz
        quaternions).
        """
        self._must_have_started()
        scene = self._scene.as_dict()
        for index, thing in enumerate(scene["things"]):
            state = self._thing_state(index)
            thing["name"] = self._scene.things[index].words
            thing["material"] = "texture" if thing["asset"] else "paint"
            thing["position"], thing["quaternion"] = state[:3], state[3:7]
            thing["linear_velocity"], thing["angular_velocity"] = state[7:10], state[10:13]
        return scene

    @property
    def initial_scene(self) -> dict[str, Any]:
        """The scene as it was built, as plain values."""
        self._must_have_started()
        return self._scene.as_dict()

    def mesh(self) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, " f"]]:
        """Vertices in metres, triangles, and per triangle the thing's index (-1 for the surroundings)."""
        self._must_have_started()
        return scene_mesh(self._model, self._data, self._thing_of_geom)

    def energy(self) -> float:
        """Kinetic plus potential energy of all things in joules; zero height is the floor."""
        self._must_have_started()
        mujoco.mj_energyPos(self._model, self._data)
        mujoco.mj_energyVel(self._model, self._data)
        return float(self._data.energy.sum())

    def state_vector(self) -> Float32[np.ndarray, " s"]:
        """Position, quaternion, linear and angular velocity of every thing, 13 numbers each."""
        return np.concatenate([self._thing_state(i) for i in range(len(self._scene.things))]).astype(
            np.float32
        )

    def captions(self) -> tuple[str, ...]:
        """All captions of the first frame, in every style; the first one only names things."""
        self._must_have_started()
        return self._captions

    # -- state as a value

    def save_state(self) -> WorldState:
        """The whole state; a world that loads it goes on with the same frames."""
        self._must_have_started()
        physics = np.empty(mujoco.mj_stateSize(self._model, INTEGRATION))
        mujoco.mj_getState(self._model, self._data, physics, INTEGRATION)
        return WorldState(
            self._scene, self._prompt, self._captions, physics, self._pose.copy(), self._spots.copy(),
            self._spot_count, self._step_count, dict(self.np_random.bit_generator.state),
        )  # fmt: skip

    def load_state(self, state: Any) -> None:
        """Go back (or over) to a saved state of the same world."""
        if not isinstance(state, WorldState) or state.scene.world != self.world:
            found = state.scene.world if isinstance(state, WorldState) else type(state).__name__
            raise ValueError(f"state must come from save_state of {self.world}, got one of {found}")
        if not self._started or state.scene != self._scene:
            self._load_scene(state.scene)
        self._prompt, self._captions = state.prompt, state.captions
        self._pose, self._spots = state.pose.copy(), state.spots.copy()
        self._spot_count, self._step_count = state.spot_count, state.step_count
        self.np_random.bit_generator.state = state.generator
        show_spots(self._model, self._spots, len(self._scene.things))
        mujoco.mj_setState(self._model, self._data, state.physics, INTEGRATION)
        mujoco.mj_forward(self._model, self._data)
        mujoco.mj_setState(self._model, self._data, state.physics, INTEGRATION)
        self._moments = [self._moment()]
        self._judge()

    def fork(self, n: int) -> list[WorldState]:
        """`n` equal states to go on from."""
        if n < 1:
            raise ValueError(f"fork needs at least 1 state, got {n}")
        state = self.save_state()
        return [replace(state) for _ in range(n)]

    # -- inside

    def _must_have_started(self) -> None:
        if not self._started:
            raise ValueError(f"orrery/{self.world}-v0 has no scene yet; call reset first")

    def _load_scene(self, scene: Scene) -> None:
        """Build the model and put everything where the scene says it starts."""
        self.close()
        self._started = True
        self._scene = scene
        self._model = build(scene, self.height, self.width)
        self._data = mujoco.MjData(self._model)
        names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._thing_of_geom = np.array([int(n[5]) if n.startswith("thing") else -1 for n in names] + [-1])
        for index, thing in enumerate(scene.things):
            body = self._model.body(f"thing{index}")
            if body.dofnum[0]:
                turn = np.empty(3)
                back = np.array(thing.quaternion) * (1, -1, -1, -1)
                mujoco.mju_rotVecQuat(turn, np.array(thing.angular_velocity), back)
                start = body.dofadr[0]
                self._data.qvel[start : start + 6] = [*thing.linear_velocity, *turn]
        mujoco.mj_forward(self._model, self._data)

    def _advance(self, frame: int) -> None:
        """Run the physics to the given video frame of the control step under the forces that were set, then
        clear them. Frames that fall between two of the physics' own steps take the nearest."""
        start, end = (round(SUBSTEPS * k / self.frames_per_step) for k in (frame, frame + 1))
        mujoco.mj_step(self._model, self._data, end - start)
        self._data.xfrc_applied[:] = 0.0
        mujoco.mj_kinematics(self._model, self._data)

    def _moment(self) -> Moment:
        return Moment(self._pose.copy(), self._data.qpos.copy(), self._data.qvel.copy())

    def _place(self, moment: Moment) -> None:
        self._pose, self._data.qpos[:], self._data.qvel[:] = moment.pose.copy(), moment.qpos, moment.qvel
        mujoco.mj_kinematics(self._model, self._data)

    def _thing_state(self, index: int) -> Float64[np.ndarray, "13"]:
        """Position, quaternion (wxyz), linear and angular velocity in world axes."""
        body = self._model.body(f"thing{index}")
        pose = np.concatenate([self._data.xpos[body.id], self._data.xquat[body.id]])
        if not body.dofnum[0]:
            return np.concatenate([pose, np.zeros(6)])
        start = body.dofadr[0]
        turn = np.empty(3)
        mujoco.mju_rotVecQuat(turn, self._data.qvel[start + 3 : start + 6], pose[3:])
        return np.concatenate([pose, self._data.qvel[start : start + 3], turn])

    def _push(self, index: int, acceleration: np.ndarray) -> None:
        """Pull at a thing's centre with its mass times `acceleration` (m/s^2) for the next control step."""
        body = self._model.body(f"thing{index}").id
        self._data.xfrc_applied[body, :3] += self._model.body_mass[body] * acceleration

    def _touch(self, index: int, sideways: float, upwards: float) -> None:
        """Leave a spot on a thing where the camera's ray to it lands, if it is in sight there.

        `sideways` and `upwards` in [-1, 1] move the ray off the thing's centre by up to half its radius.
        """
        c2w, radius = self._camera(), self._scene.things[index].radius_m
        aim = self._thing_state(index)[:3] + 0.5 * radius * (sideways * c2w[:3, 0] - upwards * c2w[:3, 1])
        spot = find_spot(self._model, self._data, self._thing_of_geom, c2w[:3, 3], aim)
        if spot is None or int(spot[0]) != index:
            return
        self._spots[self._spot_count % len(self._spots)] = spot
        self._spot_count += 1
        show_spots(self._model, self._spots, len(self._scene.things))
        mujoco.mj_kinematics(self._model, self._data)

    def _segmentation(self, height: int, width: int, c2w: np.ndarray | None = None) -> Int[np.ndarray, "h w"]:
        K = intrinsics(self.fovy_deg, height, width)
        c2w = self._camera() if c2w is None else c2w
        return self._thing_of_geom[cast_rays(self._model, self._data, K, c2w, height, width)[1]]

    def _write_captions(self) -> dict[str, list[str]]:
        """Captions, by style, of what the camera sees now; the named thing is listed first even where it is
        hidden."""
        width = max(HINT_PX * self.width // self.height, 8)
        ids = self._segmentation(HINT_PX, width)
        c2w, seen = self._camera(), []
        for index, thing in enumerate(self._scene.things):
            columns = np.nonzero(ids == index)[1]
            if index and len(columns) < SEEN_SHARE * ids.size:
                continue
            x = float((columns.mean() + 0.5) / width * 2 - 1) if len(columns) else 0.0
            ahead = float((self._thing_state(index)[:3] - c2w[:3, 3]) @ c2w[:3, 2])
            seen.append(Seen(thing.shape, thing.colour, thing.size, x, ahead))
        return styles(
            self.world, seen, floor=self._scene.floor, wall=self._wall_ahead(), kind=self._scene.kind
        )

    def _wall_ahead(self) -> str | None:
        """Paint of the wall in the middle of the picture, for captions."""
        return self._scene.walls[0]

    def _draw(self, K: np.ndarray, c2w: np.ndarray, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        if self._renderer is None:
            self._renderer = Renderer(self._model)
        mujoco.mj_camlight(self._model, self._data)
        return self._renderer.rgb(self._data, K, c2w, height, width)

    def _frame(self) -> UInt8[np.ndarray, "h w 3"]:
        return self._draw(self.K.astype(np.float64), self._camera(), self.height, self.width)

    def _info(self, frames: list[np.ndarray]) -> dict[str, Any]:
        padded = np.zeros((self.frames_per_step, self.height, self.width, 3), np.uint8)
        padded[: len(frames)] = frames
        return {
            "prompt": self._prompt,
            "frames": padded,
            "frame_count": len(frames),
            "K": self.K,
            "c2w": self.c2w,
        }
