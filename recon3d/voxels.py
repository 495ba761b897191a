"""A pyramid of dense voxel grids with trilinear look-up.

The value at a point is the sum over coarse and fine grids (as the levels of Instant NGP, Mueller et al. 2022,
arXiv:2201.05989, but dense: no hash). Coarse levels carry what no ray has seen closely, fine ones add detail.
On a CPU look-ups run channel-last through `embedding_bag` and their backward pass through `index_add_`,
several times faster there than `grid_sample`, which gathers channel by channel; on a GPU `grid_sample` does
it all in one kernel without writing rows and weights to memory.
"""

import itertools
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


class _WeightedRows(torch.autograd.Function):
    """Sum over corners of weight * row of a table."""

    @staticmethod
    def forward(ctx, table, indices, weights):
        ctx.save_for_backward(indices, weights, *((table,) if ctx.needs_input_grad[2] else ()))
        ctx.shape = table.shape
        return nn.functional.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx, grad):
        indices, weights, *table = ctx.saved_tensors
        rows, channels = ctx.shape
        to_weights = (table[0][indices] * grad[:, None]).sum(-1) if table else None
        parts = (weights[..., None] * grad[:, None]).view(-1, channels)
        total = grad.new_zeros(rows, channels)
        if channels == 1:  # the one-dimensional kernel is much faster
            total[:, 0].index_add_(0, indices.flatten(), parts[:, 0])
        else:
            total.index_add_(0, indices.flatten(), parts)
        return total, None, to_weights


def corners(
    points: Float[Tensor, "p 3"], resolution: tuple[int, int, int]
) -> tuple[Int[Tensor, "p 8"], Float[Tensor, "p 8"]]:
    """Rows and weights of the eight corners around points in [-1, 1]^3 (outside counts as on the wall)."""
    size = torch.tensor(resolution, dtype=points.dtype, device=points.device)
    position = ((points + 1) * 0.5 * (size - 1)).clamp(min=0)
    position = torch.minimum(position, size - 1.0001)
    cell = position.to(torch.int64)
    x1, y1, z1 = (position - cell).unbind(-1)
    x0, y0, z0 = 1 - x1, 1 - y1, 1 - z1
    _, rows, columns = resolution
    base = (cell[:, 0] * rows + cell[:, 1]) * columns + cell[:, 2]
    steps = [(i * rows + j) * columns + k for i, j, k in itertools.product((0, 1), repeat=3)]
    faces = (x0 * y0, x0 * y1, x1 * y0, x1 * y1)
    weights = torch.stack([face * z for face in faces for z in (z0, z1)], dim=-1)
    return base[:, None] + torch.tensor(steps, device=points.device), weights


def interpolate(
    table: Float[Tensor, "rows c"], points: Float[Tensor, "p 3"], resolution: tuple[int, int, int]
) -> Float[Tensor, "p c"]:
    """Trilinear value of a grid (rows in x, y, z order) at points in [-1, 1]^3; corners sit on the walls.

    Gradients reach the table, and the points where these ask for one (poses that are refined).
    """
    if table.device.type == "cuda":
        return sampled(table, points, resolution)
    return _WeightedRows.apply(table, *corners(points, resolution))


def sampled(
    table: Float[Tensor, "rows c"], points: Float[Tensor, "p 3"], resolution: tuple[int, int, int]
) -> Float[Tensor, "p c"]:
    """The same as `interpolate`, by `grid_sample`, which counts axes from the last."""
    x, y, z = resolution
    grid = rearrange(table, "(x y z) c -> 1 c x y z", x=x, y=y, z=z)
    place = rearrange(points.flip(-1), "p axes -> 1 p 1 1 axes")
    found = nn.functional.grid_sample(grid, place, padding_mode="border", align_corners=True)
    return rearrange(found, "1 c p 1 1 -> p c")


class VoxelPyramid(nn.Module):
    """Sum of dense grids over [-1, 1]^3 with c channels."""

    def __init__(self, resolutions: Sequence[int], channels: int) -> None:
        super().__init__()
        self.resolutions = [(r, r, r) for r in resolutions]
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(r**3, channels)) for r in resolutions)

    def forward(self, points: Float[Tensor, "p 3"], levels: int) -> Float[Tensor, "p c"]:
        """Values at points; only the `levels` coarsest grids count (coarse to fine)."""
        pairs = list(zip(self.tables, self.resolutions, strict=True))[:levels]
        return sum(interpolate(table, points, size) for table, size in pairs)  # pyright: ignore[reportReturnType]

    def baked(self, resolution: int, levels: int) -> Float[Tensor, "rows c"]:
        """All levels as one grid of one resolution, without gradients."""
        total = torch.zeros(1, device=self.tables[0].device)
        for table, (x, y, z) in list(zip(self.tables, self.resolutions, strict=True))[:levels]:
            grid = rearrange(table.detach(), "(x y z) c -> 1 c x y z", x=x, y=y, z=z)
            size = (resolution,) * 3
            total = total + nn.functional.interpolate(grid, size, mode="trilinear", align_corners=True)
        return rearrange(total, "1 c x y z -> (x y z) c").contiguous()


def contract(points: Float[Tensor, "*b 3"], inner: float, share: float) -> Float[Tensor, "*b 3"]:
    """All of space into [-1, 1]^3, per axis: [-inner, inner] linearly to [-share, share], the rest by 1/x.

    Mip-NeRF 360's contraction (Barron et al. 2022, arXiv:2111.12077, eq. 10) per axis, with the share of the
    grid that the inner box gets left free, so that most voxels lie where the cameras look.
    """
    x = points / inner
    size = x.abs().clamp(min=1.0)
    return torch.where(x.abs() <= 1, share * x, x.sign() * (1 - (1 - share) / size))
