"""Pixels of posed frames as training rays, drawn in batches (tensors only)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
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
        kept: which rays may be drawn, on the CPU, where draws are made; None: all.
    """

    origins: Float[Tensor, "r 3"]
    directions: Float[Tensor, "r 3"]
    colours: Float[Tensor, "r 3"]
    frame: Int[Tensor, " r"]
    frames: int
    height: int
    width: int
    kept: Bool[Tensor, " r"] | None = None

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
        """Indices of single rays, evenly at random."""
        if self.kept is None:
            return torch.randint(len(self.origins), (count,), generator=generator)
        return _drawn(self.kept.nonzero()[:, 0], count, generator)

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
        triplet = torch.stack([middle - offset, middle, middle + offset], dim=1)
        if self.kept is not None:
            whole = self.kept[triplet].all(dim=1).nonzero()[:, 0]
            if not len(whole):
                return self.draw(triplets, generator).repeat_interleave(3)
            triplet = triplet[_drawn(whole, triplets, generator)]
        return triplet.flatten()


def _drawn(among: Int[Tensor, " m"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return among[torch.randint(len(among), (count,), generator=generator)]


def training_rays(
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    similarity: Similarity,
    ignored: Bool[Tensor, "n h w"] | None = None,
) -> TrainingRays:
    """All pixels of all frames as rays in the box of a similarity; those that are ignored are never drawn."""
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
        None if ignored is None else ~ignored.flatten().cpu(),
    )
