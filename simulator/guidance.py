"""What pulls on a rollout's steps: the prediction under all conditions, led away from the one without words,
or without actions (classifier-free guidance, Ho & Salimans 2022). It costs a second take of the frame,
which shares the call unless words pull.

Where actions decide what comes, as in Room and Orbit, they pull, and the step goes to the mean of what may
come: nearer to the truth than one that is drawn, and the pull keeps it sharp. In the Lab a first frame does
not tell how fast things fly. Drawn steps, each from noise of its own, break them up; the mean makes them
fade. So words pull there, and the network is told to go half of the way (shortcut models, Frans et al. 2025),
between the mean and a draw: things fall in one piece. The more is in doubt, the stronger is either pull.

What neighbouring cells of the latents share of a pull by actions is taken off it: coarsely, the mean is the
best guess there is, and what it lacks is detail (guidance apart in frequencies, Sadat et al. 2025, arXiv
2506.19713). Of a pull by words it stays: without it things fall too slowly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simulator.flow import Levels
from simulator.sampling import Noisy
from simulator.transformer import Conditions, Prediction

AT_FIRST = 0.2  # of the pull; all of it where the error is that of any other picture, which is 1


class Manner(NamedTuple):
    """How conditions pull. told: share of its way that the network is told to go. shared: of what the pull
    shares with the cells around, that is taken off it. grows: power of the expected mean squared error by
    which the pull grows."""

    told: float
    shared: float
    grows: float


BY_WORDS, BY_ACTIONS = Manner(0.5, 0.0, 0.5), Manner(0.0, 1.3, 0.25)


class Pull(NamedTuple):
    """How strongly each row is led away from what is made without some of its conditions, and the share of it
    that is taken off where cells share it."""

    strength: Float[Tensor, "b 1 1 1 1"]
    shared: Float[Tensor, "b 1 1 1 1"]
    without: Conditions
    told: Float[Tensor, "b 1"]

    def goal(self, level: Levels, next_level: Levels) -> Levels:
        """Where the network is told that a step leads: nowhere, for the mean of what may come, or on."""
        return torch.lerp(level, next_level, self.told)

    def on(self, found: Prediction, without: Prediction) -> Prediction:
        """A prediction under all conditions, pulled away from the one without some, in its details."""
        apart = found.data - without.data
        own = apart - self.shared * _around(apart)
        return found._replace(data=found.data + (self.strength - 1) * own)


def _around(latents: Noisy) -> Noisy:
    """Latents blurred over each cell and the eight around it (1 2 1 both ways; edges are repeated)."""
    padded = F.pad(latents.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    return ((rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4).view_as(latents)


def pull_of(
    conditions: Conditions,
    worlds: Sequence[str],
    words: Mapping[str, float],
    actions: Mapping[str, float],
    doubts: Sequence[float],
) -> Pull:
    """The pull on rows under these conditions, by their worlds' settings (1, or none: no pull), as far as
    they are told anything; where both are, by their actions. It grows with the mean squared error that each
    row expects by now (`doubts`), from `AT_FIRST` of it. worlds: names, by number."""
    names: list[str] = [worlds[int(world)] for world in conditions.world.tolist()]
    doubt = torch.tensor(doubts, dtype=torch.float32, device=conditions.world.device).clamp(max=1)
    strength, way, shared, kept = torch.ones_like(doubt), torch.ones_like(doubt), torch.zeros_like(doubt), []
    for known, settings, manner in (
        (conditions.text_known, words, BY_WORDS),
        (conditions.actions_known, actions, BY_ACTIONS),
    ):
        most = torch.tensor([settings.get(name, 1.0) for name in names], device=doubt.device)
        drop = (most != 1) & known.any(dim=1)
        grown = AT_FIRST + (1 - AT_FIRST) * doubt**manner.grows
        strength = torch.where(drop, 1 + grown * (most - 1), strength)
        way, shared = way.masked_fill(drop, manner.told), shared.masked_fill(drop, manner.shared)
        kept.append(known & ~drop[:, None])
    without = conditions._replace(text_known=kept[0], actions_known=kept[1])
    each = (slice(None), None, None, None, None)
    return Pull(strength[each], shared[each], without, way[:, None])
