"""Errors of an estimated camera path after similarity alignment to the true one (tensors only).

Definitions as in the TUM benchmark (Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems",
IROS 2012: absolute trajectory error; relative pose error between consecutive frames) and in the evo package;
the alignment with scale is Umeyama's (TPAMI 1991, eqs. 39-42).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.cameras import Cameras, rigid_inverse
from recon3d.similarity import focus_similarity


@dataclass(frozen=True)
class PathError:
    """How far an estimated camera path is from the true one; NaN where nothing can be said.

    Attributes:
        frames: how many frames have both poses.
        position: root mean square distance of the aligned centres (ATE), in the unit of the truth.
        share: the same over the mean distance of the true centres from the point that they look at, which is
            the radius of an orbit.
        rotation_deg: mean angle between aligned and true orientations.
        step: root mean square error of the motion from a frame to the next (RPE), in the unit of the truth.
        step_rotation_deg: mean angle of the error of that motion.
    """

    frames: int
    position: float
    share: float
    rotation_deg: float
    step: float
    step_rotation_deg: float


def path_error(estimated: Cameras, truth: Cameras) -> PathError:
    """Compares the frames that have finite poses on both sides.

    At least 3 of them are needed whose centres are not on one line, or the alignment is not determined.

    Raises:
        ValueError: the numbers of cameras differ.
    """
    if len(estimated) != len(truth):
        raise ValueError(f"paths need one pose per frame, got {len(estimated)} and {len(truth)}")
    known = (estimated.c2w.isfinite() & truth.c2w.isfinite()).all(-1).all(-1)
    found, true = estimated.c2w.double(), truth.c2w.double()
    alignment = umeyama(found[known, :3, 3], true[known, :3, 3])
    if alignment is None:
        return PathError(int(known.sum()), math.nan, math.nan, math.nan, math.nan, math.nan)
    turn, scale, shift = alignment
    aligned = found.clone()
    aligned[:, :3, :3] = turn @ found[:, :3, :3]
    aligned[:, :3, 3] = scale * found[:, :3, 3] @ turn.T + shift
    error = (rigid_inverse(true) @ aligned)[known]
    motions = [rigid_inverse(path[:-1]) @ path[1:] for path in (true, aligned)]
    step_error = (rigid_inverse(motions[0]) @ motions[1])[known[1:] & known[:-1]]
    position = _root_mean_square(error)
    return PathError(
        frames=int(known.sum()),
        position=position,
        share=position * focus_similarity(truth[known]).scale,
        rotation_deg=_mean_angle_deg(error),
        step=_root_mean_square(step_error),
        step_rotation_deg=_mean_angle_deg(step_error),
    )


def umeyama(
    points: Float[Tensor, "n 3"], targets: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "3 3"], float, Float[Tensor, " 3"]] | None:
    """Rotation, scale and shift that bring points nearest to their targets (least squares).

    None where they do not determine it: fewer than 3, or all points or all targets on one line.
    """
    if len(points) < 3:
        return None
    middles = points.mean(0), targets.mean(0)
    local, aim = points - middles[0], targets - middles[1]
    for cloud in (local, aim):
        spread = torch.linalg.svdvals(cloud)
        if spread[1] <= 1e-3 * spread[0]:
            return None
    u, strength, v = torch.linalg.svd(aim.T @ local / len(points))
    mirror = torch.ones_like(strength)
    mirror[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(v))
    turn = u @ torch.diag(mirror) @ v
    scale = ((strength * mirror).sum() / local.square().sum(1).mean()).item()
    return turn, scale, middles[1] - scale * turn @ middles[0]


def _root_mean_square(errors: Float[Tensor, "n 4 4"]) -> float:
    return errors[:, :3, 3].square().sum(1).mean().sqrt().item()


def _mean_angle_deg(errors: Float[Tensor, "n 4 4"]) -> float:
    """Through the chord between R and the identity, |R - I| = 2 sqrt(2) sin(angle / 2), exact near zero."""
    chord = torch.linalg.matrix_norm(errors[:, :3, :3] - torch.eye(3).to(errors))
    return torch.rad2deg(2 * torch.asin((chord / 8**0.5).clamp(max=1))).mean().item()
