"""`orrery bench --what nerf|scenes|poses|scaling`: our NeRF beside nerfacto, and what views and pixels cost.

Both methods get the same frames, cameras, held-out views and threads. While they train, some of the held-out
views are looked at from time to time with the clock stopped, so that the times to a PSNR can be compared.
"""

import multiprocessing
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from probes.poses_bench import poses_table
from probes.scenes_bench import scenes_table
from probes.subjects import HELD_OUT_SEED, ReferenceSubject
from probes.tables import aligned
from recon3d import nerf, sweeps
from recon3d.cameras import Cameras
from recon3d.similarity import focus_similarity
from recon3d.views import psnr

VIEWS = 40
NO_LIMIT_STEPS = 100_000
NERFACTO_RAYS = 1024  # a step of more takes a CPU so long that it makes hardly any
LOOKS = 12  # in the course of a training, at every third of the held-out views, or nerfacto takes hours
SCENES_SEED = HELD_OUT_SEED + 4130  # of ten scenes that nobody looked at before the preset was frozen
SCALING_VIEWS = (10, 40, 160)  # pictures of 64x64
SCALING_STEPS = 24  # of which the time of a whole training is foretold


def reconstructions(
    what: str,
    preset: str,
    seed: int,
    nerfacto_minutes: float | None,
    scenes: int,
    size: int,
    sizes: Sequence[int],
    out: Path | None,
) -> tuple[list[str], dict]:
    """What `orrery bench` says of reconstructions (its arguments): tables, and the same as plain values."""
    if what == "scenes":
        first = SCENES_SEED + seed
        found, table = scenes_table(range(first, first + scenes), size, preset)
        return [table], {"scenes": [asdict(scene) for scene in found]}
    if what == "poses":
        first = SCENES_SEED + seed
        found, table = poses_table(range(first, first + scenes), size)
        return [table], {"poses": [asdict(score) for score in found]}
    if what == "scaling":
        costs = scaling(SCALING_VIEWS, sizes, preset, seed)
        if out is not None:
            scaling_figure(costs, out.with_suffix(".png"))
        title = f"NeRF of sweeps of orrery/Orbit-v0, preset {preset}"
        return [f"{title}\n{scaling_table(costs)}"], {"scaling": [asdict(cost) for cost in costs]}
    fits = fit_both(preset, seed, nerfacto_minutes)
    title = f"NeRF of a {VIEWS}-view, 360-degree, 64x64 sweep of orrery/Orbit-v0"
    return [f"{title}\n{fit_table(fits)}"], {"nerf": [asdict(fit) for fit in fits]}


@dataclass(frozen=True)
class Fit:
    """One radiance field on the same sweep, scored on the same held-out views.

    Attributes:
        name: the method.
        seconds: wall time of training.
        cpu_seconds: CPU time of training and scoring.
        steps: training steps done in that time.
        psnr_db: mean over held-out views; ssim likewise.
        ssim: structural similarity.
        copy_psnr_db: of copying the nearest training view.
        mean_image_psnr_db: of the mean training view.
        course: seconds of training, and PSNR (dB) of every third held-out view then.
    """

    name: str
    seconds: float
    cpu_seconds: float
    steps: int
    psnr_db: float
    ssim: float
    copy_psnr_db: float
    mean_image_psnr_db: float
    course: list[tuple[float, float]] = field(default_factory=list)


