"""One call of the network for the next latent step of a rollout, which also remembers the step before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from simulator.cache import extended, first_frame_of
from simulator.conditions import led_by
from simulator.flow import Levels
from simulator.state import State, visible
from simulator.transformer import Before, Conditions, Prediction


def next_step(
    forward: Callable[..., Prediction],
    window: int,
    state: State,
    conditions: Conditions,
    noisy: Tensor,
    level: Levels,
    next_level: Levels | None,
    told: bool,
) -> tuple[State, Prediction]:
    """What the network says of the next latent step (next_level None: only what it would remember of it),
    and the state in which the fresh one is remembered.

    noisy, level, next_level, conditions: of one frame, or of several takes of it, which do not see one
    another and whose words are the same. forward: `Transformer.forward`. window: frames that a rollout sees.
    told: whether the network is told where the step leads. The prediction is of the takes, its memory of the
    first.
    """
    fresh, takes = state.fresh, noisy.shape[1]
    latents, levels, goals = noisy, level, next_level if told else None
    places = [float(state.frame)] * takes
    before = [state.memory[1:]] * takes
    if fresh is not None:
        latents, levels = torch.cat([fresh.latents, noisy], dim=1), torch.cat([fresh.noise_level, level], 1)
        goals = None if goals is None else torch.cat([fresh.noise_level, goals], dim=1)
        conditions = led_by(fresh, conditions)
        places, before = [places[0] - 1, *places], [state.memory[1:], *[fresh[:2]] * takes]
    found = forward(
        latents,
        levels,
        conditions,
        visible(state, window, takes),
        torch.tensor(places, device=noisy.device),
        state.memory,
        goals,
        before=Before(*(torch.cat(parts, dim=1) for parts in zip(*before, strict=True))),
        drawn=0 if next_level is None else takes,
    )
    memory = first_frame_of(found.memory, latents, levels)
    found = found.of_last(takes)._replace(memory=memory)
    if fresh is None:
        return state, found
    kept = min(state.kept + 1, window - 1)
    return replace(state, memory=extended(state.memory, memory, window), kept=kept, fresh=None), found
