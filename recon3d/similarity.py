"""Where the scene is, judged from its cameras alone: our own similarity between the world and a unit box."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.cameras import Cameras


class NothingReconstructed(RuntimeError):
    """The frames hold no scene that could be reconstructed; the message says why."""


@dataclass(frozen=True)
class Similarity:
    """World (metres) to the box: (point - centre) * scale. Axes stay as they are."""

    centre: Float[Tensor, " 3"]
    scale: float

    def rays(self, cameras: Cameras) -> tuple[Float[Tensor, "n h w 3"], Float[Tensor, "n h w 3"]]:
        """Origins in the box and unit directions of the rays through all pixel centres."""
        origins, directions = cameras.rays()
        return (origins - self.centre) * self.scale, directions

    def metres(self, length: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """A length in the box as metres in the world."""
        return length / self.scale


def focus_similarity(cameras: Cameras) -> Similarity:
    """The point that the cameras look at goes to the origin, their mean distance from it to 1.

    The point is the nearest to all optical axes (least squares) with a weak pull towards the cameras, which
    decides where axes are parallel. Cameras that look outwards have the scene around them: then the origin is
    their middle.

    Raises:
        NothingReconstructed: the cameras do not move, so that no view holds parallax.
    """
    centres, axes = cameras.centres.double(), cameras.c2w[:, :3, 2].double()
    spread = (centres - centres.mean(0)).norm(dim=-1).max().item()
    if len(cameras) < 3 or spread < 1e-4:
        raise NothingReconstructed(
            f"no parallax: {len(cameras)} cameras within {spread:.2g} m of one another see no depth; give "
            "views from different places"
        )
    identity = torch.eye(3).to(axes)
    across = identity - axes[:, :, None] * axes[:, None] + 1e-4 * identity
    centre = torch.linalg.solve(across.mean(0), (across @ centres[:, :, None]).mean(0))[:, 0]
    ahead = ((centre - centres) * axes).sum(-1)
    if (ahead > 0).double().mean() < 0.5:
        centre = centres.mean(0)
    distance = max((centres - centre).norm(dim=-1).mean().item(), spread / 2)
    return Similarity(centre.float(), 1 / distance)
