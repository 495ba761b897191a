"""Episodes as latents in memory: what the world model trains on.

Each episode is encoded once per tokenizer version and kept beside its file (`.latents-<fingerprint>/`), so
that a killed run, or the next one, starts at once. `draw` cuts windows out of it, with everything a canvas is
conditioned on.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from recon3d.cameras import Cameras, rigid_inverse
from simulator.actions import pressed
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
    captions: list[list[int]]  # of each episode: phrases, the first naming only the things
    words: Float[Tensor, "words e"]  # of all phrases, end to end
    phrases: Int[np.ndarray, " phrases1"]  # where each begins
    worlds: tuple[str, ...]
    action_sizes: dict[str, int]
    height: int
    width: int
    origins: dict[str, Origin]  # of the worlds whose recordings say

    @property
    def episodes(self) -> int:
        return len(self.captions)

    def on(self, device: torch.device) -> LatentEpisodes:
        """The same with the bulk of it on a device, where `draw` then makes its windows."""
        return replace(self, latents=self.latents.to(device), words=self.words.to(device))

    def length(self, episode: int) -> int:
        return int(self.starts[episode + 1] - self.starts[episode])

    def of_world(self, name: str, frames: int = 1) -> Int[np.ndarray, " found"]:
        """The world's episodes that have at least so many latent steps."""
        long_enough = np.diff(self.starts) >= frames
        return np.flatnonzero((self.world.numpy() == self.worlds.index(name) + 1) & long_enough)


class Library:
    """Recorded episodes as latents, encoded where needed; more can be added while a model trains. Actions are
    padded to `action_width`, or to the widest."""

    def __init__(self, tokenizer: Tokenizer, version: str, action_width: int):
        self._tokenizer, self._version, self._action_width = tokenizer, version, action_width
        self._paths: set[Path] = set()
        self._action_sizes: dict[str, int] = {}  # by world
        self._sizes: dict[tuple[int, int], _Rows] = defaultdict(_Rows)
        self._phrases: dict[str, int] = {}
        self._text: list[Float[Tensor, "_ e"]] = []  # of the phrases, as far as they are read
        self._firsts: dict[str, Episode] = {}
        self._origins: dict[str, Origin] | None = None

    def add(self, paths: Sequence[Path], progress: bool = True) -> int:
        """Read the episodes that are not here yet; how many these were. Raises ValueError if one is of
        another kind than its world's others."""
        new = [path for path in paths if path not in self._paths]
        for path in tqdm(new, desc="encoding episodes", unit="ep", mininterval=5, disable=not progress):
            episode = read_episode(path)
            latents = encode_episode(path, self._tokenizer, self._version)
            name = world_name(episode.env_id)
            check_same(name, path, episode, self._firsts.setdefault(name, episode))
            self._action_sizes[name] = episode.actions.shape[1]
            rows = self._sizes[episode.frames.shape[1], episode.frames.shape[2]]
            for key, value in _rows(episode, latents, self._tokenizer.config.time_factor, path).items():
                rows.parts[key].append(torch.from_numpy(value))
            rows.worlds.append(name)
            words = list(dict.fromkeys(episode.captions or [episode.prompt]))
            rows.captions.append([self._phrases.setdefault(word, len(self._phrases)) for word in words])
            self._paths.add(path)
        return len(new)

    def buckets(self, progress: bool = True) -> tuple[LatentEpisodes, ...]:
        """All that is here: one entry for each picture size, that with the most rows first; all share worlds
        and captions. How rewards are scaled is settled by the first call."""
        fresh = list(self._phrases)[len(self._text) :]
        embedded = embed(fresh, progress=progress, dtype=torch.half)
        self._text += [e if word else e[:0] for word, e in zip(fresh, embedded, strict=True)]
        if self._origins is None:
            self._origins = self._found_origins()
        width, order = max(self._action_width, *self._action_sizes.values()), sorted(self._action_sizes)
        words, phrases = _joined(self._text), np.cumsum([0, *map(len, self._text)])
        found = []
        for (high, wide), rows in self._sizes.items():
            parts = {
                **rows.parts,
                "actions": [pad(a, (0, width - a.shape[1])) for a in rows.parts["actions"]],
                "rewards": [
                    reward / self._origins[name].reward_scale if name in self._origins else reward
                    for name, reward in zip(rows.worlds, rows.parts["rewards"], strict=True)
                ],
            }
            found.append(
                LatentEpisodes(
                    **{key: _joined(value) for key, value in parts.items()},
                    world=torch.tensor([order.index(name) + 1 for name in rows.worlds]),
                    starts=np.cumsum([0, *map(len, rows.parts["latents"])]),
                    captions=list(rows.captions),
                    words=words,
                    phrases=phrases,
                    worlds=tuple(order),
                    action_sizes=dict(self._action_sizes),
                    height=high,
                    width=wide,
                    origins=self._origins,
                )
            )
        return tuple(sorted(found, key=lambda bucket: -len(bucket.latents)))

    def _found_origins(self) -> dict[str, Origin]:
        """Of every world that has one."""
        silent, origins = self._phrases.get(""), {}
        for name, first in self._firsts.items():
            found = [
                (rows, k)
                for rows in self._sizes.values()
                for k, world in enumerate(rows.worlds)
                if world == name
            ]
            prompted = any(rows.captions[k] != [silent] for rows, k in found)
            origin = origin_of(first, prompted, [rows.parts["rewards"][k][1:].numpy() for rows, k in found])
            if origin is not None:
                origins[name] = origin
        return origins


