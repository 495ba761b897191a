"""Free fall: the acceleration of a falling thing in a video, fitted to its tracked centre.

The centre is projected from the picture onto the vertical plane in which the thing falls, and its height is
fitted by z(t) = z0 - a/2 max(0, t - onset)^2 (onset free: a clip may hold its first frame) or, for a thing
that first rises, by a parabola. Only the ballistic part counts: the fit ends before the first impact, and
frames in which the thing touches the picture's edge do not enter. A thing whose area jumps on its way is not
seen whole (a part of it was taken for its shadow, or the shadow for a part), and its centre is not its own:
such a fall is not judged. The exponent is fitted apart from that, for it needs no unit of time.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy import special

from probes.measurement import Curve, Measurement, cannot_judge, mean_interval, wilson_interval
from probes.tracking import Track, track_moving_thing
from recon3d.cameras import Cameras

GRAVITY_M_S2 = 9.81
TOLERANCE = 0.05
"""A person's clicks on a real toss give g within 5 %: closer is called consistent."""

TRACKING_STD_PX = 0.15
TRACKING_STD_WEIGHT = 4
"""The centroid's spread is taken to be about 0.15 px, with the weight of 4 observations: with one or two
frames more than parameters, the residual alone says next to nothing."""


AREA_JUMP = 1.33
"""By how much the thing's area may change from one frame to the next. Of 71 drops of the reference Lab 68
stay below it and read 10.1 m/s^2 [10.0, 10.3], the other three 16 to 29."""


@dataclass(frozen=True)
class FallPlane:
    """The vertical plane in which the thing moves: a point on it (metres) and its normal."""

    point_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    normal: tuple[float, float, float] = (0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Fall:
    """The fitted ballistic part: heights at `time_s`, in `unit` (m, or px where no camera is known)."""

    time_s: Float[np.ndarray, " n"]
    height: Float[np.ndarray, " n"]
    fitted: Float[np.ndarray, " n"]
    acceleration: float
    interval: tuple[float, float]
    residual: float
    pixel: float
    thrown: bool


def free_fall(
    video: UInt8[np.ndarray, "t h w 3"],
    fps: float,
    cameras: Cameras | None = None,
    *,
    plane: FallPlane | None = None,
    target_m_s2: float = GRAVITY_M_S2,
    fps_known: bool = True,
) -> list[Measurement]:
    """Acceleration, exponent and residual of the fall in a clip of a fixed camera.

    Args:
        video: the clip; one thing falls in it.
        fps: frames per second.
        cameras: one camera per frame, or None, which leaves lengths in pixels and the acceleration relative.
        plane: where the thing moves; default y = 0.
        target_m_s2: the acceleration that is right in this scene.
        fps_known: False for clips whose container may lie about its clock: the acceleration is relative only.
    """
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}; pass the clip's frame rate")
    if cameras is not None and len(cameras) != len(video):
        raise ValueError(f"free fall needs one camera per frame, got {len(cameras)} for {len(video)} frames")
    reason, track = _too_little(video)
    if reason or track is None:
        return _abstain(reason, 0)
    height, pixel = _heights(track, cameras, plane or FallPlane())
    times = np.arange(len(video)) / fps
    curve = {"time_s": times.tolist(), "height": height.tolist()}
    start, end = ballistic_part(np.where(track.usable, height, np.nan), pixel)
    if start == end:
        return _abstain(_why_no_fall(track, height, pixel), 0, curve)
    if end - start < 4:
        return _abstain(
            f"too few frames: {end - start} of the fall are seen, a fit needs 4; use more frames per second",
            end - start,
            curve,
        )
    jump = _area_jump(track, start, end)
    if jump > AREA_JUMP:
        return _abstain(
            f"the moving thing is not seen whole: its area changes by a factor of {jump:.1f} from one frame "
            f"to the next, {AREA_JUMP} is allowed",
            end - start,
            curve,
        )
    fall = fit_fall(times[start:end], height[start:end], pixel)
    column = np.full(len(video), np.nan)
    column[start:end] = fall.fitted
    curve["fitted"] = column.tolist()
    relative = "" if fps_known and cameras is not None else _relative(cameras is not None)
    return [
        _acceleration(fall, curve, relative, target_m_s2),
        _exponent(fall, curve),
        _residual(fall, cameras is not None),
    ]


