"""The radiance field of our NeRF: voxel pyramids, a sky, and a per-ray shading network (tensors only).

In the family of DVGO (Sun et al. 2022, arXiv:2111.11215: density activated after interpolation) and Plenoxels
(Fridovich-Keil et al. 2022, arXiv:2112.05131), with two choices for a CPU. The density itself, baked into one
small grid from time to time, says where to sample, so no proposal network is trained. What depends on the
viewing direction is added once per ray from features that are composited like colours (deferred shading,
Hedman et al. 2021, arXiv:2103.14645), so no network runs per sample.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon3d.volume import distortion, median_distance, resample, spread, stratified, weights_of
from recon3d.voxels import VoxelPyramid, contract, interpolate

NORMAL_VOXELS = 4.0  # of the finest, on each side of a point, whose densities tell a surface's normal


@dataclass(frozen=True)
class FieldConfig:
    """Lengths are in model units: `reconstruct` puts the mean camera distance from the focus at 1."""

    resolutions: tuple[int, ...] = (20, 48, 96)  # voxels a side, coarse to fine
    features: int = 4  # composited per ray for shading that depends on the direction
    inner: float = 0.6  # half side of the box that gets most voxels
    share: float = 0.8  # part of each axis of the grid that the inner box gets
    near: float = 0.1
    middle: float = 2.0  # samples are even in distance up to here, even in 1 / distance beyond
    far: float = 30.0
    coarse_samples: int = 64  # density look-ups in the baked grid, without gradients
    fine_samples: int = 28  # full look-ups, with gradients
    baked_resolution: int = 64
    density_scale: float = 100.0  # density of a raw value of about 1: how fast surfaces can turn opaque
    density_start: float = 0.5  # where views cannot tell, low puts surfaces too far away and high too near
    sky_resolution: int = 12
    negligible: float = 1e-3  # weight below which a sample's colour is left out


class RadianceField(nn.Module):
    """Colour, opacity and distance along rays."""

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()
        self.config = config
        self.density = VoxelPyramid(config.resolutions, 1)
        self.colour = VoxelPyramid(config.resolutions, 3)
        self.features = VoxelPyramid(config.resolutions[-2:-1], config.features)
        self.sky = VoxelPyramid((config.sky_resolution,), 3)
        self.shading = nn.Sequential(nn.Linear(config.features + 9, 32), nn.ReLU(), nn.Linear(32, 3))
        nn.init.zeros_(self.shading[-1].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.shading[-1].bias)  # pyright: ignore[reportArgumentType]
        for table in self.features.tables:
            nn.init.normal_(table, std=0.1)
        self.register_buffer("baked", torch.zeros(config.baked_resolution**3, 1))
        self.levels = len(config.resolutions)
        self.bake()

    def activated(self, raw: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        c = self.config
        shift = math.log(math.expm1(c.density_start / c.density_scale))
        return nn.functional.softplus(raw + shift) * c.density_scale

    @torch.no_grad()
    def bake(self) -> None:
        """Refreshes the small density grid that guides sampling."""
        raw = self.density.baked(self.config.baked_resolution, self.levels)
        self.baked.copy_(self.activated(raw))  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def edges(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "r edges"]:
        """Where to sample: interval borders from the baked density (sampling is never differentiated)."""
        c = self.config
        unit = stratified(len(origins), c.coarse_samples, generator, origins.device)
        edges = spread(unit, c.near, c.middle, c.far)
        points = contract(self._middles(origins, directions, edges), c.inner, c.share)
        density = interpolate(self.baked, points, (c.baked_resolution,) * 3).view(len(origins), -1)  # pyright: ignore[reportArgumentType]
        unit = resample(unit, weights_of(density, edges), c.fine_samples, generator)
        return spread(unit, c.near, c.middle, c.far)

    def forward(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, "..."]]:
        """Renders rays with unit directions.

        Returns:
            rgb (r 3, in [0, 1]), opacity (r), distance along the ray (r; expected and median), disparity (r;
            expected 1 / distance), and the spread of the weights (a scalar, for a loss).
        """
        c = self.config
        edges = self.edges(origins, directions, generator)
        points = contract(self._middles(origins, directions, edges), c.inner, c.share)
        density = self.activated(self.density(points, self.levels)).view(len(origins), -1)
        weights = weights_of(density, edges)
        opacity = weights.sum(-1)
        rgb, features = self.composited(points, weights)
        sky = torch.sigmoid(self.sky(directions * 0.99, 1))
        rgb = rgb + (1 - opacity)[:, None] * sky
        rgb = rgb + self.shading(torch.cat([features, harmonics(directions)], -1)) * opacity[:, None]
        middles = (edges[:, 1:] + edges[:, :-1]) / 2
        return {
            "rgb": rgb,
            "opacity": opacity,
            "expected": (weights * middles).sum(-1) / opacity.clamp(min=1e-6),
            "median": median_distance(weights, edges),
            "disparity": (weights / middles).sum(-1) + (1 - opacity) / c.far,
            "spread": distortion(weights, 1 - 1 / (1 + edges)),
        }

    def normals(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        """Unit directions in which the density falls, by differences of several voxels, as single ones are
        noise."""
        c = self.config
        step = NORMAL_VOXELS * 2 * c.inner / (c.share * c.resolutions[-1]) * torch.eye(3).to(points)
        ends = torch.stack([points[:, None] - step, points[:, None] + step])
        raw = self.density(contract(ends.view(-1, 3), c.inner, c.share), self.levels).view(2, -1, 3)
        return nn.functional.normalize(raw[0] - raw[1], dim=-1)

    def composited(
        self, points: Float[Tensor, "p 3"], weights: Float[Tensor, "r n"]
    ) -> tuple[Float[Tensor, "r 3"], Float[Tensor, "r f"]]:
        """Colours and features of rays; only samples that matter are looked up, for speed."""
        chosen = (weights.detach() > self.config.negligible).flatten().nonzero()[:, 0]
        ray, weight = chosen // weights.shape[1], weights.flatten()[chosen, None]
        colours = weight * torch.sigmoid(self.colour(points[chosen], self.levels))
        features = weight * self.features(points[chosen], 1)
        return tuple(x.new_zeros(len(weights), x.shape[1]).index_add(0, ray, x) for x in (colours, features))  # pyright: ignore[reportReturnType]

    @staticmethod
    def _middles(
        origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], edges: Float[Tensor, "r edges"]
    ) -> Float[Tensor, "p 3"]:
        middles = (edges[:, 1:] + edges[:, :-1]) / 2
        return (origins[:, None] + middles[..., None] * directions[:, None]).view(-1, 3)


def harmonics(directions: Float[Tensor, "r 3"]) -> Float[Tensor, "r 9"]:
    """Real spherical harmonics up to degree 2, without their constants (a linear layer follows)."""
    x, y, z = directions.unbind(-1)
    terms = (torch.ones_like(x), x, y, z, x * y, y * z, z * x, x * x - y * y, 3 * z * z - 1)
    return torch.stack(terms, dim=-1)
