"""What one step of training the world model sees: three kinds of batch, cut from recorded episodes.

Rollouts (causal, sliding window, actions), sweeps (bidirectional, cameras, more frames, sometimes skipping)
and pictures (one frame from words). Noise levels are drawn per frame (Diffusion Forcing, Chen et al. 2024),
with a share of nearly clean frames drawn per clip, so that rollouts meet in training what they meet in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simulator.flow import Levels
from simulator.latents import LatentEpisodes, Windows, draw
from simulator.text import WIDTH, pad
from simulator.transformer import Conditions, frame_mask


@dataclass(frozen=True)
class WorldTraining:
    steps: int = 1_000_000  # at most
    minutes: float = 120.0  # of training, at most
    matrix_rate: float = 2e-3  # Muon's learning rate
    other_rate: float = 1e-3  # AdamW's learning rate
    ema_decay: float = 0.999
    rollout_clips: int = 24  # windows in a rollout batch
    sweep_clips: int = 6  # windows in a sweep batch
    sweep_frames: int = 40  # latent steps in a sweep window
    pictures: int = 256  # single frames in a picture batch
    sweep_share: float = 0.18  # of the batches
    picture_share: float = 0.2  # of the batches
    world_weights: tuple[
        float, ...
    ] = ()  # how often each world is drawn, by name's order; empty: by its episodes
    sweep_weights: tuple[float, ...] = ()  # the same for sweeps; empty: as world_weights
    picture_weights: tuple[float, ...] = ()  # the same for pictures; empty: as world_weights
    drop_text: float = 0.1
    drop_actions: float = 0.1
    save_minutes: float = 5.0


TRAININGS = {
    "tiny": WorldTraining(steps=40, minutes=1.0, rollout_clips=4, sweep_clips=2, sweep_frames=9, pictures=16),
    "small": WorldTraining(),
    "base": WorldTraining(minutes=24 * 60.0, rollout_clips=64, sweep_clips=24, pictures=1024),
}


class Batch(NamedTuple):
    """What one step of training needs, with noise levels drawn."""

    data: Float[Tensor, "b n c y x"]
    noise: Float[Tensor, "b n c y x"]
    noise_level: Levels
    conditions: Conditions
    allowed: Bool[Tensor, "b n m"]
    rewards: Float[Tensor, "b n"]
    terminated: Float[Tensor, "b n"]


def draw_levels(rng: np.random.Generator, clips: int, frames: int, kind: str) -> Float[np.ndarray, "b n"]:
    """Noise levels of a batch, one per frame: uniform, with some pure noise; frames that play the past are
    nearly clean.

    Rollouts: in half of the clips every other frame plays the past, so that each noisy frame follows a clean
    one; in the others a share of the frames, drawn per clip, does. Sweeps: half share one level in all frames
    (as in sampling), a third of these with a clean first frame.
    """
    level = np.where(rng.random((clips, frames)) < 0.15, 1.0, rng.random((clips, frames)))
    if kind == "picture":
        return level.astype(np.float32)
    past = rng.uniform(0, 0.12, (clips, frames))
    some = rng.random((clips, frames)) < rng.random((clips, 1))
    if kind == "rollout":
        every_other = (np.arange(frames) + rng.integers(2, size=(clips, 1))) % 2 == 0
        plays_past = np.where(rng.random((clips, 1)) < 0.5, every_other, some)
        return np.where(plays_past, past, level).astype(np.float32)
    together = np.repeat(level[:, :1], frames, axis=1)
    with_first = together.copy()
    with_first[:, 0] = past[:, 0]
    choice = rng.random((clips, 1))
    mixed = np.where(some, past, level)
    return np.where(choice < 0.35, together, np.where(choice < 0.5, with_first, mixed)).astype(np.float32)


def choose_episodes(
    data: LatentEpisodes,
    training: WorldTraining,
    rng: np.random.Generator,
    count: int,
    frames: int,
    kind: str,
) -> np.ndarray:
    """Random episodes of enough frames, worlds first (by weight), then one of the world's; sweeps need moving
    cameras."""
    by_world = [data.of_world(name, frames) for name in data.worlds]
    with_cameras = kind == "sweep"
    asked = {"rollout": (), "sweep": training.sweep_weights, "picture": training.picture_weights}[kind]
    asked = asked or training.world_weights
    weights = np.array(asked or [len(found) for found in by_world], float)
    if len(weights) != len(by_world):
        raise ValueError(
            f"weights of {kind} batches need one entry a world, got {len(weights)} "
            f"for {', '.join(data.worlds)}"
        )
    if with_cameras:
        weights = weights * np.array(
            [len(found) and moving_cameras(data, int(found[0])) for found in by_world]
        )
    if not weights.sum():
        raise ValueError(
            f"no episode of {frames} latent steps{' with moving cameras' * with_cameras}; "
            "record longer ones, or set the share of such batches to 0"
        )
    world = rng.choice(len(by_world), size=count, p=weights / weights.sum())
    return np.array([rng.choice(by_world[w]) for w in world])


def moving_cameras(data: LatentEpisodes, episode: int) -> bool:
    c2w = data.c2w[data.starts[episode] : data.starts[episode + 1]]
    return bool((~c2w.isnan()).all() and (c2w - c2w[:1]).abs().max() > 1e-3)


def make_batch(
    data: LatentEpisodes,
    training: WorldTraining,
    kind: str,
    window: int,
    text_tokens: int,
    rng: np.random.Generator,
) -> Batch:
    """Draw windows of one kind and what they are conditioned on."""
    clips, frames = {
        "rollout": (training.rollout_clips, window),
        "picture": (training.pictures, 1),
        "sweep": (training.sweep_clips, training.sweep_frames),
    }[kind]
    episodes = choose_episodes(data, training, rng, clips, frames, kind)
    windows = draw(
        data,
        episodes,
        frames,
        rng,
        from_start={"rollout": 0.25, "picture": 0.6, "sweep": 0.5}[kind],
        max_stride=1 if kind == "rollout" else 3,
    )
    causal = rng.random(clips) < (0.85 if kind == "rollout" else 0.0)
    level = torch.from_numpy(draw_levels(rng, clips, frames, kind))
    noise = torch.from_numpy(rng.standard_normal(windows.latents.shape, dtype=np.float32))
    return Batch(
        windows.latents,
        noise,
        level,
        _conditions(data, windows, training, kind, text_tokens, rng),
        frame_mask(frames, torch.from_numpy(causal), window),
        windows.rewards,
        windows.terminated,
    )


def _conditions(
    data: LatentEpisodes,
    windows: Windows,
    training: WorldTraining,
    kind: str,
    text_tokens: int,
    rng: np.random.Generator,
) -> Conditions:
    clips = len(windows.captions)

    def kept(share: float) -> Tensor:
        return torch.from_numpy(rng.random((clips, 1)) < share)

    text, known = pad([data.text[row].float() for row in windows.captions])
    room = torch.zeros(clips, text_tokens, WIDTH)
    room[:, : text.shape[1]] = text
    known_room = torch.zeros(clips, text_tokens, dtype=torch.bool)
    known_room[:, : text.shape[1]] = known
    cameras = ~windows.rays.isnan().any(dim=(2, 3, 4)) & kept(
        {"rollout": 0.15, "picture": 0.0, "sweep": 0.95}[kind]
    )
    return Conditions(
        text=room,
        text_known=known_room & kept(1 - training.drop_text),
        world=torch.where(kept(0.9)[:, 0], windows.world, torch.zeros_like(windows.world)),
        actions=windows.actions,
        actions_known=windows.follows & kept(1 - training.drop_actions if kind == "rollout" else 0.3),
        rays=windows.rays.nan_to_num(),
        rays_known=cameras,
    )
