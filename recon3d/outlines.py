"""Where pictures show a thing to end, and its surface brought there.

Depth is least certain at the edges of plain sides, where pictures are surest. So a rough surface's silhouette
in each picture is moved, by some pixels, to where colours change: a least cut between what looks like its
inside and what looks like its outside (Boykov and Jolly 2001; colours as in GrabCut, Rother et al. 2004, but
from nearby pixels). A rough surface often takes the shadow that a thing stands in for its foot: what is low
may be the ground with less light on it, and only what lies higher tells how the inside looks. Then nothing is
solid that some pictures show to lie outside (the visual hull, Laurentini 1994), and something is along each
ray through the inside: there the depth's say is bent as little as will do.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage, sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from recon3d.cameras import Cameras

BAND = 1 / 32  # of the picture's longer side: how far an outline may move
LIKENESS = 0.04  # of colours in [0, 1]; standard deviation
TIES = 2.0  # weight of a link between pixels of one colour against the log of how much likelier a side is
STAY = 0.3  # the same for each pixel of distance from the rough outline
SHADE = 0.3  # of a surface's light that its darkest shadow leaves
SURE, RARE = 8.0, 1e-3  # the log is at most that, and a likelihood at least this
FEWEST_PIXELS = 30  # to know the colours of a side by
WHOLE = 1000  # a unit of weight, for flows that are whole numbers
WRONG = 0.05  # share of the views whose outlines may be
SLACK_PX = 0.25  # by how much of a pixel, on average, views that err say too much
MOST_KNOWN = 4000  # pixels beside an outline; of more every so manieth counts
NUDGE = 0.1  # beyond what will just do, in parts of the carving's reach


def outlines(
    frames: UInt8[Tensor, "n h w 3"],
    rough: Bool[Tensor, "n h w"],
    hidden: Bool[Tensor, "n h w"],
    low: Bool[Tensor, "n h w"],
) -> Bool[Tensor, "n h w"]:
    """Masks of a thing, from rough ones that are some pixels off, the pixels where others hide it, and those
    whose rough surface is near what it stands on."""
    pictures, views = frames.cpu().numpy() / 255, (rough.numpy(), hidden.numpy(), low.numpy())
    return torch.from_numpy(np.stack([outline(*view) for view in zip(pictures, *views, strict=True)]))


def outline(
    picture: Float[np.ndarray, "h w 3"],
    rough: Bool[np.ndarray, "h w"],
    hidden: Bool[np.ndarray, "h w"],
    low: Bool[np.ndarray, "h w"],
) -> Bool[np.ndarray, "h w"]:
    """One picture's mask; the rough one where too little of either side is seen to know its colours."""
    band = BAND * max(rough.shape)
    within_px = signed_distance(rough)
    # beside low pixels of the rough surface the ground begins
    low = np.asarray(ndimage.binary_dilation(low & rough, iterations=round(band)), bool) & (low | ~rough)
    moves = (np.abs(within_px) <= band) | low
    free, near = moves & ~hidden, (np.abs(within_px) < 4 * band) & ~hidden
    inside, outside = near & ~low & (within_px > band), near & (within_px < -band / 2)
    if inside.sum() < FEWEST_PIXELS:
        inside = (within_px > 1) & ~low & ~hidden
    if min(inside.sum(), outside.sum()) < FEWEST_PIXELS or not free.any():
        return rough
    likely, unlikely = (_likelihood(picture, free, side, 1.5 * band) for side in (inside, outside))
    shaded = np.where(low[free], _likelihood(picture, free, outside, 1.5 * band, SHADE), 0.0)
    unlikely = np.maximum(unlikely, shaded)
    gain = np.where(rough, np.inf, -np.inf)
    stay = STAY * within_px[free] * (1 - shaded)
    gain[free] = np.log((likely + RARE) / (unlikely + RARE)).clip(-SURE, SURE) + stay
    return least_cut(gain, np.asarray(ndimage.binary_dilation(moves, iterations=2), bool), picture, free)


