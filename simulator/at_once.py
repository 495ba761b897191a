"""Canvases made at once: every frame in sight of all others (bidirectional attention)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simulator.canvas import Canvas
from simulator.conditions import Conditioner
from simulator.flow import Levels, add_noise, back
from simulator.sampling import Noisy, denoise, guided, row_noise
from simulator.tokenizer import Shown, Tokenizer
from simulator.transformer import Conditions, Prediction, Transformer
from simulator.video import Frames, to_uint8, to_unit

DETERMINED_POWER = 3.0  # spacing of a canvas' noise levels where little is open: dense near clean
TOGETHER = 16  # pictures that are made in one batch
AGAIN_FROM = 0.65  # noise level from which steps that are led are made twice, but for the last one
AGAIN = 1 << 32  # position of their noise, beyond those of any rollout


class Lead(NamedTuple):
    """What moves predicted data before the sampler goes on to these noise levels."""

    moved: Callable[[Noisy, Levels], Noisy]
    rows: Bool[Tensor, " b"]  # which it moves
    seeds: Sequence[int]  # of each row: of the noise for steps that are made twice


def frames_at_once(
    tokenizer: Tokenizer,
    transformer: Transformer,
    conditioner: Conditioner,
    canvas: Canvas,
    seed: int,
    steps: int,
    power: float,
    told: bool,
    report: Callable[[], object],
    lead: Lead | None = None,
) -> Frames:
    """A canvas' frames. power, told, report, lead: see `made_at_once`."""
    y, x = (side // tokenizer.config.space_factor for side in canvas.frames.shape[1:3])
    start = torch.from_numpy(canvas.start_level).float().to(conditioner.device)[None]
    data = noise = row_noise([seed], 0, (start.shape[1], tokenizer.config.channels, y, x), start.device)
    known = to_unit(canvas.frames[None], start.device)
    if bool((start < 1).any()):
        data = tokenizer.encode(known)
    noisy, conditions = add_noise(data, noise, start), conditioner.of_canvas(canvas, y, x)
    how = (steps, canvas.guidance, power, told, canvas.closed, report, lead)
    clean, _ = made_at_once(transformer, noisy, start, conditions, *how)
    held = torch.from_numpy(canvas.held).to(start.device)[None]
    video = to_uint8(tokenizer.decode(clean, Shown(known, held) if canvas.held.any() else None))[0]
    if canvas.closed:
        video[0] = video[-1]  # as decoded in view of the frames before it
    video[canvas.held_frames] = canvas.frames[canvas.held_frames]
    return video


def pictures_at_once(
    transformer: Transformer,
    noise: Noisy,
    conditions: Conditions,
    steps: int,
    guidance: Float[Tensor, " b"],
    told: bool,
    lead_of: Callable[[slice], Lead | None] = lambda rows: None,
) -> tuple[Noisy, Float[np.ndarray, " b"]]:
    """Single frames from noise alone, in batches: clean latents, and the mean squared error that the network
    expects of its first guess at each. told, and the lead of some rows: see `made_at_once`."""
    latents, errors = [], []
    for at in range(0, len(noise), TOGETHER):
        here = slice(at, at + TOGETHER)
        part, own = noise[here], Conditions(*(each[here] for each in conditions))
        level, pull = torch.ones(len(part), 1, device=part.device), guidance[here, None, None, None, None]
        clean, first = made_at_once(transformer, part, level, own, steps, pull, told=told, lead=lead_of(here))
        latents.append(clean)
        errors.append(first.expected_error[: len(part)].numpy())
    return torch.cat(latents), np.concatenate(errors)


def made_at_once(
    transformer: Transformer,
    noisy: Noisy,
    start_level: Levels,
    conditions: Conditions,
    steps: int,
    guidance: float | Float[Tensor, "b 1 1 1 1"] = 1.0,
    power: float = 1.0,
    told: bool = False,
    closed: bool = False,
    report: Callable[[], object] = lambda: None,
    lead: Lead | None = None,
) -> tuple[Noisy, Prediction]:
    """Whole clips, every frame in sight of all others: clean latents, and the first call's prediction.

    told: the network is told how far each step goes (`WorldModelConfig.large_steps`). closed, report: see
    `denoise`. lead: what moves each prediction on. Where it does, each later step but the last is taken back
    and made once more, so that the network agrees with what the lead made of it (Bansal et al. 2023,
    section 3.3).
    """
    pulls = bool((torch.as_tensor(guidance) != 1).any())
    b, guide = len(noisy), pulls and bool(conditions.text_known.any())
    if guide:
        unprompted = conditions._replace(text_known=torch.zeros_like(conditions.text_known))
        conditions = Conditions(*(torch.cat(pair) for pair in zip(conditions, unprompted, strict=True)))
    rows = 2 if guide else 1

    def predict(noisy: Noisy, level: Levels, next_level: Levels) -> Prediction:
        goes_to = next_level.repeat(rows, 1) if told else None
        found = transformer(
            noisy.repeat(rows, 1, 1, 1, 1), level.repeat(rows, 1), conditions, next_level=goes_to
        )
        data = guided(found.data[:b], found.data[b:], guidance) if guide else found.data
        return found._replace(data=lead.moved(data, next_level) if lead else data)

    positions = count(AGAIN)

    def again(noisy: Noisy, arrived: Noisy, level: Levels, next_level: Levels) -> Noisy | None:
        if lead is None or level.max() > AGAIN_FROM or next_level.min() == 0:
            return None
        noise = row_noise(lead.seeds, next(positions), noisy.shape[1:], noisy.device)
        return torch.where(
            lead.rows[:, None, None, None, None], back(arrived, noise, next_level, level), noisy
        )

    clean, first, _ = denoise(predict, noisy, start_level, steps, power, closed, report, again)
    return clean, first
