"""What a frame carries over from the one before: its pixels, moved.

Few numbers per patch cannot hold a texture, so a decoder that knows latents alone blurs what stands still as
much as what is new. Here a small network sees the latents of a step and of the step before, says for every
pixel where it was in the last frame, fetches it from there, and mixes what it fetched with what was decoded
(motion-compensated prediction as in video coding, learned end to end: Lu et al. 2019, DVC; composited by a
mask: Finn et al. 2016). A dream so begins with the true picture's texture, and loses it step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from simulator.conv import Block, Conv

Frame = Float[Tensor, "b c h w"]
Step = Float[Tensor, "b f c h w"]
REACH = 8.0  # pixels that a flow of 1 is long
SMOOTH = 5  # pixels along a side over which flow is averaged


class Carry(nn.Module):
    """As it is made it mixes half of the frame before, unmoved, into every frame."""

    def __init__(self, channels: int, width: int, blocks: int, frames: int, fold: int):
        """channels: of latents. frames: in a latent step. fold: pixels along a side of a cell."""
        super().__init__()
        self.frames, self.fold, cell, inner = frames, fold, frames * fold**2, width // 2
        self.look = nn.Sequential(
            Conv(2 * channels, width),
            *(Block(width) for _ in range(blocks)),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            Conv(width, 4 * inner),
            nn.PixelShuffle(2),
            nn.SiLU(),
        )
        self.flow = Conv(inner, 2 * cell)
        self.mix = nn.Sequential(
            Conv(inner + 6 * cell, inner, size=1),
            nn.SiLU(),
            Conv(inner, inner),
            nn.SiLU(),
            last := Conv(inner, 4 * cell),
        )
        for weight in (self.flow.weight, last.weight):
            nn.init.zeros_(weight)

    def seen(self, latents: Float[Tensor, "b n1 z y x"]) -> Float[Tensor, "b n i y2 x2"]:
        """What it sees of each step and the one before, of all but the first of these."""
        pairs = rearrange(torch.cat([latents[:, :-1], latents[:, 1:]], dim=2), "b n c y x -> (b n) c y x")
        return rearrange(self.look(pairs), "(b n) i y x -> b n i y x", b=len(latents))

    def forward(self, seen: Float[Tensor, "b i y2 x2"], decoded: Step, before: Frame) -> Step:
        """A step's frames, from what is `seen` of it, what was decoded of it, and the frame before it."""
        b = len(before)
        smooth = {"stride": 1, "padding": SMOOTH // 2, "count_include_pad": False}
        flow = REACH * F.avg_pool2d(self._pixels(self.flow(seen), 2).float(), SMOOTH, **smooth)
        moved = warped(before.repeat_interleave(self.frames, dim=0), flow)
        flat = rearrange(decoded, "b f c h w -> (b f) c h w").float()
        cells = [seen, *(self._cells(pixels, b).to(seen.dtype) for pixels in (moved, flat))]
        found = self._pixels(self.mix(torch.cat(cells, dim=1)), 4).float()
        made = torch.lerp(flat, moved, found[:, :1].sigmoid()) + found[:, 1:]
        return rearrange(made, "(b f) c h w -> b f c h w", b=b)

    def _pixels(self, cells: Float[Tensor, "b fcpq y x"], channels: int) -> Float[Tensor, "bf c h w"]:
        sizes = {"f": self.frames, "c": channels, "p": self.fold}
        return rearrange(cells, "b (f c p q) y x -> (b f) c (y p) (x q)", **sizes)

    def _cells(self, pixels: Float[Tensor, "bf c h w"], b: int) -> Float[Tensor, "b fcpq y x"]:
        return rearrange(pixels, "(b f) c (y p) (x q) -> b (f c p q) y x", b=b, p=self.fold, q=self.fold)


def warped(frames: Frame, flow: Float[Tensor, "b 2 h w"]) -> Frame:
    """Every pixel fetched from `flow` pixels away (x to the right, y down), between pixels by cubic
    convolution, beyond the picture's edge from there."""
    height, width = frames.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    places = torch.stack(
        [(2 * (x + flow[:, 0]) + 1) / width - 1, (2 * (y + flow[:, 1]) + 1) / height - 1], -1
    )
    return F.grid_sample(frames, places, mode="bicubic", padding_mode="border", align_corners=False)
