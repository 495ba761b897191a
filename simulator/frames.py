"""What one step of training the tokenizer sees: windows of recorded episodes, of one picture size each.

Latents get noise, or the errors of a world model's predictions of them, and the decoder is shown some frames
as they were, so that it learns to go on from true frames and from its own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from simulator.clips import read_frames, training_episodes
from simulator.tokenizer import TokenizerConfig
from simulator.video import Video, to_unit

Windows = Int[np.ndarray, "b t"]
"""Which frames, of many."""
BACKWARDS, CUT = 0.25, 0.1  # shares of windows that run so, and that show something else from some step on
FIRST_ALONE = 0.25  # of the windows of which the first step alone is shown
PREDICTED = 0.75  # of the latent steps of which there are predictions, in the other windows


@dataclass(frozen=True)
class Frames:
    """Frames of many episodes of one size in memory, with where each episode starts."""

    pixels: UInt8[np.ndarray, "n h w 3"]
    starts: np.ndarray = field(repr=False)
    # by which predictions miss the bounded latents of the steps that end with these frames (0: of others)
    errors: Float[np.ndarray, "n z y x"] | None = None

    def windows(self, rng: np.random.Generator, batch: int, length: int, every: int = 1) -> Windows:
        """Which frames random windows hold, none of which crosses an episode's border. every: a window begins
        at the first frame of an episode or so many frames later, or as many more."""
        episode = rng.integers(len(self.starts) - 1, size=batch)
        places = (self.starts[episode + 1] - self.starts[episode] - length) // every + 1
        first = self.starts[episode] + every * rng.integers(0, places)
        return first[:, None] + np.arange(length)

    def clips(self, rng: np.random.Generator, batch: int, length: int) -> UInt8[np.ndarray, "b t h w 3"]:
        return self.pixels[self.windows(rng, batch, length)]


class Drawn(NamedTuple):
    """What a step of training is to make again."""

    video: Video
    noise: Float[Tensor, "b n z y x"]  # for bounded latents
    shown: Bool[Tensor, "b n"]  # after which steps the decoder is shown how they were

    def to(self, device: torch.device) -> Drawn:
        return Drawn(*(part.to(device) for part in self))


def load_frames(
    data: Path, limit: int, min_length: int, generator: np.random.Generator, progress: bool = True
) -> tuple[Frames, ...]:
    """Whole episodes of at least `min_length` frames in random order until `limit` frames are in memory, by
    picture size: that of the most frames first. Raises ValueError if there is none."""
    paths = training_episodes(data)
    by_size: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    count = longest = 0
    order = generator.permutation(len(paths))
    for index in tqdm(order, desc="reading frames", unit="ep", mininterval=5, disable=not progress):
        frames = read_frames(paths[index])
        longest = max(longest, len(frames))
        if len(frames) < min_length:
            continue
        by_size[frames.shape[1:3]].append(frames)
        count += len(frames)
        if count >= limit:
            break
    if not by_size:
        raise ValueError(
            f"clips need at least {min_length} frames, and the longest in {data} has {longest}; "
            "record longer episodes"
        )
    found = [Frames(np.concatenate(p), np.cumsum([0, *map(len, p)])) for p in by_size.values()]
    return tuple(sorted(found, key=lambda frames: -len(frames.pixels)))


def draw(
    sizes: tuple[Frames, ...],
    config: TokenizerConfig,
    batch: int,
    steps: int,
    most_noise: float,
    rng: np.random.Generator,
) -> Drawn:
    """Windows of so many latent steps, of one picture size, each size as often as its share of all pixels;
    `batch` of the most frequent size, of others as many as have as many pixels. most_noise: each window's
    noise is of its own strength, uniform up to that, where there are no predictions."""
    amounts = np.array([frames.pixels.size for frames in sizes], float)
    frames = sizes[rng.choice(len(sizes), p=amounts / amounts.sum())]
    clips = max(1, round(batch * sizes[0].pixels[0].size / frames.pixels[0].size))
    factor, length = config.time_factor, 1 + (steps - 1) * config.time_factor
    windows = frames.windows(rng, clips, length, 1 if frames.errors is None else factor)
    windows = varied(windows, factor, rng)
    height, width = (side // config.space_factor for side in frames.pixels.shape[1:3])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    begins = rng.random(clips) < FIRST_ALONE
    if frames.errors is None:
        noise = torch.randn((clips, steps, config.channels, height, width), generator=generator)
        noise *= torch.from_numpy((most_noise * rng.random((clips, 1, 1, 1, 1))).astype(np.float32))
    else:
        some = begins[:, None] | (rng.random((clips, steps)) < PREDICTED)
        errors = some[..., None, None, None] * frames.errors[windows[:, ::factor]]
        noise = torch.from_numpy(errors.astype(np.float32))
    shown = rng.random((clips, steps)) < rng.random((clips, 1))  # of each window another share
    shown[begins] = np.arange(steps) == 0
    return Drawn(to_unit(frames.pixels[windows], "cpu"), noise, torch.from_numpy(shown))


def varied(windows: Windows, factor: int, rng: np.random.Generator) -> Windows:
    """The windows, some of them backwards, as dreams are walked too, and some cut over to another, for
    nothing carries over a cut."""
    backwards, cut = (rng.random(len(windows)) < share for share in (BACKWARDS, CUT))
    after = 1 + factor * int(rng.integers((windows.shape[1] - 1) // factor))
    windows = np.where(backwards[:, None], windows[:, ::-1], windows)
    windows[cut, after:] = np.roll(windows, 1, axis=0)[cut, after:]
    return windows
