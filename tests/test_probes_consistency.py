"""3D consistency: one scene is consistent, a bent one is less so, and what has no parallax is not judged."""

import math

import numpy as np
import pytest
import torch
from analytic_scene import render
from scipy import ndimage

from probes.consistency import consistency, over_reference, sharpness
from probes.measurement import Measurement, cannot_judge
from recon3d.cameras import Cameras
from recon3d.sweeps import orbit
from recon3d.views import score_held_out

HELD = torch.arange(20) % 5 == 4


@pytest.fixture(scope="module")
def sweep():
    cameras = orbit(20, degrees=180.0, height=32, width=32)
    return render(cameras)[0].numpy(), cameras


def explained_by(pictures):
    """A scene that shows `pictures` at the held-out cameras: the protocol is tested apart from any NeRF."""
    return lambda frames, cameras: score_held_out(pictures[HELD], frames, cameras, HELD)


def true_scene(frames, cameras):
    return score_held_out(render(cameras[4::5])[0], frames, cameras, HELD)


def by_name(found):
    return {measurement.name: measurement for measurement in found}


def test_a_perfectly_explained_sweep_gets_the_perfect_value(sweep):
    found = by_name(consistency(*sweep, true_scene))
    assert found["sweep_psnr"].value == pytest.approx(58.9, abs=0.1)
    assert found["sweep_ssim"].value == pytest.approx(1.0)
    assert found["sweep_psnr"].verdict == "consistent" and found["sweep_psnr"].support == 4
    assert found["sweep_gain"].value > 25
    assert found["sweep_psnr"].curve["view"] == [4.0, 9.0, 14.0, 19.0]


def test_a_known_error_gives_that_error_in_db(sweep):
    video, cameras = sweep
    off = np.where(video > 127, video.astype(int) - 10, video.astype(int) + 10).astype(np.uint8)
    found = by_name(consistency(video, cameras, explained_by(torch.from_numpy(off))))
    assert found["sweep_psnr"].value == pytest.approx(20 * math.log10(255 / 10), abs=0.01)


def test_what_copying_explains_as_well_is_inconsistent(sweep):
    video, cameras = sweep
    copies = explained_by(torch.from_numpy(np.roll(video, 1, axis=0)))
    found = by_name(consistency(video, cameras, copies))
    assert found["sweep_gain"].value < 0.5 and found["sweep_psnr"].verdict == "inconsistent"


def test_a_warp_that_changes_from_view_to_view_lowers_the_value(sweep):
    video, cameras = sweep
    generator = np.random.default_rng(0)
    fields = ndimage.gaussian_filter(generator.normal(size=(len(video), 2, 32, 32)), (0, 0, 6, 6))
    fields /= np.abs(fields).max(axis=(1, 2, 3), keepdims=True)
    rows = np.indices((32, 32)).astype(float)
    values = []
    for size_px in (0.0, 2.0, 4.0, 8.0):
        bent = [
            np.stack(
                [
                    ndimage.map_coordinates(frame[..., c], rows + size_px * field, order=1, mode="nearest")
                    for c in range(3)
                ],
                axis=-1,
            )
            for frame, field in zip(video, fields, strict=True)
        ]
        values.append(by_name(consistency(np.stack(bent), cameras, true_scene))["sweep_psnr"].value)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("kind", ["frozen", "no parallax", "blank", "too few views", "unknown"])
def test_without_evidence_nothing_is_claimed(sweep, kind):
    video, cameras = sweep
    if kind == "frozen":
        video = np.repeat(video[:1], len(video), axis=0)
    elif kind == "no parallax":
        cameras = cameras[[0] * len(video)]
    elif kind == "blank":
        video = np.full_like(video, 128)
    elif kind == "too few views":
        video, cameras = video[:6], cameras[:6]
    else:
        c2w = cameras.c2w.clone()
        c2w[3] = torch.nan
        cameras = Cameras(cameras.K, c2w, 32, 32)
    found = by_name(consistency(video, cameras, true_scene))
    clarity = found.pop("sweep_sharpness")
    assert clarity.support == len(video)
    for measurement in found.values():
        assert measurement.verdict == "cannot judge" and math.isnan(measurement.value)
        assert kind in measurement.reason


def test_blur_lowers_sharpness(sweep):
    frame = sweep[0][0]
    blurred = ndimage.gaussian_filter(frame.astype(float), (1, 1, 0)).astype(np.uint8)
    assert sharpness(blurred) < sharpness(frame)
    assert sharpness(np.full_like(frame, 9)) == 0


def test_a_ratio_to_the_reference_carries_both_intervals():
    def number(value, half):
        return Measurement("sweep_psnr", value, "dB", 8, "higher", (value - half, value + half))

    share = over_reference(number(20.0, 1.0), number(25.0, 1.0))
    assert share.value == pytest.approx(0.8)
    assert share.interval[1] - share.value == pytest.approx(0.8 * math.hypot(1 / 20, 1 / 25))
    assert not over_reference(cannot_judge("sweep_psnr", "dB", "higher", "frozen"), number(25.0, 1.0)).judged
    with pytest.raises(ValueError, match="same measurement twice"):
        over_reference(number(20.0, 1.0), Measurement("other", 1.0, "dB", 3, "higher"))


def test_bad_input_is_named(sweep):
    video, cameras = sweep
    with pytest.raises(ValueError, match="one camera per frame"):
        consistency(video[:12], cameras, true_scene)
    with pytest.raises(ValueError, match="resized"):
        consistency(video, cameras.resized(64, 64), true_scene)
