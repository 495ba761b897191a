"""3D consistency of a sweep: how well one scene, built from most of the views, explains those held out.

Every fifth view is held out, a NeRF is fitted to the rest at the known cameras (no camera refinement and no
per-view appearance, which would absorb the very inconsistency that is measured), and the held-out views are
rendered. Beside the error stand copying the nearest training view, the mean picture, and the clip's own
sharpness, because a blurred or frozen clip is easy to explain.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from probes.measurement import Curve, Measurement, Verdict, cannot_judge, mean_interval
from recon3d.cameras import Cameras
from recon3d.views import HeldOut

FEWEST_VIEWS = 10
NEEDED_GAIN_DB = 3.0
"""A sweep counts as one scene where its held-out views are explained this much better than by copying."""

HIGHEST_PSNR_DB = 58.92
"""Error of rounding to 8 bits (variance 1/12 level): no two pictures can be shown to agree better."""

NAMES = ("sweep_psnr", "sweep_ssim", "sweep_gain", "sweep_psnr_nearest_view", "sweep_psnr_mean_image")
UNITS = ("dB", "", "dB", "dB", "dB")
BASELINES = NAMES[3:]

Reconstruct = Callable[[UInt8[Tensor, "n h w 3"], Cameras], HeldOut]
"""Fits one scene to the views that are not held out and scores it on the others (`recon3d.nerf` does)."""


def consistency(
    video: UInt8[np.ndarray, "t h w 3"], cameras: Cameras, reconstruct: Reconstruct
) -> list[Measurement]:
    """Held-out PSNR and SSIM of a sweep, their baselines, and its sharpness.

    Args:
        video: one frame per camera.
        cameras: where each frame was (or was asked to be) taken from.
        reconstruct: called only where there is something to judge.
    """
    if len(cameras) != len(video):
        raise ValueError(f"a sweep needs one camera per frame, got {len(cameras)} for {len(video)} frames")
    if (cameras.height, cameras.width) != video.shape[1:3]:
        raise ValueError(
            f"cameras are {cameras.height}x{cameras.width}, the video is {video.shape[1]}x{video.shape[2]}; "
            "use cameras.resized(...)"
        )
    reason = why_not(video, cameras)
    if reason:
        found = [cannot_judge(name, unit, "higher", reason) for name, unit in zip(NAMES, UNITS, strict=True)]
        return [*found, _clarity(video)]
    scores = reconstruct(torch.from_numpy(np.ascontiguousarray(video)), cameras)
    return [*_measured(scores), _clarity(video)]


def _measured(scores: HeldOut) -> list[Measurement]:
    """The five numbers of `NAMES`; the first carries the curve over views."""
    parts = (scores.psnr, scores.copy_psnr, scores.mean_image_psnr)
    reached, copied, averaged = (part.double().numpy().clip(max=HIGHEST_PSNR_DB) for part in parts)
    gain = reached - np.maximum(copied, averaged)
    verdict, reason = _verdict(float(gain.mean()))
    curve = {
        "view": scores.views.double().tolist(),
        "reconstructed_db": reached.tolist(),
        "nearest_view_db": copied.tolist(),
        "mean_image_db": averaged.tolist(),
    }
    columns = (reached, scores.ssim.double().numpy(), gain, copied, averaged)
    return [
        _mean(name, unit, values, verdict, reason, curve)
        for name, unit, values in zip(NAMES, UNITS, columns, strict=True)
    ]


def _mean(
    name: str, unit: str, values: Float[np.ndarray, " views"], verdict: Verdict, reason: str, curve: Curve
) -> Measurement:
    if name in BASELINES:
        verdict, reason = "consistent", "a baseline, not a score of the subject"
    return Measurement(
        name,
        float(values.mean()),
        unit,
        len(values),
        "higher",
        mean_interval(values),
        verdict,
        reason,
        curve if name == NAMES[0] else {},
        "held-out views",
    )


def _verdict(gain_db: float) -> tuple[Verdict, str]:
    if gain_db >= NEEDED_GAIN_DB:
        return "consistent", f"{gain_db:.1f} dB better than copying"
    return "inconsistent", f"{gain_db:.1f} dB better than copying; one scene gives {NEEDED_GAIN_DB:g} or more"


def _clarity(video: UInt8[np.ndarray, "t h w 3"]) -> Measurement:
    values = np.array([sharpness(frame) for frame in video])
    return Measurement(
        "sweep_sharpness", float(values.mean()), "levels/px", len(values), "higher", mean_interval(values)
    )


def sharpness(picture: UInt8[np.ndarray, "h w 3"]) -> float:
    """Mean magnitude of the brightness gradient between neighbouring pixels, in levels per pixel."""
    grey = picture.astype(np.float64).mean(axis=-1)
    down, right = np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1]
    return float(np.hypot(down, right).mean())


def why_not(video: UInt8[np.ndarray, "t h w 3"], cameras: Cameras) -> str:
    """Why a sweep cannot be judged; empty where it can."""
    if len(video) < FEWEST_VIEWS:
        return f"too few views: {len(video)}, a reconstruction needs {FEWEST_VIEWS}"
    pictures = video.astype(np.float32)
    if pictures.std(axis=(1, 2)).mean() < 3.0:
        return "blank: the pictures show next to nothing"
    if not bool(torch.isfinite(cameras.c2w).all()):
        return "some cameras are unknown (not finite); pass only the views whose pose is known"
    centres = cameras.centres.double()
    spread = float((centres - centres.mean(dim=0)).norm(dim=-1).max())
    if spread < 0.02:
        return f"no parallax: the cameras stay within {spread * 100:.1f} cm"
    if np.abs(np.diff(pictures, axis=0)).mean() < 0.5:
        return "frozen: the picture does not change while the camera moves"
    return ""


def over_reference(subject: Measurement, reference: Measurement) -> Measurement:
    """The subject's value as a share of the reference world's under the same protocol.

    The 95 % interval takes both as independent (first-order propagation). NaN where either is not known.
    """
    if (subject.name, subject.unit) != (reference.name, reference.unit):
        raise ValueError(
            f"a ratio needs the same measurement twice, got {subject.name} [{subject.unit}] and "
            f"{reference.name} [{reference.unit}]"
        )
    name = f"{subject.name}_over_reference"
    for who, part in (("the subject", subject), ("the reference", reference)):
        if math.isnan(part.value):
            return cannot_judge(name, "", "target", f"{who}: {part.reason}", target=1.0)
    if reference.value == 0:
        return cannot_judge(name, "", "target", "the reference's value is 0", target=1.0)
    value = subject.value / reference.value
    shares = [
        (part.interval[1] - part.interval[0]) / 2 / max(abs(part.value), 1e-12)
        for part in (subject, reference)
    ]
    spread = abs(value) * math.hypot(*shares)
    return Measurement(
        name,
        value,
        "",
        min(subject.support, reference.support),
        "target",
        (value - spread, value + spread),
        subject.verdict,
        f"{subject.value:.4g} / {reference.value:.4g} {subject.unit}",
        support_unit=subject.support_unit,
        target=1.0,
    )
