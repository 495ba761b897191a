"""Cameras of an unposed video or of photos: structure from motion, and whether to believe it.

Incremental mapping on SIFT features by COLMAP (Schoenberger and Frahm, "Structure-from-Motion Revisited",
CVPR 2016) with one camera for all frames: a pinhole, or one behind a lens of one radial coefficient. That
frames register proves little: clips without parallax, or of more than one scene, do so too. So a registration
is judged by what it rests on (points that several frames see from different directions) and by how much of
what was matched it explains.

COLMAP's cameras are OpenCV, world to camera, pixel centres at .5. Its world has no scale and no up: here the
point that the cameras look at goes to the origin, their mean distance from it to 1, and up to +Z.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from recon3d import colmap
from recon3d.cameras import Cameras, rigid_inverse
from recon3d.lens import simple_lens
from recon3d.misfit import sampson
from recon3d.similarity import NothingReconstructed, focus_similarity

FEWEST_FRAMES = 3
FEW_FRAMES = 25  # below, a focal length that is left free runs away; from here on the views decide it
FREE_START = 1.2  # focal length over the longer side of the picture, from which a free one sets out
FIXED_GUESSES = (0.7, 0.95, 1.3, 1.8)  # the same, for few frames: fields of view of 71, 56, 42 and 31 degrees
FOCAL_LIMITS = (0.35, 4.0)  # the same: what lenses have
LEAST_POINTS = 100
LEAST_TRACK = 3
LEAST_ANGLE_DEG = 2.0
LEAST_EXPLAINED = 0.4
FAR_OFF = 0.02  # of the picture's longer side: matches as far from where cameras allow contradict them
MOST_CONTRADICTING = 0.05  # of the pairs of frames; clips that register well have up to 0.004
LENS_EXPLAINS = 0.02  # share of the reprojection error: a true lens takes 4 to 8 % off, a false one 0.1 %
FEW_FEATURES, FEW_INLIERS = 30, 15  # in a frame; shared by neighbours
STILL = 0.01  # shift of matched features over the picture's width, below which nothing moved
MAPPING_S, FRAME_S = 240.0, 6.0  # mapping may take as long, or so much a frame if that is more
SURELY_FLAT, MOSTLY_FLAT = (
    0.98,
    0.8,
)  # share of pairs that a homography explains: no parallax; none if it fails
FOCAL_OFF, SUPPORT_OFF = (
    1.2,
    1.1,
)  # a given focal length is wrong if a free one differs and explains so much more

Verdict = Literal[
    "registered", "no features", "no parallax", "not one scene", "wrong intrinsics", "out of time"
]


@dataclass(frozen=True)
class Registration:
    """What structure from motion found.

    Attributes:
        cameras: one per frame; poses are NaN where a frame did not register, and all of them where the
            registration is refused. Up is +Z, the focus is the origin, the mean distance from it is 1.
        registered: which frames registered, also where the registration is refused.
        points: scene points that at least 3 frames see, under at least 2 degrees.
        observations: how often these points are seen, in all.
        lens: one that bends straight lines, where it was asked for and found: then the cameras are of frames
            that `recon3d.lens` straightened, but for their size and principal point.
        reprojection_px: mean distance between where these points are seen and where they are predicted, in
            pixels of the frames; NaN without points.
        explained: observations of these points over matched features, in registered frames; about 1 for a
            still scene.
        verdict: whether this is one still scene seen from several places.
        reason: why not, and what would help; empty for `registered`.
    """

    cameras: Cameras
    registered: Bool[Tensor, " n"]
    points: Float[Tensor, "p 3"]
    observations: int
    reprojection_px: float
    explained: float
    verdict: Verdict
    reason: str
    lens: pycolmap.Camera | None = None

    @property
    def focal_px(self) -> float:
        """Of the one camera of all frames, in their pixels; NaN where none registers."""
        return self.cameras.K[0, 0, 0].item()

    def __str__(self) -> str:
        if not self.registered.any():
            return f"none of {len(self.registered)} frames registers"
        return (
            f"{int(self.registered.sum())} of {len(self.registered)} frames register on {len(self.points)} "
            f"points, reprojection error {self.reprojection_px:.2f} px, focal length {self.focal_px:.0f} px"
            + (f", lens straightened (k {self.lens.params[3]:.3f})" if self.lens else "")
        )


def estimate(
    frames: UInt8[np.ndarray, "n h w 3"],
    *,
    focal_px: float | None = None,
    masks: Bool[np.ndarray, "n h w"] | None = None,
    ordered: bool = True,
    mapping_s: float | None = None,
    seed: int = 0,
) -> Cameras:
    """Cameras of the frames of one still scene; NaN poses for frames that did not register.

    The arguments are those of `register`, which also says what the cameras rest on.

    Raises:
        ValueError: too few frames, an impossible focal length, or masks of another shape.
        NothingReconstructed: no parallax, not one still scene, or no end in time; the message says which.
    """
    found = register(frames, focal_px=focal_px, masks=masks, ordered=ordered, mapping_s=mapping_s, seed=seed)
    if found.verdict != "registered":
        raise NothingReconstructed(f"{found.verdict}: {found.reason}")
    return found.cameras


def register(
    frames: UInt8[np.ndarray, "n h w 3"],
    *,
    focal_px: float | None = None,
    guess_px: float | None = None,
    masks: Bool[np.ndarray, "n h w"] | None = None,
    ordered: bool = True,
    bent: bool = False,
    mapping_s: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Registration:
    """Structure from motion; the same result for the same frames and seed, or none in time.

    Args:
        frames: of one camera with fixed zoom.
        focal_px: of that camera, if known, in pixels of the frames. Otherwise it is estimated: freely from
            25 frames on, as the best of a few for fewer.
        guess_px: about that, as a photo's file names it: where the estimate sets out; few frames keep it.
        masks: where something moves or is not part of the scene; no feature is taken from there.
        ordered: the frames are a video; photos (False) are all matched with one another.
        bent: the lens may bend straight lines; how much is estimated from 25 frames on.
        mapping_s: seconds after which fitting cameras to what was matched is given up; default 6 a frame, but
            240 at least. Views that hardly fit together may take it hours.
        seed: of the random sampling in verification and mapping.

    Raises:
        ValueError: too few frames, an impossible focal length or time, or masks of another shape.
    """
    count, height, width, _ = frames.shape
    side = max(height, width)
    _check(frames, focal_px, masks, mapping_s)
    scale = colmap.feature_scale(side)
    with tempfile.TemporaryDirectory(prefix="orrery-poses-") as name:
        folder = Path(name)
        colmap.write_pictures(folder, frames, masks, round(height * scale), round(width * scale))
        colmap.find_features(folder, (focal_px or FREE_START * side) * scale, focal_px is not None, progress)
        colmap.match(
            folder, colmap.video_pairs(count) if ordered else colmap.all_pairs(count), seed, progress
        )
        pairs, features = colmap.read_pairs(folder)
        matched = colmap.sum_up(pairs, features, width=round(width * scale))
        hopeless = _why_none(matched, flat=SURELY_FLAT)
        if hopeless is not None:
            return _refused(_registration(None, matched, count, height, width), *hopeless)
        starts = _starts(focal_px, guess_px, side, count)
        limit_s = mapping_s or max(MAPPING_S, FRAME_S * count)
        try:
            models = _mapped(folder, starts, scale, focal_px is not None, bent, seed, limit_s, progress)
        except colmap.OutOfTime:
            reason = (
                f"no cameras fit the matches of {count} frames in {limit_s:g} s, if they show one scene; "
                "give sharper or fewer frames, mask what moves, or allow more time (--mapping-s)"
            )
            return _refused(_registration(None, matched, count, height, width), "out of time", reason)
        found = [_registration(model, matched, count, height, width) for model in models]
    if focal_px is not None and len(found) > 1:
        given, freed = found
        factor = max(freed.focal_px / focal_px, focal_px / freed.focal_px)
        if factor > FOCAL_OFF and freed.observations > SUPPORT_OFF * given.observations:
            reason = (
                f"{given.observations} observations fit one scene with a focal length of {focal_px:g} px, "
                f"{freed.observations} with {freed.focal_px:.0f} px; correct it or leave it out"
            )
            return _refused(freed, "wrong intrinsics", reason)
        found = [given]
    best = max(found, key=lambda one: one.observations)
    return _judged(best, matched, _contradicting(pairs, best, scale))


def _check(
    frames: UInt8[np.ndarray, "n h w 3"],
    focal_px: float | None,
    masks: Bool[np.ndarray, "_ _ _"] | None,
    mapping_s: float | None,
) -> None:
    """Raises ValueError where no cameras can be sought like this."""
    side = max(frames.shape[1:3])
    if len(frames) < FEWEST_FRAMES:
        raise ValueError(
            f"poses need at least {FEWEST_FRAMES} frames, got {len(frames)}; give more of the scene"
        )
    low, high = (limit * side for limit in FOCAL_LIMITS)
    if focal_px is not None and not low <= focal_px <= high:
        raise ValueError(
            f"the focal length must lie in [{low:.0f}, {high:.0f}] px for these pictures, got {focal_px:g}; "
            "leave it out to have it estimated"
        )
    if masks is not None and masks.shape != frames.shape[:3]:
        raise ValueError(f"masks must be {frames.shape[:3]}, as the frames, got {masks.shape}")
    if mapping_s is not None and not mapping_s > 0:
        raise ValueError(
            f"mapping_s (--mapping-s) must be positive, got {mapping_s:g}; {MAPPING_S:g} is usual"
        )


def _mapped(
    folder: Path,
    starts: Sequence[tuple[float, bool]],
    scale: float,
    known: bool,
    bent: bool,
    seed: int,
    limit_s: float,
    progress: bool,
) -> list[pycolmap.Reconstruction | None]:
    """The scene as mapped from each start, in the pictures' pixels: those of the frames times `scale`.

    Raises:
        OutOfTime: all together take more than `limit_s`.
    """
    models, deadline = [], time.monotonic() + limit_s
    for start, free in starts:
        colmap.set_focal(folder, start * scale, known)
        model = colmap.map_scene(folder, free, seed, progress, deadline)
        if bent and model is not None and model.num_reg_images() >= FEW_FRAMES:
            model = _bent(folder, model, free, seed, progress, deadline)
        models.append(model)
    return models


def _bent(
    folder: Path, model: pycolmap.Reconstruction, free_focal: bool, seed: int, progress: bool, deadline: float
) -> pycolmap.Reconstruction:
    """The scene mapped again behind the lens that explains a model's views clearly better, if one does: where
    views hardly differ, a lens trades against the focal length for nothing."""
    fitted = colmap.with_lens(model, free_focal)
    plain, error = (each.compute_mean_reprojection_error() for each in (model, fitted))
    if error > (1 - LENS_EXPLAINS) * plain:
        return model
    focal, _, _, k = fitted.cameras[1].params
    colmap.set_focal(folder, focal, not free_focal, k)
    again = colmap.map_scene(folder, free_focal, seed, progress, deadline)
    return fitted if again is None else colmap.with_lens(again, free_focal)


def _starts(
    focal_px: float | None, guess_px: float | None, side: int, count: int
) -> list[tuple[float, bool]]:
    """Focal lengths in pixels to try, each with whether it may change."""
    if focal_px is not None:
        return [(focal_px, False), (focal_px, True)] if count >= FEW_FRAMES else [(focal_px, False)]
    if guess_px is not None or count >= FEW_FRAMES:
        return [(guess_px or FREE_START * side, count >= FEW_FRAMES)]
    return [(guess * side, False) for guess in FIXED_GUESSES]


def _registration(
    model: pycolmap.Reconstruction | None, matched: colmap.Matches, count: int, height: int, width: int
) -> Registration:
    """COLMAP's model in our conventions and pixels, not yet judged."""
    c2w = torch.full((count, 4, 4), torch.nan)
    K = torch.eye(3)
    K[0, 0] = K[1, 1] = torch.nan
    K[0, 2], K[1, 2] = width / 2, height / 2
    points, observations, errors, candidates, lens = [], 0, [], 0, None
    if model is not None:
        camera = model.cameras[1]
        scale = max(height, width) / max(camera.height, camera.width)
        K[0, 0] = K[1, 1] = camera.focal_length * scale
        lens = simple_lens(camera.focal_length * scale, camera.params[3], height, width)
        seen_from = {}
        for image in model.images.values():
            if image.has_pose:
                frame = colmap.frame_of(image.name)
                w2c = torch.eye(4, dtype=torch.float64)
                w2c[:3] = torch.from_numpy(image.cam_from_world().matrix())
                c2w[frame] = rigid_inverse(w2c[None])[0].float()
                seen_from[image.image_id] = image.projection_center()
                candidates += matched.features_in_pairs[frame]
        for point in model.points3D.values():
            eyes = np.stack([seen_from[element.image_id] for element in point.track.elements])
            if len(eyes) >= LEAST_TRACK and _widest_angle_deg(eyes - point.xyz) >= LEAST_ANGLE_DEG:
                points.append(point.xyz)
                errors.append(point.error * scale)
                observations += len(eyes)
    return Registration(
        cameras=Cameras(K.repeat(count, 1, 1), c2w, height, width),
        registered=c2w[:, 0, 0].isfinite(),
        points=torch.from_numpy(np.array(points, dtype=np.float32).reshape(-1, 3)),
        observations=observations,
        reprojection_px=float(np.mean(errors)) if errors else float("nan"),
        explained=observations / candidates if candidates else 0.0,
        verdict="registered",
        reason="",
        lens=lens,
    )


