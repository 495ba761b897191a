"""Episodes as latents in memory: what the world model trains on.

Each episode is encoded once per tokenizer version and kept beside its file (`.latents-<fingerprint>/`), so
that a killed run, or the next one, starts at once. `draw` cuts windows out of it, with everything a canvas is
conditioned on.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from recon3d.cameras import Cameras, rigid_inverse
from simulator.clips import Episode, read_episode, read_frames, training_episodes
from simulator.origin import Origin, check_same, origin_of
from simulator.precision import fast_precision
from simulator.text import embed
from simulator.tokenizer import Tokenizer
from simulator.video import to_unit


def world_name(env_id: str) -> str:
    """`orrery/Room-v0` -> `Room`, `CartPole-v1` -> `CartPole`."""
    return env_id.split(":")[-1].split("/")[-1].split("-v")[0]


def encode_episode(path: Path, tokenizer: Tokenizer, version: str) -> Float[np.ndarray, "n c y x"]:
    """The latents of one episode's frames, from the cache beside it if they are there."""
    cached = path.parent / f".latents-{version}" / f"{path.name}.npy"
    if cached.exists():
        return np.load(cached)
    frames = read_frames(path)
    device = next(tokenizer.parameters()).device
    with torch.no_grad(), fast_precision(device):
        latents = tokenizer.encode(to_unit(frames[None], device))[0].half().cpu().numpy()
    cached.parent.mkdir(exist_ok=True)
    partial = cached.with_suffix(f".{os.getpid()}.partial.npy")
    np.save(partial, latents)
    partial.replace(cached)
    return latents


@dataclass(frozen=True)
class LatentEpisodes:
    """Many episodes of one picture size, end to end. Row i is one latent step; `starts` says where each
    episode begins."""

    latents: Float[Tensor, "rows c y x"]
    actions: Float[Tensor, "rows a"]  # that led to the row; zero at an episode's start
    rewards: Float[Tensor, " rows"]
    terminated: Float[Tensor, " rows"]
    c2w: Float[Tensor, "rows 4 4"]
    K: Float[Tensor, "episodes 3 3"]  # NaN where an episode has no cameras
    world: Int[Tensor, " episodes"]
    starts: Int[np.ndarray, " episodes1"]
    captions: list[list[int]]  # of each episode: rows of `text`, the first naming only the things
    text: list[Float[Tensor, "_ e"]]
    worlds: tuple[str, ...]
    action_sizes: dict[str, int]
    height: int
    width: int
    origins: dict[str, Origin]  # of the worlds whose recordings say

    @property
    def episodes(self) -> int:
        return len(self.captions)

    def length(self, episode: int) -> int:
        return int(self.starts[episode + 1] - self.starts[episode])

    def of_world(self, name: str, frames: int = 1) -> Int[np.ndarray, " found"]:
        """The world's episodes that have at least so many latent steps."""
        long_enough = np.diff(self.starts) >= frames
        return np.flatnonzero((self.world.numpy() == self.worlds.index(name) + 1) & long_enough)


def load_latents(
    data: Path,
    tokenizer: Tokenizer,
    version: str,
    action_width: int,
    choose: Callable[[Path], list[Path]] = training_episodes,
) -> tuple[LatentEpisodes, ...]:
    """Read, and encode where needed, every episode under `data` that may be trained on (held-out seeds may
    not; `choose` asks for others). One entry for each picture size, that with the most rows first; all share
    worlds and captions. Actions are padded to `action_width`, or to the widest."""
    names: dict[str, int] = {}  # a world's actions
    sizes: dict[tuple[int, int], _Rows] = defaultdict(_Rows)
    phrases: dict[str, int] = {}
    firsts: dict[str, Episode] = {}
    for path in tqdm(choose(data), desc="encoding episodes", unit="ep", mininterval=5):
        episode = read_episode(path)
        latents = encode_episode(path, tokenizer, version)
        name = world_name(episode.env_id)
        check_same(name, path, episode, firsts.setdefault(name, episode))
        names[name] = episode.actions.shape[1]
        rows = sizes[episode.frames.shape[1], episode.frames.shape[2]]
        for key, value in _rows(episode, latents, tokenizer.config.time_factor, path).items():
            rows.parts[key].append(torch.from_numpy(value))
        rows.worlds.append(name)
        words = list(dict.fromkeys(episode.captions or [episode.prompt]))
        rows.captions.append([phrases.setdefault(word, len(phrases)) for word in words])
    order = sorted(names)
    origins = _scaled_rewards(firsts, phrases, list(sizes.values()))
    width = max(action_width, *names.values())
    for rows in sizes.values():
        rows.parts["actions"] = [pad(a, (0, width - a.shape[1])) for a in rows.parts["actions"]]
    embedded = embed(list(phrases), progress=True)
    text = [e.half() if word else e[:0] for word, e in zip(phrases, embedded, strict=True)]
    found = [
        LatentEpisodes(
            **{key: torch.cat(value) for key, value in rows.parts.items()},
            world=torch.tensor([order.index(name) + 1 for name in rows.worlds]),
            starts=np.cumsum([0, *map(len, rows.parts["latents"])]),
            captions=rows.captions,
            text=text,
            worlds=tuple(order),
            action_sizes=names,
            height=size[0],
            width=size[1],
            origins=origins,
        )
        for size, rows in sizes.items()
    ]
    return tuple(sorted(found, key=lambda bucket: -len(bucket.latents)))


