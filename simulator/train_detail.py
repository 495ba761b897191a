"""`orrery train detail`: fit what draws a prediction in detail, alone, on what a trained model's layers say.

Most of a step of `orrery train world` goes into the layers, while what they leave undrawn is soon learnt by
the convolutions behind them. So here the layers are frozen: what they say of many frames (a `Pool`) is
computed once and visited several times, as probes are trained on frozen features (Alain & Bengio 2016). Go on
with `orrery train world --start-from`: nothing here has told the layers that less is left to them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from simulator import flags
from simulator.batches import TRAININGS, Batch, WorldTraining, make_batch, text_room, with_large_steps
from simulator.checkpoint import CONFIG, as_config, check_new, check_writable, read_json
from simulator.detail import Grid
from simulator.devices import device_named
from simulator.distributed import Processes, load_run
from simulator.flow import add_noise
from simulator.grow import started
from simulator.interrupts import between_steps
from simulator.job import Job, check_same_kind, fitted, load_together
from simulator.latents import LatentEpisodes
from simulator.optim import Clock, Learner, make_optimizers, rate_factor, set_rates, take_step
from simulator.precision import fast_precision
from simulator.progress import SHOW_S, shown
from simulator.tokenizer import load_tokenizer
from simulator.tracking import tracked_run
from simulator.train import COMPILING, RESUME, guess, keep
from simulator.transformer import Thought, Transformer, TransformerConfig

# mostly rollouts whose every frame teaches; instead of the preset's
CHANGES: dict[str, Any] = {
    "matrix_rate": 3e-3,
    "other_rate": 2e-3,
    "clip_share": 0.09,
    "shots_share": 0.02,
    "sweep_share": 0.05,
    "picture_share": 0.04,
    "flow_maps": 0.25,
    "forced": 0.85,
    "micro_batches": 1,
}
POOL = 40_000  # frames of which the layers' words are kept: about 1 GB of the shipped model
MINUTES = 15.0  # of training, where nothing is asked
VISITS = 7  # of each of them
BATCH = 512  # frames in a step


class Pool(NamedTuple):
    """Frames with what the layers say of them: all that `Transformer.in_detail` goes by, a frame a row."""

    grid: Grid
    tokens: Float[Tensor, "rows s d"]
    previous: Float[Tensor, "rows c y x"]
    condition: Float[Tensor, "rows d"]
    rough: Float[Tensor, "rows c y x"]
    target: Float[Tensor, "rows c y x"]
    weight: Float[Tensor, " rows"]

    def rows(self, which: Tensor) -> Pool:
        return Pool(*(part[which].float() for part in self))


def train_detail(
    data: flags.Data,
    tokenizer: Annotated[Path, tyro.conf.arg(help="run folder of `orrery train tokenizer`")],
    start_from: Annotated[Path, tyro.conf.arg(help="world model to train further, of this tokenizer")],
    out: Annotated[Path, tyro.conf.arg(help="run folder to write: a whole world model")],
    preset: Annotated[str, tyro.conf.arg(help="of the batches: " + ", ".join(TRAININGS))] = "small",
    minutes: Annotated[
        float | None, tyro.conf.arg(help=f"training time; {MINUTES:.0f} where --steps is not given either")
    ] = None,
    steps: Annotated[int | None, tyro.conf.arg(help="training steps; with --minutes, at most")] = None,
    save_minutes: Annotated[float, tyro.conf.arg(help="between checkpoints")] = 5.0,
    world_weights: flags.WorldWeights = (),
    sweep_weights: flags.SweepWeights = (),
    picture_weights: flags.PictureWeights = (),
    pool: Annotated[int, tyro.conf.arg(help="frames of which the layers' words are kept at a time")] = POOL,
    seed: int = 0,
    resume: flags.Resume = False,
    compile: flags.Compile = False,
    track: flags.Track = True,
    device: str = "cpu",
) -> int:
    """Train a world model's last convolutions alone; go on with `orrery train world --start-from`."""
    if preset not in TRAININGS:
        raise ValueError(f"--preset must be one of {', '.join(TRAININGS)}, got {preset!r}")
    if pool < BATCH:
        raise ValueError(f"--pool must be at least a step's {BATCH} frames, got {pool}")
    check_writable(out)
    if not resume:
        check_new(out, CONFIG, RESUME)
    torch.manual_seed(seed)
    source = start_from / CONFIG
    config = as_config(TransformerConfig, read_json(source).get("transformer", {}), source)
    if not config.detail_width:
        raise ValueError(
            f"--start-from: {start_from} has no convolutions (detail_width 0); "
            "`orrery train world --start-from` with a preset that has some adds them"
        )
    training = replace(
        TRAININGS[preset],
        **CHANGES,
        **flags.bounds(MINUTES if minutes is None and steps is None else minutes, steps),
        save_minutes=save_minutes,
        world_weights=world_weights,
        sweep_weights=sweep_weights,
        picture_weights=picture_weights,
    )
    job = Job(data, tokenizer, out, config, training, seed, resume, compile, False, start_from)
    processes, where = Processes(), device_named(device)
    encoder = load_tokenizer(tokenizer, where)
    buckets = load_together(job, encoder, processes).buckets()
    job = fitted(job, buckets[0])
    check_same_kind(job, buckets[0])
    learner = start(job, where)
    if resume:
        load_run(out / RESUME, learner, processes)
        if learner.clock.progress >= 1:
            print(learner.clock.finished(out), file=sys.stderr)
            return 0
    out.mkdir(parents=True, exist_ok=True)
    with tracked_run("orrery-detail", out.name, track) as run:
        for averages in fit(learner, buckets[0].on(where), job, pool):
            keep(learner, averages, job, encoder, buckets, run, processes)
    return 0


