"""What pulls on a rollout's steps: the prediction under all conditions, led away from the one without words,
or without actions (classifier-free guidance, Ho & Salimans 2022). It costs a second take of the frame,
which shares the call unless words pull.

What is pulled goes to the mean of what may come, which the pull keeps sharp and whole: nearer to the truth than
a drawn step, and, where things fall, in one piece. Where actions decide what comes, as in Room and Orbit, they
pull; in the Lab, where a first frame does not tell how fast things fly, words do. The more is in doubt, the
more the mean is blurred, and the stronger is the pull.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simulator.flow import Levels
from simulator.sampling import guided
from simulator.transformer import Conditions, Prediction

AT_FIRST = 0.2  # of the pull; all of it where the error is that of any other picture, which is 1


class Pull(NamedTuple):
    """How strongly each row is led away from what is made without some of its conditions."""

    strength: Float[Tensor, "b 1 1 1 1"]
    without: Conditions
    pulled: Bool[Tensor, "b 1"]

    def goal(self, level: Levels, next_level: Levels) -> Levels:
        """Where the network is told that a step leads: nowhere, for the mean, or on."""
        return torch.where(self.pulled, level, next_level)

    def on(self, found: Prediction, without: Prediction) -> Prediction:
        """A prediction under all conditions, pulled away from the one without some."""
        return found._replace(data=guided(found.data, without.data, self.strength))


def pull_of(
    conditions: Conditions,
    worlds: Sequence[str],
    words: Mapping[str, float],
    actions: Mapping[str, float],
    doubts: Sequence[float],
) -> Pull:
    """The pull on rows under these conditions, by their worlds' settings (1, or none: no pull), as far as
    they are told anything; where both are set, by their actions. It grows with the error that each row expects
    by now, from `AT_FIRST` of it: that of words with the mean squared error (`doubts`), that of actions with
    its root. worlds: their names, by number."""
    names: list[str] = [worlds[int(world)] for world in conditions.world.tolist()]
    doubt = torch.tensor(doubts, dtype=torch.float32, device=conditions.world.device).clamp(max=1)
    drops, strength = [], torch.ones_like(doubt)
    for told, settings, grown in (
        (conditions.text_known, words, doubt),
        (conditions.actions_known, actions, doubt.sqrt()),
    ):
        most = torch.tensor([settings.get(name, 1.0) for name in names], device=told.device)
        drops.append((most != 1) & told.any(dim=1))
        strength = torch.where(drops[-1], 1 + (AT_FIRST + (1 - AT_FIRST) * grown) * (most - 1), strength)
    by_words, by_actions = (drop[:, None] for drop in drops)
    without = conditions._replace(
        text_known=conditions.text_known & ~by_words, actions_known=conditions.actions_known & ~by_actions
    )
    return Pull(strength[:, None, None, None, None], without, by_words | by_actions)
