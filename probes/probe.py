"""`orrery probe`: point the probes at a video, an env or a checkpoint, and write what they find.

What a dream does is measured on the reference world too, by the same protocol, so that the report can show
both and their ratio.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from tqdm import tqdm

from probes.arrangement import Ask, arrangement
from probes.checker import Checker
from probes.consistency import NAMES, UNITS, consistency
from probes.free_fall import combine_falls, free_fall
from probes.measurement import Measurement, cannot_judge
from probes.prompt_following import Swap, prompt_following
from probes.report import Media, write_report
from probes.subjects import (
    HELD_OUT_SEED,
    AnySubject,
    CannotAnswer,
    DreamSubject,
    FileSubject,
    ReferenceSubject,
    drop_prompts,
    held_out_asks,
    held_out_swaps,
    pictures_from_text,
    subjects_of,
)
from recon3d import nerf, sweeps
from recon3d.cameras import Cameras
from recon3d.views import HeldOut
from simulator.video import write_image, write_video

FALL_STEPS = 16
SHOWN_SWAPS = 16
REFERENCE = {"Lab": "orrery/Lab-v0", "Orbit": "orrery/Orbit-v0"}
CANNOT_JUDGE = 3

Frames = UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class Protocol:
    """What is asked of a subject; equal for a subject and its reference."""

    seed: int
    trials: int
    views: int
    prompts: int
    preset: Literal["tiny", "cpu", "gpu"]


@dataclass(frozen=True)
class Finding:
    """What one probe found, and what to show of it by name (one frame: a picture, more: a video)."""

    measurements: list[Measurement]
    shown: tuple[tuple[str, Frames], ...] = ()


def probe(
    target: Annotated[str, tyro.conf.Positional],
    out: Path,
    probes: str = "all",
    seed: int = 0,
    trials: int = 8,
    views: int = 40,
    prompts: int = 120,
    preset: Literal["tiny", "cpu", "gpu"] = "cpu",
    track: bool = True,
) -> int:
    """Measure how consistent a video, an env or a checkpoint is; writes measurements.json and report.html.

    Exit code 3 where nothing could be judged.

    Args:
        target: a video file, a folder of pictures with transforms.json, an env id such as orrery/Lab-v0, or a
            checkpoint (default, or a folder of orrery train world).
        out: folder for measurements.json, report.html and videos.
        probes: all, or some of free_fall,consistency,prompt_following, separated by commas.
        seed: seed of prompts, scenes, noise and reconstruction.
        trials: drops for free_fall.
        views: cameras of the sweep for consistency.
        prompts: prompts for prompt_following, each made twice.
        preset: how long the radiance field of consistency trains.
        track: log to MLflow (MLFLOW_TRACKING_URI, else ./mlruns.db).
    """
    chosen = _chosen(probes)
    for name, value in (("--trials", trials), ("--views", views), ("--prompts", prompts)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    protocol = Protocol(seed, trials, views, prompts, preset)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}; name another")
    subjects = subjects_of(target)
    found = [PROBES[name](subjects, protocol) for name in chosen]
    compared = [PROBES[name](_references(), protocol) for name in chosen if _is_dream(subjects)]
    media = _written(out, found, "") + _written(out, compared, "reference")
    measurements = [measurement for finding in found for measurement in finding.measurements]
    reference = [measurement for finding in compared for measurement in finding.measurements]
    report = write_report(
        out,
        target,
        seed,
        measurements,
        media,
        reference=reference,
        subject_name="dream" if _is_dream(subjects) else "subject",
        title=f"Probes of {target}",
        params=vars(protocol) | {"probes": ",".join(chosen)},
        track=track,
        experiment="probes",
    )
    for measurement in measurements:
        print(measurement)
    for measurement in reference:
        print(f"reference/{measurement}")
    print(report)
    if any(measurement.judged for measurement in measurements):
        return 0
    print(f"cannot judge: {measurements[0].reason}")
    return CANNOT_JUDGE


def _chosen(probes: str) -> list[str]:
    names = list(PROBES) if probes == "all" else [name.strip() for name in probes.split(",")]
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise ValueError(f"--probes must be all or some of {','.join(PROBES)}, got {unknown[0]!r}")
    return list(dict.fromkeys(names))


def _is_dream(subjects: dict[str, AnySubject]) -> bool:
    return all(isinstance(subject, DreamSubject) for subject in subjects.values())


def _references() -> dict[str, AnySubject]:
    return {world: ReferenceSubject(env_id) for world, env_id in REFERENCE.items()}


def _subject_for(subjects: dict[str, AnySubject], world: str) -> AnySubject:
    """The subject that can be asked about a world. Raises CannotAnswer where there is none."""
    if world not in subjects:
        names = ", ".join(subject.name for subject in subjects.values())
        raise CannotAnswer(f"{names} has nothing of the kind that {world} shows; use orrery/{world}-v0")
    return subjects[world]


def falls(subjects: dict[str, AnySubject], protocol: Protocol) -> Finding:
    """Drops from prompts alone (a file: its one clip), each tracked and fitted."""
    only = subjects.get("")
    try:
        if isinstance(only, FileSubject):
            clips = [only.recorded()]
        else:
            subject = _subject_for(subjects, "Lab")
            still = np.zeros((FALL_STEPS, 4), np.float32)
            prompts = drop_prompts(protocol.trials, protocol.seed)
            clips = [
                subject.rollout(prompt, still, HELD_OUT_SEED + protocol.seed + index)
                for index, prompt in enumerate(tqdm(prompts, desc="drops", leave=False))
            ]
    except CannotAnswer as refusal:
        return Finding([cannot_judge("free_fall_acceleration", "m/s^2", "target", str(refusal))])
    found = [free_fall(clip.video, clip.fps, clip.cameras, fps_known=clip.fps_known) for clip in clips]
    if isinstance(only, FileSubject):
        return Finding(found[0])
    return Finding(combine_falls(found), (("falls", _side_by_side([clip.video for clip in clips[:8]])),))


def _side_by_side(videos: list[Frames]) -> UInt8[np.ndarray, "longest h wide 3"]:
    """Videos beside each other; those that end early hold their last frame."""
    longest = max(len(video) for video in videos)
    held = [np.concatenate([video, np.repeat(video[-1:], longest - len(video), axis=0)]) for video in videos]
    return np.concatenate(held, axis=2)


def sweep_consistency(subjects: dict[str, AnySubject], protocol: Protocol) -> Finding:
    """A whole turn around a held-out scene of Orbit (a file: its own cameras), rebuilt and scored."""
    only = subjects.get("")
    try:
        if isinstance(only, FileSubject):
            clip = only.recorded()
            if clip.cameras is None:
                raise CannotAnswer(f"{only.name} has no cameras; give a folder with transforms.json")
            cameras = clip.cameras
        else:
            subject = _subject_for(subjects, "Orbit")
            cameras = sweeps.orbit(protocol.views)
            prompt = held_out_swaps(1, protocol.seed)[0].prompt
            clip = subject.sweep(prompt, cameras, HELD_OUT_SEED + protocol.seed)
    except CannotAnswer as refusal:
        pairs = zip(NAMES, UNITS, strict=True)
        return Finding([cannot_judge(name, unit, "higher", str(refusal)) for name, unit in pairs])
    return Finding(_rebuilt(clip.video, cameras, protocol), (("sweep", clip.video),))


def _rebuilt(video: Frames, cameras: Cameras, protocol: Protocol) -> list[Measurement]:
    """Scores of one reconstruction; a sweep that is no scene gets its low value, not an excuse."""

    def reconstruct(frames: UInt8[torch.Tensor, "n h w 3"], cameras: Cameras) -> HeldOut:
        preset = nerf.PRESETS[protocol.preset]
        config = nerf.method(preset, protocol.seed)
        return nerf.train_and_score(
            config,
            frames,
            nerf.placed(cameras, protocol.preset),
            preset.steps,
            preset.rays_per_step,
            protocol.seed,
            progress=True,
        ).held_out

    return consistency(video, cameras, reconstruct)


def swaps_followed(subjects: dict[str, AnySubject], protocol: Protocol) -> Finding:
    """Pictures from held-out prompts and from the same with one word swapped, read by the checker."""
    try:
        if isinstance(only := subjects.get(""), FileSubject):
            raise CannotAnswer(f"{only.name} is a recording: it cannot be prompted")
        subject = _subject_for(subjects, "Orbit")
        swaps = held_out_swaps(protocol.prompts, protocol.seed)
        originals, changed = _pictures(subject, swaps)
    except CannotAnswer as refusal:
        return Finding([cannot_judge("prompt_swap_success", "share", "higher", str(refusal))])
    asks, arranged = _arranged(subject, protocol)
    checker = Checker.load()
    found = prompt_following(swaps, originals, changed, checker) + arrangement(asks, arranged, checker)
    rows = [
        np.concatenate(list(pictures[:SHOWN_SWAPS]), axis=1) for pictures in (originals, changed, arranged)
    ]
    shown = [row for row in rows if row.shape == rows[0].shape]
    return Finding(found, (("swaps", np.concatenate(shown, axis=0)[None]),))


def _arranged(subject: AnySubject, protocol: Protocol) -> tuple[list[Ask], Frames]:
    """A dream's pictures of held-out prompts; a reference world's pictures with its own captions."""
    if isinstance(subject, ReferenceSubject):
        return subject.asks(protocol.prompts, protocol.seed)
    asks = held_out_asks(protocol.prompts, protocol.seed)
    prompts, seeds = [ask.prompt for ask in asks], [ask.seed for ask in asks]
    if isinstance(subject, DreamSubject):
        return asks, pictures_from_text(subject.checkpoint, prompts, seeds)
    raise CannotAnswer(f"{subject.name} is a recording: it cannot be prompted")


def _pictures(subject: AnySubject, swaps: list[Swap]) -> tuple[Frames, Frames]:
    """One picture per prompt and one per changed prompt, each pair at one seed.

    A dream makes them in a process in which MuJoCo cannot be imported; a reference world renders them, which
    shows how well the checker itself reads.
    """
    prompts = [swap.prompt for swap in swaps] + [swap.changed_prompt for swap in swaps]
    seeds = [swap.seed for swap in swaps] * 2
    if isinstance(subject, DreamSubject):
        pictures = pictures_from_text(subject.checkpoint, prompts, seeds)
    else:
        none = np.zeros((0, 3), np.float32)
        pairs = tqdm(list(zip(prompts, seeds, strict=True)), desc="prompts", leave=False)
        pictures = np.stack([subject.rollout(prompt, none, seed).video[0] for prompt, seed in pairs])
    return pictures[: len(swaps)], pictures[len(swaps) :]


PROBES: dict[str, Callable[[dict[str, AnySubject], Protocol], Finding]] = {
    "free_fall": falls,
    "consistency": sweep_consistency,
    "prompt_following": swaps_followed,
}


def _written(out: Path, findings: list[Finding], who: str) -> list[Media]:
    """Videos and pictures of findings as files of the report."""
    media = []
    for name, frames in (item for finding in findings for item in finding.shown):
        stem = "-".join(filter(None, (name, who)))
        caption = f"{who or 'subject'}: {name}"
        if len(frames) == 1:
            path = write_image(out / f"{stem}.png", frames[0], scale=2)
        else:
            path = write_video(out / f"{stem}.mp4", frames, 10.0, scale=3)
        media.append(Media(path, caption))
    return media