@dataclass
class _Rows:
    """Episodes of one picture size, while they are read."""

    parts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    worlds: list[str] = field(default_factory=list)
    captions: list[list[int]] = field(default_factory=list)


def _scaled_rewards(
    firsts: dict[str, Episode], phrases: dict[str, int], sizes: list[_Rows]
) -> dict[str, Origin]:
    """The origin of every world that has one; its rewards are scaled in place."""
    silent = phrases.get("")
    origins = {}
    for name, first in firsts.items():
        found = [(rows, k) for rows in sizes for k, world in enumerate(rows.worlds) if world == name]
        prompted = any(rows.captions[k] != [silent] for rows, k in found)
        origin = origin_of(first, prompted, [rows.parts["rewards"][k][1:].numpy() for rows, k in found])
        if origin is None:
            continue
        origins[name] = origin
        for rows, k in found:
            rows.parts["rewards"][k] = rows.parts["rewards"][k] / origin.reward_scale
    return origins


def _rows(episode: Episode, latents: np.ndarray, factor: int, path: Path) -> dict[str, np.ndarray]:
    """One episode as rows of latent steps."""
    steps = len(episode.actions)
    if steps + 1 != len(latents):
        raise ValueError(
            f"{path} has {steps} actions and {len(latents)} latent steps; "
            f"record with --frames-per-step {factor}, as the tokenizer compresses time"
        )
    K, c2w = episode.K, episode.c2w
    if K is None or c2w is None:
        K, c2w = np.full((3, 3), np.nan), np.full((len(episode.frames), 4, 4), np.nan)
    return {
        "latents": latents,
        "actions": np.pad(episode.actions.astype(np.float32), ((1, 0), (0, 0))),
        "rewards": np.pad(episode.rewards.astype(np.float32), (1, 0)),
        "terminated": np.pad(episode.terminated.astype(np.float32), (1, 0)),
        "c2w": c2w[::factor].astype(np.float32),
        "K": K[None].astype(np.float32),
    }


@dataclass(frozen=True)
class Windows:
    """A batch of windows, with everything known about them."""

    latents: Float[Tensor, "b n c y x"]
    actions: Float[Tensor, "b n a"]
    follows: Tensor  # whether the row before it in the window is the one before it in time
    rewards: Float[Tensor, "b n"]
    terminated: Float[Tensor, "b n"]
    rays: Float[Tensor, "b n 6 y x"]  # NaN where an episode has no cameras
    world: Int[Tensor, " b"]
    shot: Int[Tensor, "b n"]
    captions: list[list[int]]  # one for each shot


def draw(
    data: LatentEpisodes,
    episodes: Int[np.ndarray, " b"],
    frames: int,
    rng: np.random.Generator,
    *,
    from_start: float,
    max_stride: int = 1,
    shots: int = 1,
) -> Windows:
    """Cut one window out of each given episode; a share `from_start` begins at the episode's first frame.

    A window may skip frames: all its steps are `stride` apart, the stride drawn up to `max_stride` and as the
    length allows. It may be cut into up to `shots` shots, each from elsewhere in the same episode. Captions
    tell what the first frame shows; a shot from elsewhere gets the first caption, which only names things.
    """
    rows, captions, follows, shot = [], [], [], []
    for episode in episodes:
        length = data.length(int(episode))
        if length < frames:
            raise ValueError(
                f"a window of {frames} latent steps does not fit an episode of {length}; record longer ones"
            )
        longest = min(max_stride, (length - 1) // max(1, frames - 1))
        stride = int(rng.integers(1, longest + 1)) if frames > 1 else 1
        cuts = np.sort(rng.choice(np.arange(2, frames - 1), int(rng.integers(shots)), replace=False))
        index, told = [], []
        for part in np.split(np.arange(frames), cuts):
            first = int(rng.integers(length - (len(part) - 1) * stride))
            first = 0 if not index and rng.random() < from_start else first
            index.append(first + stride * np.arange(len(part)))
            choices = data.captions[episode]
            told.append(choices[rng.integers(len(choices))] if first == 0 else choices[0])
        rows.append(data.starts[episode] + np.concatenate(index))
        follows.append(np.append(False, np.diff(rows[-1]) == 1))
        shot.append(np.repeat(np.arange(len(index)), [len(part) for part in index]))
        captions.append(told)
    index = torch.from_numpy(np.stack(rows))
    which = torch.from_numpy(np.asarray(episodes))
    return Windows(
        data.latents[index].float(),
        data.actions[index],
        torch.from_numpy(np.stack(follows)),
        data.rewards[index],
        data.terminated[index],
        window_rays(data, which, index),
        data.world[which],
        torch.from_numpy(np.stack(shot)),
        captions,
    )


def window_rays(data: LatentEpisodes, episodes: Tensor, index: Tensor) -> Float[Tensor, "b n 6 y x"]:
    """Plücker rays of the latents' cells, relative to each window's first camera; NaN where there are no
    cameras."""
    b, n = index.shape
    c2w = data.c2w[index].double()
    relative = rigid_inverse(c2w[:, 0])[:, None] @ c2w
    K = data.K[episodes]
    K = torch.where(K.isnan(), torch.eye(3), K)[:, None].expand(b, n, 3, 3)
    cameras = Cameras(
        rearrange(K, "b n i j -> (b n) i j"),
        rearrange(relative.float(), "b n i j -> (b n) i j"),
        data.height,
        data.width,
    )
    return rearrange(cameras.plucker(*data.latents.shape[-2:]), "(b n) r y x -> b n r y x", b=b)
