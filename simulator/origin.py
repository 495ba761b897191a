"""What a world model keeps of the env that a world was recorded from, so that its dream can be that env."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from simulator.actions import OWN
from simulator.clips import Episode


@dataclass(frozen=True)
class Origin:
    action_space: dict[str, Any]  # as plain values, which `envs/action_spaces.py` reads and writes
    step_limit: int | None  # control steps in an episode; None: it never ends by itself
    time_step_s: float
    prompted: bool  # whether its episodes came with words
    reward_scale: float  # learned rewards are the env's over this


NATURE = ("action_space", "step_limit", "time_step_s")


def check_same(world: str, path: Path, episode: Episode, first: Episode) -> None:
    """Raises ValueError if two episodes of one world come from envs that are stepped differently."""
    here, there = (e.metadata.get("env", {}) for e in (episode, first))
    for name in NATURE if here and there else ():
        if here[name] != there[name]:
            raise ValueError(
                f"{path}: {name} of world {world} is {here[name]}, other episodes have {there[name]}; "
                "train on recordings of one version of the env"
            )


def origin_of(first: Episode, prompted: bool, rewards: Iterable[np.ndarray]) -> Origin | None:
    """A world's origin from one of its episodes and all their rewards; None where nothing was written down,
    and for Orrery's own worlds, whose dreams are known.

    Large rewards are learned at a root mean square of 1, so that they do not drown the pictures.
    """
    values = first.metadata.get("env")
    if values is None or first.env_id.split(":")[-1] in OWN:
        return None
    scale = max(1.0, float(np.sqrt((np.concatenate(list(rewards)) ** 2).mean())))
    return Origin(**{name: values[name] for name in NATURE}, prompted=prompted, reward_scale=scale)


def reward_scales(
    origins: Mapping[str, Origin], names: Sequence[str], worlds: Int[Tensor, " b"]
) -> Float[np.ndarray, " b"]:
    """What each row's learned reward is multiplied with. names: of the worlds, by number from 1 on."""
    rows = [(None, *names)[world] for world in worlds.tolist()]
    return np.array([origins[name].reward_scale if name in origins else 1.0 for name in rows], np.float32)