def _widest_angle_deg(towards: Float[np.ndarray, "v 3"]) -> float:
    """The widest angle between directions."""
    units = towards / np.linalg.norm(towards, axis=1, keepdims=True)
    return float(np.degrees(np.arccos(np.clip((units @ units.T).min(), -1, 1))))


def _contradicting(pairs: Sequence[colmap.Pair], found: Registration, scale: float) -> float:
    """Share of the matched pairs of registered frames whose matches lie far from where the cameras allow."""
    side = max(found.cameras.height, found.cameras.width)
    there = [pair for pair in pairs if found.registered[list(pair.frames)].all()]
    off = [
        sampson(found.cameras[pair.frames], torch.from_numpy(pair.places / scale)).median() > FAR_OFF * side
        for pair in there
    ]
    return float(np.mean(off)) if off else 0.0


def _judged(found: Registration, matched: colmap.Matches, contradicting: float) -> Registration:
    """The registration in a world that is upright and of our size, or why it is refused."""
    count, there = len(found.registered), int(found.registered.sum())
    if there < max(FEWEST_FRAMES, count / 2) or len(found.points) < LEAST_POINTS:
        reason = (
            f"{there} of {count} frames register, on {len(found.points)} points (half of the frames and "
            f"{LEAST_POINTS} points seen by 3 frames under {LEAST_ANGLE_DEG:g} degrees are needed); move the "
            "camera around things that keep still"
        )
        return _refused(found, *(_why_none(matched, flat=MOSTLY_FLAT) or ("not one scene", reason)))
    if found.explained < LEAST_EXPLAINED:
        reason = (
            f"{there} frames register, but explain {found.explained:.0%} of the matched features: something "
            "moves, or the camera stands still; mask what moves"
        )
        return _refused(found, "not one scene", reason)
    if contradicting > MOST_CONTRADICTING:
        reason = (
            f"{there} of {count} frames register, but {contradicting:.0%} of the pairs of frames that match "
            "contradict these cameras: a pattern repeats, or something moves; take more views, closer "
            "together, or mask what repeats or moves"
        )
        return _refused(found, "not one scene", reason)
    return _upright(found)