def _too_little(video: UInt8[np.ndarray, "t h w 3"]) -> tuple[str, Track | None]:
    if len(video) < 4:
        return f"too few frames: {len(video)} in the clip, a fit needs 4", None
    track = track_moving_thing(video)
    if not track.moving.any():
        return "frozen: nothing moves in the clip", None
    if not np.isfinite(track.centroid_px).any():
        return "no moving thing stands out from the background", None
    return "", track


def _area_jump(track: Track, start: int, end: int) -> float:
    """The largest factor between the areas of two frames that follow one another."""
    area = np.log(track.area_px[start:end])
    return float(np.exp(np.abs(np.diff(area)).max()))


def _why_no_fall(track: Track, height: np.ndarray, pixel: float) -> str:
    if track.clipped.sum() >= track.usable.sum():
        return "the moving thing leaves the picture"
    if track.usable.sum() < 4:
        return f"too few frames: the moving thing is seen in {int(track.usable.sum())}, a fit needs 4"
    span = np.nanmax(height) - np.nanmin(height)
    return f"nothing falls: the moving thing changes its height by {span / pixel:.1f} px"


def _relative(cameras_known: bool) -> str:
    if cameras_known:
        return "relative only: the frame rate is unsure"
    return "relative only: without cameras lengths are in pixels"


def _abstain(reason: str, support: int, curve: Curve | None = None) -> list[Measurement]:
    return [
        cannot_judge(
            "free_fall_acceleration",
            "m/s^2",
            "target",
            reason,
            support=support,
            curve=curve,
            target=GRAVITY_M_S2,
        ),
        cannot_judge("free_fall_exponent", "", "target", reason, support=support, target=2.0),
        cannot_judge("free_fall_residual", "m", "lower", reason, support=support),
    ]


def _heights(
    track: Track, cameras: Cameras | None, plane: FallPlane
) -> tuple[Float[np.ndarray, " t"], float]:
    """Height (m, or px upwards) of the centroid in each frame, and the height of one pixel there."""
    rows, columns = track.centroid_px.T
    if cameras is None:
        return -rows, 1.0
    here = _on_plane(cameras, columns, rows, plane)
    above = _on_plane(cameras, columns, rows - 1.0, plane)
    return here, float(np.nanmedian(above - here))


def _on_plane(
    cameras: Cameras, columns: Float[np.ndarray, " t"], rows: Float[np.ndarray, " t"], plane: FallPlane
) -> Float[np.ndarray, " t"]:
    """World z (m) at which the rays through picture points meet the plane."""
    K, c2w = cameras.K.double(), cameras.c2w.double()
    pixels = torch.from_numpy(np.stack([columns, rows, np.ones_like(rows)], axis=-1)).double()
    directions = (c2w[:, :3, :3] @ torch.linalg.solve(K, pixels[..., None]))[..., 0]
    normal = torch.tensor(plane.normal, dtype=torch.float64)
    point = torch.tensor(plane.point_m, dtype=torch.float64)
    distance = ((point - c2w[:, :3, 3]) @ normal) / (directions @ normal)
    return (c2w[:, 2, 3] + distance * directions[:, 2]).numpy()


def ballistic_part(height: Float[np.ndarray, " t"], pixel: float) -> tuple[int, int]:
    """Frames [start, end) from the first sight of the thing to just before its first impact.

    `height` is NaN where the thing was not seen whole. (0, 0) where it never falls by two pixels. An impact
    shows as a downward speed that drops from one step to the next; a frame at the height of rest may be
    past it already.
    """
    seen = np.flatnonzero(np.isfinite(height))
    if len(seen) < 2:
        return 0, 0
    start = int(seen[0])
    gaps = np.flatnonzero(~np.isfinite(height[start:]))
    stop = start + int(gaps[0]) if len(gaps) else len(height)
    part = height[start:stop]
    speed = np.diff(part)
    falling = np.flatnonzero(speed < -0.5 * pixel)
    if len(falling) == 0:
        return 0, 0
    end = len(part)
    for step in range(int(falling[0]) + 1, len(speed)):
        if speed[step] > speed[step - 1] + 0.35 * pixel:
            end = step + 1
            break
    if end < len(part) and len(part) >= 6 and np.ptp(part[-3:]) < 0.3 * pixel:
        at_rest = part[-3:].mean()
        while end > 1 and part[end - 1] < at_rest + 0.5 * pixel:
            end -= 1
    if part[:end].max() - part[end - 1] < 2 * pixel:
        return 0, 0
    return start, start + end


