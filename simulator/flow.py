"""The noise path, known to this file alone: `x = (1 - noise_level) * data + noise_level * noise` (rectified
flow, Liu et al. 2022), so `velocity = noise - data`. The network predicts data (x-prediction); what a solver
needs is derived. Noise levels are one per frame, in [0, 1]: 0 is clean, 1 is pure noise."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Levels = Float[Tensor, "b n"]
Frames = Float[Tensor, "b n c y x"]


def per_frame(noise_level: Levels) -> Float[Tensor, "b n 1 1 1"]:
    return rearrange(noise_level, "b n -> b n 1 1 1")


def add_noise(data: Frames, noise: Frames, noise_level: Levels) -> Frames:
    """Data at its noise level."""
    level = per_frame(noise_level)
    return (1 - level) * data + level * noise


def velocity(noisy: Frames, data: Frames, noise_level: Levels) -> Frames:
    """d noisy / d noise_level along the path through `noisy` and `data`; zero for frames held at level 0."""
    level = per_frame(noise_level)
    return torch.where(level > 0, (noisy - data) / level.clamp_min(1e-6), torch.zeros_like(noisy))


def move(noisy: Frames, data: Frames, noise_level: Levels, next_level: Levels) -> Frames:
    """One Euler step of the flow to `next_level`. A frame whose level does not change does not move."""
    step = per_frame(next_level - noise_level)
    return noisy + step * velocity(noisy, data, noise_level)


def back(arrived: Frames, noise: Frames, noise_level: Levels, earlier: Levels) -> Frames:
    """Noisy data taken back, with fresh noise, to a level that is noisier: as the path's noisy data there."""
    kept = (1 - earlier) / (1 - noise_level)
    added = (earlier**2 - (kept * noise_level) ** 2).clamp_min(0).sqrt()
    return per_frame(kept) * arrived + per_frame(added) * noise


def towards(noisy: Frames, arrived: Frames, noise_level: Levels, next_level: Levels) -> Frames:
    """The data by which `move` takes `noisy` to `arrived`; for levels that fall, the inverse of `move`."""
    level, step = per_frame(noise_level), per_frame(noise_level - next_level)
    return torch.where(step > 0, noisy - level * (noisy - arrived) / step.clamp_min(1e-6), noisy)


def loss_weight(noise_level: Levels, least: float = 0.1) -> Levels:
    """Ramp weight of the loss in data space, `least` at pure noise (Dreamer 4, Hafner et al. 2025, eq. 8,
    where tau = 1 - noise_level)."""
    return 1 - (1 - least) * noise_level


def schedule(steps: int, power: float = 1.0) -> list[float]:
    """Noise levels that a sampler visits, from 1 to 0: evenly spaced to a power (above 1: denser near 0)."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    return [(1 - k / steps) ** power for k in range(steps)] + [0.0]
