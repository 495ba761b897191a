"""The state of a rollout as a value: rows that can be taken out, put together and replaced.

Rows are independent dreams that share one forward and one ring of cached frames. They may be of different
ages: rotary positions are relative, so the ring's positions are shared, and what is older than a row is
masked from it. A row's noise depends on its own seed and age alone, so a row dreams the same whatever its
mates do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from simulator.cache import KeysValues, Memory, padded, shifted
from simulator.tokenizer import Past

FARTHEST = 1024
"""Positions beyond this start over when rows are put together, since float32 loses their angles."""


class Steps(NamedTuple):
    """Latent steps as the network sees them, oldest first, with the actions that led to them."""

    latents: Float[Tensor, "b n c y x"]
    noise_level: Float[Tensor, "b n"]
    actions: Float[Tensor, "b n a"]
    actions_known: Bool[Tensor, "b n"]


@dataclass(frozen=True)
class State:
    """A rollout, as a value. Rows are independent dreams, each of its own age."""

    memory: Memory  # of the last `kept` latent steps
    fresh: (
        Steps | None
    )  # the step after those, which the next network call is to remember; None: there is none
    decoder: Past | None  # what the streaming decoder looks back at; None before the first frame
    text: Float[Tensor, "b l e"]
    text_known: Bool[Tensor, "b l"]
    world: Int[Tensor, " b"]
    seeds: tuple[int, ...]
    ages: tuple[int, ...]  # latent steps that each row has made
    doubts: tuple[float, ...]  # mean squared error of the latents that each row expects by now
    frame: int  # position of the next latent step, shared by the rows
    kept: int  # latent steps in the memory
    height: int
    width: int


def visible(state: State, window: int, takes: int = 1) -> Bool[Tensor, "b n m"] | None:
    """Which kept frames, and which of themselves, each row's fresh one (if there is one) and its next one may
    look at; None where all may see all. takes: of the next one, none of which sees another."""
    fresh = 0 if state.fresh is None else 1
    if not fresh and takes == 1 and min(state.ages) >= state.kept:
        return None
    ages = torch.tensor(state.ages, device=state.text.device)[:, None, None]
    back = pad(torch.arange(state.kept + fresh, 0, -1, device=ages.device), (0, takes))
    since = back[-fresh - takes :, None]
    may = (back >= since) & (back <= ages) & (back - since < window)
    may[:, -takes:, -takes:] &= torch.eye(takes, dtype=torch.bool, device=ages.device)
    return may


def row(state: State, index: int) -> State:
    """One row alone, without what its mates needed."""
    if state.decoder is None:
        raise ValueError("a state without frames has no rows to take; start it first")
    one, fresh, before = slice(index, index + 1), state.fresh, state.decoder.before
    kept = min(state.ages[index] - (fresh is not None), state.kept)
    words = max(1, int(state.text_known[index].sum()))

    def own(values: Tensor) -> Tensor:
        older = values.shape[2] // max(state.kept, 1) * (state.kept - kept)
        return values[one, :, older:].clone()

    memory = Memory(
        [KeysValues(own(layer.keys), own(layer.values)) for layer in state.memory.layers],
        state.memory.latents[one].clone(),
        state.memory.noise_level[one].clone(),
    )
    return State(
        memory,
        None if fresh is None else Steps(*(part[one].clone() for part in fresh)),
        Past(state.decoder.latents[one].clone(), None if before is None else before[one].clone()),
        state.text[one, :words].clone(),
        state.text_known[one, :words].clone(),
        state.world[one].clone(),
        (state.seeds[index],),
        (state.ages[index],),
        (state.doubts[index],),
        state.frame,
        kept,
        state.height,
        state.width,
    )


def rows(state: State) -> list[State]:
    """Every row alone."""
    return [row(state, index) for index in range(len(state.seeds))]


def stacked(states: Sequence[State]) -> State:
    """States as the rows of one: memories are padded to the longest and moved to a common position.

    Raises:
        ValueError: there is no state, one has no frames yet, their pictures differ in size, or they are of
            models that remember differently.
    """
    if not states or any(state.decoder is None for state in states):
        raise ValueError("states to stack must have frames, and there must be at least one; start them first")
    sizes = sorted({(state.height, state.width) for state in states})
    if len(sizes) > 1:
        raise ValueError(f"states to stack must be of one picture size, got {sizes[0]} and {sizes[1]}")
    fresh = [s.fresh for s in states if s.fresh is not None]
    if len(fresh) not in (0, len(states)):
        raise ValueError("states to stack must be of one model's settings: some have a fresh step, some none")
    kept, words = max(s.kept for s in states), max(s.text.shape[1] for s in states)
    frame = max(s.frame for s in states)
    frame = frame if frame <= FARTHEST else kept + bool(fresh)
    longest = max(s.memory.layers[0].keys.shape[2] for s in states)
    memories = [padded(shifted(s.memory, frame - s.frame), longest) for s in states]
    decoders = [s.decoder for s in states if s.decoder is not None]
    carried = [past.before for past in decoders if past.before is not None]
    layers = [
        KeysValues(torch.cat([layer.keys for layer in same]), torch.cat([layer.values for layer in same]))
        for same in zip(*(memory.layers for memory in memories), strict=True)
    ]
    return replace(
        states[0],
        memory=Memory(
            layers,
            torch.cat([memory.latents for memory in memories]),
            torch.cat([memory.noise_level for memory in memories]),
        ),
        fresh=Steps(*(torch.cat(same) for same in zip(*fresh, strict=True))) if fresh else None,
        decoder=Past(torch.cat([past.latents for past in decoders]), torch.cat(carried) if carried else None),
        text=torch.cat([pad(s.text, (0, 0, 0, words - s.text.shape[1])) for s in states]),
        text_known=torch.cat([pad(s.text_known, (0, words - s.text.shape[1])) for s in states]),
        world=torch.cat([s.world for s in states]),
        seeds=tuple(seed for s in states for seed in s.seeds),
        ages=tuple(age for s in states for age in s.ages),
        doubts=tuple(doubt for s in states for doubt in s.doubts),
        frame=frame,
        kept=kept,
    )
