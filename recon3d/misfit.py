"""Whether given cameras fit their pictures: how far matched features lie from where the cameras allow them,
and whether another focal length would bring them nearer."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recon3d import colmap
from recon3d.cameras import Cameras
from recon3d.similarity import focus_similarity

BASELINE = 0.2  # between views to compare, over their distance from what they look at
OTHER_FOCALS = (0.4, 0.5, 0.6, 0.7, 0.77, 1.3, 1.5, 1.75, 2.0, 2.5)  # over the given one: clearly different


@dataclass(frozen=True)
class Misfit:
    """How given cameras agree with what their pictures show.

    Attributes:
        px: how far matched features are from where the cameras allow them: the median Sampson distance
            (Hartley and Zisserman, 2nd ed., eq. 11.9), in pixels of the frames; NaN without matches.
        matches: how many say so.
        focal_factor: of the focal lengths that differ clearly, the one that fits best, over the given one.
        focal_px: the median distance with that one.
    """

    px: float
    matches: int
    focal_factor: float
    focal_px: float


def misfit(frames: UInt8[np.ndarray, "n h w 3"], cameras: Cameras, pairs: int = 20, seed: int = 0) -> Misfit:
    """Whether given cameras fit their frames, judged on the verified matches of some with views about 11
    degrees away (nearer ones hardly see a wrong focal length; further ones share little, and in patterns that
    repeat the wrong things).

    Raises:
        NothingReconstructed: the cameras do not move.
    """
    count, height, width, _ = frames.shape
    scale = colmap.feature_scale(max(height, width))
    apart = torch.cdist(cameras.centres, cameras.centres) * focus_similarity(cameras).scale
    chosen = {
        tuple(sorted((k, int((apart[k] - BASELINE).abs().argmin()))))
        for k in np.linspace(0, count - 1, min(pairs, count)).round().astype(int).tolist()
    }
    used = sorted({frame for pair in chosen for frame in pair})
    with tempfile.TemporaryDirectory(prefix="orrery-poses-") as name:
        folder = Path(name)
        colmap.write_pictures(folder, frames[used], None, round(height * scale), round(width * scale))
        colmap.find_features(folder, scale * cameras.K[0, 0, 0].item(), known=False)
        colmap.match(folder, sorted((used.index(a), used.index(b)) for a, b in chosen), seed)
        found, _ = colmap.read_pairs(folder)
    if not found:
        return Misfit(float("nan"), 0, float("nan"), float("nan"))

    def median_px(factor: float) -> float:
        K = cameras.K * torch.tensor([factor, factor, 1.0])[:, None]
        K[:, :, 2] = cameras.K[:, :, 2]
        tried = replace(cameras, K=K)
        errors = [
            sampson(tried[[used[k] for k in p.frames]], torch.from_numpy(p.places / scale)) for p in found
        ]
        return torch.cat(errors).median().item()

    best = min(OTHER_FOCALS, key=median_px)
    return Misfit(median_px(1.0), sum(len(p.places[0]) for p in found), best, median_px(best))


def sampson(cameras: Cameras, places: Float[Tensor, "2 m 2"]) -> Float[Tensor, " m"]:
    """Distance in pixels of matches from the epipolar geometry of two cameras, to first order."""
    motion = (cameras.w2c[1] @ cameras.c2w[0]).double()
    x, y, z = motion[:3, 3]
    essential = torch.stack([torch.stack(row) for row in ((0 * x, -z, y), (z, 0 * x, -x), (-y, x, 0 * x))])
    inverse = torch.linalg.inv(cameras.K.double())
    fundamental = inverse[1].T @ essential @ motion[:3, :3] @ inverse[0]
    first, second = torch.cat([places.double(), torch.ones_like(places[..., :1]).double()], -1)
    lines, back = first @ fundamental.T, second @ fundamental
    slope = lines[:, :2].square().sum(-1) + back[:, :2].square().sum(-1)
    return (second * lines).sum(-1).abs() / slope.sqrt().clamp(min=1e-12)
