"""Follow the one moving thing of a clip from a fixed camera, by its difference from the empty background.

The background is known where the first and the last frames agree. Where they differ, the thing stood there
at the start or stands there at the end; its colour, seen on its way between the two, tells which. Cast
shadows (a pixel darkened without a change of hue) are left out, so that they do not pull the centroid.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

SMALLEST_AREA_PX = 3
LOWEST_THRESHOLD = 22.0
"""Grey levels that count as a change at the least; more in noisy clips."""


@dataclass(frozen=True)
class Track:
    """Where the thing was seen. Row and column in pixels (first pixel centre at 0.5), NaN where it was not.

    `clipped` marks frames in which it touches the edge of the picture, so that its centroid is not its own.
    """

    centroid_px: Float[np.ndarray, "t 2"]
    area_px: Float[np.ndarray, " t"]
    clipped: Bool[np.ndarray, " t"]
    moving: Bool[np.ndarray, " steps"]
    threshold: float

    @property
    def usable(self) -> Bool[np.ndarray, " t"]:
        """Frames with a whole thing in them."""
        return np.isfinite(self.centroid_px[:, 0]) & ~self.clipped


def track_moving_thing(video: UInt8[np.ndarray, "t h w 3"]) -> Track:
    """Track the most conspicuous moving thing of a clip of a fixed camera.

    A clip in which nothing moves gives an empty track (`moving` all false), never an error.
    """
    frames = video.astype(np.float32)
    steps = np.abs(np.diff(frames, axis=0)).max(axis=-1)
    threshold = _threshold(steps)
    moving = (steps > threshold).sum(axis=(1, 2)) >= SMALLEST_AREA_PX
    if not moving.any():
        return _empty(len(frames), moving, threshold)
    first, last = frames[0], np.median(frames[-3:], axis=0)
    settled = np.abs(first - last).max(axis=-1) <= threshold
    colour = _thing_colour(frames, first, last, settled, threshold)
    background = _background(first, last, settled, colour, threshold)
    masks = np.stack([_foreground(frame, background, threshold) for frame in frames])
    return _follow(frames, masks, background, moving, threshold, colour)


def _empty(count: int, moving: Bool[np.ndarray, " steps"], threshold: float) -> Track:
    nowhere = np.full((count, 2), np.nan)
    return Track(nowhere, np.zeros(count), np.zeros(count, dtype=bool), moving, threshold)


def _threshold(steps: Float[np.ndarray, "steps h w"]) -> float:
    """Five standard deviations of the flicker of still pixels, never below `LOWEST_THRESHOLD`."""
    if steps.size == 0:
        return LOWEST_THRESHOLD
    return max(LOWEST_THRESHOLD, 2.5 * float(np.median(steps)) + 6.0)


def _shadowed(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Pixels that are the background, only darker: the same hue at 25 to 97 % of its brightness."""
    scale = (frame * background).sum(axis=-1) / np.maximum((background**2).sum(axis=-1), 1.0)
    rest = np.abs(frame - scale[..., None] * background).max(axis=-1)
    return (scale > 0.25) & (scale < 0.97) & (rest < 6.0 + 0.07 * background.max(axis=-1))


def _foreground(frame: np.ndarray, background: np.ndarray, threshold: float) -> np.ndarray:
    changed = np.abs(frame - background).max(axis=-1) > threshold
    return changed & ~_shadowed(frame, background)


def _thing_colour(
    frames: np.ndarray, first: np.ndarray, last: np.ndarray, settled: np.ndarray, threshold: float
) -> np.ndarray:
    """Median RGB of the thing where it is surely in front of the background.

    On its way that is any settled pixel that changes in between; a thing that never leaves the places where
    it started and ended is read from the upper one (what falls starts above where it ends).
    """
    between = (first + last) / 2
    best = np.zeros(settled.shape, dtype=bool)
    best_frame = first
    for frame in frames:
        labels, count = ndimage.label(_foreground(frame, between, threshold) & settled)  # pyright: ignore[reportGeneralTypeIssues]
        sizes = np.bincount(labels.ravel())[1:] if count else np.zeros(1)
        if sizes.max() > best.sum():
            best, best_frame = labels == int(sizes.argmax()) + 1, frame
    if best.sum() >= 2 * SMALLEST_AREA_PX:
        return np.median(best_frame[best], axis=0)
    labels, count = ndimage.label(~settled)  # pyright: ignore[reportGeneralTypeIssues]
    if count == 0:
        return np.full(3, np.nan, dtype=np.float32)
    centres = ndimage.center_of_mass(~settled, labels, range(1, count + 1))
    sizes = np.bincount(labels.ravel())[1:]
    rows = [
        row if size >= SMALLEST_AREA_PX else np.inf for (row, _), size in zip(centres, sizes, strict=True)
    ]
    return np.median(first[labels == int(np.argmin(rows)) + 1], axis=0)


