"""Camera sweeps on foot: where a world's actions take its camera around a point, the views of cameras that
stand on such a way are dreamt as a rollout from the first of them, each in sight of those before.

Where this does not apply they are made all at once, as one clip of told cameras. A rollout drifts; so a whole
turn is walked both ways from its first view, as two rows, which meet on the far side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from recon3d.cameras import Cameras
from simulator.canvas import FREE, HELD, Canvas, edit
from simulator.video import Frames


@runtime_checkable
class Dreamer(Protocol):
    """What of `WorldModel` is needed here."""

    @property
    def origins(self) -> Mapping[str, Any]: ...

    def action_size(self, world: str) -> int: ...

    def generate(
        self, canvas: Canvas, *, seed: int = 0, steps: int | None = None, progress: bool = False
    ) -> UInt8[np.ndarray, "t h w 3"]: ...

    def start(self, prompts: Any, world: str, seeds: Any, *, images: Any = None) -> tuple: ...

    def step(self, state: Any, actions: Any) -> tuple: ...


class Motion(NamedTuple):
    """How a world's actions move its camera, which looks at a point: what 1 does in a control step."""

    target_m: tuple[float, float, float]
    azimuth_deg: float
    elevation_deg: float
    distance_m: float


MOTIONS = {"Orbit": Motion((0.0, 0.0, 0.15), 9.0, 4.5, 0.05)}
MOST_STEPS = 8  # from one view to the next
UPRIGHT = 1e-3  # by which a camera's axes may miss those of one that looks at the point
APART = 1e-3  # of two cameras, in radians and metres, so that they are two


@dataclass(frozen=True)
class Walk:
    """actions: of each row's control steps, in [-1, 1], of the world's width. views: the view that each row
    has reached by then, or -1 between two."""

    actions: Float[np.ndarray, "rows steps a"]
    views: Int[np.ndarray, "rows steps"]


def walk_of(model: Dreamer, canvas: Canvas) -> Walk | None:
    """How the views of a canvas can be reached from its first; None where it asks for something else: other
    worlds, more known than the first view, actions or shots of its own, cameras that look elsewhere, stand
    far apart, or come back to where one was, which takes memory of them all."""
    cameras, motion, level = canvas.cameras, MOTIONS.get(canvas.world or ""), canvas.start_level
    told = canvas.actions is not None or canvas.shot is not None or len(canvas.frames) != len(level)
    if cameras is None or motion is None or told or len(level) < 2 or canvas.world in model.origins:
        return None
    wanted = level[:-1] if canvas.closed else level
    if level[0] not in (HELD, FREE) or (wanted[1:] != FREE).any():
        return None
    place = places(cameras[: len(wanted)], motion)
    if place is None or _twice(place):
        return None
    ways, around = [np.arange(len(place))], _is_turn(place)
    if canvas.closed and not around:
        return None
    if around:
        half = len(place) // 2
        ways = [np.arange(half + 1), np.append(0, np.arange(len(place) - 1, half, -1))]
    taken = [_along(place, way, motion) for way in ways]
    if max(int(steps.max()) for _, steps in taken) > MOST_STEPS:
        return None
    longest = max(int(steps.sum()) for _, steps in taken)
    actions = np.zeros((len(ways), longest, model.action_size(canvas.world or "")), np.float32)
    views = np.full((len(ways), longest), -1)
    for row, (way, (moves, steps)) in enumerate(zip(ways, taken, strict=True)):
        actions[row, : steps.sum(), :3] = np.repeat(moves, steps, axis=0)
        views[row, np.cumsum(steps) - 1] = way[1:]
    return Walk(actions, views)


