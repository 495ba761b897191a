"""A canvas is the only request that the simulator takes: latent steps, each unknown, known and held, or known
and free to move from a noise level, with their conditions. A task is a way to fill one in; generating takes
every level to zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from recon3d.cameras import Cameras

HELD, FREE = 0.0, 1.0


@dataclass(frozen=True)
class Canvas:
    """One clip to be made, of 1 + k * time_factor frames (k + 1 latent steps).

    Attributes:
        prompt: what is to be seen; None means without words.
        frames: pixels where known; anything where not.
        start_level: noise level that each latent step starts from: 1 unknown; 0 known and held; between,
            known, re-noised to that level and free to move.
        world: name of the world whose actions and habits apply, or None.
        actions: in [-1, 1], the one that leads from each latent step to the next, or None.
        cameras: one for each latent step (only their poses relative to the first count), or None.
        guidance: how strongly the prompt pulls (classifier-free guidance, Ho & Salimans 2022); 1 is not at
        all.
    """

    prompt: str | None
    frames: UInt8[np.ndarray, "t h w 3"]
    start_level: Float[np.ndarray, " n"]
    world: str | None = None
    actions: Float[np.ndarray, "steps a"] | None = None
    cameras: Cameras | None = None
    guidance: float = 3.0

    def __post_init__(self) -> None:
        n = len(self.start_level)
        if not n:
            raise ValueError("canvas has no frame; ask for at least 1")
        if not np.all((self.start_level >= 0) & (self.start_level <= 1)):
            raise ValueError(f"start_level must lie in [0, 1], got {self.start_level.tolist()}")
        if not np.any(self.start_level > 0):
            raise ValueError("canvas has no unknown frame: every start_level is 0; free at least one")
        if self.actions is not None and len(self.actions) != n - 1:
            raise ValueError(f"canvas of {n} latent steps needs {n - 1} actions, got {len(self.actions)}")
        if self.cameras is not None and len(self.cameras) != n:
            raise ValueError(f"canvas of {n} latent steps needs {n} cameras, got {len(self.cameras)}")

    @property
    def held(self) -> Bool[np.ndarray, " n"]:
        return self.start_level == HELD


def _latent_steps(frames: int, time_factor: int) -> int:
    if frames < 1 or (frames - 1) % time_factor:
        near = max(0, round((frames - 1) / time_factor)) * time_factor + 1
        raise ValueError(f"--frames must be 1 + a multiple of {time_factor}, got {frames}; use {near}")
    return (frames - 1) // time_factor + 1


def text_to_video(
    prompt: str | None,
    frames: int,
    *,
    world: str | None = None,
    height: int = 64,
    width: int = 64,
    cameras: Cameras | None = None,
    actions: Float[np.ndarray, "steps a"] | None = None,
    guidance: float = 3.0,
    time_factor: int = 1,
) -> Canvas:
    """A video from words alone (one frame: a picture; with cameras: a sweep)."""
    n = _latent_steps(frames, time_factor)
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    return Canvas(prompt, pixels, np.full(n, FREE, np.float32), world, actions, cameras, guidance)


def image_to_video(
    image: UInt8[np.ndarray, "h w 3"],
    prompt: str | None,
    frames: int,
    *,
    world: str | None = None,
    cameras: Cameras | None = None,
    actions: Float[np.ndarray, "steps a"] | None = None,
    guidance: float = 3.0,
    time_factor: int = 1,
) -> Canvas:
    """A video that starts with a given picture."""
    n = _latent_steps(frames, time_factor)
    pixels = np.repeat(image[None], frames, axis=0)
    level = np.full(n, FREE, np.float32)
    level[0] = HELD
    return Canvas(prompt, pixels, level, world, actions, cameras, guidance)
