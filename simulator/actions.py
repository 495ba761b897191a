"""What a model of Orrery's own worlds knows of how they read actions (tests ask the true worlds)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Motion(NamedTuple):
    """How a world's actions move its camera, which looks at a point: what 1 does in a control step."""

    target_m: tuple[float, float, float]
    azimuth_deg: float
    elevation_deg: float
    distance_m: float


OWN = frozenset({"orrery/Lab-v0", "orrery/Orbit-v0", "orrery/Room-v0"})
"""The ids of these worlds; a world of another id that bears their name is read as any env is."""
MOTIONS = {"Orbit": Motion((0.0, 0.0, 0.15), 9.0, 4.5, 0.05)}
UNDONE = {"Orbit": (-1.0, -1.0, -1.0), "Room": (-1.0, -1.0, -1.0, -1.0, 0.0)}
"""Times an action: the one that leads back. What was pushed stays where it is."""
BUTTONS = {"Lab": (3,)}
"""Parts of an action that are on above 0 and else off, whatever their size. Recordings hold 1 and -1."""


def pressed(actions: Float[np.ndarray, "*n a"], world: str) -> Float[np.ndarray, "*n a"]:
    """Actions of one of Orrery's own worlds with its buttons at 1 or -1, as a model has met them."""
    told = np.array(actions, np.float32)
    for button in BUTTONS.get(world, ()):
        told[..., button] = np.where(told[..., button] > 0, 1, -1)
    return told
