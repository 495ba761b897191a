"""The probe command: numbers, report and exit code for worlds, videos and bad input."""

import json

import numpy as np
import pytest
from analytic_scene import render

from probes.measurement import read_measurements
from probes.probe import probe
from recon3d.cameras import to_transforms
from recon3d.sweeps import orbit
from simulator.video import write_image, write_video


def test_the_reference_lab_falls_right_and_the_report_is_whole(tmp_path, capsys):
    assert probe("orrery/Lab-v0", tmp_path, probes="free_fall", trials=2, track=False) == 0
    found, header = read_measurements(tmp_path / "measurements.json")
    fall = next(measurement for measurement in found if measurement.name == "free_fall_acceleration")
    assert fall.verdict == "consistent" and fall.support == 2
    assert header["target"] == "orrery/Lab-v0"
    assert "free_fall_acceleration" in capsys.readouterr().out
    assert {"report.html", "measurements.json", "falls.mp4"} <= {path.name for path in tmp_path.iterdir()}


def test_a_still_video_cannot_be_judged_and_says_so_in_the_last_line(tmp_path, capsys):
    video = write_video(tmp_path / "still.mp4", np.full((8, 32, 32, 3), 90, np.uint8), 10)
    assert probe(str(video), tmp_path / "out", track=False) == 3
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("cannot judge: frozen")
    assert None in [
        m["value"] for m in json.loads((tmp_path / "out/measurements.json").read_text())["measurements"]
    ]


def test_posed_pictures_of_one_scene_are_consistent_with_one(tmp_path):
    cameras = orbit(20, height=32, width=32)
    for k, picture in enumerate(render(cameras)[0].numpy()):
        write_image(tmp_path / f"{k}.png", picture)
    names = [f"{k}.png" for k in range(20)]
    (tmp_path / "transforms.json").write_text(json.dumps(to_transforms(cameras, names)))
    assert probe(str(tmp_path), tmp_path / "out", probes="consistency", preset="tiny", track=False) == 0
    found = {m.name: m for m in read_measurements(tmp_path / "out/measurements.json")[0]}
    assert found["sweep_psnr"].value > found["sweep_psnr_nearest_view"].value


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"probes": "taste"}, "--probes"),
        ({"trials": 0}, "--trials"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
        ({"target": "orrery/Moon-v0"}, "orrery/Moon-v0"),
        ({"target": "missing.mp4"}, "missing.mp4"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, keywords, message):
    keywords = {"target": "orrery/Lab-v0", "out": tmp_path / "out", "track": False} | keywords
    with pytest.raises(ValueError, match=message) as caught:
        probe(**keywords)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
