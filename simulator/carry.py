"""What a frame carries over from the one before: its pixels, moved.

Few numbers per patch cannot hold a texture, so a decoder that knows latents alone blurs what stands still as
much as what is new. Here a small network sees the latents of a step and of the step before, says for every
pixel where it was in the last frame, fetches it from there, and mixes what it fetched with what was decoded
(motion-compensated prediction as in video coding, learned end to end: Lu et al. 2019, DVC; composited by a
mask: Finn et al. 2016). A texture that is fetched again and again blurs; so the steps are added up to where
each pixel was in the frame that was shown last, and it can be fetched from there at once (a long-term
reference picture in video coding; chained flow with a trust for each pixel: Neoral et al. 2024, MFT).
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
Before = Float[Tensor, "b 9 h w"]
"""What a frame carries over: the frame before; the frame that was shown last; for each pixel of the one
before, how far to the right and down of it that was in the one shown, in pixels, and how far to trust this (0
to 1)."""
REACH = 8.0  # pixels that a flow of 1 is long
HOLDS = 3.0  # so that trust is lost slowly at first (log odds)
SMOOTH = 5  # pixels along a side over which flow is averaged


def begun(frame: Frame) -> Before:
    """What is carried over from a frame that is shown, or is the first."""
    here = frame.new_zeros(len(frame), 2, *frame.shape[2:])
    return torch.cat([frame, frame, here, torch.ones_like(here[:, :1])], dim=1)


class Carry(nn.Module):
    """As it is made it mixes the frame before and the one shown, both unmoved, by half into every frame."""

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
            Conv(inner + 10 * cell, inner, size=1),
            nn.SiLU(),
            Conv(inner, inner),
            nn.SiLU(),
            last := Conv(inner, 6 * cell),
        )
        for weight in (self.flow.weight, last.weight):
            nn.init.zeros_(weight)

    def seen(self, latents: Float[Tensor, "b n1 z y x"]) -> Float[Tensor, "b n i y2 x2"]:
        """What it sees of each step and the one before, of all but the first of these."""
        pairs = rearrange(torch.cat([latents[:, :-1], latents[:, 1:]], dim=2), "b n c y x -> (b n) c y x")
        return rearrange(self.look(pairs), "(b n) i y x -> b n i y x", b=len(latents))

    def forward(self, seen: Float[Tensor, "b i y2 x2"], decoded: Step, before: Before) -> tuple[Step, Before]:
        """A step's frames, from what is `seen` of it, what was decoded of it, and what it carries over; and
        what the next step does."""
        b = len(before)
        smooth = {"stride": 1, "padding": SMOOTH // 2, "count_include_pad": False}
        flow = REACH * F.avg_pool2d(self._pixels(self.flow(seen), 2).float(), SMOOTH, **smooth)
        last, shown, far, trust = before.repeat_interleave(self.frames, dim=0).split([3, 3, 2, 1], dim=1)
        moved, places = warped(last, flow), warped(torch.cat([far, trust], dim=1), flow, "bilinear")
        far, trust = flow + places[:, :2], places[:, 2:]
        kept, known = warped(shown, far), trust * inside(far)
        flat = rearrange(decoded, "b f c h w -> (b f) c h w").float()
        cells = [seen, *(self._cells(part, b).to(seen.dtype) for part in (moved, flat, kept, known))]
        found = self._pixels(self.mix(torch.cat(cells, dim=1)), 6).float()
        mix, afar = found[:, :2].sigmoid().split(1, dim=1)
        holds = (found[:, 2:3] + HOLDS).sigmoid()
        made = torch.lerp(flat, torch.lerp(moved, kept, known * holds * afar), mix) + found[:, 3:]
        steps = rearrange(made, "(b f) c h w -> b f c h w", b=b)
        after = torch.cat([made.clamp(-1, 1), shown, far, trust * holds], dim=1)
        return steps, rearrange(after, "(b f) c h w -> b f c h w", b=b)[:, -1]

    def _pixels(self, cells: Float[Tensor, "b fcpq y x"], channels: int) -> Float[Tensor, "bf c h w"]:
        sizes = {"f": self.frames, "c": channels, "p": self.fold}
        return rearrange(cells, "b (f c p q) y x -> (b f) c (y p) (x q)", **sizes)

    def _cells(self, pixels: Float[Tensor, "bf c h w"], b: int) -> Float[Tensor, "b fcpq y x"]:
        return rearrange(pixels, "(b f) c (y p) (x q) -> b (f c p q) y x", b=b, p=self.fold, q=self.fold)


def warped(frames: Frame, flow: Float[Tensor, "b 2 h w"], between: str = "bicubic") -> Frame:
    """Every pixel fetched from `flow` pixels away (x to the right, y down), `between` pixels by cubic
    convolution (or "bilinear"), beyond the picture's edge from there."""
    height, width = frames.shape[2:]
    places = torch.stack(
        [(2 * x + 1) / size - 1 for x, size in zip(_places(flow), (width, height), strict=True)], -1
    )
    return F.grid_sample(frames, places, mode=between, padding_mode="border", align_corners=False)


def inside(flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 where what `flow` points at is within the picture, 0 elsewhere."""
    x, y = _places(flow)
    height, width = flow.shape[2:]
    return ((x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)).float()[:, None]


def _places(flow: Float[Tensor, "b 2 h w"]) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
    """Where it points, in pixels from the left and from above."""
    height, width = flow.shape[2:]
    x, y = (torch.arange(size, device=flow.device) for size in (width, height))
    return x + flow[:, 0], y[:, None] + flow[:, 1]
