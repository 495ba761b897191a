"""Episodes on disk, and the windows of them that training reads.

One episode is one Zarr 3 store in a zip file, `ep_<seed>.zarr.zip`: exact frames (chunks of 16, zstd) beside
actions, rewards, cameras and states, with prompt, captions and versions as attributes. It is written beside
its final name and renamed when whole, so a file that carries the final name is a whole episode.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float, UInt8
from zarr.storage import ZipStore

SUFFIX = ".zarr.zip"
FRAMES_PER_CHUNK = 16
HELD_OUT_SEED = 900_000_000


@dataclass(frozen=True)
class Episode:
    """What happened once in a world. `actions[k]` is applied at `frames[k * F]`, is held, and leads to
    `frames[k * F + 1]` up to `frames[(k + 1) * F]`, where F is `frames_per_step`.

    frames: uint8 RGB. actions: in [-1, 1]. rewards, terminated: of the step that `actions[k]` made. K:
    intrinsics in pixels (first pixel centre at 0.5). c2w: OpenCV, metres, one per frame. states: the world's
    own. depth: camera z in metres, half precision.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    actions: Float[np.ndarray, "steps a"]
    rewards: Float[np.ndarray, " steps"]
    terminated: Bool[np.ndarray, " steps"]
    prompt: str
    seed: int
    env_id: str
    captions: list[str] = field(default_factory=list)
    K: Float[np.ndarray, "3 3"] | None = None
    c2w: Float[np.ndarray, "t 4 4"] | None = None
    states: Float[np.ndarray, "t s"] | None = None
    depth: Float[np.ndarray, "t h w"] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps, later = len(self.actions), len(self.frames) - 1
        if later % steps if steps else later:
            raise ValueError(
                f"episode {self.seed}: {steps} actions need 1 + a multiple of {steps} frames, got "
                f"{len(self.frames)}; each action leads to as many frames as any other"
            )
        for name in ("rewards", "terminated"):
            if len(getattr(self, name)) != steps:
                raise ValueError(
                    f"episode {self.seed}: {name} has {len(getattr(self, name))} entries, "
                    f"needs one for each of its {steps} actions"
                )

    @property
    def frames_per_step(self) -> int:
        """Video frames that one action leads to."""
        return (len(self.frames) - 1) // max(1, len(self.actions))


ARRAYS = ("frames", "actions", "rewards", "terminated", "K", "c2w", "states", "depth")
ATTRIBUTES = ("prompt", "seed", "env_id", "captions", "metadata")


def episode_path(folder: str | Path, seed: int) -> Path:
    return Path(folder) / f"ep_{seed:09d}{SUFFIX}"


def write_episode(folder: str | Path, episode: Episode) -> Path:
    """Write a whole episode, atomically: readers see nothing or all of it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = episode_path(folder, episode.seed)
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    try:
        with ZipStore(partial, mode="w") as store:
            attributes = {name: getattr(episode, name) for name in ATTRIBUTES}
            group = zarr.create_group(store, attributes=attributes)
            for name in ARRAYS:
                value = getattr(episode, name)
                if value is not None:
                    chunks = (FRAMES_PER_CHUNK, *value.shape[1:]) if name == "frames" else value.shape
                    group.create_array(name, data=value, chunks=tuple(max(1, c) for c in chunks))
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
    return final


def open_episode(path: str | Path) -> tuple[ZipStore, zarr.Group]:
    """Open one episode for reading. Raises ValueError if the file is not a whole episode."""
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; list the folder's episodes or record them with `orrery record`"
        )
    try:
        store = ZipStore(path, mode="r")
        group = zarr.open_group(store, mode="r")
        missing = [name for name in ("frames", "actions", "rewards", "terminated") if name not in group]
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a whole episode ({error}); delete it and record that seed again"
        ) from error
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; delete it and record that seed again")
    return store, group


def read_array(group: zarr.Group, name: str) -> np.ndarray:
    """One array of an open episode, whole."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def read_frames(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of one episode alone. Raises ValueError if it is not a whole episode."""
    store, group = open_episode(path)
    frames = read_array(group, "frames")
    store.close()
    return frames


def read_episode(path: str | Path) -> Episode:
    """Read a whole episode into memory. Raises ValueError naming the file if it is truncated or damaged."""
    store, group = open_episode(path)
    try:
        values: dict[str, Any] = {name: read_array(group, name) for name in ARRAYS if name in group}
        values |= {name: group.attrs[name] for name in ATTRIBUTES}
    except (zipfile.BadZipFile, OSError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and record that seed again") from error
    finally:
        store.close()
    return Episode(**values)


def list_episodes(folder: str | Path) -> list[Path]:
    """The whole episodes of a folder and its sub-folders, in the order of their names.

    Raises ValueError if the folder is missing or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"--data {folder} is not a folder; record episodes into it with `orrery record ENV_ID`"
        )
    paths = sorted(path for path in folder.rglob(f"ep_*{SUFFIX}") if not path.name.startswith("."))
    if not paths:
        raise ValueError(
            f"--data {folder} holds no episode (ep_*{SUFFIX}); record some with `orrery record ENV_ID`"
        )
    return paths


def training_episodes(folder: str | Path) -> list[Path]:
    """The episodes of a folder that may be trained on: those below the held-out seeds. Raises ValueError if
    there are none."""
    paths = [path for path in list_episodes(folder) if not held_out(path)]
    if not paths:
        raise ValueError(
            f"--data {folder} holds only held-out seeds ({HELD_OUT_SEED} and above); "
            "record others to train on"
        )
    return paths


def held_out_episodes(folder: str | Path) -> list[Path]:
    """The episodes of a folder that are kept for measuring. Raises ValueError if there are none."""
    paths = [path for path in list_episodes(folder) if held_out(path)]
    if not paths:
        raise ValueError(
            f"{folder} holds no held-out seeds ({HELD_OUT_SEED} and above); "
            f"record some with `orrery record ENV_ID --seed {HELD_OUT_SEED}`"
        )
    return paths


def held_out(path: Path) -> bool:
    """Whether an episode's seed, which names its file, is kept for measuring."""
    return int(path.name.removeprefix("ep_").removesuffix(SUFFIX)) >= HELD_OUT_SEED