def _background(
    first: np.ndarray, last: np.ndarray, settled: np.ndarray, colour: np.ndarray, threshold: float
) -> np.ndarray:
    """The empty scene: where first and last differ, the one that does not look like the thing.

    Where neither looks like it, a shadow moved: the brighter one.
    """
    mean = (first + last) / 2
    if not np.isfinite(colour).all():
        return mean
    to_first = np.abs(first - colour).max(axis=-1)
    to_last = np.abs(last - colour).max(axis=-1)
    is_thing = np.minimum(to_first, to_last) < 3 * threshold
    brighter_first = first.sum(axis=-1) > last.sum(axis=-1)
    take_first = np.where(is_thing, to_first > to_last, brighter_first)
    return np.where(settled[..., None], mean, np.where(take_first[..., None], first, last))


def _components(frame: np.ndarray, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Connected pieces of a mask as (piece, centre, median colour), larger than specks."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    pieces = []
    for index in range(1, count + 1):
        piece = labels == index
        if piece.sum() >= SMALLEST_AREA_PX:
            pieces.append((piece, np.argwhere(piece).mean(axis=0) + 0.5, np.median(frame[piece], axis=0)))
    return pieces


def _follow(
    frames: np.ndarray,
    masks: np.ndarray,
    background: np.ndarray,
    moving: np.ndarray,
    threshold: float,
    colour: np.ndarray,
) -> Track:
    """From the frame in which the thing is plainest, forwards and backwards to its nearest likeness."""
    pieces = [_components(frame, mask) for frame, mask in zip(frames, masks, strict=True)]
    scores = [[_likeness(piece, colour) for piece in here] for here in pieces]
    if not any(scores):
        return _empty(len(frames), moving, threshold)
    seed = int(np.argmax([max(score, default=0.0) for score in scores]))
    chosen: dict[int, np.ndarray] = {}
    for order in (range(seed, len(frames)), range(seed - 1, -1, -1)):
        start = pieces[seed][int(np.argmax(scores[seed]))]
        for index in order:
            if not pieces[index]:
                continue
            costs = [_cost(start, piece, frames.shape[1]) for piece in pieces[index]]
            if min(costs) < 2.0:
                start = pieces[index][int(np.argmin(costs))]
                chosen[index] = start[0]
    return _measured(frames, background, chosen, moving, threshold)


def _likeness(piece: tuple[np.ndarray, np.ndarray, np.ndarray], colour: np.ndarray) -> float:
    distance = float(np.abs(piece[2] - colour).max()) if np.isfinite(colour).all() else 0.0
    return float(piece[0].sum()) / (1 + (distance / 60) ** 2)


def _cost(
    start: tuple[np.ndarray, np.ndarray, np.ndarray],
    piece: tuple[np.ndarray, np.ndarray, np.ndarray],
    height: int,
) -> float:
    """How unlike two pieces are: path (in thirds of the picture), size (octaves) and colour (80 levels)."""
    path = float(np.linalg.norm(start[1] - piece[1])) / (height / 3)
    size = abs(np.log2(start[0].sum() / piece[0].sum())) / 2
    return path + float(size) + float(np.abs(start[2] - piece[2]).max()) / 80


def _measured(
    frames: np.ndarray,
    background: np.ndarray,
    chosen: dict[int, np.ndarray],
    moving: np.ndarray,
    threshold: float,
) -> Track:
    """Sub-pixel centroids: pixels count by how far they are from background to thing, the rim included."""
    track = _empty(len(frames), moving, threshold)
    rows, columns = np.indices(frames.shape[1:3]) + 0.5
    for index, piece in chosen.items():
        rim = ndimage.binary_dilation(piece, np.ones((3, 3))) & ~_shadowed(frames[index], background)
        change = np.linalg.norm(frames[index] - background, axis=-1)
        weight = np.clip(change / np.median(change[piece]), 0, 1) * (rim | piece)
        weight[weight < 0.1] = 0
        total = weight.sum()
        track.centroid_px[index] = (rows * weight).sum() / total, (columns * weight).sum() / total
        track.area_px[index] = total
        edges = (piece[0], piece[-1], piece[:, 0], piece[:, -1])
        track.clipped[index] = any(edge.any() for edge in edges)
    return track
