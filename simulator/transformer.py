"""The spacetime diffusion transformer: noisy latents of a canvas in, predicted clean latents out.

Every latent frame becomes a grid of patch tokens plus an action token and a register token. A patch token
also gets the same patch of the frame before (and, by `reach`, those around it), at that frame's noise level
(as DIAMOND stacks frames, Alonso et al. 2024): what stands still, or moves by less than a patch, is then
carried on without attention, and every layer can work on the rest. Most layers attend within a frame; every
`full_every`-th attends over all tokens of all frames under a mask that is the caller's: bidirectional for
clips made at once, causal with a sliding window for rollouts. One set of weights serves both, and a cache
of the full layers' keys and values makes rollouts cost the same at every step.

Sources: DiT (Peebles & Xie 2023) for the layout, adaLN-single (PixArt-alpha, Chen et al. 2023, section 2.3),
per-frame noise levels (Diffusion Forcing, Chen et al. 2024), sparse temporal layers and grouped queries
(Dreamer 4, Hafner et al. 2025), QK-norm, SwiGLU and axial RoPE; Plücker rays as camera condition (CameraCtrl,
He et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simulator.attention import Sight, attend, attend_frames, axis_widths, rope, rotate
from simulator.cache import KeysValues, Memory
from simulator.detail import Detail, Grid
from simulator.flow import Levels

Tokens = Float[Tensor, "b n s d"]


@dataclass(frozen=True)
class TransformerConfig:
    latent_channels: int = 16
    patch: int = 2  # latents in a token, along each side
    width: int = 256
    layers: int = 6
    full_every: int = 3  # every so many layers attends over all frames
    text_every: int = 2  # every so many layers attends to the prompt
    heads: int = 4
    kv_heads: int = 2
    text_width: int = 384  # of the prompt encoder's tokens
    action_width: int = 8  # actions are padded to this
    worlds: int = 8  # world embeddings; 0 means none
    shots: int = 4  # shots in one clip, at most
    window: int = 16  # latent frames that a rollout sees, itself included
    reach: int = 0  # patches to each side that a token sees of the frame before
    detail_width: int = 96  # of the convolutions at the latents' own resolution; 0: none
    detail_blocks: int = 2  # of them before the layers, and as many after

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        return round(self.width * 8 / 3 / 64) * 64


EXTRA_TOKENS = 2
LEVEL_WAVES = 256  # cosines and sines that tell a noise level
ACTION_TOKEN, REGISTER_TOKEN = 0, 1
PRESETS = {
    "tiny": TransformerConfig(
        latent_channels=8, width=64, layers=2, full_every=2, heads=2, kv_heads=1, window=8, detail_width=16
    ),
    "small": TransformerConfig(),
    "medium": TransformerConfig(width=384, heads=6, kv_heads=3, reach=1),
    "base": TransformerConfig(
        width=768, layers=16, full_every=4, heads=12, kv_heads=4, window=32, detail_width=192
    ),
    # these two are for many GPUs, on the base tokenizer
    "large": TransformerConfig(
        width=1536, layers=24, full_every=4, heads=24, kv_heads=8, window=32, detail_width=256
    ),
    "xl": TransformerConfig(
        width=2560, layers=32, full_every=4, heads=20, kv_heads=4, window=32, detail_width=384
    ),
}


class Conditions(NamedTuple):
    """What a canvas is conditioned on. Unknown entries are masked, and their values ignored."""

    text: Float[Tensor, "b l e"]  # prompt tokens, of all shots
    text_known: Bool[Tensor, "b l"]
    text_shot: Int[Tensor, "b l"]  # the shot that each prompt token tells of
    shot: Int[Tensor, "b n"]  # the shot that each frame belongs to
    world: Int[Tensor, " b"]
    actions: Float[Tensor, "b n a"]  # the action that led to each frame
    actions_known: Bool[Tensor, "b n"]
    rays: Float[Tensor, "b n 6 y x"]  # Plücker rays of the latents' cells, relative to the first camera
    rays_known: Bool[Tensor, "b n"]


class Before(NamedTuple):
    """The frame before each frame."""

    latents: Float[Tensor, "b n c y x"]
    noise_level: Float[Tensor, "b n"]


class Thought(NamedTuple):
    """All that a prediction is drawn from, after the layers."""

    tokens: Float[Tensor, "b n s d"]  # of patches
    register: Float[Tensor, "b n d"]
    grid: Grid | None  # what the convolutions before the layers saw
    previous: Float[Tensor, "b n c y x"]
    condition: Float[Tensor, "b n d"]

    def last(self, count: int) -> Thought:
        """That of so many of the last frames."""
        frames = self.condition.shape[1]
        grid = self.grid
        if grid is not None:
            grid = rearrange(grid, "(b n) y x w -> b n y x w", n=frames)[:, -count:].flatten(0, 1)
        framed = (part[:, -count:] for part in (self.tokens, self.register, self.previous, self.condition))
        tokens, register, previous, condition = framed
        return Thought(tokens, register, grid, previous, condition)


class Prediction(NamedTuple):
    data: Float[Tensor, "b n c y x"]
    reward: Float[Tensor, "b n"]
    terminated: Float[Tensor, "b n"]  # logit
    log_error: Float[Tensor, "b n"]  # natural log of the expected mean squared error of `data`
    memory: Memory  # of the frames given alone

    def of_last(self, count: int) -> Prediction:
        """What was predicted of so many of the last frames; the memory is that of all."""
        return Prediction(*(part[:, -count:] for part in self[:4]), memory=self.memory)

    def of_first(self) -> Prediction:
        """What was predicted of the first frame; the memory is that of all."""
        return Prediction(*(part[:, :1] for part in self[:4]), memory=self.memory)

    @property
    def expected_error(self) -> Float[Tensor, " b"]:
        """Mean squared error of the first frame's data that the network expects of its own prediction."""
        return self.log_error[:, 0].exp().double().cpu()


