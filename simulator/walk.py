"""Canvases made on foot: step by step as rollouts, each frame in sight of those before.

What follows on known frames, or on a first one made from words, is walked: under the actions that the canvas
tells, or under none that is known, which leaves it to the model what happens. In worlds whose actions can be
undone, what comes before known frames is walked too, backwards; the frames where both ways meet are made at
once. What a smaller draft shows already is walked too, each frame from its own draft, re-noised. Camera
sweeps are walked where a world's actions take its camera around a point and so lead from view to view; a
rollout drifts, so a whole turn is walked both ways from its first view. All other canvases are made at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from recon3d.cameras import Cameras
from simulator.actions import MOTIONS, UNDONE, Motion
from simulator.canvas import FREE, HELD, Canvas, edit
from simulator.video import Frames, resize


@runtime_checkable
class Dreamer(Protocol):
    """What of `WorldModel` is needed here."""

    @property
    def origins(self) -> Mapping[str, Any]: ...

    @property
    def frames_per_step(self) -> int: ...

    def action_size(self, world: str) -> int: ...

    def generate(
        self, canvas: Canvas, *, seed: int = 0, steps: int | None = None, progress: bool = False
    ) -> UInt8[np.ndarray, "t h w 3"]: ...

    def with_config(self, **changes: Any) -> Dreamer: ...

    def start(self, prompts: Any, world: str | None, seeds: Any, *, images: Any = None) -> tuple: ...

    def step(self, state: Any, actions: Any) -> tuple: ...

    def observe(self, state: Any, frames: Any, actions: Any) -> Any: ...


MOST_STEPS = 8  # from one view to the next
MEET = 2  # frames between two ways that are made at once, of a turn twice as many
LOOK_BACK = 16  # known latent steps that a way begins with, at most
UPRIGHT = 1e-3  # by which a camera's axes may miss those of one that looks at the point
APART = 1e-3  # of two cameras, in radians and metres, so that they are two


@dataclass(frozen=True)
class Leg:
    """One way through a canvas. begins: the latent step that it sets out from. actions: of its control steps,
    in [-1, 1], of the world's width, or None where nothing tells them. views: the latent step that is reached
    by each, or -1 between two."""

    begins: int
    actions: Float[np.ndarray, "steps a"] | None
    views: Int[np.ndarray, " steps"]


def legs_of(model: Dreamer, canvas: Canvas) -> list[Leg]:
    """How the unknown frames of a canvas can be reached; empty where they must be made at once: what is known
    is to be moved and nothing is held, there are shots, cameras that no actions lead to, or the way would
    lead back where none does."""
    if len(canvas.start_level) < 2 or canvas.shot is not None:
        return []
    if not canvas.held.any() and (canvas.start_level != FREE).any():
        return []
    if canvas.actions is None and canvas.cameras is not None:
        return _sweep(model, canvas)
    return _on(model, canvas)


def _on(model: Dreamer, canvas: Canvas) -> list[Leg]:
    """The ways into each unknown part of a canvas from what is known around it (of one that knows nothing:
    from its first frame)."""
    held, world, actions = canvas.held, canvas.world or "", canvas.actions
    if canvas.cameras is not None or (canvas.closed and not held[0]):
        return []
    known = held if held.any() else np.arange(len(held)) == 0
    undone = np.array(UNDONE[world]) if world in UNDONE and world not in model.origins else None
    if model.frames_per_step > 1 or actions is None:
        undone = None  # seen from its end, a clip is of other latent steps
    legs, parts = [], _runs(known)
    begun, ended = dict(parts), {after: first for first, after in parts}
    for first, after in _runs(~known):
        from_before, from_after = first in ended, after in begun
        if from_after and undone is None:
            return []
        between = from_before and from_after
        if between and after - first <= MEET:
            continue
        end = (first + after - MEET) // 2 if between else after if from_before else first
        if from_before and end > first:
            begins = max(ended[first], first - LOOK_BACK)
            told = None if actions is None else actions[begins : end - 1]
            legs.append(Leg(begins, told, np.arange(begins + 1, end)))
        if from_after and undone is not None and actions is not None:
            begins = min(begun[after], after + LOOK_BACK) - 1
            views = np.arange(begins - 1, (end + MEET if between else end) - 1, -1)
            legs.append(Leg(begins, (undone * actions[views]).astype(np.float32), views))
    return legs


def _runs(mask: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Where the mask is true: the first of each run, and the one after its last."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(int), 1)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _sweep(model: Dreamer, canvas: Canvas) -> list[Leg]:
    """The ways to the views of a sweep from its first; none for other worlds, more known than the first view,
    and cameras that look elsewhere, stand far apart, or come back to where one was, which takes memory of
    them all."""
    cameras, motion, held = canvas.cameras, MOTIONS.get(canvas.world or ""), canvas.held
    if cameras is None or motion is None or canvas.world in model.origins:
        return []
    wanted = len(held) - canvas.closed
    if len(canvas.frames) != len(held) or held[1:wanted].any():
        return []
    place = places(cameras[:wanted], motion)
    if place is None or _twice(place):
        return []
    ways, around = [np.arange(wanted)], _is_turn(place)
    if canvas.closed and not around:
        return []
    if around:
        half, apart = wanted // 2, MEET if wanted > 4 * MEET else 0  # on each side of where they meet
        ways = [np.arange(half + 1 - apart), np.append(0, np.arange(wanted - 1, half + apart, -1))]
    legs = []
    for way in ways:
        moves, steps = _along(place, way, motion)
        if steps.max() > MOST_STEPS:
            return []
        actions = np.zeros((steps.sum(), model.action_size(canvas.world or "")), np.float32)
        actions[:, :3] = np.repeat(moves, steps, axis=0)
        views = np.full(len(actions), -1)
        views[np.cumsum(steps) - 1] = way[1:]
        legs.append(Leg(0, actions, views))
    return legs


def walked(
    model: Dreamer, canvas: Canvas, legs: list[Leg], seed: int, steps: int | None, progress: bool
) -> Frames:
    """The frames of a canvas, dreamt on their ways, all with the same seed, and at once where these meet.
    steps: of the sampler, for each frame."""
    factor, prompt = model.frames_per_step, canvas.prompts[0] if canvas.prompts else None
    video = canvas.frames.copy()
    walker = model.with_config(sampler_steps=steps) if steps else model
    if not canvas.held.any():
        video[:1] = model.generate(first_view(canvas), seed=seed, steps=steps, progress=progress)

    def place(view: int) -> slice:
        return slice(max(0, 1 + factor * (view - 1)), 1 + factor * view)

    total = sum(len(leg.views) for leg in legs)
    with tqdm(total=total, desc="walking", disable=not progress, mininterval=1) as bar:
        for leg in legs:
            begun = video[place(leg.begins)][-1:]
            state, *_ = walker.start([prompt], canvas.world, [seed], images=begun)
            for step, view in enumerate(leg.views.tolist()):
                action = None if leg.actions is None else leg.actions[step : step + 1]
                if view >= 0 and canvas.held[view]:
                    state = walker.observe(state, video[None, place(view)], action)
                else:
                    drafted = view >= 0 and canvas.start_level[view] < FREE
                    draft = video[place(view)] if drafted else None
                    state, frames = stepped(walker, state, action, draft, float(canvas.start_level[view]))
                    if view >= 0:
                        video[place(view)] = frames
                bar.update()
    if canvas.closed and not canvas.held[-1]:
        video[-1] = video[0]
    for part, request in meetings(canvas, legs):
        request = replace(request, frames=video[part])
        made = model.generate(request, seed=seed, steps=steps, progress=progress)
        video[part][~request.held] = made[~request.held]
    return video


def stepped(
    walker: Dreamer, state: Any, action: Float[np.ndarray, "1 a"] | None, draft: Frames | None, level: float
) -> tuple[Any, Frames]:
    """One control step of a walk: its state and frames, which meet the draft if there is one (`met`)."""
    after, (frames, *_), *_ = walker.step(state, action)
    if draft is None:
        return after, frames
    frames = met(frames, draft, level)
    return walker.observe(state, frames[None], action), frames


def met(made: Frames, draft: Frames, level: float) -> Frames:
    """Frames whose coarse parts, what is seen of them at half their size, went over to the draft's by
    1 - level. Two guesses of one picture are together nearer to the truth than either is; its details are
    known at its own size alone."""
    height, width = made.shape[1:3]
    own, other = (
        resize(resize(video, height // 2, width // 2), height, width).astype(np.float32)
        for video in (made, draft)
    )
    return np.clip(np.rint(made + (1 - level) * (other - own)), 0, 255).astype(np.uint8)


def meetings(canvas: Canvas, legs: list[Leg]) -> list[tuple[slice, Canvas]]:
    """The parts of a walked canvas where its ways meet, with what is known by then on both sides; they are
    made at once."""
    reached = canvas.held.copy()
    reached[0] |= not canvas.held.any()
    for leg in legs:
        reached[leg.views[leg.views >= 0]] = True
    if canvas.closed:
        reached[-1] = True
    parts, missing = [], _runs(~reached)
    ends = [*(first for first, _ in missing[1:]), len(reached) - canvas.closed]
    for (first, after), end in zip(missing, ends, strict=False):
        part = slice(max(0, first - LOOK_BACK // 2), min(after + LOOK_BACK // 2, end))
        request = replace(
            canvas,
            frames=canvas.frames[part],
            start_level=np.where(reached, HELD, canvas.start_level).astype(np.float32)[part],
            actions=None if canvas.actions is None else canvas.actions[part.start : part.stop - 1],
            cameras=None if canvas.cameras is None else canvas.cameras[part],
            guidance=1.0,  # what is around says it all, as for a rollout's steps
            closed=False,
        )
        parts.append((part, request))
        reached[first:after] = True
    return parts


def again(
    model: Dreamer, prompt: str | None, cameras: Cameras, world: str = "Orbit", seed: int = 0
) -> Callable[[UInt8[Tensor, "n h w 3"], float], UInt8[Tensor, "n h w 3"]]:
    """What draws drafts of a sweep's views again, from a noise level (for `recon3d.settle`)."""

    def drawn(drafts: UInt8[Tensor, "n h w 3"], level: float) -> UInt8[Tensor, "n h w 3"]:
        request = edit(drafts.numpy(), prompt, level=level, world=world, cameras=cameras, guidance=1.0)
        return torch.from_numpy(model.generate(request, seed=seed))

    return drawn


def first_view(canvas: Canvas) -> Canvas:
    """The request for the first frame alone, wherever its camera is: there the walk begins. One of a single
    frame is that already."""
    if len(canvas.frames) == 1 and canvas.shot is None:
        return canvas
    alone = {"cameras": None, "actions": None, "closed": False, "shot": None}
    alone["prompt"] = canvas.first_prompt if canvas.prompts else None
    return replace(canvas, frames=canvas.frames[:1], start_level=canvas.start_level[:1], **alone)


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
