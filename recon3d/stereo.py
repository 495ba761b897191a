"""Depth maps corrected by what neighbouring pictures say, before they are fused.

A radiance field may explain every picture and still be centimetres off, because fog in front of a surface
can look like the surface. So each depth map is swept: it is moved as a whole by many small offsets along its
rays, and neighbouring pictures are looked up where it then lies (plane-sweep stereo, Collins 1996, with the
field's own surface in place of planes). How well they match gives a mean and a variance of the offset for
each pixel; offsets are then smoothed where colour and depth are even, so that plain regions take them from
their surroundings (weighted least squares, Farbman et al. 2008, reweighted against outliers: Geman and
McClure 1987). Depth is then made of planes where the pictures allow: tables and walls are flat, and what
tells the depth of a part of them tells it for the rest (second order smoothness, Woodford et al. 2008). What
stands on them is round and plain: there the field, which saw its outlines from all around, is as good a
guess, and the mean of two guesses is better than either. What other views contradict in the end is dropped
(Galliani et al. 2015, section 4.3), and what could as well be far away.
"""

from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from scipy import sparse
from scipy.sparse.linalg import cg
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, max_pool2d, pad
from tqdm import tqdm

from recon3d.cameras import Cameras
from recon3d.mesh import large_planes
from recon3d.views import resized

DIFFERENT = 0.05  # mean squared difference of colours beyond which more does not count
NOISE = 2e-5  # the same between pictures of one surface: about one level of 255
FEWEST = 2  # pictures that must show a place
SHARPNESS = 4.0  # how sharply worse matches are ruled out; chosen on a reference scene, as the next three
STIFFNESS = 1e4  # weight of smoothness, 1 / (offset in parts of the reach)^2 at the unit below
OUTLIER = 0.13  # residual, in parts of the reach, that counts little
AGREEMENT = 0.01  # how well views must agree, in parts of a scene's unit
FLAT_SHARE = 0.1  # of the surface, that a plane must have to be taken for one
FOG = 0.06  # in parts of a scene's unit; a correction of more is of a field that was not there yet
FAR = (2.0, 3.0, 6.0)  # in parts of a scene's unit; where a surface may be that is not told to be near
ASIDE_DEG = 45.0  # from where what is near and what is far are far apart in a picture
FEWEST_FAR = 6  # pictures that must show what is there
MUCH = 5e-4  # by which its mean squared difference may be more, about six levels of 255
MOST = 0.6  # of depths, on which views of one scene agree: on .9 of reference scenes', .5 of dreams'
CREASE = 1 / 35  # bend in parts of the finest reach, a pixel squared, that counts little
EASING = (3, 2, 1, 1)  # how many creases a bend may have before it counts little, round by round
UNTOLD = 0.3  # weight of depth that no picture tells, in parts of 1 / variance before any is looked at
EDGE = 10.0  # how fast links weaken with a change of colour in [0, 1]


def angles(cameras: Cameras, centre: Float[Tensor, " 3"]) -> Float[Tensor, "n n"]:
    """Between the cameras' rays to the centre, degrees."""
    rays = torch.nn.functional.normalize(cameras.centres - centre, dim=-1)
    return torch.rad2deg(torch.acos((rays @ rays.T).clamp(-1, 1)))


def neighbours(cameras: Cameras, centre: Float[Tensor, " 3"], count: int) -> Int[Tensor, "n k"]:
    """For each camera those whose rays to the centre make the least angle with its own, of at least 4 deg."""
    angle = angles(cameras, centre)
    angle[angle < 4] = 360.0
    return angle.topk(min(count, len(cameras) - 1), largest=False).indices


