"""`orrery record`: any Gymnasium env -> episodes on disk, in parallel and resumable.

Frames are the env's pictures, or where it observes something else, what it renders (`envs/film.py`); actions
are kept as vectors in [-1, 1] (`envs/action_spaces.py`), with the env's own action space beside them.

An episode's seed is its name: its file exists exactly when it is whole, so a killed recording goes on where
it was.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro
from tqdm import tqdm

from envs.action_spaces import to_vector
from envs.film import make_filmed, nature
from envs.policies import POLICIES, usual_policy
from simulator.clips import HELD_OUT_SEED, SUFFIX, Episode, episode_path, read_episode, write_episode

INDEX_NAME = "episodes.jsonl"


@dataclass(frozen=True)
class Recording:
    """What a worker needs to make an episode of any seed."""

    env_id: str
    out: str
    policy: str
    steps: int
    height: int | None
    width: int | None
    depth: bool = False
    options: dict[str, Any] | None = None
    env_options: dict[str, Any] = field(default_factory=dict)
    frames_per_step: int | None = None

    def make(self) -> gymnasium.Env:
        """The env, with the picture size and the frames of a control step where they are asked for."""
        held = {} if self.frames_per_step is None else {"frames_per_step": self.frames_per_step}
        return make_filmed(self.env_id, {**self.env_options, **held}, self.height, self.width)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("orrery", "mujoco", "gymnasium", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def shown(observation: np.ndarray, info: dict[str, Any]) -> list[np.ndarray]:
    """All video frames that a step of any env led to."""
    if "frames" not in info:
        return [observation]
    return list(info["frames"][: int(info.get("frame_count", len(info["frames"])))])


def truth(env: gymnasium.Env, info: dict[str, Any], depth: bool) -> list[tuple[Any, Any, Any]]:
    """Camera, states and depth at each frame of the last step; None for what the env cannot tell."""
    world: Any = env.unwrapped
    if not hasattr(world, "moments"):
        return [(info.get("c2w"), None, None)]
    return [(world.c2w, world.state_vector(), world.depth() if depth else None) for _ in world.moments()]


def play(env: gymnasium.Env, recording: Recording, seed: int) -> Episode:
    """One episode, from its seed alone."""
    observation, info = env.reset(seed=seed, options=recording.options)
    world: Any = env.unwrapped
    act = POLICIES[recording.policy](env, np.random.default_rng((seed, 1)))
    frames, actions, rewards, terminated = [observation], [], [], []
    known = truth(env, info, recording.depth)
    prompt, K = info.get("prompt", ""), info.get("K")
    captions = list(world.captions()) if hasattr(world, "captions") else [prompt]
    scene = world.initial_scene if hasattr(world, "initial_scene") else None
    for _ in range(recording.steps):
        action = act()
        observation, reward, over, cut, info = env.step(action)
        frames += shown(observation, info)
        actions.append(to_vector(env.action_space, action))
        rewards.append(reward)
        terminated.append(over)
        known += truth(env, info, recording.depth)
        if over or cut:
            break
    c2w, states, depth = (
        None if len(part) < len(frames) or any(value is None for value in part) else np.stack(part)
        for part in zip(*known, strict=True)
    )
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions).astype(np.float32),
        rewards=np.array(rewards, np.float32),
        terminated=np.array(terminated, bool),
        prompt=prompt,
        seed=seed,
        env_id=recording.env_id,
        captions=captions,
        K=K,
        c2w=None if c2w is None else c2w.astype(np.float32),
        states=None if states is None else states.astype(np.float32),
        depth=None if depth is None else depth.astype(np.float16),
        metadata={
            "scene": scene,
            "policy": recording.policy,
            "versions": _versions(),
            "env": nature(env),
        },
    )


def _summary(episode: Episode) -> dict[str, Any]:
    """The episode's line in `episodes.jsonl`."""
    return {
        "seed": episode.seed,
        "env_id": episode.env_id,
        "prompt": episode.prompt,
        "steps": len(episode.actions),
        "return": float(episode.rewards.sum()),
        "terminated": bool(episode.terminated[-1]),
        "policy": episode.metadata["policy"],
        "versions": episode.metadata["versions"],
    }


_worker: dict[str, Any] = {}


def _start_worker(recording: Recording) -> None:
    _worker["recording"], _worker["env"] = recording, recording.make()


def _record_one(seed: int) -> dict[str, Any]:
    episode = play(_worker["env"], _worker["recording"], seed)
    write_episode(_worker["recording"].out, episode)
    return _summary(episode)


