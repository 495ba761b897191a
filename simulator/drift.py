"""`orrery eval --table drift`: what becomes of a rollout that goes on and on, and what its steps cost.

At each step: PSNR to the truth while there is one, then what needs none: sharpness and colour against the
episode's own frames, and motion energy (mean absolute change from frame to frame), since a frozen picture is
sharp, true to its colours and wrong. Past an episode's end its actions are played again from the start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from simulator.clips import Episode
from simulator.metrics import gradient, psnr
from simulator.video import Frames
from simulator.world_model import WorldModel

STEPS = (16, 64, 256)
AROUND = 8  # steps over which motion and cost are averaged
MOST = 16  # episodes of a world


@dataclass(frozen=True)
class Drift:
    """Means over episodes at one step."""

    world: str
    step: int
    episodes: int
    with_truth: int  # episodes that last so long
    psnr: float  # dB; NaN where no episode lasts so long
    copy: float  # of the first frame
    sharpness: float  # of the step's picture over the mean of the episode's frames
    colour: float  # distance of mean colours, grey levels
    motion: float  # over the episode's own
    motion_interval: float  # half width of the 95 % interval
    ms: float  # wall time of a step of a batch


def motion_energy(video: Frames) -> float:
    """Mean absolute change from frame to frame, grey levels."""
    return float(np.abs(np.diff(video.astype(float), axis=0)).mean())


def drifts(
    model: WorldModel, world: str, episodes: list[Episode], steps: tuple[int, ...] = STEPS
) -> list[Drift]:
    """How rollouts of the longest of these episodes fare at each of `steps`."""
    episodes = sorted(episodes, key=lambda e: -len(e.frames))[:MOST]
    kept: dict[int, list[Frames]] = {}  # the last frames up to each step
    cost: dict[int, float] = {}
    first = np.stack([e.frames[0] for e in episodes])
    state, video, _ = model.start(
        [e.prompt or None for e in episodes], world, [e.seed for e in episodes], images=first
    )
    recent, times = [video[:, -1]], []
    for k in tqdm(range(max(steps)), desc=f"drifting in {world}", mininterval=2):
        began = time.perf_counter()
        state, video, *_ = model.step(state, np.stack([e.actions[k % len(e.actions)] for e in episodes]))
        times = [*times[1 - AROUND :], time.perf_counter() - began]
        recent = [*recent[-AROUND:], video[:, -1]]
        if k + 1 in steps:
            kept[k + 1] = list(np.stack(recent, axis=1))
            cost[k + 1] = 1000 * float(np.mean(times))
    factor = model.frames_per_step
    return [row_of(world, step, factor, episodes, kept[step], cost[step]) for step in steps]


def row_of(
    world: str, step: int, factor: int, episodes: list[Episode], clips: list[Frames], ms: float
) -> Drift:
    pairs = [(e, clip) for e, clip in zip(episodes, clips, strict=True)]
    lasting = [(e, clip) for e, clip in pairs if len(e.frames) > step * factor]
    true, still = [], []
    for e, clip in lasting:
        truth = e.frames[step * factor][None]
        true.append(float(psnr(clip[-1:], truth)[0]))
        still.append(float(psnr(e.frames[:1], truth)[0]))
    motion = np.array([motion_energy(clip) / motion_energy(e.frames[::factor]) for e, clip in pairs])
    nothing = float("nan")
    return Drift(
        world,
        step,
        len(pairs),
        len(lasting),
        float(np.mean(true)) if true else nothing,
        float(np.mean(still)) if still else nothing,
        float(np.mean([gradient(clip[-1:]).mean() / gradient(e.frames).mean() for e, clip in pairs])),
        float(
            np.mean(
                [
                    np.linalg.norm(clip[-1].mean(axis=(0, 1)) - e.frames.mean(axis=(0, 1, 2)))
                    for e, clip in pairs
                ]
            )
        ),
        float(motion.mean()),
        float(1.96 * motion.std(ddof=1) / len(motion) ** 0.5) if len(motion) > 1 else nothing,
        ms,
    )


def table(rows: list[Drift]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| world (episodes) | step | PSNR dB (episodes that last) | copy | sharpness | colour drift "
        "| motion energy | ms a step |",
        "|---" * 8 + "|",
    ]
    for r in rows:
        true = f"{r.psnr:.2f} ({r.with_truth})" if r.with_truth else "none lasts"
        lines.append(
            f"| {r.world} ({r.episodes}) | {r.step} | {true} | {'' if np.isnan(r.copy) else f'{r.copy:.2f}'} "
            f"| {r.sharpness:.2f} | {r.colour:.1f} | {r.motion:.2f} ± {r.motion_interval:.2f} | {r.ms:.0f} |"
        )
    return "\n".join(lines)
