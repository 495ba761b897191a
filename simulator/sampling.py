"""One loop that takes a canvas from its noise levels to zero, and the noise that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from simulator.flow import Levels, move, schedule
from simulator.transformer import Prediction

Noisy = Float[Tensor, "b n c y x"]


def row_noise(
    seeds: Sequence[int], position: int, shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b ..."]:
    """Standard normal noise, one row from each seed: a row depends on its own seed and position alone."""
    rows = []
    for seed in seeds:
        state = int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> 1)
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(state)))
    return torch.stack(rows).to(device)


def denoise(
    predict: Callable[[Noisy, Levels, Levels], Prediction],
    noisy: Noisy,
    start_level: Levels,
    steps: int,
    power: float = 1.0,
    closed: bool = False,
    report: Callable[[], object] = lambda: None,
    again: Callable[[Noisy, Noisy, Levels, Levels], Noisy | None] = lambda *_: None,
) -> tuple[Noisy, Prediction, Prediction]:
    """Euler steps of the flow for all frames, each from its start level to zero; frames at zero stand still.

    predict: noisy latents, their levels, the levels they go to -> prediction. closed: the last frame is the
    first (their noise is the same then, and both follow the mean of their predictions). again: what a step
    came from, what it came to, and the levels of both -> what it is to come from when it is made once more,
    or None.
    Returns the clean latents, the first call's prediction (made while nothing was known yet of the free
    frames) and the last call's.
    """
    level, calls = start_level, []
    if closed:
        noisy = torch.cat([noisy[:, :-1], noisy[:, :1]], dim=1)

    def stepped(noisy: Noisy, next_level: Levels) -> Noisy:
        calls.append(predict(noisy, level, next_level))
        data = calls[-1].data
        if closed:
            both = (data[:, :1] + data[:, -1:]) / 2
            data = torch.cat([both, data[:, 1:-1], both], dim=1)
        return move(noisy, data, level, next_level)

    for share in schedule(steps, power)[1:]:
        next_level = start_level * share
        arrived = stepped(noisy, next_level)
        if (once_more := again(noisy, arrived, level, next_level)) is not None:
            arrived = stepped(once_more, next_level)
        noisy, level = arrived, next_level
        report()
    return noisy, calls[0], calls[-1]


def guided(with_prompt: Noisy, without: Noisy, guidance: float | Float[Tensor, "b 1 1 1 1"]) -> Noisy:
    """Classifier-free guidance in data space (Ho & Salimans 2022, eq. 6)."""
    return without + guidance * (with_prompt - without)