def _made(recording: Recording, seeds: list[int], workers: int) -> Iterator[dict[str, Any]]:
    """Record the seeds in spawned processes (OpenGL does not survive a fork)."""
    # One process per core is the parallelism: more threads inside each only get in each other's way.
    quiet = {name: "1" for name in ("LP_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet["SDL_NO_SIGNAL_HANDLERS"] = "1"  # pygame's SDL would keep a worker from being stopped
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    try:
        pool = multiprocessing.get_context("spawn").Pool(workers, _start_worker, (recording,))
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    with pool:
        yield from pool.imap_unordered(_record_one, seeds, chunksize=1)
        pool.close()  # workers end by themselves
        pool.join()


def record(
    env_id: Annotated[str, tyro.conf.Positional],
    episodes: int,
    out: Path,
    policy: str | None = None,
    steps: int = 48,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    workers: int | None = None,
    held_out: bool = False,
    frames_per_step: int | None = None,
    env_options: dict[str, int | float | bool | str] | None = None,
) -> int:
    """Record episodes of any Gymnasium env; run it again to go on after a kill.

    Frames are the env's observations where these are pictures, else what it renders, resized by averaging
    areas.

    Args:
        env_id: a registered id such as orrery/Room-v0, or module:id.
        episodes: how many episodes the folder shall hold, with seeds seed, seed + 1, ...
        out: folder for ep_SEED.zarr.zip files and episodes.jsonl.
        policy: scripted (reference worlds only) or random; the first that the env has where left out.
        steps: control steps per episode at most.
        seed: the first episode's seed.
        height: picture height in pixels; where left out the env's own, or 64 of what it renders.
        width: picture width in pixels; where left out the env's own, or 64 of what it renders.
        workers: processes; one per core where left out.
        held_out: allow seeds of 900,000,000 and above, which are kept for evaluation; store depth too.
        frames_per_step: video frames that each action is held for (1, 2 or 4; Orrery's own worlds only).
        env_options: keywords of the env itself, such as `width 128 height 128` to render Reacher-v5 faster.
    """
    _check(episodes, steps, policy, seed, held_out, workers)
    recording = Recording(
        env_id,
        str(out),
        policy or "",
        steps,
        height,
        width,
        depth=held_out,
        env_options=env_options or {},
        frames_per_step=frames_per_step,
    )
    with recording.make() as env:
        recording = replace(recording, policy=policy or usual_policy(env))
        picture, _ = env.reset(seed=seed)
        POLICIES[recording.policy](env, np.random.default_rng(seed))  # better known now than in a worker
        frames = getattr(env.unwrapped, "frames_per_step", 1)
        _check_same(out, _kind(env_id, picture.shape[:2], frames, recording.policy))
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".ep_*.partial"):
        if time.time() - leftover.stat().st_mtime > 600:
            leftover.unlink(missing_ok=True)
    seeds = [s for s in range(seed, seed + episodes) if not episode_path(out, s).exists()]
    if not seeds:
        return 0
    count = min(workers or os.cpu_count() or 1, len(seeds))
    with (
        open(out / INDEX_NAME, "a", encoding="utf-8") as index,
        tqdm(total=len(seeds), desc=env_id, unit="ep") as bar,
    ):
        for line in _made(recording, seeds, count):
            index.write(json.dumps(line) + "\n")
            index.flush()
            bar.update()
    return 0


def _check_same(out: Path, asked: str) -> None:
    """Raises ValueError if the folder itself holds episodes of another kind, which would count as made (its
    sub-folders may)."""
    there = min(out.glob(f"ep_*{SUFFIX}"), default=None)
    if there is None:
        return
    episode = read_episode(there)
    policy = episode.metadata["policy"]
    held = _kind(episode.env_id, episode.frames.shape[1:3], episode.frames_per_step, policy)
    if held != asked:
        raise ValueError(
            f"--out {out} holds episodes of {held} ({there.name}), not of {asked}; give another --out, "
            "such as a folder inside or beside it"
        )


def _kind(env_id: str, size: tuple[int, ...], frames_per_step: int, policy: str) -> str:
    where = f"{env_id.split(':')[-1]} of {size[0]}x{size[1]} pixels"
    return f"{where}, frames a step: {frames_per_step}, policy: {policy}"


def _check(
    episodes: int, steps: int, policy: str | None, seed: int, held_out: bool, workers: int | None
) -> None:
    for name, value in (
        ("episodes", episodes),
        ("steps", steps),
        ("workers", 1 if workers is None else workers),
    ):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"--policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    if seed + episodes > HELD_OUT_SEED and not held_out:
        raise ValueError(
            f"seeds from {HELD_OUT_SEED} are kept for evaluation, got seeds up to {seed + episodes - 1}; "
            "use smaller seeds for training, or --held-out for an evaluation set"
        )
