"""Free fall: known accelerations come back, worse is worse, and where nothing falls nothing is claimed."""

import math

import numpy as np
import pytest
import torch
from einops import repeat

from probes.free_fall import combine_falls, fit_fall, free_fall
from probes.tracking import track_moving_thing
from recon3d.cameras import Cameras, intrinsics, look_at


def fixed_camera(count, size=64):
    """Looks level along +y at the plane y = 0 from 3.1 m."""
    pose = look_at(torch.tensor([[0.0, -3.1, 1.2]]), torch.tensor([[0.0, 0.0, 1.2]]))
    K = intrinsics(45.0, size, size)
    return Cameras(repeat(K, "i j -> n i j", n=count), repeat(pose[0], "i j -> n i j", n=count), size, size)


def rendered(heights_m, size=64, radius_m=0.16, x_m=0.1, colour=(220, 20, 25), shadow=True, scale=4):
    """A red ball before a grey wall over a brown floor, drawn at `scale` times the size and averaged."""
    rows, columns = (np.indices((size * scale, size * scale)) + 0.5) / scale
    per_metre = 0.5 * size / math.tan(math.radians(22.5)) / 3.1
    x = (columns - size / 2) / per_metre
    z = 1.2 - (rows - size / 2) / per_metre
    frames = []
    for height in heights_m:
        picture = np.where((z > 0.05)[..., None], (150.0, 155.0, 160.0), (130.0, 100.0, 70.0))
        if shadow:
            dark = ((x - x_m) / 0.2) ** 2 + ((z - 0.0) / 0.05) ** 2 < 1
            picture = np.where(dark[..., None], picture * 0.5, picture)
        picture = np.where(((x - x_m) ** 2 + (z - height) ** 2 < radius_m**2)[..., None], colour, picture)
        frames.append(picture.reshape(size, scale, size, scale, 3).mean(axis=(1, 3)))
    return np.stack(frames).round().astype(np.uint8)


def fallen(acceleration, fps=10.0, count=14, start_m=2.1, onset_s=0.0, rebound=0.0, floor_m=0.16):
    """Heights of a dropped ball with an optional bounce."""
    time_s = np.maximum(np.arange(count) / fps - onset_s, 0.0)
    impact_s = math.sqrt(2 * (start_m - floor_m) / acceleration)
    after = time_s - impact_s
    up = rebound * acceleration * impact_s
    bounced = floor_m + np.maximum(up * after - 0.5 * acceleration * after**2, 0.0)
    return np.where(after < 0, start_m - 0.5 * acceleration * time_s**2, bounced)


@pytest.mark.parametrize("acceleration", [9.81, 4.9])
@pytest.mark.parametrize(
    ("fps", "onset_s", "rebound"), [(10.0, 0.0, 0.0), (10.0, 0.23, 0.7), (24.0, 0.1, 0.7)]
)
def test_a_known_acceleration_comes_back_within_its_interval(acceleration, fps, onset_s, rebound):
    heights = fallen(acceleration, fps, count=round(1.6 * fps), onset_s=onset_s, rebound=rebound)
    value = free_fall(rendered(heights), fps, fixed_camera(len(heights)), target_m_s2=acceleration)[0]
    assert value.verdict == "consistent" and value.unit == "m/s^2"
    assert value.value == pytest.approx(acceleration, rel=0.06)
    assert value.interval[0] < acceleration < value.interval[1]
    assert len(value.curve["fitted"]) == len(heights)


def test_intervals_cover_the_truth_under_noise():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(12):
        video = rendered(fallen(9.81, start_m=2.0 + 0.03 * trial, rebound=0.7)).astype(np.float64)
        noisy = np.clip(video + generator.normal(0, 6, video.shape), 0, 255).astype(np.uint8)
        value = free_fall(noisy, 10.0, fixed_camera(14))[0]
        hits += value.interval[0] < 9.81 < value.interval[1]
        assert value.value == pytest.approx(9.81, rel=0.15)
    assert hits >= 10


def test_the_exponent_of_a_fall_is_two_and_of_constant_speed_is_one():
    heights = fallen(9.81, 24.0, count=24)
    exponent = free_fall(rendered(heights), 24.0, fixed_camera(24))[1]
    assert exponent.verdict == "consistent" and exponent.value == pytest.approx(2.0, abs=0.2)
    steady = 2.1 - np.maximum(np.arange(24) - 4, 0) * 0.08
    exponent = free_fall(rendered(steady), 24.0, fixed_camera(24))[1]
    assert exponent.verdict == "inconsistent" and exponent.value == pytest.approx(1.0, abs=0.2)


def test_half_the_gravity_is_called_inconsistent_and_less_is_further_off():
    offs = []
    for acceleration in (9.81, 6.0, 3.0):
        value = free_fall(rendered(fallen(acceleration, count=16)), 10.0, fixed_camera(16))[0]
        offs.append(abs(value.value - 9.81))
        assert value.verdict == ("consistent" if acceleration == 9.81 else "inconsistent")
    assert offs == sorted(offs)


