"""What a rollout remembers of the frames before: keys and values of the layers that look at all frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from simulator.attention import axis_widths, rope, rotate
from simulator.flow import Levels


class KeysValues(NamedTuple):
    """Keys and values of one full layer, rotated to their frames' positions."""

    keys: Float[Tensor, "b g m k"]
    values: Float[Tensor, "b g m k"]


class Memory(NamedTuple):
    """What a later frame needs of those before it."""

    layers: list[KeysValues]  # of the full layers, oldest frame first
    latents: Float[Tensor, "b 1 c y x"]  # of the frame just before
    noise_level: Float[Tensor, "b 1"]  # of that frame


def first_frame_of(memory: Memory, latents: Float[Tensor, "b n c y x"], noise_level: Levels) -> Memory:
    """The memory of the first of the frames that were given alone."""

    def own(values: Tensor) -> Tensor:
        return values[:, :, : values.shape[2] // latents.shape[1]]

    layers = [KeysValues(own(layer.keys), own(layer.values)) for layer in memory.layers]
    return Memory(layers, latents[:, :1], noise_level[:, :1])


def extended(past: Memory, new: Memory, window: int) -> Memory:
    """The memory with one more frame, of which only what the next frame may see is kept."""
    keep = (window - 1) * new.layers[0].keys.shape[2]
    layers = [
        KeysValues(*(torch.cat(pair, dim=2)[:, :, -keep:] for pair in zip(old, fresh, strict=True)))
        for old, fresh in zip(past.layers, new.layers, strict=True)
    ]
    return new._replace(layers=layers)


def shifted(memory: Memory, frames: int) -> Memory:
    """The memory as if its frames stood so many frames later: keys turn about the axis of time."""
    if not frames:
        return memory
    keys = memory.layers[0].keys
    later = torch.tensor([[frames, 0, 0]], dtype=torch.float32, device=keys.device)
    turn = rope(later, axis_widths(keys.shape[-1])).expand(keys.shape[2], -1, -1)
    return memory._replace(layers=[layer._replace(keys=rotate(layer.keys, turn)) for layer in memory.layers])


def padded(memory: Memory, wanted: int) -> Memory:
    """The memory with nothing before its first frame, so that it seems `wanted` tokens long."""
    more = wanted - memory.layers[0].keys.shape[2]
    if not more:
        return memory
    layers = [KeysValues(*(pad(values, (0, 0, more, 0)) for values in layer)) for layer in memory.layers]
    return memory._replace(layers=layers)
