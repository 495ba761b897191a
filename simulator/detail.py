"""Convolutions at the latents' own resolution, before and after the transformer's layers.

A patch token stands for several latents, so what moves by less than a patch is hard to say in tokens. Here
the noisy frame and the frame before are looked at latent by latent (a U-Net whose middle is the transformer:
Hoogeboom et al. 2023), modulated by the frame's action and noise level. At the end every latent is also given
a linear kernel over the frame before, mixed from a bank by what stands there (dynamic filters: Jia et al.
2016; for video Finn et al. 2016): a shift of the picture is nearly such a kernel in the tokenizer's latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

KERNEL = 5  # latents along a side that the first look and the bank's kernels span
BANK = 256  # kernels
FEW = 256  # latents up to which a product is sooner done than a convolution is set up
Grid = Float[Tensor, "bn y x w"]


class GridConv(nn.Module):
    """A square convolution whose kernel is a matrix, as `conv.Conv`, but over channels that lie
    together, and in the kernel too: then neither it nor the product for few latents copies a weight."""

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(outputs, size * size * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=(inputs * size * size) ** -0.5)

    def forward(self, grid: Float[Tensor, "b y x i"]) -> Float[Tensor, "b y x o"]:
        size, beside = self.size, self.size // 2
        if not torch.is_grad_enabled() and grid.shape[:3].numel() <= FEW:
            windows = F.pad(grid, (0, 0) + (beside,) * 4).unfold(1, size, 1).unfold(2, size, 1)
            return F.linear(rearrange(windows, "b y x i k l -> b y x (k l i)"), self.weight, self.bias)
        kernel = rearrange(self.weight, "o (k l i) -> o i k l", k=size, l=size)
        return F.conv2d(grid.permute(0, 3, 1, 2), kernel, self.bias, padding=beside).permute(0, 2, 3, 1)


class Detail(nn.Module):
    """As it is made it adds nothing: not to the tokens, not to the prediction."""

    def __init__(self, channels: int, patch: int, token_width: int, width: int, blocks: int):
        super().__init__()
        self.patch, self.blocks = patch, blocks  # as many before the layers as after them
        self.look = GridConv(2 * channels, width, KERNEL)
        self.told = nn.ModuleList(nn.Linear(token_width, 2 * blocks * width) for _ in ("before", "after"))
        self.widen = nn.ModuleList(GridConv(width, width) for _ in range(2 * blocks))
        self.narrow = nn.ModuleList(GridConv(width, width) for _ in range(2 * blocks))
        self.to_tokens = nn.Linear(width * patch**2, token_width, bias=False)
        self.from_tokens = nn.Linear(token_width, width * patch**2)
        self.bank = GridConv(channels, BANK, KERNEL)
        self.mix = nn.Linear(width, BANK)
        self.carried = nn.Linear(BANK, channels, bias=False)
        self.drawn = GridConv(width, channels)
        for name, weights in self.named_parameters():
            if name.startswith(("narrow", "to_tokens", "carried", "drawn")) and name.endswith("weight"):
                nn.init.zeros_(weights)

    @property
    def drawing(self) -> list[nn.Parameter]:
        """What `after` alone uses."""
        mine = range(self.blocks, 2 * self.blocks)
        blocks = (block for k in mine for block in (self.widen[k], self.narrow[k]))
        parts = (self.told[1], *blocks, self.from_tokens, self.bank, self.mix, self.carried, self.drawn)
        return [parameter for part in parts for parameter in part.parameters()]

    def before(
        self,
        noisy: Float[Tensor, "b n c y x"],
        previous: Float[Tensor, "b n c y x"],
        condition: Float[Tensor, "b n d"],
    ) -> tuple[Float[Tensor, "b n s d"], Grid]:
        """What tokens get to know of their latents, and what `after` goes on from."""
        p, seen = self.patch, torch.cat([noisy, previous], dim=2)
        grid = self._blocks(self.look(_grid(seen)), condition, 0)
        patches = rearrange(grid, "(b n) (y p) (x q) w -> b n (y x) (w p q)", b=len(noisy), p=p, q=p)
        return self.to_tokens(patches), grid

    def after(
        self,
        grid: Grid,
        tokens: Float[Tensor, "b n s d"],
        previous: Float[Tensor, "b n c y x"],
        condition: Float[Tensor, "b n d"],
    ) -> Float[Tensor, "b n c y x"]:
        """What is added to the prediction. tokens: of the last layer, of patches alone, normed."""
        p, (b, _, _, height, _) = self.patch, previous.shape
        told = rearrange(
            self.from_tokens(tokens),
            "b n (y x) (w p q) -> (b n) (y p) (x q) w",
            y=height // p, p=p, q=p,
        )  # fmt: skip
        grid = self._blocks(grid + told, condition, 1)
        grid = F.rms_norm(grid, grid.shape[-1:])
        change = self.drawn(grid) + self.carried(self.mix(grid) * self.bank(_grid(previous)))
        return rearrange(change, "(b n) y x c -> b n c y x", b=b)

    def _blocks(self, grid: Grid, condition: Float[Tensor, "b n d"], half: int) -> Grid:
        """Residual convolutions: of the first half, before the layers, or of the second."""
        told = rearrange(
            self.told[half](condition),
            "b n (blocks two w) -> blocks two (b n) 1 1 w",
            blocks=self.blocks,
            two=2,
        )
        for k, (scale, shift) in enumerate(told, start=half * self.blocks):
            normal = F.rms_norm(grid, grid.shape[-1:]) * (1 + scale) + shift
            grid = grid + self.narrow[k](F.silu(self.widen[k](normal)))
        return grid


def _grid(latents: Float[Tensor, "b n c y x"]) -> Grid:
    return rearrange(latents, "b n c y x -> (b n) y x c")
