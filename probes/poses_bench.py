"""`orrery bench --what poses`: cameras estimated from the frames of reference sweeps alone, against the true
ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from probes.subjects import ReferenceSubject
from probes.tables import aligned
from recon3d import poses, sweeps
from recon3d.trajectories import path_error

VIEWS = 40
SCENE = {"floor": "confetti"}  # rich in corners, which structure from motion rests on


@dataclass(frozen=True)
class PosesScore:
    """One line of the table."""

    seed: int
    registered: int
    points: int
    reprojection_px: float
    focal_error: float  # share of the true focal length
    share: float  # position error over the orbit's radius
    rotation_deg: float
    cpu_s: float


FIELDS = [field.name for field in fields(PosesScore)]
COUNTS = ("seed", "registered", "points")


def scored_poses(seed: int, size: int) -> PosesScore:
    """Films a scene in a whole turn and finds its cameras again, the focal length too."""
    truth = sweeps.orbit(VIEWS, height=size, width=size)
    frames = ReferenceSubject("orrery/Orbit-v0", size, size, SCENE).sweep(None, truth, seed).video
    start = time.process_time()
    found = poses.register(frames)
    cpu_s = time.process_time() - start
    error = path_error(found.cameras, truth)
    return PosesScore(
        seed,
        int(found.registered.sum()),
        len(found.points),
        found.reprojection_px,
        abs(found.focal_px / truth.K[0, 0, 0].item() - 1),
        error.share,
        error.rotation_deg,
        cpu_s,
    )


def poses_table(seeds: Sequence[int], size: int) -> tuple[list[PosesScore], str]:
    """The scores of scenes, and them as text with their mean and, of each column, the worst."""
    found = [scored_poses(seed, size) for seed in tqdm(seeds, desc="turns", leave=False)]
    heads = ("registered", "points", "reprojection px", "focal %", "position %", "rotation deg", "CPU s")
    lines = [("seed", *heads), *((str(score.seed), *cells(score)) for score in found)]
    lines += [("mean", *cells(summary(found, np.mean))), ("worst", *cells(summary(found, worst)))]
    title = (
        f"cameras of {VIEWS}-view turns of orrery/Orbit-v0 over confetti, {size}x{size}, from frames alone"
    )
    return found, f"{title}\n{aligned(lines)}"


def summary(found: Sequence[PosesScore], of: Callable[[np.ndarray], float]) -> PosesScore:
    """One score from those of all scenes, field by field; `of` gets the more-is-worse ones as they are and
    the counts negated, so that it need not know them."""
    table = np.array([astuple(score) for score in found], dtype=float)
    signs = np.where([name in COUNTS for name in FIELDS], -1.0, 1.0)
    values = [sign * float(of(sign * column)) for sign, column in zip(signs, table.T, strict=True)]
    counts = [round(value) if name in COUNTS else value for name, value in zip(FIELDS, values, strict=True)]
    return PosesScore(*counts)


def worst(values: Float[np.ndarray, " n"]) -> float:
    """The largest; NaN if there is one."""
    return float(np.max(values))


def cells(score: PosesScore) -> tuple[str, ...]:
    """Numbers of one row as they are printed."""
    shares = (f"{100 * score.focal_error:.2f}", f"{100 * score.share:.2f}")
    counts = (str(score.registered), str(score.points))
    return (
        *counts,
        f"{score.reprojection_px:.2f}",
        *shares,
        f"{score.rotation_deg:.2f}",
        f"{score.cpu_s:.0f}",
    )
