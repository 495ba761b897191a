"""What each frame of recorded episodes shows, in words and places: what the captioner learns from and is
judged on.

Truth comes from the episodes' own scenes, states and cameras: a thing's centre is projected into each frame.
Where it is half outside or its centre is hidden, nothing is claimed. The first frame's things are those that
its caption names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from recon3d.cameras import Cameras
from simulator.captions import parse
from simulator.clips import Episode, read_episode
from simulator.latents import encode_episode, world_name
from simulator.tokenizer import Tokenizer
from simulator.video import Frames, resize, to_unit
from simulator.words import COLOURS, FLOORS, KINDS, SHAPES, SIZES, WALLS, WORLDS

ABSENT, SEEN, UNCLEAR = 0, 1, -1
ALL_KINDS = tuple(kind for world in WORLDS for kind in KINDS[world])
STATE = 13  # numbers a thing in an episode's states; the first three are its position


@dataclass(frozen=True)
class Sightings:
    """One episode's truth. Things are told apart by colour: no two of a scene share one.

    seen: `ABSENT`, `SEEN` or `UNCLEAR`. x: from -1 (left edge) to 1 (right edge). depth_m: along the view.
    shape, size, world, kind, floor, wall: places in the lists of `simulator/words.py`, -1 where unknown;
    `wall` is the one ahead at the first frame."""

    seen: Int[np.ndarray, "t colours"]
    x: Float[np.ndarray, "t colours"]
    depth_m: Float[np.ndarray, "t colours"]
    shape: Int[np.ndarray, " colours"]
    size: Int[np.ndarray, " colours"]
    world: int
    kind: int
    floor: int
    wall: int


def _place_of(word: str | None, words: Sequence[str]) -> int:
    return words.index(word) if word in words else -1


def sightings(episode: Episode) -> Sightings:
    """Read an episode's truth. Raises ValueError if it was recorded without scene, cameras or states."""
    things = (episode.metadata.get("scene") or {}).get("things")
    if not things or episode.K is None or episode.c2w is None or episode.states is None:
        raise ValueError(
            f"episode {episode.seed} of {episode.env_id} has no scene, cameras or states; captions can be "
            "learned from recordings of orrery/Room-v0, Orbit-v0 and Lab-v0"
        )
    t = len(episode.frames)
    columns = [COLOURS.index(thing["colour"]) for thing in things]
    seen = np.zeros((t, len(COLOURS)), np.int64)
    x, depth_m = np.zeros((2, t, len(COLOURS)), np.float32)
    shape, size = np.full((2, len(COLOURS)), -1)
    seen[:, columns], x[:, columns], depth_m[:, columns] = _in_sight(episode, things)
    shape[columns] = [SHAPES.index(thing["shape"]) for thing in things]
    size[columns] = [SIZES.index(thing["size"]) for thing in things]
    told = [parse(caption) for caption in episode.captions]
    named = [COLOURS.index(thing["colour"]) for thing in told[0].things]
    seen[0] = ABSENT
    seen[0, named] = SEEN
    scene = episode.metadata["scene"]
    wall = next((found.wall for found in told if found.wall), None)
    return Sightings(
        seen,
        x,
        depth_m,
        shape,
        size,
        _place_of(world_name(episode.env_id), WORLDS),
        _place_of(scene["kind"], ALL_KINDS),
        _place_of(scene["floor"], FLOORS),
        _place_of(wall, WALLS),
    )


def _in_sight(episode: Episode, things: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per frame and thing: how it is seen, where across the picture, and how deep (metres)."""
    assert episode.K is not None and episode.c2w is not None and episode.states is not None
    t, height, width = episode.frames.shape[:3]
    K = torch.from_numpy(episode.K).float().repeat(t, 1, 1)
    cameras = Cameras(K, torch.from_numpy(episode.c2w).float(), height, width)
    centres = episode.states.reshape(t, len(things), STATE)[..., :3]
    pixels, depth = np.zeros((t, len(things), 2), np.float32), np.zeros((t, len(things)), np.float32)
    for index in range(len(things)):
        places, depths = cameras.project(torch.from_numpy(centres[:, index]))
        pixels[:, index] = places.numpy()[np.arange(t), np.arange(t)]
        depth[:, index] = depths.numpy()[np.arange(t), np.arange(t)]
    ahead = depth > 0.05
    radii = episode.K[1, 1] * np.array([thing["radius_m"] for thing in things]) / np.where(ahead, depth, 1)
    inside = np.minimum(pixels, np.array([width, height]) - pixels).min(axis=-1)
    gone = ~ahead | (inside < -1.1 * radii)
    clear = ahead & (inside > 0.3 * radii)
    for index in range(len(things)):
        apart = np.linalg.norm(pixels - pixels[:, index : index + 1], axis=-1)
        clear[:, index] &= ~((apart < 0.9 * radii) & (depth < depth[:, index : index + 1]) & ahead).any(
            axis=1
        )
    return np.where(clear, SEEN, np.where(gone, ABSENT, UNCLEAR)), 2 * pixels[..., 0] / width - 1, depth


@dataclass(frozen=True)
class SeenLatents:
    """Latents of many episodes and what each shows; episodes stay apart."""

    latents: list[Float[np.ndarray, "t c y x"]]
    sightings: list[Sightings]


def load_sightings(paths: list[Path], tokenizer: Tokenizer, version: str, side: int) -> SeenLatents:
    """Read episodes with their latents at `side` x `side` pixels.

    Those of that size come from the cache beside them, or go into it; others are resized.
    """
    factor = tokenizer.config.time_factor
    if factor != 1:
        raise ValueError(f"the captioner reads one latent step a frame, this tokenizer makes one of {factor}")
    latents, found = [], []
    for path in tqdm(paths, desc="reading episodes", unit="ep", mininterval=5):
        episode = read_episode(path)
        found.append(sightings(episode))
        if episode.frames.shape[1:3] == (side, side):
            latents.append(encode_episode(path, tokenizer, version))
        else:
            latents.append(encode_resized(episode.frames, tokenizer, side))
    return SeenLatents(latents, found)


@torch.inference_mode()
def encode_resized(frames: Frames, tokenizer: Tokenizer, side: int) -> Float[np.ndarray, "t c y x"]:
    """Latents of frames squeezed or stretched to `side` x `side` pixels."""
    device = next(tokenizer.parameters()).device
    if frames.shape[1:3] != (side, side):
        frames = resize(frames, side, side)
    return tokenizer.encode(to_unit(frames[None], device))[0].half().cpu().numpy()
