"""The video tokenizer: a convolutional autoencoder that turns video into a small grid of latents and back.

Space shrinks 8 times, time by `time_factor`. Each latent step is made from its own video frames only, so that
any frame of a clip can be encoded while its neighbours are unknown; the decoder also looks at the two latent
steps before (causal, so it streams). The first latent step is the first frame alone, as in the causal
encoders of MAGVIT-v2 (Yu et al. 2023, section 3.2). No layer runs above a quarter of the picture's size: on a
CPU that is where the time goes. Latents are tanh-bounded while training (with noise added, which keeps the
decoder smooth: Dreamer 4, section 3.1) and standardised per channel outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from simulator.video import Video

Latents = Float[Tensor, "b n z y x"]
Past = Float[Tensor, "b back z y x"]


@dataclass(frozen=True)
class TokenizerConfig:
    time_factor: int = 1  # video frames in one latent step: 1, 2 or 4
    channels: int = 16  # of the latents
    outer_width: int = 96  # channels at a quarter of the size
    inner_width: int = 160  # channels at an eighth of the size
    outer_blocks: int = 1
    inner_blocks: int = 3

    @property
    def space_factor(self) -> int:
        return FOLD * 2


FOLD = 4
LOOK_BACK = 2
PRESETS = {
    "tiny": TokenizerConfig(channels=8, outer_width=32, inner_width=48, inner_blocks=1),
    "small": TokenizerConfig(),
    "base": TokenizerConfig(outer_width=192, inner_width=384, outer_blocks=2, inner_blocks=6),
}


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


class Tokenizer(nn.Module):
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        if config.time_factor not in (1, 2, 4):
            raise ValueError(f"time_factor must be 1, 2 or 4, got {config.time_factor}")
        self.config = config
        outer, inner, folded = config.outer_width, config.inner_width, 3 * FOLD**2 * config.time_factor
        self.encoder = nn.Sequential(
            Conv(folded, outer),
            *(Block(outer) for _ in range(config.outer_blocks)),
            Conv(outer, inner, stride=2),
            *(Block(inner) for _ in range(config.inner_blocks)),
            nn.GroupNorm(8, inner),
            Conv(inner, config.channels, size=1),
            nn.Tanh(),
        )
        self.decoder_in = Conv(config.channels, inner)
        self.look_back = nn.ModuleList(nn.Linear(inner, inner, bias=False) for _ in range(LOOK_BACK))
        for parameter in self.look_back.parameters():
            nn.init.zeros_(parameter)
        self.decoder = nn.Sequential(
            *(Block(inner) for _ in range(config.inner_blocks)),
            Conv(inner, outer * 4),
            nn.PixelShuffle(2),
            *(Block(outer) for _ in range(config.outer_blocks)),
            nn.GroupNorm(8, outer),
            Conv(outer, folded),
        )
        self.register_buffer("latent_mean", torch.zeros(config.channels))
        self.register_buffer("latent_std", torch.ones(config.channels))

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError if a picture of this size cannot be encoded."""
        factor = self.config.space_factor
        for name, size in (("height", height), ("width", width)):
            if size < factor or size % factor:
                near = max(factor, round(size / factor) * factor)
                raise ValueError(f"{name} must be a positive multiple of {factor}, got {size}; use {near}")

    def _fold(self, video: Video, start: bool) -> Float[Tensor, "bn folded y x"]:
        """Group frames into latent steps; the first step of a clip is its first frame, repeated."""
        factor = self.config.time_factor
        if (video.shape[1] - start) % factor or not video.shape[1]:
            raise ValueError(
                f"a clip needs {'1 + ' * start}a multiple of {factor} frames (the tokenizer's time factor), "
                f"got {video.shape[1]}; cut it, or record with --frames-per-step {factor}"
            )
        if start:
            video = torch.cat([video[:, :1]] * (factor - 1) + [video], dim=1)
        return rearrange(video, "b (n f) c (y p) (x q) -> (b n) (f c p q) y x", f=factor, p=FOLD, q=FOLD)

    def encode_bounded(self, video: Video, start: bool = True) -> Latents:
        """Video in [-1, 1] -> latents in [-1, 1] as the encoder makes them."""
        self.check_size(*video.shape[-2:])
        return rearrange(self.encoder(self._fold(video, start)), "(b n) c y x -> b n c y x", b=len(video))

    def decode_bounded(self, latents: Latents, past: Past | None = None) -> tuple[Video, Past]:
        """Latents in [-1, 1] -> video, and what the next call needs to go on (`past`; None at a clip's
        start)."""
        b, n = latents.shape[:2]
        if past is None:
            past = latents.new_zeros(b, LOOK_BACK, *latents.shape[2:])
        seen = torch.cat([past, latents], dim=1)
        hidden = rearrange(
            self.decoder_in(rearrange(seen, "b n c y x -> (b n) c y x")), "(b n) c y x -> b n y x c", b=b
        )
        mixed = hidden[:, LOOK_BACK:]
        for back, linear in enumerate(self.look_back, start=1):
            mixed = mixed + linear(hidden[:, LOOK_BACK - back : LOOK_BACK - back + n])
        folded = self.decoder(rearrange(mixed, "b n y x c -> (b n) c y x"))
        video = rearrange(folded, "(b n) (f c p q) y x -> b (n f) c (y p) (x q)", b=b, c=3, p=FOLD, q=FOLD)
        return video, seen[:, -LOOK_BACK:]

    def encode(self, video: Video) -> Latents:
        """Video in [-1, 1] (1 + k * time_factor frames) -> standardised latents (1 + k steps)."""
        return self.encode_stream(video, start=True)

    def encode_stream(self, video: Video, start: bool) -> Latents:
        """Encode the next frames of a stream. At its `start` the first frame makes a step of its own (1 + k *
        time_factor frames), later every `time_factor` frames make one; nothing else is looked at."""
        bounded = self.encode_bounded(video, start)
        return (bounded - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def decode(self, latents: Latents) -> Video:
        """Standardised latents -> video in about [-1, 1]; the whole clip at once."""
        return self.decode_stream(latents, None)[0]

    def decode_stream(self, latents: Latents, past: Past | None) -> tuple[Video, Past]:
        """Decode the next latent steps of a stream. With `past` None this is a clip's start, whose first step
        is one frame."""
        bounded = latents * _per_channel(self.latent_std) + _per_channel(self.latent_mean)
        video, state = self.decode_bounded(bounded.clamp(-1, 1), past)
        return (video if past is not None else video[:, self.config.time_factor - 1 :]), state


def _per_channel(values: Float[Tensor, " c"]) -> Float[Tensor, "c 1 1"]:
    return rearrange(values, "c -> c 1 1")
