"""What a world model predicts of recorded episodes, one step on from the truth, for a decoder to learn from.

Latents of true frames do not show how predictions miss. Beside the truth a decoder learns what to believe of
them, and what to carry over instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from simulator.clips import Episode, read_episode, training_episodes
from simulator.frames import Frames
from simulator.latents import world_name
from simulator.tokenizer import Tokenizer, same_latents
from simulator.world_model import WorldModel

Stretch = tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t z y x"]]
STEPS = 8  # that are predicted of an episode, each from the truth before
ROWS = 16  # episodes at once


def predictions(
    model: WorldModel, tokenizer: Tokenizer, data: Path, most: int, rng: np.random.Generator
) -> tuple[Frames, ...]:
    """Stretches of episodes with the errors of the model's predictions, by picture size, the most frequent
    first. most: latent steps that are predicted, about.

    Raises ValueError if the model is of other latents, or knows none of the episodes' worlds.
    """
    if not same_latents(model.tokenizer, tokenizer):
        raise ValueError("--predicted-by must be a world model of the same latents as --start-from")
    done: dict[tuple[int, ...], list[Stretch]] = defaultdict(list)
    with tqdm(total=most, desc="predicting", unit="step", mininterval=5) as bar:
        for world, episodes in _groups(model, data, rng):
            done[episodes[0].frames.shape[1:3]] += _predicted(model, world, episodes, rng)
            bar.update(min(STEPS * len(episodes), most - bar.n))
            if bar.n >= most:
                break
    if not done:
        raise ValueError(
            f"{data} has no episode of {STEPS} steps in a world of the model ({', '.join(model.worlds)})"
        )
    found = []
    for stretches in done.values():
        pixels, errors = (np.concatenate(parts) for parts in zip(*stretches, strict=True))
        found.append(Frames(pixels, np.arange(0, len(pixels) + 1, len(stretches[0][0])), errors))
    return tuple(sorted(found, key=lambda frames: -len(frames.pixels)))


def _groups(model: WorldModel, data: Path, rng: np.random.Generator) -> Iterator[tuple[str, list[Episode]]]:
    """Episodes in random order, each group of one world and picture size."""
    paths = training_episodes(data)
    groups: dict[tuple[str, tuple[int, ...]], list[Episode]] = defaultdict(list)
    for index in rng.permutation(len(paths)):
        episode = read_episode(paths[index])
        kind = world_name(episode.env_id), episode.frames.shape[1:3]
        known = kind[0] in model.worlds and episode.frames_per_step == model.frames_per_step
        if known and len(episode.actions) >= STEPS:
            groups[kind].append(episode)
        if len(groups[kind]) == ROWS:
            yield kind[0], groups.pop(kind)
    for (world, _), episodes in groups.items():
        if episodes:
            yield world, episodes


def _predicted(
    model: WorldModel, world: str, episodes: list[Episode], rng: np.random.Generator
) -> list[Stretch]:
    """A stretch of each episode: its frames, and by how much each latent step that ends with one of them was
    missed."""
    factor = model.frames_per_step
    begins = [int(rng.integers(len(episode.actions) - STEPS + 1)) for episode in episodes]
    frames = np.stack(
        [e.frames[factor * at : factor * (at + STEPS) + 1] for e, at in zip(episodes, begins, strict=True)]
    )
    actions = np.stack([e.actions[at : at + STEPS] for e, at in zip(episodes, begins, strict=True)])
    seeds = [int(seed) for seed in rng.integers(2**31, size=len(episodes))]
    prompts = [episode.prompt or None for episode in episodes]
    state, *_ = model.start(prompts, world, seeds, images=frames[:, 0])
    missed = []
    for step in range(STEPS):
        true = frames[:, 1 + factor * step : 1 + factor * (step + 1)]
        ahead, *_ = model.step(state, actions[:, step])
        state = model.observe(state, true, actions[:, step])
        if ahead.decoder is None or state.decoder is None:
            raise RuntimeError("a rollout that has begun has decoded something")
        missed.append((ahead.decoder.latents[:, -1] - state.decoder.latents[:, -1]).cpu().numpy())
    errors = np.zeros((*frames.shape[:2], *missed[0].shape[1:]), np.float16)
    errors[:, factor::factor] = np.stack(missed, axis=1)
    return list(zip(frames, errors, strict=True))