def swept_costs(
    picture: Float[Tensor, "3 h w"],
    camera: Cameras,
    depth: Float[Tensor, "h w"],
    offsets: Float[Tensor, " d"],
    pictures: Float[Tensor, "k 3 h w"],
    cameras: Cameras,
) -> Float[Tensor, "d h w"]:
    """Mean squared difference to the better half of the k other pictures that show a place, for each offset.

    The better half, because in some of them the surface is hidden or lit otherwise. A picture counts where it
    shows the place at every offset: as pictures come in and fall out, costs would rise and fall with no say
    about depth, at the borders of pictures most of all.
    """
    squares = cameras.resized(2, 2)  # so that pixels less 1 are what `grid_sample` takes
    surface, beyond = (
        squares.homogeneous(camera.unproject(at[None]).reshape(-1, 3)) for at in (depth, depth + 1)
    )
    change = beyond - surface  # a metre farther along the rays
    for part in (surface, change):
        part[..., :2] -= part[..., 2:]

    def image(offset: Tensor) -> Float[Tensor, "k h w 3"]:
        return rearrange(surface + offset * change, "k (h w) c -> k h w c", h=len(depth))

    def shows(offset: Tensor) -> Bool[Tensor, "k h w"]:
        x, y, z = image(offset).unbind(-1)
        return (x.abs() < z) & (y.abs() < z)

    seen = shows(offsets[0]) & shows(offsets[-1])  # and between: what a camera sees is convex
    better = max(len(pictures) // 2, 1)
    known, counted = seen.sum(0) >= FEWEST, seen.sum(0).clamp(1, better)
    costs = []
    for offset in offsets:
        x, y, z = image(offset).unbind(-1)
        grid = torch.stack([x / z, y / z], dim=-1)
        colours = grid_sample(pictures, grid, align_corners=False, padding_mode="border")
        difference = (colours - picture).square().mean(1).clamp(max=DIFFERENT)
        difference = avg_pool2d(difference[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
        least = in_order(torch.where(seen, difference, torch.inf))[:better]
        found = torch.where(least < torch.inf, least, 0.0).sum(0) / counted
        costs.append(torch.where(known, found, DIFFERENT))
    return torch.stack(costs)


def in_order(values: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    """Numbers, none of them NaN, sorted along the first axis by exchanges of neighbours for all pixels at
    once: for a dozen pictures in a fraction of `torch.sort`'s time."""
    values, k = values.clone(), len(values)
    for turn in range(k):
        first, second = values[turn % 2 : k - 1 : 2], values[turn % 2 + 1 :: 2]
        less = torch.minimum(first, second)
        torch.maximum(first, second, out=second)
        first.copy_(less)
    return values


def likely_offsets(
    costs: Float[Tensor, "d h w"], offsets: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Mean offset and its variance, where what matches worse than the best is exponentially less likely."""
    best = costs.amin(0)
    likely = torch.softmax(-SHARPNESS * (costs - best) / (best + NOISE), dim=0)
    mean = (likely * offsets[:, None, None]).sum(0)
    spread = (likely * (offsets[:, None, None] - mean).square()).sum(0)
    return mean, spread + (offsets[1] - offsets[0]) ** 2 / 4


def smoothed(
    values: Float[Tensor, "h w"],
    weights: Float[Tensor, "h w"],
    across: Float[Tensor, "h w2"],
    down: Float[Tensor, "h2 w"],
    sweeps: int = 200,
) -> Float[Tensor, "h w"]:
    """Weighted least squares by Jacobi sweeps: near the values, and alike along links of high weight.

    Args:
        across: weight of the link between each pixel and the one to its right; `down`, below it.
    """
    left, right = pad(across, (1, 0)), pad(across, (0, 1))
    up, low = pad(down, (0, 0, 1, 0)), pad(down, (0, 0, 0, 1))
    total = weights + left + right + up + low + 1e-12
    found = values
    for _ in range(sweeps):
        wide, tall = pad(found, (1, 1)), pad(found, (0, 0, 1, 1))
        pulled = left * wide[:, :-2] + right * wide[:, 2:] + up * tall[:-2] + low * tall[2:]
        found = (weights * values + pulled) / total
    return found


@lru_cache(maxsize=4)
def bends(height: int, width: int) -> sparse.csr_array:
    """The matrix that takes a map, row by row, to its second differences: along rows, along columns, and
    across both (which count twice)."""

    def step(n: int) -> sparse.dia_array:
        return sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(n - 1, n))  # pyright: ignore[reportArgumentType]

    along = sparse.kron(sparse.eye_array(height), step(width - 1) @ step(width))
    down = sparse.kron(step(height - 1) @ step(height), sparse.eye_array(width))
    both = 2**0.5 * sparse.kron(step(height), step(width))
    return sparse.csr_array(sparse.vstack([along, down, both]))


def flattened(
    depth: Float[Tensor, "h w"],
    goal: Float[Tensor, "h w"],
    weights: Float[Tensor, "h w"],
    across: Float[Tensor, "h w2"],
    down: Float[Tensor, "h2 w"],
    crease_m: float,
    outlier_m: float,
    sweeps: int = 300,
) -> Float[Tensor, "h w"]:
    """Depth near its goal and in planes, where inverse depth is linear in pixels: what bends, costs.

    Least squares by conjugate gradients, reweighted in rounds, so that creases and outliers cost little;
    creases more at first than at last (graduated non-convexity, Blake and Zisserman 1987), as where it starts
    from has some that are none.

    Args:
        depth: where to start; camera z, metres.
        weights: of the goal, 1 / variance in 1/m^2.
        across: how alike each pixel and the one to its right must be, from 0 to 1; `down`, below it.
        crease_m: bend of depth, metres a pixel squared, that counts little.
        outlier_m: distance from the goal that counts little.
        sweeps: of a round; what nothing tells is reached over some tens of pixels. More bend what is far off.
    """
    matrix = bends(*depth.shape)
    both = torch.minimum(torch.minimum(across[1:], across[:-1]), torch.minimum(down[:, 1:], down[:, :-1]))
    links = [torch.minimum(across[:, 1:], across[:, :-1]), torch.minimum(down[1:], down[:-1]), both]
    link = torch.cat([part.flatten() for part in links]).double().cpu().numpy()
    start, asked, trusted = (x.double().cpu().numpy().ravel() for x in (depth, goal, weights))
    unit = np.median(start) ** 2 / crease_m  # creases in a bend of inverse depth
    found = 1 / start
    for easing in EASING:
        near = 1 / (1 + ((asked - 1 / found) / outlier_m) ** 2) ** 2
        pull = near * trusted * start**4  # a metre of depth is 1 / depth^2 of inverse depth
        stiff = 0.5 * unit**2 * link / (1 + (unit / easing * (matrix @ found)) ** 2)
        system = sparse.csr_array(sparse.diags_array(pull) + matrix.T @ (sparse.diags_array(stiff) @ matrix))
        scaled = sparse.diags_array(1 / system.diagonal())
        with threadpool_limits(1, "blas"):  # over such short sums two threads make ten times the work
            found, _ = cg(system, pull / asked, found, maxiter=sweeps, M=scaled)
    return torch.from_numpy(1 / found).reshape(depth.shape).to(depth)


def corrected_depth(
    picture: Float[Tensor, "3 h w"],
    camera: Cameras,
    depth: Float[Tensor, "h w"],
    pictures: Float[Tensor, "k 3 h w"],
    cameras: Cameras,
    reach_m: float,
    crease_m: float,
    steps: int = 29,
) -> Float[Tensor, "h w"]:
    """One camera's depth (camera z, metres) after a sweep of offsets up to `reach_m` to both sides, as flat
    as `flattened` makes it."""
    offsets = torch.linspace(-reach_m, reach_m, steps).to(depth)
    mean, variance = likely_offsets(swept_costs(picture, camera, depth, offsets, pictures, cameras), offsets)
    stiffness = STIFFNESS * (0.14 / reach_m) ** 2

    def links(dim: int) -> Tensor:
        change = picture.diff(dim=dim + 1).abs().amax(0) * EDGE + depth.diff(dim=dim).abs() / (reach_m / 3)
        return torch.exp(-change)

    across, down = links(1), links(0)
    found = smoothed(mean, 1 / variance, stiffness * across, stiffness * down)
    for _ in range(3):
        trust = 1 / (1 + ((mean - found) / (OUTLIER * reach_m)).square()).square()
        found = smoothed(mean, trust / variance, stiffness * across, stiffness * down)
    # a ray that meets nothing has no depth to speak of, and offsets may lead behind the camera
    start, goal = ((depth + offset).clamp(0.1 * reach_m, 1e3 * reach_m) for offset in (found, mean))
    blind = 1 / offsets.square().mean()
    told = 1 / variance - blind  # what pictures say, which nothing before them should drown
    if (told <= 0).all():
        return depth
    return flattened(start, goal, told.clamp(min=UNTOLD * blind), across, down, crease_m, OUTLIER * reach_m)


def corrected_depths(
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    depth: Float[Tensor, "n h w"],
    centre: Float[Tensor, " 3"],
    reach_m: float,
    count: int = 12,
    progress: bool = False,
) -> Float[Tensor, "n h w"]:
    """All cameras' depths, each corrected by the pictures of `count` others; see `corrected_depth`.

    Twice: three times as far in pictures of half the size, then up to `reach_m` in these.
    """
    near, passes = neighbours(cameras, centre, count), ((3 * reach_m, 2), (reach_m, 1))
    bar = tqdm(total=len(passes) * len(cameras), desc="depth maps", unit="map", disable=not progress)
    for reach, shrink in passes:
        small = cameras.resized(cameras.height // shrink, cameras.width // shrink)
        pictures = rearrange(resized(frames, small.height, small.width).float() / 255, "n h w c -> n c h w")
        start = interpolate(depth[:, None], (small.height, small.width), mode="nearest-exact")[:, 0]
        offsets = torch.zeros_like(start)
        for i in range(len(cameras)):
            others = pictures[near[i]], small[near[i]]
            found = corrected_depth(pictures[i], small[i], start[i], *others, reach, CREASE * reach_m)
            offsets[i] = found - start[i]
            bar.update()
        depth = depth + interpolate(offsets[:, None], depth.shape[1:], mode="bilinear")[:, 0]
    bar.close()
    return depth


def on_planes(
    cameras: Cameras, depth: Float[Tensor, "n h w"], within: Bool[Tensor, "n h w"], tolerance_m: float
) -> Bool[Tensor, "n h w"]:
    """Which pixels see a large plane: less than the tolerance from one that runs through much of the surface
    that is seen by the pixels `within`."""
    points, flat = cameras.unproject(depth), torch.zeros_like(within)
    some = torch.randperm(int(within.sum()), generator=torch.Generator().manual_seed(0))[:8000]
    for plane in large_planes(points[within][some.to(points.device)], tolerance_m, FLAT_SHARE):
        a, b, c, d = plane.tolist()
        flat |= (points @ points.new_tensor([a, b, c]) + d).abs() < tolerance_m
    return flat


def steadied(
    corrected: Float[Tensor, "n h w"],
    own: Float[Tensor, "n h w"],
    flat: Bool[Tensor, "n h w"],
    unit_m: float,
) -> Float[Tensor, "n h w"]:
    """Corrected depth, off large planes half way back to the field's `own` where it was near."""
    apart = (corrected - own).abs() > FOG * unit_m
    return torch.where(flat | apart, corrected, (corrected + own) / 2)


def untold(
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    depth: Float[Tensor, "n h w"],
    centre: Float[Tensor, " 3"],
    unit_m: float,
    count: int = 16,
) -> Bool[Tensor, "n h w"]:
    """Which pixels' surface could as well be far away, by the pictures of `count` neighbours: a plain wall's,
    wherever a field puts it. Table tops are so, too, where they are plain: of planes this says nothing. Nor
    does it where no neighbour stands far aside, as anything plain would seem so."""
    angle, near = angles(cameras, centre), neighbours(cameras, centre, count)
    pictures = rearrange(frames.float() / 255, "n h w c -> n c h w")
    found = torch.zeros_like(depth)
    for i in range(len(cameras)):
        if angle[i, near[i]].max() < ASIDE_DEG:
            continue
        others = pictures[near[i]], cameras[near[i]]
        here, _ = cost_at(pictures[i], cameras[i], depth[i], *others)
        for part in FAR:
            there = depth[i].clamp(min=part * unit_m)
            cost, views = cost_at(pictures[i], cameras[i], there, *others)
            found[i][(views >= FEWEST_FAR) & (cost <= here + MUCH)] = 1.0
    kept = -max_pool2d(-found[:, None], 3, 1, 1)  # what is a pixel or two wide is chance
    return max_pool2d(kept, 5, 1, 2)[:, 0] > 0


def cost_at(
    picture: Float[Tensor, "3 h w"],
    camera: Cameras,
    depth: Float[Tensor, "h w"],
    pictures: Float[Tensor, "k 3 h w"],
    cameras: Cameras,
) -> tuple[Float[Tensor, "h w"], Int[Tensor, "h w"]]:
    """Mean squared difference to the other pictures that show a place, and how many these are."""
    pixels, z = cameras.project(camera.unproject(depth[None]).reshape(-1, 3))
    size = pixels.new_tensor([cameras.width, cameras.height])
    grid = rearrange(2 * pixels / size - 1, "k (h w) c -> k h w c", h=len(depth))
    seen = (grid.abs() < 1).all(-1) & (z.view(grid.shape[:-1]) > 0)
    colours = grid_sample(pictures, grid, align_corners=False, padding_mode="border")
    difference = (colours - picture).square().mean(1).clamp(max=DIFFERENT)
    difference = avg_pool2d(difference[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    views = seen.sum(0)
    return torch.where(views > 0, (difference * seen).sum(0) / views.clamp(min=1), DIFFERENT), views


def agreed(
    cameras: Cameras, depth: Float[Tensor, "n h w"], tolerance_m: float, fewest: int = 2
) -> Float[Tensor, "n h w"]:
    """Depth with 0 (unknown) where fewer than so many other views find a surface at the same place."""
    size = torch.tensor([cameras.width, cameras.height])
    kept = torch.zeros_like(depth)
    for i in range(len(cameras)):
        pixels, z = cameras.project(cameras[i].unproject(depth[i : i + 1]).reshape(-1, 3))
        column, row = pixels.floor().long().unbind(-1)
        inside: Bool[Tensor, "n p"] = (z > 0) & ((pixels >= 0) & (pixels < size.to(pixels))).all(-1)
        view = torch.arange(len(cameras), device=depth.device)[:, None].expand_as(row)
        there = depth[view, row.clamp(0, cameras.height - 1), column.clamp(0, cameras.width - 1)]
        witnesses = (inside & ((z - there).abs() < tolerance_m)).sum(0) - 1
        kept[i] = torch.where(witnesses.view(depth[i].shape) >= fewest, depth[i], 0.0)
    return kept


def trusted(
    cameras: Cameras, corrected: Float[Tensor, "n h w"], within: Bool[Tensor, "n h w"], unit_m: float
) -> Float[Tensor, "n h w"] | None:
    """Corrected depth with 0 where views do not agree on it; None where they do not on `MOST` of the pixels
    `within`: such views do not quite show one scene, as a model dreams them, and what matches between them
    misleads."""
    known = agreed(cameras, corrected, AGREEMENT * unit_m)
    return known if (known > 0)[within].float().mean() >= MOST else None
