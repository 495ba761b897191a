"""What one step of training the world model sees: a few kinds of batch, cut from recorded episodes.

Rollouts (causal, sliding window, actions), clips (bidirectional, the rest of a clip from any part of it),
shots (clips with cuts between views of one scene), sweeps (cameras, more frames, sometimes skipping) and
pictures (one frame from words). Noise levels are drawn per frame (Diffusion Forcing, Chen et al. 2024).
Episodes of several picture sizes make batches of one size each, all of about as many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_map_only

from simulator.flow import Levels, add_noise, loss_weight, move, towards
from simulator.latents import LatentEpisodes, Windows, draw, sent
from simulator.text import WIDTH
from simulator.transformer import Before, Conditions, frames_before


@dataclass(frozen=True)
class WorldTraining:
    steps: int = 1_000_000  # at most; 0: any number
    minutes: float = 120.0  # of training, at most; 0: any number
    matrix_rate: float = 2e-3  # Muon's learning rate
    other_rate: float = 1e-3  # AdamW's learning rate
    ema_decay: float = 0.999
    rollout_clips: int = 24  # windows in a rollout batch
    sweep_clips: int = 6  # windows in a sweep batch
    sweep_frames: int = 40  # latent steps in a sweep window
    pictures: int = 256  # single frames in a picture batch
    clip_share: float = 0.07  # of the batches
    shots_share: float = 0.03  # of the batches
    sweep_share: float = 0.1  # of the batches
    picture_share: float = 0.1  # of the batches
    other_sizes: float = 0.12  # share of the batches in picture sizes other than the most frequent
    flow_maps: float = 0.3  # share of the batches that learn to take large steps
    forced: float = 0.75  # share of the rollout windows with noise in all frames, each told the one before
    own_past: float = 0.3  # share of the rollout batches whose past is the model's own, once it can dream
    world_weights: tuple[
        float, ...
    ] = ()  # how often each world is drawn, by name's order; empty: by its episodes
    sweep_weights: tuple[float, ...] = ()  # the same for sweeps and shots; empty: as world_weights
    picture_weights: tuple[float, ...] = ()  # the same for pictures; empty: as world_weights
    drop_text: float = 0.1
    drop_actions: float = 0.1
    save_minutes: float = 5.0
    micro_batches: int = 0  # batches in a step, over all processes; 0: one for each process

    @property
    def shares(self) -> dict[str, float]:
        """Of the batches, by kind."""
        shares = {
            "clip": self.clip_share,
            "shots": self.shots_share,
            "sweep": self.sweep_share,
            "picture": self.picture_share,
        }
        return {"rollout": 1 - sum(shares.values()), **shares}

    def scaled(self, batch: float, rate: float) -> WorldTraining:
        """The same with so many times the windows in a batch, and the rates. Raises ValueError if none would
        be left."""
        for name, times in (("batch", batch), ("rate", rate)):
            if not times > 0:
                raise ValueError(f"--{name}-scale must be above 0, got {times}")
        sizes = {name: getattr(self, name) for name in ("rollout_clips", "sweep_clips", "pictures")}
        rates = {name: rate * getattr(self, name) for name in ("matrix_rate", "other_rate")}
        return replace(self, **{name: max(1, round(size * batch)) for name, size in sizes.items()}, **rates)

    def windows(self, kind: str, window: int) -> tuple[int, int]:
        """How many windows a batch of a kind holds, and their latent steps. window: a rollout's."""
        sizes = {"picture": (self.pictures, 1), "sweep": (self.sweep_clips, self.sweep_frames)}
        return sizes.get(kind, (self.rollout_clips, window))


TRAININGS = {
    "tiny": WorldTraining(steps=40, minutes=1.0, rollout_clips=4, sweep_clips=2, sweep_frames=9, pictures=16),
    "small": WorldTraining(),
    "medium": WorldTraining(),
    "base": WorldTraining(minutes=24 * 60.0, rollout_clips=64, sweep_clips=24, pictures=1024),
    "large": WorldTraining(
        minutes=7 * 24 * 60.0, matrix_rate=1e-3, other_rate=5e-4, rollout_clips=16, pictures=256
    ),
    "xl": WorldTraining(
        minutes=14 * 24 * 60.0,
        matrix_rate=1e-3,
        other_rate=3e-4,
        rollout_clips=8,
        sweep_clips=4,
        pictures=128,
        save_minutes=30.0,
    ),
}
SHOTS = 3  # in a clip with cuts, at most
PURE_NOISE = {"rollout": 0.75}  # share of a kind's unknown frames
GENERATIONS = 3  # of the model's own frames that a past may stand on, at most
KNOWN = 0.12  # noise level up to which a frame counts as known


