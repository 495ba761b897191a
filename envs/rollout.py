"""`orrery rollout`: run a policy in a reference world or in the dream; videos to watch and returns to
compare.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro
from tqdm import tqdm

from envs.film import make_filmed
from envs.policies import POLICIES
from envs.record import shown
from simulator.video import write_video

DREAM = "Dream-v0"
ENLARGEMENT = 4


def _make(
    env_id: str,
    checkpoint: str | None,
    world: str | None,
    height: int | None,
    width: int | None,
    frames_per_step: int | None,
    prompt: str | None,
) -> Any:
    """The env, with the keywords that were given."""
    keywords: dict[str, Any] = {"checkpoint": checkpoint, "world": world, "frames_per_step": frames_per_step}
    keywords = {name: value for name, value in keywords.items() if value is not None}
    if not env_id.endswith(DREAM):
        for name in ("checkpoint", "world"):
            if name in keywords:
                raise ValueError(f"--{name} is for orrery/Dream-v0 only, got it with {env_id}; leave it out")
        if prompt is not None and not env_id.removeprefix("envs:").startswith("orrery/"):
            raise ValueError(f"--prompt is for Orrery's own worlds and dreams, got it with {env_id}")
    elif frames_per_step is not None:
        raise ValueError("--frames-per-step of a dream is its checkpoint's time factor; leave it out")
    return make_filmed(env_id, keywords, height, width)


def _episode(
    env: gymnasium.Env, policy: str, seed: int, options: dict | None, steps: int | None
) -> dict[str, Any]:
    """One episode: its frames (t h w 3) and what came of it."""
    observation, info = env.reset(seed=seed, options=options)
    act = POLICIES[policy](env, np.random.default_rng((seed, 1)))
    frames, rewards, over, cut = [observation], [], False, False
    while not (over or cut) and (steps is None or len(rewards) < steps):
        observation, reward, over, cut, info = env.step(act())
        frames += shown(observation, info)
        rewards.append(float(reward))
    return {
        "frames": np.stack(frames),
        "seed": seed,
        "prompt": info.get("prompt", ""),
        "steps": len(rewards),
        "return": float(np.sum(rewards)),
        "terminated": bool(over),
        "truncated": bool(cut),
    }


def rollout(
    env_id: Annotated[str, tyro.conf.Positional],
    policy: str = "random",
    episodes: int = 1,
    out: Path = Path("rollouts"),
    checkpoint: str | None = None,
    world: str | None = None,
    prompt: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    frames_per_step: int | None = None,
) -> int:
    """Run a policy; writes one mp4 an episode, enlarged four times, and returns.json.

    Args:
        env_id: a registered id such as orrery/Room-v0 or orrery/Dream-v0.
        policy: random or scripted (scripted needs a reference world, or Orbit).
        episodes: how many, with seeds seed, seed + 1, ...
        out: folder for the videos and returns.json.
        checkpoint: the dream's weights: default, a folder, or models:/NAME/VERSION.
        world: which world to dream: Room, Orbit, Lab, or one that the checkpoint was trained on.
        prompt: what is to be seen; drawn from the seed where left out.
        steps: control steps per episode at most; the world's own limit where left out.
        seed: the first episode's seed.
        height: picture height in pixels.
        width: picture width in pixels.
        frames_per_step: video frames of a reference world's control step (1, 2 or 4).
    """
    for name, value in (("episodes", episodes), ("steps", 1 if steps is None else steps)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    if policy not in POLICIES:
        raise ValueError(f"--policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    options = None if prompt is None else {"prompt": prompt}
    results = []
    with _make(env_id, checkpoint, world, height, width, frames_per_step, prompt) as env:
        fps = env.metadata.get("render_fps", 10) * getattr(env.unwrapped, "frames_per_step", 1)
        for number in tqdm(range(seed, seed + episodes), desc=env_id, unit="ep"):
            result = _episode(env, policy, number, options, steps)
            name = f"episode_{number:09d}.mp4"
            write_video(out / name, result.pop("frames"), fps, scale=ENLARGEMENT)
            results.append({**result, "video": name})
    returns = [result["return"] for result in results]
    summary = {
        "env_id": env_id,
        "policy": policy,
        "mean_return": float(np.mean(returns)),
        "episodes": results,
    }
    partial = out / f".returns.json.{os.getpid()}.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, out / "returns.json")
    print(f"mean return {summary['mean_return']:.3f} over {len(returns)} episodes in {out}")
    return 0
