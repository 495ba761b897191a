"""The report: what it writes, what it embeds, what it refuses."""

import json
import math

import mlflow
import numpy as np
import pytest

from probes.measurement import Measurement, cannot_judge
from probes.report import Media, ratio, write_report
from simulator.video import write_image, write_video

FELL = Measurement(
    "free fall <acceleration>",
    4.9,
    "m/s²",
    12,
    "target",
    interval=(4.5, 5.3),
    verdict="inconsistent",
    reason="falls too slowly",
    curve={"time_s": [0.0, 0.1, 0.2], "height_m": [1.0, 0.95, 0.8], "fit_m": [1.0, 0.96, 0.79]},
    target=9.81,
)
TRUE_FALL = Measurement("free fall <acceleration>", 9.8, "m/s²", 12, "target", target=9.81)
UNSEEN = cannot_judge("held-out PSNR", "dB", "higher", "no view was held out")


@pytest.fixture
def media(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    asset = tmp_path / "asset.glb"
    asset.write_bytes(b"glTF")
    return [
        Media(write_video(tmp_path / "rollout.mp4", frames, 8.0), "dream", "Rollout"),
        Media(write_image(tmp_path / "mesh.png", frames[0]), "mesh", "Asset"),
        Media(asset, "download", "Asset"),
    ]


def test_the_page_stands_alone_and_escapes_names(tmp_path, media):
    page = write_report(tmp_path, "a <b> & c", 3, [FELL, UNSEEN], media, reference=[TRUE_FALL], track=False)
    text = page.read_text()
    assert "free fall &lt;acceleration&gt;" in text and "<acceleration>" not in text
    assert "a &lt;b&gt; &amp; c" in text
    assert 'src="data:video/mp4;base64,' in text and 'src="data:image/png;base64,' in text
    assert 'href="asset.glb"' in text and "mesh; download" in text, "a file stands below the picture of it"
    assert "http://" not in text and "https://" not in text
    assert (
        "<b>4.9</b>" in text and "0.50" in text and "cannot judge" in text and "no view was held out" in text
    )


def test_measurements_are_stored_with_the_reference_s_beside_them(tmp_path):
    write_report(tmp_path, "clip.mp4", 3, [FELL, UNSEEN], reference=[TRUE_FALL], track=False)
    body = json.loads((tmp_path / "measurements.json").read_text())
    assert body["target"] == "clip.mp4" and body["seed"] == 3
    assert [m["name"] for m in body["measurements"]] == [FELL.name, UNSEEN.name, f"reference/{FELL.name}"]
    assert body["measurements"][1]["value"] is None
    assert not list(tmp_path.glob(".*")), "something half-written was left"


def test_the_ratio_needs_both_values():
    assert ratio(FELL, TRUE_FALL) == pytest.approx(0.5)
    assert math.isnan(ratio(FELL, None)) and math.isnan(ratio(UNSEEN, TRUE_FALL))


def test_one_mlflow_run_holds_numbers_and_files(tmp_path, media, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs.db'}")
    mlflow.create_experiment("trial", artifact_location=(tmp_path / "artifacts").as_uri())
    write_report(tmp_path, "x", 0, [FELL], media, reference=[TRUE_FALL], experiment="trial")
    runs = mlflow.search_runs(experiment_names=["trial"], output_format="list")
    assert len(runs) == 1
    assert sorted(runs[0].data.metrics.values()) == [4.9, 9.8]
    stored = {path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    assert {"report.html", "measurements.json", "rollout.mp4", "mesh.png", "asset.glb"} <= stored


def test_a_missing_picture_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        write_report(tmp_path / "out", "x", 0, [FELL], [Media(tmp_path / "no.png", "nothing")], track=False)
    assert not (tmp_path / "out").exists()


def test_two_measurements_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        write_report(tmp_path, "x", 0, [FELL, FELL], track=False)
