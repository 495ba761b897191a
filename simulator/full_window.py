"""The world model without its cache: every network call runs over the whole window of frames again.

It is what most video transformers do when they are rolled out, and the peer of equal size that `orrery bench`
times beside the cache: same weights, a call of its own for what pulls and, until the window slides, the same
frames. (After that the cache is ahead: its keys and values were made in view of frames that have left the
window.)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simulator.conditions import led_by
from simulator.flow import Levels
from simulator.state import State, Steps
from simulator.transformer import Conditions, Prediction
from simulator.world_model import WorldModel


@dataclass(frozen=True)
class WindowState(State):
    """A rollout, as a value."""

    window: Steps | None = None  # before the fresh one


class FullWindow(WorldModel):
    """A world model that keeps frames instead of their keys and values. All rows are of one age."""

    takes_share_calls = False

    def _predict(
        self,
        state: State,
        conditions: Conditions,
        noisy: Tensor,
        level: Levels,
        next_level: Levels | None,
    ) -> tuple[State, Prediction]:
        state = self._settled(state)
        before = state.window if isinstance(state, WindowState) else None
        newest_step = Steps(noisy, level, conditions.actions, conditions.actions_known)
        if before is None:
            state, found = super()._predict(state, conditions, noisy, level, next_level)
            return state, found._replace(memory=newest_step)
        together = led_by(before, conditions)
        window = Steps(*(torch.cat(pair, dim=1) for pair in zip(before, newest_step, strict=True)))
        frames, there = window.latents.shape[1], level if next_level is None else next_level
        found = self.transformer(
            window.latents,
            window.noise_level,
            together,
            None,
            float(state.frame - frames + 1),
            None,
            torch.cat([before.noise_level, there], dim=1) if self.config.large_steps else None,
            causal=True,
            drawn=0 if next_level is None else 1,
        )
        return state, found.of_last(1)._replace(memory=window)

    def _settled(self, state: State) -> State:
        """The state in which the fresh frame is one of the window; that takes no call."""
        if state.fresh is None:
            return state
        before = state.window if isinstance(state, WindowState) else None
        parts = zip(before, state.fresh, strict=True) if before else ((part,) for part in state.fresh)
        return self._windowed(state, Steps(*(torch.cat(pair, dim=1) for pair in parts)))

    def _kept(self, state: State, seen: Prediction) -> State:
        """The state one latent step later; `seen` remembers the window, where the cache's has its keys."""
        steps: Any = seen.memory
        later = dataclasses.replace(state, ages=tuple(age + 1 for age in state.ages), frame=state.frame + 1)
        return self._windowed(later, steps)

    def _windowed(self, state: State, window: Steps) -> WindowState:
        keep = self.transformer.config.window - 1
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(State)}
        return WindowState(**{**fields, "fresh": None}, window=Steps(*(part[:, -keep:] for part in window)))

    def filled(self, state: State) -> WindowState:
        """The state with its newest frame repeated until the window is full, as in long use."""
        state = self._settled(state)
        if not isinstance(state, WindowState) or state.window is None:
            raise ValueError("the window is empty; start a rollout first")
        count = self.transformer.config.window - 1
        last = (part[:, -1:] for part in state.window)
        window = Steps(*(part.repeat(1, count, *(1,) * (part.ndim - 2)) for part in last))
        return dataclasses.replace(state, window=window, frame=max(state.frame, count))