def walked(
    model: Dreamer, canvas: Canvas, walk: Walk, seed: int, steps: int | None, progress: bool
) -> Frames:
    """The views of a canvas, dreamt on their ways from the first; all ways dream with the same seed."""
    video, ways = canvas.frames.copy(), len(walk.views)
    if not canvas.held[0]:
        video[:1] = model.generate(first_view(canvas), seed=seed, steps=steps, progress=progress)
    prompt, world = canvas.prompts[0] if canvas.prompts else None, canvas.world or ""
    images = np.repeat(video[:1], ways, axis=0)
    state, *_ = model.start([prompt] * ways, world, [seed] * ways, images=images)
    moves = walk.actions.swapaxes(0, 1)
    for k, action in enumerate(tqdm(moves, "walking", disable=not progress, mininterval=1)):
        state, frames, *_ = model.step(state, action)
        reached = walk.views[:, k]
        video[reached[reached >= 0]] = frames[reached >= 0, -1]
    if canvas.closed:
        video[-1] = video[0]
    return video


def again(
    model: Dreamer, prompt: str | None, cameras: Cameras, world: str = "Orbit", seed: int = 0
) -> Callable[[UInt8[Tensor, "n h w 3"], float], UInt8[Tensor, "n h w 3"]]:
    """What draws drafts of a sweep's views again, from a noise level (for `recon3d.settle`)."""

    def drawn(drafts: UInt8[Tensor, "n h w 3"], level: float) -> UInt8[Tensor, "n h w 3"]:
        request = edit(drafts.numpy(), prompt, level=level, world=world, cameras=cameras, guidance=1.0)
        return torch.from_numpy(model.generate(request, seed=seed))

    return drawn


def first_view(canvas: Canvas) -> Canvas:
    """The request for the first view alone, without a camera: it is where the walk begins."""
    return replace(
        canvas, frames=canvas.frames[:1], start_level=canvas.start_level[:1], cameras=None, closed=False
    )


def places(cameras: Cameras, motion: Motion) -> Float[np.ndarray, "n 3"] | None:
    """Azimuth, elevation (radians) and distance (metres) of cameras around the point; None if one does not
    look at it, or stands not upright."""
    c2w = cameras.c2w.double().cpu().numpy()
    away = c2w[:, :3, 3] - np.array(motion.target_m)
    distance = np.linalg.norm(away, axis=1)
    if distance.min() < APART:
        return None
    looks = np.abs(c2w[:, :3, 2] + away / distance[:, None]).max()
    if looks > UPRIGHT or np.abs(c2w[:, 2, 0]).max() > UPRIGHT or c2w[:, 2, 1].max() > 0:
        return None
    elevation = np.arcsin(np.clip(away[:, 2] / distance, -1, 1))
    return np.stack([np.arctan2(away[:, 1], away[:, 0]), elevation, distance], axis=1)


def _moved(place: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n1 3"]:
    """From each to the next, the short way round."""
    move = np.diff(place, axis=0)
    move[:, 0] = (move[:, 0] + math.pi) % (2 * math.pi) - math.pi
    return move


def _along(
    place: Float[np.ndarray, "n 3"], way: Int[np.ndarray, " k"], motion: Motion
) -> tuple[Float[np.ndarray, "k1 3"], Int[np.ndarray, " k1"]]:
    """The action from each view on the way to the next, and how many control steps it is held for."""
    unit = np.array([math.radians(motion.azimuth_deg), math.radians(motion.elevation_deg), motion.distance_m])
    moves = _moved(place[way]) / unit
    steps = np.ceil(np.abs(moves).max(axis=1) - 1e-3).clip(1).astype(int)
    return np.clip(moves / steps[:, None], -1, 1).astype(np.float32), steps


def _twice(place: Float[np.ndarray, "n 3"]) -> bool:
    """Whether two views are of one camera."""
    away = place[:, None] - place[None]
    away[..., 0] = (away[..., 0] + math.pi) % (2 * math.pi) - math.pi
    same = np.abs(away).max(axis=-1) < APART
    return bool(same.sum() > len(place))


def _is_turn(place: Float[np.ndarray, "n 3"]) -> bool:
    """Whether the way goes once around, so that the first view is as near to the last as others are."""
    if len(place) < 4:
        return False
    moves = _moved(np.concatenate([place, place[:1]]))
    steady = np.abs(moves[-1]) <= 1.5 * np.abs(moves[:-1]).max(axis=0) + APART
    return bool(abs(abs(moves[:, 0].sum()) - 2 * math.pi) < APART and steady.all())