def load_latents(
    data: Path,
    tokenizer: Tokenizer,
    version: str,
    action_width: int,
    choose: Callable[[Path], list[Path]] = training_episodes,
) -> tuple[LatentEpisodes, ...]:
    """Read, and encode where needed, every episode under `data` that may be trained on (held-out seeds may
    not; `choose` asks for others), as `Library.buckets`."""
    library = Library(tokenizer, version, action_width)
    library.add(choose(data))
    return library.buckets()


def _joined(parts: list[Tensor]) -> Tensor:
    """All parts end to end; the list keeps views of that, so that nothing is in memory twice."""
    whole = torch.cat(parts)
    parts[:] = whole.split([len(part) for part in parts])
    return whole


@dataclass
class _Rows:
    """Episodes of one picture size, while they are read."""

    parts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    worlds: list[str] = field(default_factory=list)
    captions: list[list[int]] = field(default_factory=list)


def _rows(episode: Episode, latents: np.ndarray, factor: int, path: Path) -> dict[str, np.ndarray]:
    """One episode as rows of latent steps."""
    steps = len(episode.actions)
    if steps + 1 != len(latents):
        raise ValueError(
            f"{path} has {steps} actions and {len(latents)} latent steps; "
            f"record with --frames-per-step {factor}, as the tokenizer compresses time"
        )
    K, c2w, actions = episode.K, episode.c2w, episode.actions.astype(np.float32)
    if episode.env_id.removeprefix("envs:").startswith("orrery/"):
        actions = pressed(actions, world_name(episode.env_id))
    if K is None or c2w is None:
        K, c2w = np.full((3, 3), np.nan), np.full((len(episode.frames), 4, 4), np.nan)
    return {
        "latents": latents,
        "actions": np.pad(actions, ((1, 0), (0, 0))),
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
    tell what the first frame shows; other windows, and later shots, get the first, which only names things.
    """
    b, lengths = len(episodes), np.diff(data.starts)[episodes]
    if lengths.min() < frames:
        raise ValueError(
            f"a window of {frames} latent steps does not fit an episode of {lengths.min()}; "
            "record longer ones"
        )
    longest = np.minimum(max_stride, (lengths - 1) // max(1, frames - 1))
    stride = rng.integers(1, longest + 1)[:, None] if frames > 1 else np.ones((b, 1), int)
    # a cut at `frames` is none
    cuts = np.where(
        np.arange(1, shots) <= rng.integers(shots, size=(b, 1)), _cuts(rng, b, frames, shots), frames
    )
    shot = (np.arange(frames)[:, None] >= cuts[:, None]).sum(axis=2)
    begins = np.concatenate([np.zeros((b, 1), int), np.sort(cuts, axis=1)], axis=1)
    steps = np.diff(begins, axis=1, append=frames)
    first = rng.integers(np.maximum(1, lengths[:, None] - (steps - 1).clip(0) * stride))
    first[rng.random(b) < from_start, 0] = 0
    within = np.arange(frames) - np.take_along_axis(begins, shot, axis=1)
    rows = data.starts[episodes][:, None] + np.take_along_axis(first, shot, axis=1) + stride * within
    follows = np.diff(rows, axis=1, prepend=-2) == 1
    pick = rng.random(b)
    captions = [
        [
            choices[int(pick[k] * len(choices))] if part == first[k, 0] == 0 else choices[0]
            for part in range(int(shot[k, -1]) + 1)
        ]
        for k, choices in enumerate(data.captions[episode] for episode in episodes)
    ]
    index, which, device = torch.from_numpy(rows), torch.from_numpy(np.asarray(episodes)), data.latents.device
    return Windows(
        data.latents[sent(index, device)].float(),
        sent(data.actions[index], device),
        sent(follows, device),
        sent(data.rewards[index], device),
        sent(data.terminated[index], device),
        window_rays(data, which, index),
        sent(data.world[which], device),
        sent(shot, device),
        captions,
    )


def _cuts(rng: np.random.Generator, clips: int, frames: int, shots: int) -> Int[np.ndarray, "b cuts"]:
    """Different places for cuts, in no order; a shot has at least two frames at a clip's start and end."""
    places = np.broadcast_to(np.arange(2, max(frames - 1, 1 + shots)), (clips, max(frames - 3, shots - 1)))
    return rng.permuted(places, axis=1)[:, : shots - 1]


def sent(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Values on a device. A GPU goes on with its work meanwhile: from memory that may be paged out it could
    not."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def window_rays(data: LatentEpisodes, episodes: Tensor, index: Tensor) -> Float[Tensor, "b n 6 y x"]:
    """Plücker rays of the latents' cells, relative to each window's first camera; NaN where there are no
    cameras."""
    (b, n), device = index.shape, data.latents.device
    c2w = sent(data.c2w[index].double(), device)
    relative = rigid_inverse(c2w[:, 0])[:, None] @ c2w
    K = sent(data.K[episodes], device)
    K = torch.where(K.isnan(), torch.eye(3, device=device), K)[:, None].expand(b, n, 3, 3)
    cameras = Cameras(
        rearrange(K, "b n i j -> (b n) i j"),
        rearrange(relative.float(), "b n i j -> (b n) i j"),
        data.height,
        data.width,
    )
    return rearrange(cameras.plucker(*data.latents.shape[-2:]), "(b n) r y x -> b n r y x", b=b)
