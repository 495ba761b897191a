"""One scene out of views that are nearly one.

A radiance field is fitted to dreamt views; what it shows from their cameras, blurred where they disagree,
goes back to what dreamt them, as drafts to be drawn again. What is drawn from one scene's drafts is nearer to
one scene (as Instruct-NeRF2NeRF edits scenes, Haque et al. 2023, with drafts by noise as in SDEdit, Meng et
al. 2022). The views then no longer show how consistent the dream was by itself: measure that before.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from recon3d import nerf
from recon3d.cameras import Cameras
from recon3d.views import HeldOut

LEVELS = (0.5, 0.4)  # noise that each round's drafts start from
Again = Callable[[UInt8[Tensor, "n h w 3"], float], UInt8[Tensor, "n h w 3"]]
"""Draws drafts of all views again, from a noise level in (0, 1]."""


class Settled(NamedTuple):
    """frames: the views after the rounds. as_dreamt: how well a field fitted them before; None: none did."""

    frames: UInt8[Tensor, "n h w 3"]
    rounds: int
    as_dreamt: HeldOut | None


def settled(
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    again: Again,
    levels: tuple[float, ...] = LEVELS,
    seed: int = 0,
    progress: bool = False,
) -> Settled:
    """The views after a round for each level; from where no field can be fitted to them they stay as they
    are, with a word on stderr."""
    before, rounds = None, 0
    for level in levels:
        try:
            found = nerf.reconstruct(frames, cameras, "tiny", seed=seed, progress=progress)
        except nerf.NothingReconstructed as reason:
            print(f"the views do not settle into one scene: {reason}", file=sys.stderr)
            break
        before = before or found.held_out
        frames, rounds = again(found.render(cameras).rgb, level), rounds + 1
    return Settled(frames, rounds, before)
