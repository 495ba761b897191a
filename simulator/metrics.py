"""How close pictures are: PSNR, SSIM and sharpness of uint8 RGB, each one number a picture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, UInt8

Pictures = UInt8[np.ndarray, "n h w 3"]


def psnr(
    pictures: Pictures, truth: Pictures, where: Bool[np.ndarray, "n h w"] | None = None
) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio in dB on [0, 1] RGB; on the pixels `where`, NaN for a picture that has
    none."""
    error = ((pictures / 255.0 - truth / 255.0) ** 2).mean(axis=-1)
    weight = np.ones(error.shape) if where is None else where.astype(float)
    count = weight.sum(axis=(1, 2))
    mean = (error * weight).sum(axis=(1, 2)) / np.where(count > 0, count, np.nan)
    return -10 * np.log10(np.maximum(mean, 1e-10))


def ssim(pictures: Pictures, truth: Pictures) -> Float[np.ndarray, " n"]:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, std 1.5, mean over places and
    channels."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = torch.outer(line, line)[None, None] / line.sum() ** 2

    def channels(frames: Pictures) -> torch.Tensor:
        return rearrange(torch.from_numpy(frames / 255.0), "n h w c -> (n c) 1 h w")

    x, y = channels(pictures), channels(truth)
    mean_x, mean_y = F.conv2d(x, kernel), F.conv2d(y, kernel)
    var_x, var_y = F.conv2d(x * x, kernel) - mean_x**2, F.conv2d(y * y, kernel) - mean_y**2
    covariance = F.conv2d(x * y, kernel) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = (
        (2 * mean_x * mean_y + c1)
        * (2 * covariance + c2)
        / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    return rearrange(value, "(n c) 1 h w -> n (c h w)", c=3).mean(dim=1).numpy()


def gradient(pictures: Pictures) -> Float[np.ndarray, " n"]:
    """Mean magnitude of the grey picture's gradient, per pixel, on [0, 1]."""
    grey = pictures.mean(axis=-1) / 255.0
    down, right = np.diff(grey, axis=1)[:, :, :-1], np.diff(grey, axis=2)[:, :-1]
    return np.hypot(down, right).mean(axis=(1, 2))


def sharpness(pictures: Pictures, truth: Pictures) -> Float[np.ndarray, " n"]:
    """Gradient magnitude relative to the truth's: 1 is as sharp, below is blurred."""
    return gradient(pictures) / np.maximum(gradient(truth), 1e-9)