def signed_distance(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Distance of pixels' middles to the border of a mask, pixels; positive inside."""
    if mask.all() or not mask.any():
        return np.where(mask, 1.0, -1.0) * max(mask.shape)
    within, without = (ndimage.distance_transform_edt(side) for side in (mask, ~mask))
    return np.where(mask, np.asarray(within) - 0.5, 0.5 - np.asarray(without))


def _likelihood(
    picture: Float[np.ndarray, "h w 3"],
    asked: Bool[np.ndarray, "h w"],
    known: Bool[np.ndarray, "h w"],
    reach_px: float,
    shade: float = 1.0,
) -> Float[np.ndarray, " p"]:
    """How usual the colours of some pixels are among known ones nearby: 1 where all have the same. With a
    `shade` below 1, known ones count at whatever share of their light, from that on, is most alike."""
    at, places = (torch.from_numpy(np.argwhere(which)).float() for which in (asked, known))
    colour, colours = (torch.from_numpy(picture[which]).float() for which in (asked, known))
    if len(places) > MOST_KNOWN:
        places, colours = (each[:: -(-len(each) // MOST_KNOWN)] for each in (places, colours))
    near = torch.exp(-torch.cdist(at, places).square() / (2 * reach_px**2))
    left = (colour @ colours.T / colours.square().sum(1).clamp_min(1e-6)).clamp(shade, 1.0)
    far = (colour[:, None] - left[..., None] * colours).square().sum(-1)
    alike = torch.exp(-far / (2 * LIKENESS**2))
    return ((near * alike).sum(1) / (near.sum(1) + 1e-6)).numpy()


def least_cut(
    gain: Float[np.ndarray, "h w"],
    asked: Bool[np.ndarray, "h w"],
    picture: Float[np.ndarray, "h w 3"],
    typical: Bool[np.ndarray, "h w"],
) -> Bool[np.ndarray, "h w"]:
    """The mask that gains most by its pixels and loses least by links of even colour across its border.

    Args:
        gain: of a pixel if it is in the mask, over what it gains outside; infinite where that is settled.
        asked: pixels that take part; the others are settled.
        typical: where changes of colour are such as a border has.
    """
    index, count = np.full(gain.shape, -1), int(asked.sum())
    index[asked] = np.arange(count)
    change = np.square(np.diff(picture, axis=1)).sum(-1)[typical[:, 1:] | typical[:, :-1]].mean()
    starts, ends, weights = [], [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = np.s_[: gain.shape[0] - down, max(0, -right) : gain.shape[1] - max(0, right)]
        there = np.s_[down:, max(0, right) : gain.shape[1] - max(0, -right)]
        both = (index[here] >= 0) & (index[there] >= 0)
        differ = np.square(picture[here] - picture[there]).sum(-1)[both]
        link = TIES * np.exp(-differ / (2 * change + 1e-6)) / np.hypot(down, right)
        starts += [index[here][both], index[there][both]]
        ends += [index[there][both], index[here][both]]
        weights += [link, link]
    pull = gain[asked].clip(-6 * SURE, 6 * SURE)
    source, sink = count, count + 1
    into, out = np.flatnonzero(pull > 0), np.flatnonzero(pull < 0)
    starts += [np.full(len(into), source), out]
    ends += [into, np.full(len(out), sink)]
    weights += [pull[into], -pull[out]]
    whole = np.round(WHOLE * np.concatenate(weights)).astype(np.int32)
    network = sparse.csr_matrix(
        (whole, (np.concatenate(starts), np.concatenate(ends))), shape=(count + 2, count + 2)
    )
    left = network - maximum_flow(network, source, sink).flow
    left.data = left.data.clip(min=0)
    left.eliminate_zeros()
    reached = np.zeros(count + 2, bool)
    reached[breadth_first_order(left, source, return_predecessors=False)] = True
    mask = gain > 0
    mask[asked] = reached[:count]
    return mask


def pixels_of(
    points: Float[Tensor, "p 3"], camera: Cameras
) -> tuple[Bool[Tensor, " p"], Int[Tensor, " p"], Float[Tensor, " p"]]:
    """Which points a camera has in its picture, the index of the pixel that each is in, and their depths."""
    pixels, z = (found[0] for found in camera.project(points))
    column, row = pixels.nan_to_num(-1.0).clamp(-1, 1e6).floor().long().unbind(-1)
    inside = (z > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    return inside, row.clamp(0, camera.height - 1) * camera.width + column.clamp(0, camera.width - 1), z


def beyond_outlines(
    points: Float[Tensor, "p 3"],
    depth: Float[Tensor, "n h w"],
    cameras: Cameras,
    reach_m: float,
    masks: Bool[Tensor, "n h w"],
) -> Float[Tensor, " p"]:
    """How far points lie outside of the thing's masks, pixels, where all views count but the few that say the
    most; negative inside. A view that shows something else before a point, or not the point, says nothing."""
    most = torch.full((1 + round(WRONG * len(cameras)), len(points)), -torch.inf)
    for view, mask in enumerate(masks.numpy()):
        inside, index, z = pixels_of(points, cameras[view])
        pixels = cameras[view].project(points)[0][0] / torch.tensor([cameras.width, cameras.height]) * 2 - 1
        distance = torch.from_numpy(-signed_distance(mask)).float()[None, None]
        grid = pixels.nan_to_num(2.0).clamp(-2, 2)[None, None]
        off = torch.nn.functional.grid_sample(distance, grid, align_corners=False, padding_mode="border")
        off, surface = off[0, 0, 0], depth[view].flatten()[index]
        silent = ~inside | ((off > 0) & (surface > 0) & (surface - z < -reach_m))
        said = torch.where(silent, -torch.inf, off)
        for k in range(len(most)):  # sorted in
            most[k], said = torch.maximum(most[k], said), torch.minimum(most[k], said)
    return most[-1].clamp(min=-max(masks.shape[1:])) - SLACK_PX


def made_solid(
    empty: Float[Tensor, "x y z"],
    within: Bool[Tensor, "x y z"],
    points: Float[Tensor, "p 3"],
    cameras: Cameras,
    wanted: Bool[Tensor, "n h w"],
    rounds: int = 2,
) -> Float[Tensor, "x y z"]:
    """How empty voxels are, lowered along the rays of wanted pixels that nothing solid (below 0) covers, by
    what makes the least empty voxel on each solid.

    Args:
        within: voxels that may become solid.
        points: their middles, in order.
        wanted: pixels that show the thing.
    """
    seen = [pixels_of(points, camera)[:2] for camera in (cameras[k] for k in range(len(cameras)))]
    for _ in range(rounds):
        smooth = torch.from_numpy(ndimage.gaussian_filter(empty.numpy(), 0.7))
        level, solid, lower = empty[within], smooth[within] < 0, torch.zeros(len(points))
        for asked, (inside, index) in zip(wanted.flatten(1), seen, strict=True):
            covered = torch.zeros_like(asked)
            covered[index[inside & solid]] = True
            least = torch.full(asked.shape, torch.inf)
            least = least.scatter_reduce(0, index[inside], level[inside], "amin")
            need = torch.where(asked & ~covered & least.isfinite(), least.clamp(min=0) + NUDGE, 0.0)
            lower = torch.maximum(lower, torch.where(inside, need[index], 0.0))
        spread = torch.zeros_like(empty)
        spread[within] = lower
        wide = ndimage.gaussian_filter(ndimage.maximum_filter(spread.numpy(), 3), 1.0)
        empty = empty - torch.from_numpy(wide)
    return empty