def fit_fall(time_s: Float[np.ndarray, " n"], height: Float[np.ndarray, " n"], pixel: float) -> Fall:
    """Least-squares fit of a fall with a free onset, or of a parabola where the thing first rises.

    The interval is Student's, from the curvature of the squares at the optimum; `pixel` (the height of one
    pixel) sets the floor of the tracking error.
    """
    thrown = bool(height.max() - height[0] > pixel)
    if thrown:
        basis = np.stack([np.ones_like(time_s), time_s, -0.5 * time_s**2], axis=-1)
        values = np.linalg.lstsq(basis, height, rcond=None)[0]
        acceleration, fitted, slopes = float(values[2]), basis @ values, basis
    else:
        onset = _best_onset(time_s, height, 2.0)[0]
        since = np.maximum(time_s - onset, 0.0)
        basis = np.stack([np.ones_like(since), -0.5 * since**2], axis=-1)
        values = np.linalg.lstsq(basis, height, rcond=None)[0]
        acceleration, fitted = float(values[1]), basis @ values
        slopes = np.concatenate([basis, (acceleration * since)[:, None]], axis=-1)
    squares = float(((height - fitted) ** 2).sum())
    spare = max(len(height) - 3, 0)
    weight = spare + TRACKING_STD_WEIGHT
    std = math.sqrt((squares + TRACKING_STD_WEIGHT * (TRACKING_STD_PX * pixel) ** 2) / weight)
    covariance = np.linalg.pinv(slopes.T @ slopes)
    index = 2 if thrown else 1
    half = float(special.stdtrit(weight, 0.975)) * std * math.sqrt(covariance[index, index])
    residual = math.sqrt(squares / len(height))
    interval = (acceleration - half, acceleration + half)
    return Fall(time_s, height, fitted, acceleration, interval, residual, pixel, thrown)


def _best_onset(
    time_s: Float[np.ndarray, " n"], height: Float[np.ndarray, " n"], exponent: float
) -> tuple[float, float]:
    """Onset (s) and squared error of the best z0 - c max(0, t - onset)^exponent.

    The onset may lie before the clip (the thing falls already in its first frame) but leaves two moving
    frames.
    """
    duration = time_s[-1] - time_s[0]
    onsets = np.linspace(time_s[0] - 0.5 * duration, time_s[-2] - 1e-6, 600)
    since = np.maximum(time_s[None] - onsets[:, None], 0.0) ** exponent
    centred = since - since.mean(axis=1, keepdims=True)
    deviation = height - height.mean()
    slope = (centred @ deviation) / np.maximum((centred**2).sum(axis=1), 1e-30)
    squares = ((deviation[None] - slope[:, None] * centred) ** 2).sum(axis=1)
    best = int(np.argmin(squares))
    return float(onsets[best]), float(squares[best])


def _acceleration(fall: Fall, curve: Curve, relative: str, target: float) -> Measurement:
    name, support = "free_fall_acceleration", len(fall.time_s)
    low, high = fall.interval
    if relative:
        return Measurement(
            name,
            fall.acceleration,
            "m/s^2 (relative)" if "frame rate" in relative else "px/s^2",
            support,
            "target",
            fall.interval,
            "cannot judge",
            relative,
            curve,
        )
    near = abs(fall.acceleration - target) <= TOLERANCE * target
    reason, verdict = "", "consistent"
    if high - low > target:
        verdict, reason = "cannot judge", "the interval is wider than the value wished for; use more frames"
    elif not (near or low <= target <= high):
        verdict, reason = "inconsistent", f"{fall.acceleration / target:.2f} of {target:g} m/s^2"
    return Measurement(
        name,
        fall.acceleration,
        "m/s^2",
        support,
        "target",
        fall.interval,
        verdict,
        reason,
        curve,
        target=target,
    )


