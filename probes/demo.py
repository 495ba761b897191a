"""`orrery demo`: the main job in miniature on the shipped weights, each step beside the reference world.

An agent acts in the dream; a prompt becomes a camera sweep, the sweep a radiance field, the field a mesh; a
thing is dropped and its fall measured. Whatever is measured on the dream is measured the same way on the
reference world (MuJoCo, exact), and the report shows both and their ratio. Pictures of the reference are
always labelled so.
"""

import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium
import matplotlib
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, UInt8
from tqdm import tqdm

import envs
from envs.policies import smooth
from probes.consistency import consistency
from probes.free_fall import combine_falls, free_fall
from probes.measurement import Measurement
from probes.report import Media, write_report
from probes.subjects import HELD_OUT_SEED, ReferenceSubject, lab_cameras
from recon3d import assets, mesh, nerf, sweeps
from recon3d.cameras import Cameras
from recon3d.settle import settled
from recon3d.views import HeldOut
from simulator.canvas import text_to_video
from simulator.video import upscaled, write_image, write_video
from simulator.walk import again
from simulator.world_model import WorldModel

VIEWS = 40
FALL_STEPS = 16
PICTURE_SCALE = 4
FPS = 10.0
SHOWN_VIEWS = (0, 10, 20, 30)

ABOUT = (
    "The dream is the world model: everything it shows was generated. The reference is the same kind of "
    "world in MuJoCo, exact, under the same protocol: its numbers say how good the measurement itself is, "
    "and the ratio says how far the dream is from that."
)

Preset = Literal["tiny", "cpu", "gpu"]
Frames = UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class Rollouts:
    """One agent's actions in the dream from a prompt alone, in the dream from the reference's first
    picture, and in the reference itself."""

    prompt: str
    dream: Frames
    dream_from_picture: Frames
    reference: Frames


@dataclass(frozen=True)
class Rebuilt:
    """What became of a sweep."""

    video: Frames
    cameras: Cameras
    measurements: list[Measurement]
    reconstruction: nerf.Reconstruction
    preset: Preset


@dataclass(frozen=True)
class Falls:
    """The same drops in the dream and in the reference: videos and numbers over all drops."""

    dream: list[Frames]
    reference: list[Frames]
    dream_measurements: list[Measurement]
    reference_measurements: list[Measurement]


@dataclass(frozen=True)
class Results:
    """All stages; `prompt` is the sweep's, `settled` the dream's views made one scene, or the dream itself
    where they cannot be."""

    rollouts: Rollouts
    prompt: str
    dream: Rebuilt
    settled: Rebuilt
    reference: Rebuilt
    falls: Falls

    @property
    def measurements(self) -> list[Measurement]:
        return [*self.dream.measurements, *self.falls.dream_measurements]

    @property
    def reference_measurements(self) -> list[Measurement]:
        return [*self.reference.measurements, *self.falls.reference_measurements]


