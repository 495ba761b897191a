"""Canvases made at once: every frame in sight of all others (bidirectional attention)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from simulator.canvas import Canvas
from simulator.conditions import Conditioner
from simulator.flow import Levels, add_noise
from simulator.sampling import Noisy, denoise, guided, row_noise
from simulator.tokenizer import Tokenizer
from simulator.transformer import Conditions, Prediction, Transformer
from simulator.video import to_uint8, to_unit

DETERMINED_POWER = 3.0  # spacing of a canvas' noise levels where little is open: dense near clean


def frames_at_once(
    tokenizer: Tokenizer,
    transformer: Transformer,
    conditioner: Conditioner,
    canvas: Canvas,
    seeds: Sequence[int],
    steps: int,
    told: bool,
    report: Callable[[], object],
) -> UInt8[np.ndarray, "b t h w 3"]:
    """A canvas' frames, once from each seed. told, report: see `made_at_once`."""
    y, x = (side // tokenizer.config.space_factor for side in canvas.frames.shape[1:3])
    b, n, device = len(seeds), len(canvas.start_level), conditioner.device
    start = torch.from_numpy(canvas.start_level).to(device).repeat(b, 1)
    data = noise = row_noise(list(seeds), 0, (n, tokenizer.config.channels, y, x), device)
    if bool((start < 1).any()):
        data = tokenizer.encode(to_unit(canvas.frames[None], device))
    conditions = Conditions(*(torch.cat([part] * b) for part in conditioner.of_canvas(canvas, y, x)))
    how = (canvas.guidance, DETERMINED_POWER if canvas.determined else 1.0, told, canvas.closed, report)
    clean, _ = made_at_once(transformer, add_noise(data, noise, start), start, conditions, steps, *how)
    video = to_uint8(tokenizer.decode(clean))
    if canvas.closed:
        video[:, 0] = video[:, -1]  # as decoded in view of the frames before it
    video[:, canvas.held_frames] = canvas.frames[canvas.held_frames]
    return video


def made_at_once(
    transformer: Transformer,
    noisy: Noisy,
    start_level: Levels,
    conditions: Conditions,
    steps: int,
    guidance: float = 1.0,
    power: float = 1.0,
    told: bool = False,
    closed: bool = False,
    report: Callable[[], object] = lambda: None,
) -> tuple[Noisy, Prediction]:
    """Whole clips, every frame in sight of all others: clean latents, and the first call's prediction.

    told: the network is told how far each step goes (`TransformerConfig`'s large steps). closed, report: see
    `denoise`.
    """
    b, guide = len(noisy), guidance != 1 and bool(conditions.text_known.any())
    if guide:
        unprompted = conditions._replace(text_known=torch.zeros_like(conditions.text_known))
        conditions = Conditions(*(torch.cat(pair) for pair in zip(conditions, unprompted, strict=True)))
    rows = 2 if guide else 1

    def predict(noisy: Noisy, level: Levels, next_level: Levels) -> Prediction:
        goes_to = next_level.repeat(rows, 1) if told else None
        found = transformer(
            noisy.repeat(rows, 1, 1, 1, 1), level.repeat(rows, 1), conditions, next_level=goes_to
        )
        return found._replace(data=guided(found.data[:b], found.data[b:], guidance)) if guide else found

    clean, first, _ = denoise(predict, noisy, start_level, steps, power, closed, report)
    return clean, first
