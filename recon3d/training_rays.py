"""Pixels of posed frames as training rays, drawn in batches (tensors only)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from recon3d.cameras import Cameras
from recon3d.similarity import Similarity


@dataclass(frozen=True)
class TrainingRays:
    """Rays in the unit box through all pixels of n frames, flat in (frame, row, column) order.

    Attributes:
        origins, directions: of the rays; directions are unit.
        colours: in [0, 1].
        frame: which frame a ray belongs to.
        frames, height, width: how many there are of each.
    """

    origins: Float[Tensor, "r 3"]
    directions: Float[Tensor, "r 3"]
    colours: Float[Tensor, "r 3"]
    frame: Int[Tensor, " r"]
    frames: int
    height: int
    width: int

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
        """Indices of single rays, evenly at random."""
        return torch.randint(len(self.origins), (count,), generator=generator)

    def draw_triplets(self, count: int, generator: torch.Generator) -> Int[Tensor, " rays"]:
        """Indices of `count // 3` triplets: pixels on a line at equal steps of 1 to 8, across or down."""
        triplets = count // 3
        step = 2 ** int(torch.randint(4, (1,), generator=generator))
        across = bool(torch.rand(1, generator=generator) < 0.5)
        step = max(min(step, ((self.width if across else self.height) - 1) // 2), 1)
        rows, columns = (0, step) if across else (step, 0)
        frame = torch.randint(self.frames, (triplets,), generator=generator)
        row = torch.randint(rows, self.height - rows, (triplets,), generator=generator)
        column = torch.randint(columns, self.width - columns, (triplets,), generator=generator)
        middle = (frame * self.height + row) * self.width + column
        offset = rows * self.width + columns
        return torch.stack([middle - offset, middle, middle + offset], dim=1).flatten()


def training_rays(frames: UInt8[Tensor, "n h w 3"], cameras: Cameras, similarity: Similarity) -> TrainingRays:
    """All pixels of all frames as rays in the box of a similarity."""
    origins, directions = similarity.rays(cameras)
    index = torch.arange(len(cameras), device=origins.device)[:, None, None].expand(origins.shape[:3])
    colours = frames.to(origins) / 255
    return TrainingRays(
        origins.reshape(-1, 3),
        directions.reshape(-1, 3),
        colours.reshape(-1, 3),
        index.flatten(),
        len(cameras),
        cameras.height,
        cameras.width,
    )
