"""Any Gymnasium env as a world of pictures: what it shows, or where it shows none, what it renders.

Pictures are brought to size by averaging areas, so that thin lines fade instead of breaking up; a picture of
another aspect is squeezed.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from PIL import Image

import envs
from envs.action_spaces import as_values, check_space

SIZE = 64
FPS = 10.0
"""Of an env that does not say how many frames a second it makes."""


def resized(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The picture at another size: each new pixel is the mean of the area that it covers."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def shows_pictures(space: spaces.Space) -> bool:
    """Whether observations are uint8 RGB pictures."""
    shape = space.shape or ()
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3


class Filmed(gymnasium.ObservationWrapper):
    """An env whose observations are pictures of a given size: its own, or else what it renders."""

    def __init__(self, env: gymnasium.Env, height: int, width: int) -> None:
        super().__init__(env)
        self._own = shows_pictures(env.observation_space)
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)

    def observation(self, observation: Any) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of now. Raises ValueError if the env renders something else."""
        picture: Any = observation if self._own else self.env.render()
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise ValueError(f"{self.env} must render uint8 pictures (H, W, 3), got {type(picture).__name__}")
        height, width, _ = self.observation_space.shape or (0, 0, 0)
        return resized(picture, height, width)

    def close(self) -> None:
        """Close the env. Gymnasium's MuJoCo viewers would free what they drew with later, perhaps while the
        GL context of another env is current, whose pictures would then be black."""
        viewer = getattr(getattr(self.unwrapped, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            viewer.make_context_current()
            viewer.con.free()
        super().close()


def make_filmed(
    env_id: str, keywords: dict[str, Any], height: int | None = None, width: int | None = None
) -> gymnasium.Env:
    """An env whose observations are pictures and whose actions can become vectors.

    Orrery's worlds draw themselves at the size that is asked for; of others, picture observations are resized
    where a size is asked for, and everything else is rendered and resized (to 64x64 where none is).

    Raises:
        ValueError: the id is not known, the env does not take the keywords, it neither shows nor renders
            pictures, or its actions cannot become vectors.
    """
    size = {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    for name, value in size.items():
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    ours = env_id.split(":")[-1].startswith("orrery/")
    env = _make(env_id, {**keywords, **size} if ours else keywords)
    check_space(env.action_space, env_id)
    if ours:
        return env
    if shows_pictures(env.observation_space):
        own_height, own_width, _ = env.observation_space.shape or (SIZE, SIZE, 3)
        return Filmed(env, height or own_height, width or own_width) if size else env
    modes = env.metadata.get("render_modes", [])
    env.close()
    if "rgb_array" not in modes:
        raise ValueError(
            f"record needs pictures: {env_id} observes {env.observation_space} and has no render mode "
            "rgb_array; wrap the env"
        )
    rendering = _make(env_id, {**keywords, "render_mode": "rgb_array"})
    # Gymnasium's MuJoCo envs set their camera up by the first state that they render: the same one always, or
    # an episode would look different in each process.
    rendering.reset(seed=0)
    rendering.render()
    return Filmed(rendering, height or SIZE, width or SIZE)


def _make(env_id: str, keywords: dict[str, Any]) -> gymnasium.Env:
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **keywords)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"env {env_id} needs a package that is not installed: {error}") from error
    except gymnasium.error.Error as error:
        raise ValueError(
            f"env id {env_id!r} is not known ({error}); for example {envs.__name__}:orrery/Room-v0"
        ) from error
    except TypeError as error:
        raise ValueError(f"{env_id} does not take {sorted(keywords)} ({error}); leave them out") from error


def nature(env: gymnasium.Env) -> dict[str, Any]:
    """What a dream of the env must know beside its pictures: action space, step limit, seconds a step."""
    limit = getattr(env.unwrapped, "step_limit", None) or (env.spec.max_episode_steps if env.spec else None)
    return {
        "action_space": as_values(env.action_space),
        "step_limit": limit,
        "time_step_s": 1 / float(env.metadata.get("render_fps", FPS)),
    }