@dataclass(frozen=True)
class Kind:
    """How windows of one kind of batch are cut and masked."""

    from_start: float  # share that begins at the episode's first frame
    causal: bool  # frames see those before them alone
    actions: float  # share that is told its actions
    cameras: float  # share that is told its cameras
    max_stride: int = 1
    shots: int = 1


KINDS = {
    "rollout": Kind(from_start=0.25, causal=True, actions=1.0, cameras=0.1),
    "clip": Kind(from_start=0.3, causal=False, actions=0.7, cameras=0.3),
    "shots": Kind(from_start=0.5, causal=False, actions=0.5, cameras=0.5, shots=SHOTS),
    "sweep": Kind(from_start=0.5, causal=False, actions=0.3, cameras=0.95, max_stride=3),
    "picture": Kind(from_start=0.6, causal=False, actions=0.0, cameras=0.0),
}


class Batch(NamedTuple):
    """What one step of training needs, with noise levels drawn."""

    data: Float[Tensor, "b n c y x"]
    noise: Float[Tensor, "b n c y x"]
    noise_level: Levels
    next_level: Levels  # where the step that is learnt leads; noise_level itself: the flow's direction there
    target: Float[Tensor, "b n c y x"]  # what the network is to predict
    conditions: Conditions
    causal: bool
    told: Before | None  # the true frame before each, nearly clean, where `forced`
    forced: Bool[Tensor, " b"] | None
    rewards: Float[Tensor, "b n"]
    terminated: Float[Tensor, "b n"]

    @property
    def weight(self) -> Levels:
        """Of each frame's error. From pure noise, where samplers of few steps start, a rollout is to say
        nearly all, and a clip little."""
        return loss_weight(self.noise_level, least=0.5 if self.causal else 0.1)

    def before(self, noisy: Float[Tensor, "b n c y x"], noise_level: Levels) -> Before | None:
        """What the network sees of the frame before each when the batch stands at these levels."""
        if self.told is None or self.forced is None:
            return None
        own, forced = frames_before(noisy, noise_level), self.forced[:, None]
        latents = torch.where(rearrange(forced, "b one -> b one 1 1 1"), self.told.latents, own.latents)
        return Before(latents, torch.where(forced, self.told.noise_level, own.noise_level))

    def to(self, device: torch.device) -> Batch:
        return tree_map_only(Tensor, lambda value: value.to(device), self)