def _why_none(matched: colmap.Matches, flat: float) -> tuple[Verdict, str] | None:
    """Why such matches give no cameras; None if they may.

    Args:
        flat: from which share of pairs that a homography explains there is no parallax.
    """
    if matched.features < FEW_FEATURES:
        return "no features", (
            f"frames hold {matched.features} features each; give sharp pictures of things with texture"
        )
    if matched.inliers < FEW_INLIERS:
        return "not one scene", (
            f"neighbouring frames share {matched.inliers:.0f} features; give more overlap and texture"
        )
    if matched.shift < STILL:
        return "no parallax", (
            f"features move by at most {matched.shift:.1%} of the width: the camera stands still; move it"
        )
    if matched.flat > flat:
        return "no parallax", (
            f"one homography explains {matched.flat:.0%} of the pairs of frames: the camera only turns or "
            "zooms, or sees a plane; move it sideways"
        )
    return None


def _refused(found: Registration, verdict: Verdict, reason: str) -> Registration:
    cameras = replace(found.cameras, c2w=torch.full_like(found.cameras.c2w, torch.nan))
    return replace(found, cameras=cameras, verdict=verdict, reason=reason)


def _upright(found: Registration) -> Registration:
    """The registration moved and scaled into a world with up and size.

    Up is the direction that is most at right angles to all cameras' x axes, since people and sweeps keep the
    horizon level, and, where these leave it open, nearest to the cameras' mean up.
    """
    cameras = found.cameras[found.registered]
    axes = cameras.c2w[:, :3, :3].double()
    across = axes[:, :, 0]
    up = torch.linalg.solve(
        across.T @ across / len(across) + 1e-3 * torch.eye(3).double(), -axes[:, :, 1].mean(0)
    )
    up = up / up.norm()
    ahead = axes[0, :, 2] - (axes[0, :, 2] @ up) * up
    left = torch.linalg.cross(up, ahead / ahead.norm())
    turn = torch.stack([torch.linalg.cross(left, up), left, up]).float()
    focus = focus_similarity(cameras)
    c2w = torch.eye(4).repeat(len(found.registered), 1, 1)
    c2w[:, :3, :3] = turn @ found.cameras.c2w[:, :3, :3]
    c2w[:, :3, 3] = focus.scale * (found.cameras.centres - focus.centre) @ turn.T
    c2w[~found.registered] = torch.nan
    points = focus.scale * (found.points - focus.centre) @ turn.T
    return replace(found, cameras=replace(found.cameras, c2w=c2w), points=points)