def _exponent(fall: Fall, curve: Curve) -> Measurement:
    """Exponent of the fallen height over time, with the onset free; 2 under constant acceleration.

    95 % interval from the profile of the squared error (F-test of one parameter).
    """
    name, count = "free_fall_exponent", len(fall.time_s)
    if fall.thrown:
        return cannot_judge(
            name, "", "target", "the thing is thrown upwards first", support=count, target=2.0
        )
    if count < 5:
        return cannot_judge(
            name, "", "target", f"too few frames: {count}, an exponent needs 5", support=count, target=2.0
        )
    exponents = np.linspace(0.5, 5.0, 91)
    squares = np.array([_best_onset(fall.time_s, fall.height, float(power))[1] for power in exponents])
    best = int(np.argmin(squares))
    spare = count - 4 + TRACKING_STD_WEIGHT
    floor = TRACKING_STD_WEIGHT * (TRACKING_STD_PX * fall.pixel) ** 2
    variance = (squares[best] + floor) / spare
    likely = exponents[squares - squares[best] <= special.stdtrit(spare, 0.975) ** 2 * variance]
    interval = (float(likely[0]), float(likely[-1]))
    value = float(exponents[best])
    if likely[0] == exponents[0] or likely[-1] == exponents[-1]:
        reason = "the interval is open: the fall is too short to tell powers apart"
        return Measurement(
            name, value, "", count, "target", interval, "cannot judge", reason, curve, target=2.0
        )
    verdict = "consistent" if interval[0] <= 2.0 <= interval[1] else "inconsistent"
    return Measurement(name, value, "", count, "target", interval, verdict, "", curve, target=2.0)


def _residual(fall: Fall, cameras_known: bool) -> Measurement:
    """Root-mean-square distance of the tracked heights from the fitted fall."""
    verdict = "consistent" if fall.residual <= 0.5 * fall.pixel else "inconsistent"
    reason = f"{fall.residual / fall.pixel:.2f} px"
    unit = "m" if cameras_known else "px"
    return Measurement(
        "free_fall_residual", fall.residual, unit, len(fall.time_s), "lower", verdict=verdict, reason=reason
    )


def combine_falls(clips: list[list[Measurement]], *, target_m_s2: float = GRAVITY_M_S2) -> list[Measurement]:
    """Means over clips of one subject with the intervals of those means, and the share that was judged.

    Clips that could not be judged do not enter the means; the reasons say how many there were.
    """
    if not clips:
        raise ValueError("combine_falls needs at least 1 clip, got none")
    acceleration, exponent, residual = (_mean_of(list(column)) for column in zip(*clips, strict=True))
    if acceleration.judged:
        off = abs(acceleration.value - target_m_s2) / target_m_s2
        inside = acceleration.interval[0] <= target_m_s2 <= acceleration.interval[1]
        verdict = "consistent" if off <= TOLERANCE or inside else "inconsistent"
        acceleration = replace(acceleration, verdict=verdict, target=target_m_s2)
    if residual.judged and math.isfinite(residual.interval[1]):  # of the mean's, what a residual can be
        residual = replace(residual, interval=(max(0.0, residual.interval[0]), residual.interval[1]))
    count = sum(clip[0].judged for clip in clips)
    share = Measurement(
        "free_fall_share_judged",
        count / len(clips),
        "share",
        len(clips),
        "higher",
        wilson_interval(count, len(clips)),
        "consistent" if 2 * count >= len(clips) else "inconsistent",
        acceleration.reason,
        support_unit="clips",
    )
    return [acceleration, exponent, residual, share]


def _mean_of(column: list[Measurement]) -> Measurement:
    """One measurement's mean over clips; the verdict is that of most clips."""
    judged = [measurement for measurement in column if measurement.judged]
    reasons = Counter(measurement.reason for measurement in column if not measurement.judged)
    first = (judged or column)[0]
    note = f"{len(judged)} of {len(column)} clips judged"
    if reasons:
        note += f"; {reasons.most_common(1)[0][0]}"
    if not judged:
        return cannot_judge(
            first.name, first.unit, first.better, note, support_unit="clips", target=first.target
        )
    values = np.array([measurement.value for measurement in judged])
    return replace(
        first,
        value=float(values.mean()),
        support=len(values),
        support_unit="clips",
        interval=mean_interval(values) if len(values) > 1 else first.interval,
        verdict=Counter(measurement.verdict for measurement in judged).most_common(1)[0][0],
        reason=note,
    )
