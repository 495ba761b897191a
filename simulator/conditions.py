"""What a canvas, or a step of a rollout, is conditioned on, as the network takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simulator.actions import pressed
from simulator.canvas import Canvas
from simulator.state import State, Steps
from simulator.text import check_prompt, embed_one, pad
from simulator.transformer import Conditions, TransformerConfig


@dataclass(frozen=True)
class Conditioner:
    """Turns prompts, worlds, actions and cameras into a network's conditions."""

    config: TransformerConfig
    action_sizes: dict[str, int]
    worlds: tuple[str, ...]
    own: frozenset[str]  # those of the worlds that are Orrery's
    device: torch.device

    def action_size(self, world: str) -> int:
        """Width of the world's actions. Raises ValueError if this model does not know the world."""
        if world not in self.action_sizes:
            raise ValueError(f"world must be one of {', '.join(self.worlds)}, got {world!r}")
        return self.action_sizes[world]

    def world_ids(self, worlds: Sequence[str | None]) -> Int[Tensor, " b"]:
        for world in worlds:
            if world is not None:
                self.action_size(world)
        return torch.tensor(
            [0 if w is None else self.worlds.index(w) + 1 for w in worlds], device=self.device
        )

    def text(self, prompts: Sequence[str | None]) -> tuple[Float[Tensor, "b l e"], Bool[Tensor, "b l"]]:
        width = self.config.text_width
        text, known = pad(
            [torch.zeros(1, width) if p is None else embed_one(check_prompt(p)) for p in prompts]
        )
        known = known & torch.tensor([p is not None for p in prompts])[:, None]
        return text.to(self.device), known.to(self.device)

    def actions(
        self, actions: Float[np.ndarray, "b n a"], worlds: Int[Tensor, " b"]
    ) -> Float[Tensor, "b n wide"]:
        """Actions of rows of these worlds (`world_ids`), as the network takes them. Raises ValueError if they
        are not of their worlds' widths."""
        ids, told = worlds.cpu().numpy(), np.array(actions, np.float32)
        for index in np.unique(ids).tolist():
            name = (None, *self.worlds)[index]
            self._check_width(told.shape[2], name)
            if name in self.own:
                told[ids == index] = pressed(told[ids == index], name)
        wide = torch.zeros(*told.shape[:2], self.config.action_width)
        wide[..., : told.shape[2]] = torch.from_numpy(told)
        return wide.to(self.device)

    def _check_width(self, width: int, world: str | None) -> None:
        if world is None or width != self.action_size(world):
            raise ValueError(f"actions of width {width} do not fit world {world!r}")

    def check(self, canvas: Canvas) -> None:
        """Raises ValueError for a world that this model does not know, actions that are not of its width,
        words that cannot be read, or too many shots."""
        self.world_ids([canvas.world])
        if canvas.actions is not None:
            self._check_width(canvas.actions.shape[1], canvas.world)
        for prompt in canvas.prompts:
            check_prompt(prompt)
        if len(canvas.prompts) > self.config.shots:
            told, most = len(canvas.prompts), self.config.shots
            raise ValueError(f"this model makes up to {most} shots in a clip, got {told}")

    def of_canvas(self, canvas: Canvas, y: int, x: int) -> Conditions:
        n = len(canvas.start_level)
        text, known = self.text(canvas.prompts or (None,))
        tells_of = repeat(torch.arange(len(text), device=self.device), "s -> 1 (s l)", l=text.shape[1])
        shot = np.zeros(n, int) if canvas.shot is None else canvas.shot
        nothing = Conditions(
            rearrange(text, "s l e -> 1 (s l) e"),
            rearrange(known, "s l -> 1 (s l)"),
            tells_of,
            torch.from_numpy(shot).to(self.device)[None],
            self.world_ids([canvas.world]),
            torch.zeros(1, n, self.config.action_width, device=self.device),
            torch.zeros(1, n, dtype=torch.bool, device=self.device),
            torch.zeros(1, n, 6, y, x, device=self.device),
            torch.zeros(1, n, dtype=torch.bool, device=self.device),
        )
        if canvas.actions is not None:
            led = np.pad(canvas.actions, ((1, 0), (0, 0)))[None]
            known = torch.arange(n, device=self.device)[None] > 0
            nothing = nothing._replace(actions=self.actions(led, nothing.world), actions_known=known)
        if canvas.cameras is not None:
            rays = canvas.cameras.relative_to_first().to(self.device).plucker(y, x)[None]
            nothing = nothing._replace(rays=rays, rays_known=torch.ones_like(nothing.rays_known))
        return nothing

    def of_step(self, state: State, actions: Float[Tensor, "b 1 a"] | None, y: int, x: int) -> Conditions:
        """Those of the next latent step of a rollout, of so many rows and columns of latents."""
        b, device = len(state.seeds), self.device
        unknown = torch.zeros(b, 1, dtype=torch.bool, device=device)
        nothing = torch.zeros(b, 1, self.config.action_width, device=device)
        return Conditions(
            state.text,
            state.text_known,
            torch.zeros_like(state.text_known, dtype=torch.long),
            torch.zeros_like(unknown, dtype=torch.long),
            state.world,
            nothing if actions is None else actions,
            unknown if actions is None else ~unknown,
            torch.zeros(b, 1, 6, y, x, device=device),
            unknown,
        )


def led_by(steps: Steps, conditions: Conditions) -> Conditions:
    """The conditions of the next latent step, with those before it, which only their actions tell apart."""
    before = conditions._replace(actions=steps.actions, actions_known=steps.actions_known)
    for name in ("shot", "rays", "rays_known"):
        first: Tensor = getattr(conditions, name)[:, :1]
        count = (1, steps.latents.shape[1], *(1,) * (first.ndim - 2))
        before = before._replace(**{name: first.repeat(count)})
    return in_turn(before, conditions)


def in_turn(first: Conditions, then: Conditions) -> Conditions:
    """The conditions of some frames and of others after them, of the same words and worlds."""
    framed = ("shot", "actions", "actions_known", "rays", "rays_known")
    both = {name: torch.cat([getattr(first, name), getattr(then, name)], dim=1) for name in framed}
    return first._replace(**both)
