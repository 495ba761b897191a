"""Volume rendering along rays: where to sample, how to composite, how to keep surfaces thin (tensors only).

Distances along the ray are in model units; `edges` are the n + 1 borders of n intervals.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def spread(
    unit: Float[Tensor, "*b"], near: float, middle: float, far: float, share: float = 0.75
) -> Float[Tensor, "*b"]:
    """Distances from unit positions: `share` even from near to middle, the rest even in 1 / distance."""
    even = near + unit / share * (middle - near)
    rest = ((unit - share) / (1 - share)).clamp(0, 1)
    return torch.where(unit < share, even, 1 / ((1 - rest) / middle + rest / far))


def stratified(
    rays: int, intervals: int, generator: torch.Generator | None, device: torch.device
) -> Float[Tensor, "rays edges"]:
    """Unit positions of interval borders, all of a ray shifted by the same part of an interval at random."""
    edges = torch.linspace(0, 1, intervals + 1, device=device).expand(rays, -1)
    if generator is None:
        return edges
    shift = torch.rand(rays, 1, generator=generator, device=device) - 0.5
    return (edges + shift / intervals).clamp(0, 1)


def resample(
    edges: Float[Tensor, "r edges"],
    weights: Float[Tensor, "r n"],
    intervals: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "r new_edges"]:
    """New borders, dense where weights are high (inverse transform sampling, Mildenhall et al. 2020, 5.2).

    Weights are dilated by one interval and padded, so that a surface between coarse samples is not missed.
    """
    wide = torch.nn.functional.max_pool1d(weights[:, None], 3, stride=1, padding=1)[:, 0]
    wide = wide + 0.02 / weights.shape[1] + 1e-2 * wide.sum(-1, keepdim=True) / weights.shape[1]
    cumulative = torch.cumsum(wide, -1)
    cumulative = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative / cumulative[:, -1:]], -1)
    at = stratified(len(edges), intervals, generator, edges.device).contiguous()
    right = torch.searchsorted(cumulative, at, right=True).clamp(1, weights.shape[1])
    low, high = cumulative.gather(1, right - 1), cumulative.gather(1, right)
    start, end = edges.gather(1, right - 1), edges.gather(1, right)
    return start + (at - low) / (high - low).clamp(min=1e-8) * (end - start)


def weights_of(density: Float[Tensor, "r n"], edges: Float[Tensor, "r edges"]) -> Float[Tensor, "r n"]:
    """Share of the light that ends in each interval (Max 1995; Mildenhall et al. 2020, eq. 3)."""
    optical = density * (edges[:, 1:] - edges[:, :-1])
    before = torch.cumsum(optical, -1) - optical
    return torch.exp(-before) * -torch.expm1(-optical)


def median_distance(weights: Float[Tensor, "r n"], edges: Float[Tensor, "r edges"]) -> Float[Tensor, " r"]:
    """Distance at which half of the stopped light has stopped, linear inside its interval."""
    cumulative = torch.cumsum(weights, -1)
    half = cumulative[:, -1:] / 2
    index = torch.searchsorted(cumulative.contiguous(), half.contiguous()).clamp(max=weights.shape[1] - 1)
    weight = weights.gather(1, index).clamp(min=1e-10)
    part = ((half - cumulative.gather(1, index) + weight) / weight).clamp(0, 1)
    start, end = edges.gather(1, index), edges.gather(1, index + 1)
    return (start + part * (end - start))[:, 0]


def distortion(weights: Float[Tensor, "r n"], edges: Float[Tensor, "r edges"]) -> Float[Tensor, ""]:
    """How far the weights of a ray are spread (Barron et al. 2022, arXiv:2111.12077, eq. 15), mean over rays.

    The double sum runs in linear time with cumulative sums (Sun et al. 2022, arXiv:2206.05085).
    """
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    before = torch.cumsum(weights, -1) - weights
    moment = torch.cumsum(weights * middle, -1) - weights * middle
    between = 2 * (weights * (middle * before - moment)).sum(-1)
    within = (weights.square() * (edges[:, 1:] - edges[:, :-1])).sum(-1) / 3
    return (between + within).mean()


def bend(disparity: Float[Tensor, " r"], directions: Float[Tensor, "r 3"]) -> Float[Tensor, " r/3"]:
    """How far surfaces are from flat along triplets of rays through evenly spaced pixels of a line.

    On a plane 1 / distance is linear in the direction, so it is zero there, whatever the slope. It is taken
    relative to the disparity, or pushing everything away would pay.
    """
    first, middle, last = disparity.view(-1, 3).unbind(1)
    one, _, three = directions.view(-1, 3, 3).unbind(1)
    expected = (first + last) / (one + three).norm(dim=-1)
    return (expected - middle).abs() / (expected + middle).detach()


def even_colour(colours: Float[Tensor, "r 3"], sharpness: float = 10.0) -> Float[Tensor, " r/3"]:
    """Near 1 for triplets of one colour, near 0 across edges (Godard et al. 2017, eq. 3)."""
    change = (colours.view(-1, 3, 3) - colours.view(-1, 3, 3)[:, 1:2]).abs().mean(-1).amax(1)
    return torch.exp(-sharpness * change)