def demo(
    out: Path,
    seed: int = 0,
    prompt: str | None = None,
    checkpoint: str = "default",
    steps: int = 60,
    drops: int = 8,
    preset: Preset = "cpu",
    track: bool = True,
) -> int:
    """Dream, sweep, NeRF, mesh and physics probes beside the reference world; about 3 minutes on 2 cores.

    Writes rollout.mp4, sweep-as-dreamt.mp4, sweep.mp4 (settled into one scene), asset.glb, the reference's
    beside them, measurements.json, report.html and one MLflow run; never calls the network.

    Args:
        out: folder for the results; made if missing.
        seed: seed of scenes, actions and noise (held-out: training never saw these scenes).
        prompt: what the sweep shows; default: a caption of a held-out scene.
        checkpoint: the world model: default, or a folder.
        steps: control steps of the agent (0.1 s each).
        drops: how many falls are measured.
        preset: how long the radiance fields train: tiny for a quick look, gpu where there is one.
        track: log to MLflow (MLFLOW_TRACKING_URI, else ./mlruns.db).
    """
    started = time.monotonic()
    for name, value in (("--steps", steps), ("--drops", drops)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    with _workshop(out) as folder:
        _say(1, f"loading the world model {checkpoint}")
        model = WorldModel.load(checkpoint)
        results = make(model, prompt, seed, steps, drops, preset)
        media = _move_into(out, show(folder, results))
    report = write_report(
        out,
        checkpoint,
        seed,
        results.measurements,
        media,
        reference=results.reference_measurements,
        subject_name="dream",
        title="Orrery: a dream beside its reference world",
        notes=[ABOUT],
        params={"sweep prompt": results.prompt, "views": VIEWS, "preset": preset},
        track=track,
        experiment="demo",
    )
    print("\n".join(f"dream {measurement}" for measurement in results.measurements))
    print(f"{report} ({(time.monotonic() - started) / 60:.1f} minutes)")
    return 0


def make(model: WorldModel, prompt: str | None, seed: int, steps: int, drops: int, preset: Preset) -> Results:
    """Everything that is shown and measured, stage by stage (arguments as in `demo`)."""
    _say(2, f"an agent acts {steps} steps in the dream and in the reference Room")
    rollouts = roll_out(model, seed, steps)
    _say(3, f"a camera goes round: {VIEWS} views of the dream and of the reference")
    asked, cameras, dreamt, truth = sweep(model, prompt, seed)
    _say(4, "radiance fields from both sweeps")
    dream, reference = (rebuild(video, cameras, preset, seed) for video in (dreamt, truth))
    drawn = again(model, asked, cameras, seed=seed + 1)
    one = settled(torch.from_numpy(dreamt), cameras, drawn, seed=seed, progress=True)
    scene = rebuild(one.frames.numpy(), cameras, preset, seed) if one.rounds else dream
    _say(5, f"{drops} drops in the dream and in the reference Lab")
    falls = drop(model, seed, drops)
    _say(6, "pictures, meshes and report")
    return Results(rollouts, asked, dream, scene, reference, falls)


def roll_out(model: WorldModel, seed: int, steps: int) -> Rollouts:
    """A smooth random agent in the dream env; then its actions from the reference's first picture, and for
    real.
    """
    scene = HELD_OUT_SEED + seed
    real = gymnasium.make(f"{envs.__name__}:orrery/Room-v0", disable_env_checker=True)
    first, info = real.reset(seed=scene)
    dream = gymnasium.make("orrery/Dream-v0", world="Room", model=model, disable_env_checker=True)
    picture, _ = dream.reset(seed=scene, options={"prompt": info["prompt"]})
    policy = smooth(dream, np.random.default_rng(seed))
    actions = np.stack([policy() for _ in range(steps)])
    state, _, _ = model.start([info["prompt"]], "Room", [scene], images=first[None])
    videos: tuple[list, list, list] = ([picture], [first], [first])
    going = {0, 2}
    for action in tqdm(actions, desc="agent", unit="step", leave=False):
        for k, env in ((0, dream), (2, real)):
            if k in going:
                picture, _, terminated, truncated, _ = env.step(action)
                videos[k].append(picture)
                going -= {k} if terminated or truncated else set()
        state, frames, *_ = model.step(state, action[None])
        videos[1].extend(frames[0])
    return Rollouts(info["prompt"], *(np.stack(video) for video in videos))


def sweep(model: WorldModel, prompt: str | None, seed: int) -> tuple[str, Cameras, Frames, Frames]:
    """The prompt, the cameras of a whole turn, what the dream shows there, and what the reference shows
    there.
    """
    cameras = sweeps.orbit(VIEWS, height=model.height, width=model.width)
    truth = ReferenceSubject("orrery/Orbit-v0", model.height, model.width).sweep(
        prompt, cameras, HELD_OUT_SEED + seed
    )
    canvas = text_to_video(
        truth.prompt, VIEWS, world="Orbit", height=model.height, width=model.width, cameras=cameras
    )
    return truth.prompt, cameras, model.generate(canvas, seed=seed, progress=True), truth.video


def rebuild(video: Frames, cameras: Cameras, preset: Preset, seed: int) -> Rebuilt:
    """Held-out consistency of a sweep, and a reconstruction: also a poor one, which
    `recon3d.nerf.reconstruct` would refuse, since here its numbers, or why there are none, stand beside
    it.
    """
    chosen = nerf.PRESETS[preset]
    kept: list[nerf.Reconstruction] = []

    def reconstruct(frames: UInt8[torch.Tensor, "n h w 3"], known: Cameras) -> HeldOut:
        method = nerf.method(chosen, seed)
        kept.append(
            nerf.train_and_score(
                method,
                frames,
                nerf.placed(known, preset),
                chosen.steps,
                chosen.rays_per_step,
                seed,
                progress=True,
            )
        )
        return kept[0].held_out

    measurements = consistency(video, cameras, reconstruct)
    if not kept:
        reconstruct(torch.from_numpy(video), cameras)
    return Rebuilt(video, cameras, measurements, kept[0], preset)


def drop(model: WorldModel, seed: int, count: int) -> Falls:
    """Drops of one thing in the reference Lab, and the same from its first pictures in the dream, each
    measured and pooled."""
    env = gymnasium.make("orrery/Lab-v0", disable_env_checker=True)
    still = np.zeros(model.action_size("Lab"), np.float32)
    dreams, truths, found, expected = [], [], [], []
    for k in tqdm(range(count), desc="drops", unit="drop", leave=False):
        scene = HELD_OUT_SEED + seed + k
        first, info = env.reset(seed=scene, options={"scene": {"kind": "drop", "things": [{}]}})
        state, _, _ = model.start([info["prompt"]], "Lab", [scene], images=first[None])
        real, dreamt = [first], [first]
        for _ in range(FALL_STEPS):
            real.append(env.step(still)[0])
            state, frames, *_ = model.step(state, still[None])
            dreamt.extend(frames[0])
        cameras = lab_cameras(len(real), *first.shape[:2])
        truths.append(np.stack(real))
        dreams.append(np.stack(dreamt))
        fps = 1 / model.time_step_s
        expected.append(free_fall(truths[-1], fps, cameras))
        found.append(free_fall(dreams[-1], fps, cameras))
    return Falls(dreams, truths, combine_falls(found), combine_falls(expected))


def show(folder: Path, results: Results) -> list[Media]:
    """Write everything that the report shows into a folder."""
    rollouts, falls = results.rollouts, results.falls
    section = f"An agent in the dream: “{rollouts.prompt}”"
    media = [
        _video(folder / "rollout.mp4", rollouts.dream, "dream, from the prompt alone", section),
        _video(
            folder / "rollout-from-picture.mp4",
            rollouts.dream_from_picture,
            "dream, from the first picture of the reference, same actions",
            section,
        ),
        _video(folder / "rollout-reference.mp4", rollouts.reference, "reference, same actions", section),
    ]
    section = f"From a prompt to an asset: “{results.prompt}”"
    raw = results.dream.video
    media.append(_video(folder / "sweep-as-dreamt.mp4", raw, "dream: camera sweep, as measured", section))
    scores = results.settled.reconstruction.held_out
    how = "not to be settled" if results.settled is results.dream else "settled"
    what = {
        "dream": f"camera sweep, {how} into one scene: held-out views predicted at "
        f"{scores.psnr.mean():.1f} dB (nearest view copied {scores.copy_psnr.mean():.1f})",
        "reference": "camera sweep",
    }
    for who, suffix, rebuilt in _both(results.settled, results.reference):
        caption = f"{who}: {what[who]}"
        media.append(_video(folder / f"sweep{suffix}.mp4", rebuilt.video, caption, section))
        media += _asset(folder, who, suffix, rebuilt, section)
    section = "Things that fall"
    for who, suffix, videos in _both(falls.dream, falls.reference):
        start = ", each from the reference's first picture" if who == "dream" else ""
        caption = f"{who}: {len(videos)} drops{start}"
        media.append(_video(folder / f"fall{suffix}.mp4", _tiled(np.stack(videos)), caption, section))
    return media


def _both(dream: Any, reference: Any) -> list[tuple[str, str, Any]]:
    """Who, the ending of the file's name, and the thing, for the dream and the reference."""
    return [("dream", "", dream), ("reference", "-reference", reference)]


def _asset(folder: Path, who: str, suffix: str, rebuilt: Rebuilt, section: str) -> list[Media]:
    """The sweep's depth maps, pictures of its mesh, and the mesh as a file unless it is empty."""
    shown = rebuilt.cameras[list(SHOWN_VIEWS)]
    depth = rebuilt.reconstruction.render(shown).depth.cpu().numpy()
    how = {"side": 64, "views": 20} if rebuilt.preset == "tiny" else {}
    maps = rebuilt.reconstruction.depth_maps(**how, progress=True)
    surface = mesh.cleaned(rebuilt.reconstruction.mesh(maps=maps))
    large = shown.resized(PICTURE_SCALE * shown.height, PICTURE_SCALE * shown.width)
    views = ", ".join(f"{360 * k // VIEWS}°" for k in SHOWN_VIEWS)
    pictures = {
        "depth": (
            np.stack([upscaled(view[None], PICTURE_SCALE)[0] for view in _coloured(depth)]),
            f"{who}: depth at {views}, {depth.min():.1f} m (bright) to {depth.max():.1f} m (dark)",
        ),
        "mesh": (mesh.picture(surface, large).numpy(), f"{who}: the mesh at {views}"),
    }
    media = [
        Media(write_image(folder / f"{name}{suffix}.png", _tiled(tiles)), caption, section)
        for name, (tiles, caption) in pictures.items()
    ]
    if len(surface.faces):
        asset = assets.write(surface, folder / f"asset{suffix}.glb")
        media.append(Media(asset, f"{len(surface.faces):,} triangles", section))
    return media


def _tiled(pictures: UInt8[np.ndarray, "n *t h w 3"]) -> UInt8[np.ndarray, "*t h2 w2 3"]:
    """Pictures or videos of one size in rows and columns, as square as may be, the last ones black."""
    columns = math.ceil(math.sqrt(len(pictures)))
    missing = -len(pictures) % columns
    filled = np.concatenate([pictures, np.zeros((missing, *pictures.shape[1:]), np.uint8)])
    return rearrange(filled, "(a b) ... h w c -> ... (a h) (b w) c", b=columns)


def _coloured(depth: Float32[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Depth as colours, near is bright."""
    near, far = float(depth.min()), float(depth.max())
    share = (far - depth) / max(far - near, 1e-6)
    return (matplotlib.colormaps["magma"](share)[..., :3] * 255).round().astype(np.uint8)


def _video(path: Path, frames: Frames, caption: str, section: str) -> Media:
    return Media(write_video(path, frames, FPS, scale=PICTURE_SCALE), caption, section)


def _say(stage: int, text: str) -> None:
    tqdm.write(f"[{stage}/6] {text}", file=sys.stderr)


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder in which files are made before they are moved to the results, so that none is left half-made.

    Raises:
        ValueError: the place for the results cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}; name another")
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".making-", dir=out))
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror}); name another folder") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new and not any(out.iterdir()):
            out.rmdir()


def _move_into(out: Path, media: Sequence[Media]) -> list[Media]:
    moved = []
    for item in media:
        os.replace(item.path, out / item.path.name)
        moved.append(replace(item, path=out / item.path.name))
    return moved
