"""Products in bf16 where the processor multiplies that faster than fp32."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn

from simulator.conv import Conv
from simulator.detail import GridConv

Method = TypeVar("Method", bound=Callable[..., Any])
Network = TypeVar("Network", bound=nn.Module)


def fast_precision(device: torch.device, wanted: bool = True) -> AbstractContextManager:
    """bf16 autocast where it is `wanted` and faster; elsewhere nothing changes."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and _faster(device))


def rounded(network: Network, device: torch.device) -> Network:
    """A copy whose products have their weights in bf16 already, where `fast_precision` would round them for
    every use. It computes the same there, and neither runs elsewhere nor trains."""
    network = copy.deepcopy(network)
    for part in network.modules():
        if _faster(device) and isinstance(part, (nn.Linear, Conv, GridConv)):
            part.bfloat16()
    return network


def inference(method: Method) -> Method:
    """A method that keeps no gradients, of something that has a `device` and says whether it is `in_bf16`."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        with torch.inference_mode(), fast_precision(self.device, self.in_bf16):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def _faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