def fit_both(preset: str, seed: int, nerfacto_minutes: float | None = None, size: int = 64) -> list[Fit]:
    """Our NeRF with its own number of steps, then nerfacto, on one reference sweep.

    Args:
        nerfacto_minutes: how long nerfacto trains; default as long as ours. With it both are watched.
    """
    cameras = sweeps.orbit(VIEWS, height=size, width=size)
    subject = ReferenceSubject("orrery/Orbit-v0", size, size)
    views = torch.from_numpy(subject.sweep(None, cameras, HELD_OUT_SEED + seed).video)
    cameras = nerf.placed(cameras, preset)
    chosen = nerf.preset_for(preset, cameras)
    watched = nerfacto_minutes is not None
    ours = _fit("orrery-nerf", nerf.method(chosen, seed), chosen, views, cameras, seed, watched)
    limit = 60 * nerfacto_minutes if nerfacto_minutes is not None else ours.seconds
    peer = replace(chosen, steps=NO_LIMIT_STEPS, rays_per_step=NERFACTO_RAYS)
    return [ours, _fit("nerfacto (torch)", nerf.nerfacto(), peer, views, cameras, seed, watched, limit)]


def _fit(
    name: str,
    config: nerf.TrainerConfig,
    preset: nerf.NerfPreset,
    views: torch.Tensor,
    cameras: Cameras,
    seed: int,
    watched: bool,
    seconds: float | None = None,
) -> Fit:
    course: list[tuple[float, float]] = []
    views = views.to(cameras.K.device)
    known = nerf.held_out_views(views, cameras, 5).logical_not()
    similarity, wanted, truth = focus_similarity(cameras[known]), cameras[~known][::3], views[~known][::3]

    def due(step: int, spent: float) -> bool:
        if seconds is not None:
            return spent >= seconds / LOOKS * (len(course) + 1)
        return step % max(preset.steps // LOOKS, 1) == 0

    def watch(model: nerf.Model, step: int, spent: float) -> None:
        if due(step, spent):
            seen = nerf.render(model.eval(), similarity, wanted).rgb
            course.append((round(spent, 1), round(psnr(seen, truth).mean().item(), 2)))
            model.train()

    cpu = time.process_time()
    done = nerf.train_and_score(
        config,
        views,
        cameras,
        preset.steps,
        preset.rays_per_step,
        seed,
        progress=True,
        seconds=seconds,
        watch=watch if watched else None,
    )
    spent, score = time.process_time() - cpu, done.held_out
    psnr_db, ssim, copied, averaged = (
        round(part.mean().item(), 2)
        for part in (score.psnr, score.ssim, score.copy_psnr, score.mean_image_psnr)
    )
    seconds_spent, cpu_spent = round(done.seconds, 1), round(spent, 1)
    return Fit(name, seconds_spent, cpu_spent, done.steps, psnr_db, ssim, copied, averaged, course)


def fit_table(fits: Sequence[Fit]) -> str:
    """Both fields beside what anyone can reach without one; how much sooner ours gets where the peer gets."""
    rows = [
        (
            f.name,
            f"{f.seconds:.0f}",
            f"{f.cpu_seconds:.0f}",
            str(f.steps),
            f"{f.psnr_db:.1f}",
            f"{f.ssim:.2f}",
        )
        for f in fits
    ]
    rows += [("nearest view copied", "-", "-", "-", f"{fits[0].copy_psnr_db:.1f}", "-")]
    rows += [("mean image", "-", "-", "-", f"{fits[0].mean_image_psnr_db:.1f}", "-")]
    table = aligned([("method", "seconds", "CPU s", "steps", "held-out PSNR dB", "SSIM"), *rows])
    return "\n".join([table, *([sooner(*fits)] if all(f.course for f in fits) else [])])


def sooner(ours: Fit, peer: Fit) -> str:
    """When the peer was best, and when ours got there."""
    when, best = max(peer.course, key=lambda look: look[1])
    said = f"best held-out PSNR of {peer.name} in {peer.seconds:.0f} s: {best:.1f} dB, after {when:.0f} s"
    reached = [seconds for seconds, found in ours.course if found >= best]
    if not reached:
        return f"{said}; {ours.name} did not reach it in {ours.seconds:.0f} s"
    return f"{said}; {ours.name} was there after {reached[0]:.1f} s, {when / reached[0]:.0f} times sooner"


@dataclass(frozen=True)
class Cost:
    """What a training on so many views of such a size takes.

    Attributes:
        views: pictures of the sweep, held-out ones included.
        size: their height and width, pixels.
        steps: of the preset's training at this size.
        step_ms: wall time of one, measured over the last two thirds of a few.
        peak_gib: peak memory of a process that does nothing else.
        bare_gib: of that, before any training.
    """

    views: int
    size: int
    steps: int
    step_ms: float
    peak_gib: float
    bare_gib: float


def scaling(counts: Sequence[int], sizes: Sequence[int], preset: str, seed: int) -> list[Cost]:
    """Time and memory of our NeRF against number of views and pixels, each in a process of its own."""
    cases = [(count, 64) for count in counts] + [(VIEWS, size) for size in sizes]
    found = []
    context = multiprocessing.get_context("spawn")
    for count, size in tqdm(list(dict.fromkeys(cases)), desc="scaling", unit="case"):
        with context.Pool(1) as pool:
            found.append(pool.apply(_cost, (count, size, preset, seed, torch.get_num_threads())))
    return found


def _cost(views: int, size: int, preset: str, seed: int, threads: int) -> Cost:
    torch.set_num_threads(threads)
    cameras = sweeps.orbit(views, height=size, width=size)
    subject = ReferenceSubject("orrery/Orbit-v0", size, size)
    frames = torch.from_numpy(subject.sweep(None, cameras, HELD_OUT_SEED + seed).video)
    cameras = nerf.placed(cameras, preset)
    chosen = nerf.preset_for(preset, cameras)
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times: list[float] = []
    nerf.train_and_score(
        nerf.method(chosen, seed),
        frames,
        cameras,
        SCALING_STEPS,
        chosen.rays_per_step,
        seed,
        watch=lambda model, step, spent: times.append(spent),
    )
    first = len(times) // 3
    step_ms = 1000 * float(np.median(np.diff(times[first:])))  # other programs count little
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Cost(views, size, chosen.steps, round(step_ms, 1), round(peak, 2), round(bare, 2))


def scaling_table(costs: Sequence[Cost]) -> str:
    """Times and memory as text; a training's time is its steps times the time of one."""
    rows = [
        (
            str(c.views),
            f"{c.size}x{c.size}",
            str(c.steps),
            f"{c.step_ms:.0f}",
            f"{c.steps * c.step_ms / 1000:.0f}",
            f"{c.peak_gib:.2f}",
            f"{c.bare_gib:.2f}",
        )
        for c in costs
    ]
    header = ("views", "pixels", "steps", "ms/step", "training s", "peak GiB", "before training GiB")
    return aligned([header, *rows])


def scaling_figure(costs: Sequence[Cost], path: Path) -> None:
    """Training time and peak memory against views (at the smallest size) and against pixels (at 40 views)."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    smallest = min(cost.size for cost in costs)
    by_views = sorted((c for c in costs if c.size == smallest), key=lambda c: c.views)
    by_size = sorted((c for c in costs if c.views == VIEWS), key=lambda c: c.size)
    labels = (f"views of {smallest}x{smallest}", f"picture side in pixels, {VIEWS} views")
    for ax, lines, axis, label in zip(axes, (by_views, by_size), ("views", "size"), labels, strict=True):
        at = [getattr(cost, axis) for cost in lines]
        ax.plot(at, [c.steps * c.step_ms / 1000 for c in lines], "o-", color="tab:blue", label="training, s")
        most = max(c.steps * c.step_ms for c in lines) / 1000
        ax.set(xlabel=label, ylabel="training, seconds", ylim=(0, 1.2 * most), xticks=at)
        memory = ax.twinx()
        memory.plot(at, [c.peak_gib for c in lines], "s--", color="tab:orange", label="peak memory, GiB")
        memory.set(ylabel="peak memory of the process, GiB", ylim=(0, 3))
        ax.spines["top"].set_visible(False)
        handles = [*ax.get_lines(), *memory.get_lines()]
        ax.legend(handles=handles, frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