def start(job: Job, where: torch.device) -> Learner[Transformer]:
    """The first weights, of which only the last convolutions are trained."""
    assert job.start_from is not None
    model, average = (started(job.start_from, job.config).to(where).requires_grad_(False) for _ in range(2))
    assert model.detail is not None
    for parameter in model.detail.drawing:
        parameter.requires_grad_(True)
    optimizers = make_optimizers(model, job.training.matrix_rate, job.training.other_rate)
    return Learner(model, average, optimizers, Clock(job.training.steps, job.training.minutes))


def fit(
    learner: Learner[Transformer], data: LatentEpisodes, job: Job, size: int
) -> Iterator[dict[str, float]]:
    """The loop: look at a pool of frames, then visit it in random order. Yields the mean loss when it is time
    to save, between pools; what a pool draws depends on the seed and the step alone."""
    clock, training = learner.clock, job.training
    quick = torch.compile(error_of, dynamic=False, options=COMPILING) if job.compiled else error_of
    mean: Tensor | None = None  # read where it is shown: reading waits for the GPU
    saved_s = shown_s = clock.seconds
    progress, stop = clock.progress, False
    with shown("detail", clock) as show, between_steps(clock) as asked_to_stop:
        while progress < 1 and not stop:
            rng = np.random.default_rng([job.seed, clock.step])
            pool = look(learner, data, training, size, rng, asked_to_stop)
            order = np.concatenate([rng.permutation(size) for _ in range(VISITS)])
            for which in torch.from_numpy(order).split(BATCH)[: len(order) // BATCH]:
                if stop := asked_to_stop():
                    break
                set_rates(learner.optimizers, rate_factor(progress))
                with fast_precision(pool.grid.device):
                    error = quick(learner.model, pool.rows(which.to(pool.grid.device)))
                error.backward()
                take_step(learner, training.ema_decay)
                now = error.detach()
                mean = now if mean is None else mean.lerp(now, 0.02)
                progress, seconds = clock.progress, clock.seconds
                if seconds - shown_s >= SHOW_S or progress >= 1:
                    shown_s = seconds
                    show(f"loss {float(mean):.4f}")
                if progress >= 1:
                    break
            if clock.seconds - saved_s > 60 * training.save_minutes or progress >= 1 or stop:
                saved_s = clock.seconds
                yield {} if mean is None else {"detail": float(mean)}


def error_of(model: Transformer, pool: Pool) -> Float[Tensor, ""]:
    """Weighted mean squared error of the whole prediction, in data space."""
    tokens, previous, condition = (part[:, None] for part in (pool.tokens, pool.previous, pool.condition))
    drawn = model.in_detail(Thought(tokens, tokens[:, :, 0], pool.grid, previous, condition))
    error = (pool.rough[:, None] + drawn - pool.target[:, None]).square()
    return (pool.weight * rearrange(error, "b 1 c y x -> b (c y x)").mean(dim=1)).mean()


@torch.no_grad()
def look(
    learner: Learner[Transformer],
    data: LatentEpisodes,
    training: WorldTraining,
    size: int,
    rng: np.random.Generator,
    enough: Callable[[], bool] = lambda: False,
) -> Pool:
    """What the layers say of `size` frames, or of fewer if that is `enough`, of all kinds of batch, in
    bfloat16."""
    kinds, parts, frames = training.shares, [], 0
    room, window = text_room(data), learner.model.config.window
    where = data.latents.device
    with tqdm(total=size, desc="looking", unit="frame", mininterval=5, leave=False) as bar:
        while frames < size and not (frames and enough()):
            kind = str(rng.choice([*kinds], p=[*kinds.values()]))
            batch = make_batch(data, training, kind, window, room, rng)
            with fast_precision(where):
                if rng.random() < training.flow_maps:
                    batch = with_large_steps(batch, partial(guess, learner.ema), rng)
                parts.append(pooled(learner.model, batch))
            frames += batch.noise_level.numel()
            bar.update(batch.noise_level.numel())
    return Pool(*(torch.cat(part)[:size] for part in zip(*parts, strict=True)))


def pooled(model: Transformer, batch: Batch) -> Pool:
    """A batch's frames as rows of a pool."""
    noisy, level = add_noise(batch.data, batch.noise, batch.noise_level), batch.noise_level
    thought, _ = model.think(
        noisy,
        level,
        batch.conditions,
        next_level=batch.next_level,
        causal=batch.causal,
        before=batch.before(noisy, level),
    )
    assert thought.grid is not None
    framed = (thought.tokens, thought.previous, thought.condition, model.roughly(thought), batch.target)
    parts = (thought.grid, *(part.flatten(0, 1) for part in framed), batch.weight.flatten())
    return Pool(*(part.bfloat16() for part in parts))
