"""`orrery/Dream-v0`: the world model as a Gymnasium environment, with the spaces and steps of the world it
dreams.

The env only holds the dream's state, which is a value of `simulator.world_model`. Nothing here needs MuJoCo.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from envs.action_spaces import from_values, to_vector
from envs.captions import random_prompt
from envs.vocabulary import STEP_LIMITS
from simulator.canvas import check_size
from simulator.world_model import State, WorldModel

SEEDS = 2**31
REGISTRY_PREFIX = "models:/"


@dataclass(frozen=True)
class DreamState:
    """A dream's whole state as a value: keep it to fork, pickle it to save."""

    world: str
    dream: State
    prompt: str | None
    frame: UInt8[np.ndarray, "h w 3"]
    step_count: int
    generator: dict
    over: bool = False  # whether the episode has ended, so that a vector env that resets itself will


def load_model(checkpoint: str | Path, device: str) -> WorldModel:
    """The model of a checkpoint: `default`, a folder, or `models:/NAME/VERSION` in MLflow's registry."""
    if str(checkpoint).startswith(REGISTRY_PREFIX):
        download = import_module("mlflow.artifacts").download_artifacts
        try:
            checkpoint = download(artifact_uri=str(checkpoint))
        except import_module("mlflow.exceptions").MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"checkpoint {checkpoint} is not in MLflow's registry ({reason}); set MLFLOW_TRACKING_URI"
            ) from error
    return WorldModel.load(checkpoint, device=device)


