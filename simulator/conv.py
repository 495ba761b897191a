"""The convolutions that the tokenizer is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Conv(nn.Module):
    """A square convolution whose kernel is stored as a matrix, so that Muon can orthogonalise it."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1):
        super().__init__()
        self.inputs, self.size, self.stride = inputs, size, stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs * size * size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=(inputs * size * size) ** -0.5)

    def forward(self, x: Float[Tensor, "b i y x"]) -> Float[Tensor, "b o y2 x2"]:
        kernel = rearrange(self.weight, "o (i k l) -> o i k l", i=self.inputs, k=self.size)
        return F.conv2d(x, kernel, self.bias, stride=self.stride, padding=self.size // 2)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.widen, self.narrow = Conv(width, width), Conv(width, width)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        return x + self.narrow(F.silu(self.widen(self.norm(x))))
