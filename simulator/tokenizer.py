"""The video tokenizer: a convolutional autoencoder that turns video into a small grid of latents and back.

Space shrinks 8 times, time by `time_factor`. Each latent step is made from its own video frames only, so that
any frame of a clip can be encoded while its neighbours are unknown; the decoder also looks at the two latent
steps before (causal, so it streams). The first latent step is the first frame alone, as in the causal
encoders of MAGVIT-v2 (Yu et al. 2023, section 3.2). What follows on frames that were shown carries over
what it can of them (`carry.py`). No layer runs above a quarter of the picture's size: on a CPU that is where
the time goes. Latents are tanh-bounded while training (with noise added, which keeps the decoder smooth:
Dreamer 4, section 3.1) and standardised per channel outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from simulator.carry import Before, Carry, begun
from simulator.checkpoint import CONFIG, as_config, load_weights, read_json
from simulator.conv import Block, Conv
from simulator.devices import device_named
from simulator.video import Video

Latents = Float[Tensor, "b n z y x"]


class Past(NamedTuple):
    """What a decoder looks back at."""

    latents: Float[Tensor, "b back z y x"]  # bounded
    before: Before | None  # what the next frame carries over; None: nothing


class Shown(NamedTuple):
    """Frames that a decoder is shown as they were: what follows carries these over, and then its own. Without
    any it carries nothing over: details made up anew in each frame would blur one another."""

    video: Video
    steps: Bool[Tensor, "b n"]  # which latent steps' frames; none of those after

    @staticmethod
    def first(video: Video) -> Shown:
        """Those of the first latent step alone."""
        return Shown(video, torch.ones(len(video), 1, dtype=torch.bool, device=video.device))


@dataclass(frozen=True)
class TokenizerConfig:
    time_factor: int = 1  # video frames in one latent step: 1, 2 or 4
    channels: int = 16  # of the latents
    outer_width: int = 96  # channels at a quarter of the size
    inner_width: int = 160  # channels at an eighth of the size
    outer_blocks: int = 1
    inner_blocks: int = 3
    carry_width: int = 96  # channels of what a frame carries over from the one before; 0: nothing
    carry_blocks: int = 2

    @property
    def space_factor(self) -> int:
        return FOLD * 2


WEIGHTS = "tokenizer.safetensors"
FOLD = 4
LOOK_BACK = 2
PRESETS = {
    "tiny": TokenizerConfig(
        channels=8, outer_width=32, inner_width=48, inner_blocks=1, carry_width=32, carry_blocks=1
    ),
    "small": TokenizerConfig(),
    "base": TokenizerConfig(
        outer_width=192, inner_width=384, outer_blocks=2, inner_blocks=6, carry_width=256, carry_blocks=4
    ),
}


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
        carried = (config.channels, config.carry_width, config.carry_blocks, config.time_factor, FOLD)
        self.carry = Carry(*carried) if config.carry_width else None
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

    def decode_bounded(
        self, latents: Latents, past: Past | None = None, shown: Shown | None = None
    ) -> tuple[Video, Past]:
        """Latents in [-1, 1] -> video (of a clip's first step, `past` None, the first frame repeated), and
        what the next call needs to go on."""
        b, n = latents.shape[:2]
        back = latents.new_zeros(b, LOOK_BACK, *latents.shape[2:]) if past is None else past.latents
        seen = torch.cat([back, latents], dim=1)
        hidden = rearrange(
            self.decoder_in(rearrange(seen, "b n c y x -> (b n) c y x")), "(b n) c y x -> b n y x c", b=b
        )
        mixed = hidden[:, LOOK_BACK:]
        for nth, linear in enumerate(self.look_back, start=1):
            mixed = mixed + linear(hidden[:, LOOK_BACK - nth : LOOK_BACK - nth + n])
        folded = self.decoder(rearrange(mixed, "b n y x c -> (b n) c y x"))
        steps = rearrange(folded, "(b n) (f c p q) y x -> b n f c (y p) (x q)", b=b, c=3, p=FOLD, q=FOLD)
        before = None if past is None else past.before
        steps, before = self._carried(seen[:, LOOK_BACK - 1 :], steps, before, shown)
        return rearrange(steps, "b n f c y x -> b (n f) c y x"), Past(seen[:, -LOOK_BACK:], before)

    def _carried(
        self,
        latents: Float[Tensor, "b n1 z y x"],
        decoded: Float[Tensor, "b n f c h w"],
        before: Before | None,
        shown: Shown | None,
    ) -> tuple[Float[Tensor, "b n f c h w"], Before | None]:
        """Each step's frames with what they carry over, if there is anything; and what is left to carry over.
        latents: of these steps and of the one before."""
        made, factor, start = [], self.config.time_factor, before is None
        carry = None if before is None and shown is None else self.carry
        seen = None if carry is None else carry.seen(latents)
        for n, step in enumerate(decoded.unbind(dim=1)):
            if carry is not None and seen is not None and before is not None:
                step, before = carry(seen[:, n], step, before)
            made.append(step.float())
            if shown is not None and n < shown.steps.shape[1]:
                if before is None:
                    before = begun(made[-1][:, -1].clamp(-1, 1))
                true = shown.video[:, n * factor if start else (n + 1) * factor - 1]
                before = torch.where(rearrange(shown.steps[:, n], "b -> b 1 1 1"), begun(true), before)
        return torch.stack(made, dim=1), before

    def encode(self, video: Video) -> Latents:
        """Video in [-1, 1] (1 + k * time_factor frames) -> standardised latents (1 + k steps)."""
        return self.encode_stream(video, start=True)

    def encode_stream(self, video: Video, start: bool) -> Latents:
        """Encode the next frames of a stream. At its `start` the first frame makes a step of its own (1 + k *
        time_factor frames), later every `time_factor` frames make one; nothing else is looked at."""
        bounded = self.encode_bounded(video, start)
        return (bounded - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def decode(self, latents: Latents, shown: Shown | None = None) -> Video:
        """Standardised latents -> video in about [-1, 1]; the whole clip at once."""
        return self.decode_stream(latents, None, shown)[0]

    def decode_stream(
        self, latents: Latents, past: Past | None, shown: Shown | None = None
    ) -> tuple[Video, Past]:
        """Decode the next latent steps of a stream. With `past` None this is a clip's start, whose first step
        is one frame."""
        bounded = latents * _per_channel(self.latent_std) + _per_channel(self.latent_mean)
        video, state = self.decode_bounded(bounded.clamp(-1, 1), past, shown)
        return (video if past is not None else video[:, self.config.time_factor - 1 :]), state


def _per_channel(values: Float[Tensor, " c"]) -> Float[Tensor, "c 1 1"]:
    return rearrange(values, "c -> c 1 1")


def load_tokenizer(folder: Path, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer of a run folder (or of a world model's). Raises ValueError if missing or damaged."""
    where, values = device_named(device), read_json(folder / CONFIG)
    if "tokenizer" not in values:
        raise ValueError(
            f"{folder / CONFIG} has no tokenizer; give the folder of `orrery train tokenizer --out`"
        )
    tokenizer = Tokenizer(as_config(TokenizerConfig, values["tokenizer"], folder / CONFIG))
    load_weights(folder / WEIGHTS, tokenizer)
    return tokenizer.to(where).eval().requires_grad_(False)


def same_latents(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether they encode a picture alike, but for the rounding of weights."""
    picture = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 1, 3, 64, 64)
    with torch.inference_mode():
        ours, theirs = (each.encode(picture.to(each.latent_mean.device)).cpu() for each in (one, other))
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=0.1)