def checked_image(image: Any, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture that a dream starts from. Raises ValueError unless it is uint8 of the dream's size."""
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image must be a uint8 array of shape ({height}, {width}, 3), got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise ValueError(
            f"image must be uint8 of shape ({height}, {width}, 3), got {image.dtype} of shape {image.shape}; "
            "convert it, or make the env with the picture's height and width"
        )
    return image


def checked_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """Reset options of a dream. Raises ValueError for an unknown option or a prompt that says nothing."""
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ValueError(
            f"reset options must be a dict, got {options!r}; for example {{'prompt': 'a red ball'}}"
        )
    unknown = set(options) - {"prompt", "image"}
    if "scene" in unknown:
        raise ValueError("a dream has no scene to set; describe it in the prompt, or use a reference world")
    if unknown:
        raise ValueError(f"reset options may be prompt and image, got {sorted(map(str, unknown))[0]!r}")
    prompt = options.get("prompt")
    if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
        raise ValueError(f"prompt must be text that says something, got {prompt!r}; for example 'a red ball'")
    return options


def checked_count(name: str, value: int | None) -> int | None:
    """Raises ValueError unless a number, where one is given, is whole and at least 1."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if value is not None and not (whole and value >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}; or leave it out")
    return value


def drawn_start(rng: np.random.Generator, world: str, prompt: str | None) -> tuple[str | None, int]:
    """What a dream starts from: its prompt (where not given, drawn for Orrery's own worlds) and the seed of
    its noise."""
    drawn = random_prompt(rng, world) if world in STEP_LIMITS else None
    return prompt or drawn, int(rng.integers(SEEDS))


class Dream(gymnasium.Env):
    """A world model that is stepped like the world it dreams: same actions, step limit and frames a second.

    Args:
        world: Room, Orbit or Lab, or any other that the model was trained on, such as CartPole; left out,
            Room, or the first that the model knows.
        checkpoint: `default` for the shipped weights, a folder, or `models:/NAME/VERSION`.
        height: picture height in pixels; the trained one where left out.
        width: picture width in pixels; the trained one where left out.
        device: where the network runs.
        model: a loaded model, to share between envs; `checkpoint` is then not read.
        step_limit: control steps after which an episode is truncated; the world's own where left out.
        tries: first pictures that are made of a prompt given to `reset`, of which the one that shows best
            what it says is kept; the model's own number where left out. Prompts that are drawn get one. The
            captioner leads all of them.
    """

    # not a ClassVar: a dream of another env has that env's frames a second
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        world: str | None = None,
        checkpoint: str | Path = "default",
        height: int | None = None,
        width: int | None = None,
        device: str = "cpu",
        render_mode: str | None = "rgb_array",
        model: WorldModel | None = None,
        step_limit: int | None = None,
        tries: int | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
        numbers = {"height": height, "width": width, "step_limit": step_limit, "tries": tries}
        for name, value in numbers.items():
            checked_count(name, value)
        model = load_model(checkpoint, device) if model is None else model
        self.model = model if tries is None else model.trying(tries)
        if world is None:
            world = "Room" if "Room" in self.model.worlds else self.model.worlds[0]
        if world not in self.model.worlds:
            raise ValueError(
                f"world must be one of {', '.join(self.model.worlds)}, which the model knows, got {world!r}"
            )
        self.world, self.render_mode = world, render_mode
        self.height, self.width = height or self.model.height, width or self.model.width
        check_size(self.height, self.width, self.model.size_unit)
        self.frames_per_step = self.model.frames_per_step
        origin = self.model.origins.get(world)
        self.wordless = origin is not None and not origin.prompted
        own_limit = origin.step_limit if origin else STEP_LIMITS.get(world)
        self.step_limit = step_limit or own_limit or float("inf")
        if origin is not None:
            self.metadata = {**self.metadata, "render_fps": round(1 / origin.time_step_s, 3)}
        self.observation_space = spaces.Box(0, 255, (self.height, self.width, 3), np.uint8)
        self.action_space = (
            from_values(origin.action_space)
            if origin
            else spaces.Box(-1.0, 1.0, (self.model.action_size(world),), np.float32)
        )
        self._dream: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start a dream. Options: `prompt` (drawn from the seed where left out; what is given is tried as
        often as `tries` says), `image` (its first frame).

        Raises:
            ValueError: an option is unknown, the prompt says nothing, or the image has another type or size.
        """
        super().reset(seed=seed)
        options = checked_options(options)
        image = options.get("image")
        images = None if image is None else checked_image(image, self.height, self.width)[None]
        self.check_prompt(options.get("prompt"))
        self._prompt, dream_seed = drawn_start(self.np_random, self.world, options.get("prompt"))
        self._dream, frames, uncertainty = self.starter([options.get("prompt")]).start(
            [self._prompt], self.world, [dream_seed], height=self.height, width=self.width, images=images
        )
        self._frame, self._step_count, self._over = frames[0, -1], 0, False
        return self._frame.copy(), self.info(self._prompt, frames[0], float(uncertainty[0]))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step: `frames_per_step` new frames, of which the last is the observation.

        Raises:
            ValueError: the action is not in the action space, or reset was not called.
        """
        if self._dream is None:
            raise ValueError("orrery/Dream-v0 has no dream yet; call reset first")
        actions = self.checked_actions([action])
        self._dream, frames, reward, terminated, uncertainty = self.model.step(self._dream, actions)
        self._frame = frames[0, -1]
        self._step_count += 1
        info = self.info(self._prompt, frames[0], float(uncertainty[0]))
        cut = self._step_count >= self.step_limit
        self._over = bool(terminated[0]) or cut
        return self._frame.copy(), float(reward[0]), bool(terminated[0]), cut, info

    def observe(self, action: Any, frames: UInt8[np.ndarray, "*f h w 3"]) -> None:
        """One control step that is seen and not dreamt: what the action truly led to, such as the observation
        of the env that is dreamt of. The next `step` dreams on from there; the clock runs on, no reward is
        counted. With several frames a step all of them are given (`info["frames"]`).

        Raises:
            ValueError: the action or the frames do not fit, or reset was not called.
        """
        if self._dream is None:
            raise ValueError("orrery/Dream-v0 has no dream yet; call reset first")
        frames = np.asarray(frames)
        seen = frames[None] if frames.ndim == 3 else frames
        self._dream = self.model.observe(self._dream, seen[None], self.checked_actions([action]))
        self._frame = seen[-1].copy()
        self._step_count += 1

    def checked_actions(self, actions: Iterable[Any]) -> Float[np.ndarray, "n a"]:
        """Actions as the model takes them. Raises ValueError unless all are in the action space."""
        return np.stack([to_vector(self.action_space, action) for action in actions])

    def starter(self, asked: Sequence[str | None]) -> WorldModel:
        """The model as it begins dreams: what nobody asked for is not tried several times."""
        return self.model if any(asked) else self.model.trying(1)

    def check_prompt(self, prompt: str | None) -> None:
        """Raises ValueError for words to a world that was recorded without any."""
        if prompt is not None and self.wordless:
            raise ValueError(f"prompt must be left out: {self.world} was recorded without words")

    def render(self) -> np.ndarray | None:
        """The current picture."""
        return None if self.render_mode is None or self._dream is None else self._frame.copy()

    def save_state(self) -> DreamState:
        """The whole state; a dream of the same model that loads it goes on with the same frames."""
        if self._dream is None:
            raise ValueError("orrery/Dream-v0 has no dream yet; call reset first")
        return DreamState(
            self.world,
            self._dream,
            self._prompt,
            self._frame.copy(),
            self._step_count,
            dict(self.np_random.bit_generator.state),
            self._over,
        )

    def load_state(self, state: Any) -> None:
        """Go back (or over) to a saved state of the same world and picture size."""
        state = self.checked_state(state)
        self._dream, self._prompt = state.dream, state.prompt
        self._frame, self._step_count, self._over = state.frame.copy(), state.step_count, state.over
        self.np_random.bit_generator.state = state.generator

    def checked_state(self, state: Any) -> DreamState:
        """Raises ValueError unless the state is one of a dream of this world and picture size."""
        if not isinstance(state, DreamState):
            raise ValueError(f"state must come from save_state of a dream, got {type(state).__name__}")
        if state.world != self.world or state.frame.shape != self.observation_space.shape:
            raise ValueError(
                f"state must be of {self.world} at {self.height}x{self.width}, got {state.world} at "
                f"{state.frame.shape[0]}x{state.frame.shape[1]}; make the env to fit it"
            )
        return state

    def fork(self, n: int) -> list[DreamState]:
        """`n` equal states to go on from."""
        if n < 1:
            raise ValueError(f"fork needs at least 1 state, got {n}")
        state = self.save_state()
        return [replace(state) for _ in range(n)]

    def info(
        self, prompt: str | None, frames: UInt8[np.ndarray, "f h w 3"], uncertainty: float
    ) -> dict[str, Any]:
        """What `reset` and `step` tell beside the observation. uncertainty: root mean square error that is
        expected of the last frame, in grey levels (0 to 255)."""
        padded = np.zeros((self.frames_per_step, self.height, self.width, 3), np.uint8)
        padded[: len(frames)] = frames
        return {
            "prompt": prompt or "",
            "frames": padded,
            "frame_count": len(frames),
            "uncertainty": uncertainty,
        }