def draw_levels(rng: np.random.Generator, clips: int, frames: int, kind: str) -> Float[np.ndarray, "b n"]:
    """Noise levels of a batch, one per frame: uniform, with some pure noise (much in rollouts: there
    samplers of few steps start, and the past says nearly all); frames that are known are nearly clean.

    Rollouts: in half of the clips every other frame plays the past, so that each noisy frame follows a clean
    one; in the others a share of the frames, drawn per clip, does. Clips: known at the start, at the end, at
    both, anywhere or nowhere, while the rest share one level (as in sampling). Sweeps and shots: half share
    one level in all frames, a third of these with a clean first frame.
    """
    level = some_noise(rng, clips, frames, kind)
    if kind == "picture":
        return level.astype(np.float32)
    past = rng.uniform(0, KNOWN, (clips, frames))
    some = rng.random((clips, frames)) < rng.random((clips, 1))
    together = np.repeat(level[:, :1], frames, axis=1)
    choice = rng.random((clips, 1))
    if kind == "rollout":
        every_other = (np.arange(frames) + rng.integers(2, size=(clips, 1))) % 2 == 0
        return np.where(np.where(choice < 0.5, every_other, some), past, level).astype(np.float32)
    if kind == "clip":
        head, tail = rng.integers(0, frames // 2 + 1, (2, clips, 1)) * (rng.random((2, clips, 1)) < 0.6)
        ends = (np.arange(frames) < head) | (np.arange(frames) >= frames - tail)
        known = np.where(choice < 0.75, ends, some)
        exact = rng.random((clips, 1)) < 0.5
        return np.where(known, np.where(exact, 0, past), together).astype(np.float32)
    with_first = together.copy()
    with_first[:, 0] = past[:, 0]
    mixed = np.where(some, past, level)
    return np.where(choice < 0.35, together, np.where(choice < 0.5, with_first, mixed)).astype(np.float32)


def some_noise(rng: np.random.Generator, clips: int, frames: int, kind: str) -> Float[np.ndarray, "b n"]:
    """Levels of frames that are to be predicted."""
    pure = PURE_NOISE.get(kind, 0.15)
    level = np.where(rng.random((clips, frames)) < pure, 1.0, rng.random((clips, frames)))
    return level.astype(np.float32)


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
    with_cameras = kind in ("sweep", "shots")
    asked = {"picture": training.picture_weights}.get(kind, training.sweep_weights if with_cameras else ())
    asked = asked or training.world_weights
    weights = np.array(asked or [len(found) for found in by_world], float)
    weights = weights * [len(found) > 0 for found in by_world]
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
    found = np.zeros(count, int)
    for w, choices in enumerate(by_world):
        here = world == w
        found[here] = choices[rng.integers(max(1, len(choices)), size=here.sum())] if here.any() else 0
    return found


def check_weights(training: WorldTraining, worlds: Sequence[str]) -> None:
    """Raises ValueError if weights are not those of these worlds."""
    for name in ("world_weights", "sweep_weights", "picture_weights"):
        weights = getattr(training, name)
        good = all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0
        if weights and (len(weights) != len(worlds) or not good):
            raise ValueError(
                f"--{name.replace('_', '-')} needs one number for each of the {len(worlds)} worlds "
                f"({', '.join(worlds)}), none below 0 and not all 0, got {' '.join(map(str, weights))}"
            )


def moving_cameras(data: LatentEpisodes, episode: int) -> bool:
    c2w = data.c2w[data.starts[episode] : data.starts[episode + 1]]
    return bool((~c2w.isnan()).all() and (c2w - c2w[:1]).abs().max() > 1e-3)


def fitting(training: WorldTraining, data: LatentEpisodes) -> WorldTraining:
    """The training without sweeps and shots where no camera moves: rollouts take their place."""
    some = [int(found[0]) for found in map(data.of_world, data.worlds) if len(found)]
    if any(moving_cameras(data, episode) for episode in some):
        return training
    return replace(training, sweep_share=0.0, shots_share=0.0)


def tokens_in(data: LatentEpisodes) -> int:
    return data.latents.shape[-1] * data.latents.shape[-2]


def make_batch(
    data: LatentEpisodes,
    training: WorldTraining,
    kind: str,
    window: int,
    text_tokens: int,
    rng: np.random.Generator,
    scale: float = 1.0,
) -> Batch:
    """Draw windows of one kind and what they are conditioned on. scale: of the number of windows."""
    clips, frames = training.windows(kind, window)
    clips, how, device = max(1, round(clips * scale)), KINDS[kind], data.latents.device
    episodes = choose_episodes(data, training, rng, clips, frames, kind)
    windows = draw(
        data, episodes, frames, rng, from_start=how.from_start, max_stride=how.max_stride, shots=how.shots
    )
    drawn, told, forced = draw_levels(rng, clips, frames, kind), None, None
    if how.causal:
        is_forced = rng.random(clips) < training.forced
        drawn = np.where(is_forced[:, None], some_noise(rng, clips, frames, kind), drawn)
        nearly = sent(rng.uniform(0, KNOWN, drawn.shape).astype(np.float32), device)
        clean = add_noise(windows.latents, gaussian_like(windows.latents, rng), nearly)
        told, forced = frames_before(clean, nearly), sent(is_forced, device)
    level, noise = sent(drawn, device), gaussian_like(windows.latents, rng)
    return Batch(
        windows.latents,
        noise,
        level,
        level.clone(),  # compiled code is made once for twice the same tensor, and again for two
        windows.latents.clone(),
        _conditions(data, windows, training, how, text_tokens, rng),
        how.causal,
        told,
        forced,
        windows.rewards,
        windows.terminated,
    )


def gaussian_like(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normal noise, made where the latents are."""
    generator = torch.Generator(latents.device).manual_seed(int(rng.integers(2**62)))
    return torch.randn(latents.shape, generator=generator, device=latents.device)


def text_room(data: LatentEpisodes) -> int:
    """Prompt tokens that any window may need, shots included, rounded up so that shapes stay few."""
    lengths = np.diff(data.phrases)
    longest = lengths[list({row for rows in data.captions for row in rows})].max()
    naming = lengths[list({rows[0] for rows in data.captions})].max()
    return max(8, -(-int(longest + (SHOTS - 1) * naming) // 8) * 8)


def _conditions(
    data: LatentEpisodes,
    windows: Windows,
    training: WorldTraining,
    how: Kind,
    text_tokens: int,
    rng: np.random.Generator,
) -> Conditions:
    clips, device = len(windows.captions), windows.latents.device

    def kept(share: float) -> Tensor:
        return sent(rng.random((clips, 1)) < share, device)

    word, tells_of = np.full((clips, text_tokens), -1), np.zeros((clips, text_tokens), int)
    for clip, rows in enumerate(windows.captions):
        end = 0
        for shot, row in enumerate(rows):
            first, after = data.phrases[row : row + 2]
            begin, end = end, min(end + after - first, text_tokens)  # room is as of before what came later
            word[clip, begin:end], tells_of[clip, begin:end] = first + np.arange(end - begin), shot
    known = sent(word >= 0, device)
    words = data.words if len(data.words) else torch.zeros(1, WIDTH, device=device)  # silent worlds have none
    text = words[sent(word.clip(0), device)]
    cameras = ~windows.rays.isnan().any(dim=(2, 3, 4)) & kept(how.cameras)
    return Conditions(
        text=text.float() * known[..., None],
        text_known=known & kept(1 - training.drop_text),
        text_shot=sent(tells_of, device),
        shot=windows.shot,
        world=torch.where(kept(0.9)[:, 0], windows.world, torch.zeros_like(windows.world)),
        actions=windows.actions,
        actions_known=windows.follows & kept(how.actions * (1 - training.drop_actions)),
        rays=windows.rays.nan_to_num(),
        rays_known=cameras,
    )


Predict = Callable[[Batch, Tensor, Levels, Levels], Tensor]
"""What the model says of a batch: noisy frames, their levels, where these lead -> data."""


def with_large_steps(batch: Batch, predict: Predict, rng: np.random.Generator) -> Batch:
    """The batch with steps of the sampler to learn: two of the model's own steps in one (shortcut models,
    Frans et al. 2024, for any two levels)."""
    start = batch.noise_level
    free, each = start > KNOWN, "b n -> b n 1 1 1"
    share = sent(rng.random(start.shape, dtype=np.float32), start.device)
    end = torch.where(free, start * (2 * share - 1).clamp_min(0), start)
    middle = end + (start - end) * sent(rng.uniform(0.2, 0.8, start.shape).astype(np.float32), start.device)
    noisy = add_noise(batch.data, batch.noise, start)
    halfway = move(noisy, predict(batch, noisy, start, middle), start, middle)
    arrived = move(halfway, predict(batch, halfway, middle, end), middle, end)
    target = torch.where(rearrange(free, each), towards(noisy, arrived, start, end), batch.data)
    return batch._replace(next_level=end, target=target)


def with_own_past(
    batch: Batch, predict: Predict, rng: np.random.Generator, generations: int = 1, large: bool = False
) -> Batch:
    """The batch with every other frame replaced by what the model makes of it in one step from its
    neighbours, nearly clean, as the past that the others are to follow: so training meets its own errors
    (Self Forcing, Huang et al. 2025, in its cheapest form). With more `generations` the neighbours
    were made so first, from theirs: errors that have gone on for a few steps. If `large`, that one step is
    a told one, as a rollout takes, and the others learn such steps too; else it goes to the mean."""
    if batch.forced is not None:  # nothing but its own says what was before
        batch = batch._replace(forced=torch.zeros_like(batch.forced))
    level = batch.noise_level
    past = sent(rng.uniform(0, KNOWN, level.shape).astype(np.float32), level.device)
    frame, odd = torch.arange(level.shape[1], device=level.device), int(rng.integers(2))
    data, own = batch.data, torch.zeros_like(level, dtype=torch.bool)
    for turn in reversed(range(generations)):
        own = (((frame + odd + turn) % 2 == 0) & (frame > 0)).expand_as(level)
        start = torch.where(own, torch.ones_like(level), past)
        end = torch.where(own, torch.zeros_like(level), past) if large else start.clone()
        made = predict(batch, add_noise(data, batch.noise, start), start, end)
        data = torch.where(rearrange(own, "b n -> b n 1 1 1"), made, data)
    data = torch.where(rearrange(own, "b n -> b n 1 1 1"), data, batch.data)
    following = torch.where(own, past, level)
    batch = batch._replace(
        data=data, target=data.clone(), noise_level=following, next_level=following.clone()
    )
    return with_large_steps(batch, predict, rng) if large else batch
