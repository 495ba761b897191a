"""Attention between the tokens of frames, and where they stand: plain products, rotary positions, windows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

FRAMES_AT_A_TIME = 4  # that ask, under a window


class Sight(NamedTuple):
    """What frames that ask may look at: all, or less."""

    frames: int = 1  # that ask
    window: int | None = None  # each looks at itself and the window - 1 before; none is cached
    visible: Bool[Tensor, "b n m"] | None = None  # frame m to frame n, cached ones first


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Channels of a head that carry time, height and width."""
    return head_width // 2, head_width // 4, head_width // 4


def rope(positions: Float[Tensor, "s axes"], widths: tuple[int, ...]) -> Float[Tensor, "s k 2"]:
    """Axial rotary embedding (Su et al. 2021): cosine and sine for each pair of channels, axis by axis."""
    angles = []
    for axis, width in enumerate(widths):
        pairs = width // 2
        frequencies = 100.0 ** (-torch.arange(pairs, device=positions.device) / pairs)
        angles.append(positions[:, axis, None] * frequencies)
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def rotate(x: Float[Tensor, "*b s k"], rotation: Float[Tensor, "s k2 2"]) -> Float[Tensor, "*b s k"]:
    first, second = x.chunk(2, dim=-1)
    cosine, sine = rotation[..., 0].to(x.dtype), rotation[..., 1].to(x.dtype)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def attend(
    queries: Float[Tensor, "b h s k"],
    keys: Float[Tensor, "b g m k"],
    values: Float[Tensor, "b g m k"],
    allowed: Bool[Tensor, "#b 1 s m"] | None,
) -> Float[Tensor, "b h s k"]:
    """Grouped-query attention. Plain products: on a CPU the fused kernel's backward is slow."""
    length = queries.shape[2]
    queries = rearrange(queries * keys.shape[-1] ** -0.5, "b (g r) s k -> b g (r s) k", g=keys.shape[1])
    scores = queries @ rearrange(keys, "b g m k -> b g k m")
    if allowed is not None:
        bias = torch.zeros(allowed.shape, dtype=scores.dtype, device=scores.device)
        bias = bias.masked_fill(~allowed, float("-inf"))
        scores = scores + repeat(bias, "b 1 s m -> b 1 (r s) m", r=queries.shape[2] // length)
    mixed = scores.softmax(dim=-1).to(values.dtype) @ values
    return rearrange(mixed, "b g (r s) k -> b (g r) s k", s=length)


def attend_frames(
    queries: Float[Tensor, "b h s k"],
    keys: Float[Tensor, "b g m k"],
    values: Float[Tensor, "b g m k"],
    sight: Sight,
) -> Float[Tensor, "b h s k"]:
    """Attention between the tokens of several frames; the keys may begin with frames that do not ask.

    Under a window a few frames ask at a time, and only those that they may see: the scores then stay in a
    processor's cache, and most of those that a mask would throw away are not computed.
    """
    frames, window, visible = sight
    allowed = None if visible is None else _of_tokens(visible, keys.shape[2] // visible.shape[2])
    if window is None:
        return attend(queries, keys, values, allowed)
    s, parts = queries.shape[2] // frames, []
    for first in range(0, frames, FRAMES_AT_A_TIME):
        last, oldest = min(first + FRAMES_AT_A_TIME, frames), max(0, first - window + 1)
        index = torch.arange(oldest, last, device=keys.device)
        back = index[first - oldest :, None] - index
        asking, asked = slice(first * s, last * s), slice(oldest * s, last * s)
        parts.append(
            attend(
                queries[:, :, asking],
                keys[:, :, asked],
                values[:, :, asked],
                _of_tokens(((back >= 0) & (back < window))[None], s),
            )
        )
    return torch.cat(parts, dim=2)


def _of_tokens(frames: Bool[Tensor, "b n m"], s: int) -> Bool[Tensor, "b 1 ns ms"]:
    return repeat(frames, "b n m -> b 1 (n s) (m r)", s=s, r=s)
