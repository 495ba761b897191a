"""The world model without its cache: every network call runs over the whole window of frames again.

It is what most video transformers do when they are rolled out, and the peer of equal size that `orrery bench`
times beside the cache: same weights, same calls and, until the window slides, the same frames. (After that
the cache is ahead: its keys and values were made in view of frames that have left the window.)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simulator.flow import Levels
from simulator.state import State
from simulator.transformer import Conditions, Memory, Prediction
from simulator.world_model import WorldModel


class Window(NamedTuple):
    """The frames before the next one, as the network sees them, oldest first."""

    latents: Float[Tensor, "b n c y x"]
    noise_level: Float[Tensor, "b n"]
    actions: Float[Tensor, "b n a"]
    actions_known: Bool[Tensor, "b n"]


@dataclass(frozen=True)
class WindowState(State):
    """A rollout, as a value."""

    window: Window | None = None


class FullWindow(WorldModel):
    """A world model that keeps frames instead of their keys and values. All rows are of one age."""

    def _predict(
        self,
        state: State,
        conditions: Conditions,
        noisy: Tensor,
        level: Levels,
        next_level: Levels | None,
    ) -> Prediction:
        newest = Window(noisy, level, conditions.actions, conditions.actions_known)
        before = state.window if isinstance(state, WindowState) else None
        if before is None:
            found = super()._predict(state, conditions, noisy, level, next_level)
            return found._replace(memory=newest)
        window = Window(*(torch.cat(pair, dim=1) for pair in zip(before, newest, strict=True)))
        frames, there = window.latents.shape[1], level if next_level is None else next_level
        together = conditions._replace(
            shot=conditions.shot.repeat(1, frames),
            actions=window.actions,
            actions_known=window.actions_known,
            rays=torch.zeros_like(conditions.rays).repeat(1, frames, 1, 1, 1),
            rays_known=torch.zeros_like(conditions.rays_known).repeat(1, frames),
        )
        found = self.transformer(
            window.latents,
            window.noise_level,
            together,
            None,
            float(state.frame - frames + 1),
            None,
            torch.cat([before.noise_level, there], dim=1) if self.config.large_steps else None,
            causal=True,
            predicted=next_level is not None,
        )
        last = {name: getattr(found, name)[:, -1:] for name in ("data", "reward", "terminated", "log_error")}
        return found._replace(**last, memory=window)

    def _kept(self, state: State, seen: Prediction) -> State:
        """The state one latent step later; `seen` remembers the window, where the cache's has its keys."""
        keep = self.transformer.config.window - 1
        seen_frames: Any = seen.memory
        window = Window(*(part[:, -keep:] for part in seen_frames))
        newest = Memory([], window.latents[:, -1:], window.noise_level[:, -1:])
        kept = super()._kept(dataclasses.replace(state, memory=None), seen._replace(memory=newest))
        fields = {field.name: getattr(kept, field.name) for field in dataclasses.fields(State)}
        return WindowState(**fields, window=window)

    def filled(self, state: State) -> WindowState:
        """The state with its newest frame repeated until the window is full, as in long use."""
        if not isinstance(state, WindowState) or state.window is None:
            raise ValueError("the window is empty; start a rollout first")
        count = self.transformer.config.window - 1
        last = (part[:, -1:] for part in state.window)
        window = Window(*(part.repeat(1, count, *(1,) * (part.ndim - 2)) for part in last))
        return dataclasses.replace(state, window=window, frame=max(state.frame, count))