def test_a_wobbling_fall_has_a_larger_residual():
    generator = np.random.default_rng(3)
    wobble = generator.normal(0, 1, 24)
    residuals = []
    for size_m in (0.0, 0.02, 0.08):
        heights = fallen(9.81, 24.0, count=24, floor_m=-2.0) + size_m * wobble
        residuals.append(free_fall(rendered(heights[:14]), 24.0, fixed_camera(14))[2].value)
    assert residuals == sorted(residuals)


def test_a_thing_thrown_upwards_gives_the_same_acceleration():
    time_s = np.arange(12) / 10
    heights = 0.9 + 4.2 * time_s - 0.5 * 9.81 * time_s**2
    value = free_fall(rendered(heights[:9]), 10.0, fixed_camera(9))[0]
    assert value.value == pytest.approx(9.81, rel=0.05)


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        (np.full(12, 1.0), "frozen"),
        (np.linspace(0.3, 2.0, 12), "nothing falls"),
        (fallen(9.81, start_m=2.1)[:3], "too few frames"),
        (fallen(9.81, fps=5.0, start_m=1.3, count=8), "too few frames"),
        (np.r_[np.full(6, 2.56), np.full(6, -0.03)], "leaves the picture"),
    ],
)
def test_no_fall_is_not_a_number(heights, reason):
    fps = 5.0 if len(heights) == 8 else 10.0
    found = free_fall(rendered(heights), fps, fixed_camera(len(heights)))
    assert [math.isnan(value.value) for value in found] == [True] * 3
    assert all(value.verdict == "cannot judge" and reason in value.reason for value in found)


def test_noise_is_not_a_fall():
    video = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    assert not any(value.judged for value in free_fall(video, 10.0, fixed_camera(16))[:1])


def test_an_unsure_frame_rate_or_missing_cameras_make_the_value_relative():
    video = rendered(fallen(9.81))
    unsure = free_fall(video, 10.0, fixed_camera(14), fps_known=False)[0]
    bare = free_fall(video, 10.0)[0]
    assert unsure.verdict == bare.verdict == "cannot judge"
    assert "relative only" in unsure.reason and "relative only" in bare.reason
    assert bare.unit == "px/s^2" and bare.value == pytest.approx(9.81 * 24.92, rel=0.06)


def test_the_track_follows_the_ball_to_a_tenth_of_a_pixel_and_not_its_shadow():
    heights = fallen(9.81, rebound=0.7)
    track = track_moving_thing(rendered(heights))
    rows = 32 - (heights - 1.2) * 0.5 * 64 / math.tan(math.radians(22.5)) / 3.1
    assert track.usable.all()
    assert np.abs(track.centroid_px[:, 0] - rows).max() < 0.15


def test_a_thing_that_changes_its_size_on_its_way_is_not_judged_and_one_that_comes_nearer_is():
    heights = fallen(9.81, count=8)
    for growth, judged in ((1.05, True), (1.25, False)):  # of the radius, in each frame
        clip = [rendered([height], radius_m=0.1 * growth**index)[0] for index, height in enumerate(heights)]
        value = free_fall(np.stack(clip), 10.0, fixed_camera(len(clip)))[0]
        assert value.judged == judged
        assert judged or "not seen whole: its area changes by a factor of 1." in value.reason


def test_falls_of_several_clips_combine_with_an_interval():
    cameras = fixed_camera(14)
    falls = [free_fall(rendered(fallen(9.81, start_m=start)), 10.0, cameras) for start in (2.0, 2.1, 2.2)]
    still = free_fall(rendered(np.full(14, 1.0)), 10.0, cameras)
    mean, _, _, share = combine_falls([*falls, still])
    assert mean.support == 3 and "3 of 4" in mean.reason and mean.verdict == "consistent"
    assert share.value == 0.75
    alone = combine_falls(falls[:1])[0]
    assert alone.interval == falls[0][0].interval
    nothing = combine_falls([still, still])
    assert nothing[3].verdict == "inconsistent" and share.verdict == "consistent"
    assert math.isnan(nothing[0].value) and nothing[3].value == 0 and "frozen" in nothing[0].reason


def test_fit_fall_is_exact_on_exact_heights():
    time_s = np.arange(6) / 10
    fall = fit_fall(time_s, 2.0 - 0.5 * 9.81 * time_s**2, 0.04)
    assert fall.acceleration == pytest.approx(9.81, rel=0.01) and fall.residual < 1e-3


def test_bad_input_is_named():
    video = rendered(fallen(9.81)[:6])
    with pytest.raises(ValueError, match="fps must be above 0"):
        free_fall(video, 0.0)
    with pytest.raises(ValueError, match="one camera per frame"):
        free_fall(video, 10.0, fixed_camera(3))