def frames_before(
    latents: Float[Tensor, "b n c y x"], noise_level: Levels, past: Memory | None = None
) -> Before:
    """The frame before each, of a canvas and its past; before a first frame there is noise."""
    first = past or Memory([], torch.zeros_like(latents[:, :1]), torch.ones_like(noise_level[:, :1]))
    return Before(
        torch.cat([first.latents.to(latents.dtype), latents[:, :-1]], dim=1),
        torch.cat([first.noise_level, noise_level[:, :-1]], dim=1),
    )


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, self.kv_heads, k = config.heads, config.kv_heads, config.head_width
        self.queries = nn.Linear(config.width, self.heads * k, bias=False)
        self.keys_values = nn.Linear(config.width, 2 * self.kv_heads * k, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(k), nn.RMSNorm(k)
        self.out = nn.Linear(self.heads * k, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        rotation: Tensor,
        sight: Sight,
        past: KeysValues | None,
    ) -> tuple[Float[Tensor, "b s d"], KeysValues]:
        queries = rearrange(self.queries(x), "b s (h k) -> b h s k", h=self.heads)
        keys, values = rearrange(self.keys_values(x), "b s (two g k) -> two b g s k", two=2, g=self.kv_heads)
        queries = rotate(self.query_norm(queries), rotation).to(values.dtype)
        keys = rotate(self.key_norm(keys), rotation).to(values.dtype)
        new = KeysValues(keys, values)
        if past is not None:
            keys, values = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2)
        mixed = attend_frames(queries, keys, values, sight)
        return self.out(rearrange(mixed, "b h s k -> b s (h k)")), new


