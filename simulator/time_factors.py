"""`orrery factors`: what compressing time costs and gives, for world models trained with different factors.

A control step is 0.1 s of the world for every factor F; it shows F video frames and costs one latent step. So
fidelity is compared at equal times in the world, speed in control steps and in video frames, and the control
delay is what an action waits for: the wall time until its last frame is there.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from simulator.checkpoint import CONFIG, check_writable, model_folder, read_json, write_json
from simulator.clips import Episode
from simulator.fidelity import STEPS, held_out_episodes, measure
from simulator.metrics import psnr
from simulator.world_model import WorldModel


@dataclass(frozen=True)
class Factor:
    """One world model's line of the table."""

    checkpoint: str
    factor: int
    world: str
    minutes: float  # of training, tokenizer and transformer; NaN where the checkpoint does not say
    tokenizer_psnr: float  # dB, all frames of the held-out clips
    gains: tuple[float, ...]  # dB over copying the first frame, after STEPS control steps
    steps_per_s: float  # control steps of one row, decoded
    frames_per_s: float  # video frames
    delay_ms: float  # wall time from an action to its last frame


class Player:
    """A rollout that goes on from turn to turn."""

    def __init__(self, model: WorldModel, world: str):
        self._model = model
        self._actions = np.zeros((1, model.action_size(world)), np.float32)
        self._state, *_ = model.start(["a red ball"], world, [0])
        self.play(model.transformer.config.window)

    def play(self, steps: int) -> float:
        """Seconds for one control step, mean of so many."""
        start = time.perf_counter()
        for _ in range(steps):
            self._state, *_ = self._model.step(self._state, self._actions)
        return (time.perf_counter() - start) / steps


def tokenizer_psnr(model: WorldModel, episodes: Sequence[Episode]) -> float:
    """Of all frames of the clips that fidelity is measured on."""
    scores = []
    for episode in episodes:
        truth = episode.frames[: 1 + max(STEPS) * model.frames_per_step]
        scores.append(psnr(model.rebuilt(truth[None])[0], truth).mean())
    return float(np.mean(scores))


def trained_minutes(checkpoint: str) -> float:
    """Of the tokenizer and the transformer together, as the checkpoint says."""
    folder = model_folder(checkpoint)
    made = read_json(folder / CONFIG).get("made", {})
    return float(made.get("minutes", np.nan)) + float(made.get("tokenizer", {}).get("minutes", np.nan))


def table(rows: Sequence[Factor]) -> str:
    """The lines as a Markdown table."""
    times = " | ".join(f"gain at {0.1 * step:.1f} s" for step in STEPS)
    lines = [
        f"| factor | world | trained min | tokenizer dB | {times} | control steps/s | video frames/s "
        "| control delay ms |",
        "|---" * (7 + len(STEPS)) + "|",
    ]
    for row in rows:
        gains = " | ".join(f"{gain:+.2f}" for gain in row.gains)
        lines.append(
            f"| {row.factor} | {row.world} | {row.minutes:.1f} | {row.tokenizer_psnr:.1f} | {gains} "
            f"| {row.steps_per_s:.1f} | {row.frames_per_s:.1f} | {row.delay_ms:.0f} |"
        )
    return "\n".join(lines)


def factors(
    checkpoints: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(help="folders of `orrery train world`, one for each time factor"),
    ],
    data: Annotated[
        Path,
        tyro.conf.arg(help="folder with held-out episodes of every factor (`--frames-per-step` of record)"),
    ],
    out: Annotated[Path | None, tyro.conf.arg(help="also write the table as JSON to this file")] = None,
    turns: Annotated[int, tyro.conf.arg(help="how often each model has its turn; medians are printed")] = 5,
    steps: Annotated[int, tyro.conf.arg(help="control steps in one turn")] = 20,
    device: str = "cpu",
) -> int:
    """Compare world models of different time factors: fidelity at equal time, speed, control delay."""
    for name, value in (("--turns", turns), ("--steps", steps), ("checkpoints", len(checkpoints))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if out is not None:
        check_writable(out.parent)
    models = [WorldModel.load(checkpoint, device) for checkpoint in checkpoints]
    held_out = [held_out_episodes(model, data) for model in models]
    found = [measure(model, data)[0] for model in models]
    before = os.getloadavg()[0]
    players = [Player(model, sorted(episodes)[0]) for model, episodes in zip(models, held_out, strict=True)]
    seconds = list(zip(*([player.play(steps) for player in players] for _ in range(turns)), strict=True))
    rows = []
    for k, model in enumerate(models):
        step_s, factor = statistics.median(seconds[k]), model.frames_per_step
        for world, episodes in sorted(held_out[k].items()):
            gains = tuple(row.psnr - row.copy for row in found[k] if row.world == world)
            quality = (tokenizer_psnr(model, episodes), gains)
            speed = (1 / step_s, factor / step_s, 1000 * step_s)
            minutes = trained_minutes(checkpoints[k])
            rows.append(Factor(checkpoints[k], factor, world, minutes, *quality, *speed))
    print(table(rows))
    print(
        f"\nin the world an action is held for {1000 * models[0].time_step_s:.0f} ms; 1 row, "
        f"{torch.get_num_threads()} thread(s), load {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    )
    if out is not None:
        write_json(out, [asdict(row) for row in rows])
    return 0
