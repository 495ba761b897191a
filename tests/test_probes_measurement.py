"""Measurements: what cannot be known is NaN and null, intervals cover, files are whole."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from probes.measurement import (
    Measurement,
    bootstrap_interval,
    cannot_judge,
    from_json,
    mean_interval,
    read_measurements,
    to_json,
    wilson_interval,
    write_measurements,
)


def test_a_measurement_survives_json_with_nan_as_null(tmp_path):
    good = Measurement(
        "fall", 9.7, "m/s^2", 6, "target", (9.1, 10.2), curve={"time_s": [0.0, 0.1]}, target=9.81
    )
    none = cannot_judge("fall", "m/s^2", "target", "nothing falls")
    path = write_measurements(tmp_path / "deep" / "measurements.json", [good, none], target="x.mp4", seed=3)
    body = json.loads(path.read_text())
    assert body["measurements"][1]["value"] is None
    assert (body["target"], body["seed"]) == ("x.mp4", 3) and body["version"]
    (first, second), header = read_measurements(path)
    assert first == good and math.isnan(second.value) and second.reason == "nothing falls"
    assert header["target"] == "x.mp4"
    assert [entry.name for entry in path.parent.iterdir()] == ["measurements.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"support": 0},
        {"value": math.nan},
        {"value": math.inf},
        {"verdict": "cannot judge"},
        {"support": -1},
        {"curve": {"a": [1.0], "b": []}},
    ],
)
def test_a_number_without_evidence_or_reason_is_refused(change):
    fields = {"name": "m", "value": 1.0, "unit": "", "support": 3, "better": "higher"} | change
    with pytest.raises(ValueError, match=r"^m: "):
        Measurement(**fields)


def test_unknown_keys_and_other_files_are_refused(tmp_path):
    entry = to_json(cannot_judge("m", "", "higher", "no frames"))
    with pytest.raises(ValueError, match="unknown"):
        from_json(entry | {"colour": 1})
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[]")
    for name in ("a.json", "b.json"):
        with pytest.raises(ValueError, match="write it with"):
            read_measurements(tmp_path / name)


def test_mean_interval_equals_scipy_and_abstains_on_one_value():
    values = np.random.default_rng(0).normal(3, 2, 12)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert math.isnan(mean_interval(values[:1])[0])


def test_wilson_interval_equals_scipy():
    expected = stats.binomtest(83, 100).proportion_ci(method="wilson")
    assert wilson_interval(83, 100) == pytest.approx((expected.low, expected.high))
    assert wilson_interval(0, 10)[0] == 0 and math.isnan(wilson_interval(0, 0)[0])


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        low, high = bootstrap_interval(
            generator.normal(5, 1, 40), lambda part: float(part.mean()), generator, 200
        )
        hits += low <= 5 <= high
    assert hits >= 86