class TextAttention(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, self.kv_heads, k = config.heads, config.kv_heads, config.head_width
        self.queries = nn.Linear(config.width, self.heads * k, bias=False)
        self.keys_values = nn.Linear(config.text_width, 2 * self.kv_heads * k, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(k), nn.RMSNorm(k)
        self.out = nn.Linear(self.heads * k, config.width, bias=False)

    def forward(
        self, x: Float[Tensor, "b s d"], text: Float[Tensor, "b l e"], allowed: Bool[Tensor, "b 1 s l"]
    ) -> Float[Tensor, "b s d"]:
        queries = self.query_norm(rearrange(self.queries(x), "b s (h k) -> b h s k", h=self.heads))
        keys, values = rearrange(
            self.keys_values(text), "b l (two g k) -> two b g l k", two=2, g=self.kv_heads
        )
        keys = self.key_norm(keys)
        mixed = attend(queries.to(values.dtype), keys.to(values.dtype), values, allowed)
        return self.out(rearrange(mixed, "b h s k -> b s (h k)"))


class Block(nn.Module):
    """Attention, prompt attention where `text`, SwiGLU; each modulated per frame."""

    def __init__(self, config: TransformerConfig, full: bool, text: bool):
        super().__init__()
        d = config.width
        self.full = full
        self.attention = SelfAttention(config)
        self.text = TextAttention(config) if text else None
        self.gate_up = nn.Linear(d, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, d, bias=False)
        self.modulation = nn.Parameter(torch.zeros(6, 1, d))
        for output in (self.attention.out, self.down, *([self.text.out] if self.text else [])):
            nn.init.zeros_(output.weight)

    def forward(
        self,
        x: Tokens,
        shared: Float[Tensor, "b n six d"],
        text: tuple[Tensor, Tensor],
        rotation: Tensor,
        sight: Sight,
        past: KeysValues | None,
    ) -> tuple[Tokens, KeysValues | None]:
        b, n, s, d = x.shape
        modulation = rearrange(shared, "b n six d -> six b n 1 d") + self.modulation[:, None, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        h = F.rms_norm(x, (d,)) * (1 + scale1) + shift1
        pattern = "b n s d -> b (n s) d" if self.full else "b n s d -> (b n) s d"
        among = sight if self.full else Sight()
        mixed, new = self.attention(rearrange(h, pattern), rotation, among, past)
        x = x + (1 + gate1) * mixed.reshape(b, n, s, d)
        if self.text is not None:
            h = F.rms_norm(x, (d,))
            mixed = self.text(rearrange(h, "b n s d -> b (n s) d"), *text)
            x = x + mixed.reshape(b, n, s, d)
        h = F.rms_norm(x, (d,)) * (1 + scale2) + shift2
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        return x + (1 + gate2) * self.down(F.silu(gate) * up), (new if self.full else None)


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        d, cell = config.width, config.patch**2
        self.patch_in = nn.Linear(config.latent_channels * cell, d)
        self.previous_in = nn.Linear(
            config.latent_channels * cell * (2 * config.reach + 1) ** 2, d, bias=False
        )
        self.rays_in = nn.Linear(6 * cell, d)
        self.rays_unknown = nn.Parameter(torch.zeros(d))
        self.register = nn.Parameter(torch.randn(d) * 0.02)
        self.action_in = nn.Sequential(nn.Linear(config.action_width + 1, d), nn.SiLU(), nn.Linear(d, d))
        self.world = nn.Embedding(config.worlds, d)
        self.no_text = nn.Parameter(torch.randn(config.text_width) * 0.02)
        self.text_norm = nn.RMSNorm(config.text_width)
        self.level_in = nn.Sequential(nn.Linear(LEVEL_WAVES, d), nn.SiLU(), nn.Linear(d, d))
        self.previous_level_in = nn.Sequential(nn.Linear(LEVEL_WAVES, d), nn.SiLU(), nn.Linear(d, d))
        self.stride_in = nn.Sequential(nn.Linear(LEVEL_WAVES, d), nn.SiLU(), nn.Linear(d, d))
        self.shot = nn.Embedding(config.shots, d)
        self.modulation = nn.Linear(d, 6 * d)
        self.blocks = nn.ModuleList(
            Block(config, full=(i + 1) % config.full_every == 0, text=i % config.text_every == 0)
            for i in range(config.layers)
        )
        self.patch_out = nn.Linear(d, config.latent_channels * cell)
        self.heads_out = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 3))
        self.detail = (
            Detail(config.latent_channels, config.patch, d, config.detail_width, config.detail_blocks)
            if config.detail_width
            else None
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.previous_in.weight)
        nn.init.zeros_(self.shot.weight)
        for parameter in (*self.previous_level_in[2].parameters(), *self.stride_in[2].parameters()):
            nn.init.zeros_(parameter)
        nn.init.normal_(self.world.weight, std=0.02)

    @property
    def not_for_muon(self) -> frozenset[str]:
        """First and last layers and embeddings, which Muon's authors leave to AdamW."""
        first_last = (
            *("patch_", "previous_", "rays_in", "world", "shot", "level_in.0", "stride_in.0"),
            *("action_in.0", "heads_out", "detail.look", "detail.bank", "detail.carried", "detail.drawn"),
        )
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(first_last))

    def _frame_condition(
        self, noise_level: Levels, previous_level: Levels, stride: Levels, conditions: Conditions
    ) -> Float[Tensor, "b n d"]:
        frequencies = torch.exp(torch.linspace(0, 6, LEVEL_WAVES // 2, device=noise_level.device))

        def waves(level: Levels) -> Float[Tensor, "b n d"]:
            angles = level[..., None] * frequencies
            return torch.cat([angles.cos(), angles.sin()], dim=-1)

        levels = self.level_in(waves(noise_level)) + self.previous_level_in(waves(previous_level))
        place = self.world(conditions.world)[:, None] + self.shot(conditions.shot)
        return levels + self.stride_in(waves(stride)) + place

    def _tokens(
        self,
        latents: Float[Tensor, "b n c y x"],
        previous: Float[Tensor, "b n c y x"],
        conditions: Conditions,
        action: Float[Tensor, "b n d"],
    ) -> Tokens:
        patches = "b n c (y p) (x q) -> b n (y x) (c p q)"
        p, (b, n) = self.config.patch, latents.shape[:2]
        rays = self.rays_in(rearrange(conditions.rays.to(latents.dtype), patches, p=p, q=p))
        rays = torch.where(conditions.rays_known[..., None, None], rays, self.rays_unknown)
        grid = self.patch_in(rearrange(latents, patches, p=p, q=p)) + rays
        reach = self.config.reach
        around = F.unfold(previous.flatten(0, 1), (2 * reach + 1) * p, padding=reach * p, stride=p)
        grid = grid + self.previous_in(rearrange(around, "(b n) c s -> b n s c", b=b))
        register = repeat(self.register, "d -> b n 1 d", b=b, n=n).to(grid.dtype)
        return torch.cat([action[:, :, None].to(grid.dtype), register, grid], dim=2)

    def _text(
        self, conditions: Conditions, x: Tokens
    ) -> tuple[Float[Tensor, "b l e"], Bool[Tensor, "b 1 ns l"]]:
        """Prompt tokens, and which of them each token of the canvas may look at: those of its own shot (a
        shot without words: all); a canvas without words sees a learned blank."""
        told = conditions.text_known[:, None] & (conditions.text_shot[:, None] == conditions.shot[..., None])
        blank = ~told.any(dim=-1, keepdim=True)
        anything = conditions.text_known.any(dim=1)
        text = torch.where(anything[:, None, None], self.text_norm(conditions.text.to(x.dtype)), self.no_text)
        return text, repeat(told | blank, "b n l -> b 1 (n s) l", s=x.shape[2])

    def _rotations(self, height: int, width: int, frames: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """Rotary tables of one frame's tokens and of all frames' tokens; the extra tokens stand at the
        origin."""
        k, device = self.config.head_width, frames.device
        y, x = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        place = torch.stack([y.flatten(), x.flatten()], dim=-1).float() + 1
        place = torch.cat([place.new_zeros(EXTRA_TOKENS, 2), place])
        everywhere = torch.cat(
            [
                repeat(frames, "n -> (n s) 1", s=len(place)),
                repeat(place, "s two -> (n s) two", n=len(frames)),
            ],
            dim=-1,
        )
        return rope(place, (k // 2, k // 2)), rope(everywhere, axis_widths(k))

    def forward(
        self,
        latents: Float[Tensor, "b n c y x"],
        noise_level: Levels,
        conditions: Conditions,
        visible: Bool[Tensor, "b n m"] | None = None,
        first_frame: Float[Tensor, " #n"] | float = 0.0,
        past: Memory | None = None,
        next_level: Levels | None = None,
        causal: bool = False,
        before: Before | None = None,
        drawn: int | None = None,
    ) -> Prediction:
        """Predict the data towards which the flow moves (`flow.move`) from `noise_level` to `next_level`.

        visible: which frame may look at which (None: all at all); m counts the cached frames first.
        first_frame: index of the first frame given, for its position, or of each. past: memory of the frames
        before. next_level: where a sampler goes next, at most `noise_level`; None: nowhere, that is the
        flow's direction at `noise_level` itself, which points to the mean of the clean latents. causal: each
        frame looks at itself and the window - 1 before it alone; for canvases without a past. before: the
        frames before each, where they are not the given ones. drawn: so many of the last frames are wanted
        (None: all); the others' `data` is what was given.
        """
        thought, caches = self.think(
            latents, noise_level, conditions, visible, first_frame, past, next_level, causal, before
        )
        data, frames = latents, latents.shape[1]
        if drawn != 0:
            wanted = thought if drawn in (None, frames) else thought.last(drawn)
            data = self.roughly(wanted) + self.in_detail(wanted)
            if data.shape[1] < frames:
                data = torch.cat([latents[:, : -data.shape[1]].to(data.dtype), data], dim=1)
        reward, terminated, log_error = self.heads_out(thought.register).float().unbind(dim=-1)
        new_memory = Memory(caches, latents[:, -1:], noise_level[:, -1:])
        return Prediction(data.float(), reward, terminated, log_error, new_memory)

    def nothing_yet(self, latents: Float[Tensor, "b 1 c y x"]) -> Memory:
        """The memory before the first frame, of such a frame's rows and size."""
        full = self.config.layers // self.config.full_every
        keys = latents.new_zeros(len(latents), self.config.kv_heads, 0, self.config.head_width)
        return Memory(
            [KeysValues(keys, keys)] * full, torch.zeros_like(latents), latents.new_ones(len(latents), 1)
        )

    def think(
        self,
        latents: Float[Tensor, "b n c y x"],
        noise_level: Levels,
        conditions: Conditions,
        visible: Bool[Tensor, "b n m"] | None = None,
        first_frame: Float[Tensor, " #n"] | float = 0.0,
        past: Memory | None = None,
        next_level: Levels | None = None,
        causal: bool = False,
        before: Before | None = None,
    ) -> tuple[Thought, list[KeysValues]]:
        """The layers of `forward`: what its prediction is drawn from, and what they remember."""
        height, width = (size // self.config.patch for size in latents.shape[-2:])
        action = self.action_in(_masked(conditions.actions, conditions.actions_known).to(latents.dtype))
        previous, previous_level = before or frames_before(latents, noise_level, past)
        x = self._tokens(latents, previous, conditions, action)
        frames = first_frame
        if not isinstance(frames, Tensor):
            frames = torch.arange(latents.shape[1], device=latents.device) + first_frame
        within, across = self._rotations(height, width, frames)
        sight = Sight(latents.shape[1], self.config.window if causal else None, visible)
        text = self._text(conditions, x)
        stride = torch.zeros_like(noise_level) if next_level is None else noise_level - next_level
        condition = F.silu(self._frame_condition(noise_level, previous_level, stride, conditions) + action)
        shared = rearrange(self.modulation(condition), "b n (six d) -> b n six d", six=6)
        grid = None
        if self.detail is not None:
            fine, grid = self.detail.before(latents, previous, condition)
            x = x + F.pad(fine, (0, 0, EXTRA_TOKENS, 0))
        caches, depth = [], 0
        for block in self.blocks:
            rotation = across if block.full else within
            x, new = block(
                x, shared, text, rotation, sight, past.layers[depth] if past and block.full else None
            )
            if new is not None:
                caches.append(new)
                depth += 1
        x = F.rms_norm(x, (x.shape[-1],))
        return Thought(x[:, :, EXTRA_TOKENS:], x[:, :, REGISTER_TOKEN], grid, previous, condition), caches

    def roughly(self, thought: Thought) -> Float[Tensor, "b n c y x"]:
        """The prediction as the tokens alone tell it."""
        p, y = self.config.patch, thought.previous.shape[-2]
        pattern = "b n (y x) (c p q) -> b n c (y p) (x q)"
        return rearrange(self.patch_out(thought.tokens), pattern, y=y // p, p=p, q=p)

    def in_detail(self, thought: Thought) -> Float[Tensor, "b n c y x"] | float:
        """What the convolutions add to it."""
        if self.detail is None or thought.grid is None:
            return 0.0
        return self.detail.after(thought.grid, thought.tokens, thought.previous, thought.condition)


def _masked(actions: Float[Tensor, "b n a"], known: Bool[Tensor, "b n"]) -> Float[Tensor, "b n a1"]:
    """Actions with a last channel that says whether they are known."""
    flag = known[..., None].to(actions.dtype)
    return torch.cat([actions * flag, flag], dim=-1)
