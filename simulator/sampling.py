"""One loop that takes a canvas from its noise levels to zero, and the noise that it starts from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simulator.flow import Levels, move, schedule
from simulator.transformer import Prediction

Noisy = Float[Tensor, "b n c y x"]


def row_noise(
    seeds: list[int], position: int, shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b ..."]:
    """Standard normal noise, one row from each seed: a row depends on its own seed and position alone."""
    rows = []
    for seed in seeds:
        state = int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> 1)
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(state)))
    return torch.stack(rows).to(device)


def denoise(
    predict: Callable[[Noisy, Levels], Prediction],
    noisy: Noisy,
    start_level: Levels,
    held: Bool[Tensor, "b n"],
    steps: int,
    power: float = 1.0,
    report: Callable[[], object] = lambda: None,
) -> tuple[Noisy, Prediction]:
    """Euler steps of the flow for all frames that are not held, from their start level to zero.

    Returns the clean latents and the first call's prediction (made while nothing was known yet of the free
    frames).
    """
    level = start_level
    first = None
    for next_level in schedule(steps, power)[1:]:
        prediction = predict(noisy, level)
        first = first or prediction
        target = torch.where(held, level, level.clamp(max=next_level))
        noisy = move(noisy, prediction.data, level, target)
        level = target
        report()
    assert first is not None
    return noisy, first


def guided(with_prompt: Tensor, without: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance in data space (Ho & Salimans 2022, eq. 6)."""
    return without + guidance * (with_prompt - without)
