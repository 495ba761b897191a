"""`orrery train world`: fit the transformer to latents of recorded episodes. One visible loop: draw a batch,
add noise, predict, compare in data space, step. What a batch is, `simulator/batches.py` says; how several
processes share it (`torchrun --nproc-per-node N -m simulator.train ...`), `simulator/distributed.py`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from simulator import flags
from simulator.background import beside
from simulator.batches import (
    GENERATIONS,
    TRAININGS,
    Batch,
    Predict,
    WorldTraining,
    make_batch,
    text_room,
    tokens_in,
    with_large_steps,
    with_own_past,
)
from simulator.checkpoint import (
    CONFIG,
    as_config,
    check_new,
    check_writable,
    code_version,
    model_folder,
    read_json,
    save_weights,
    write_json,
)
from simulator.clips import read_frames, training_episodes
from simulator.distributed import (
    Processes,
    gathered,
    joined,
    last_checkpoint,
    load_run,
    save_run,
    saved_micro_batches,
)
from simulator.estimate import check_fits, estimate
from simulator.flow import add_noise
from simulator.interrupts import between_steps
from simulator.job import Job, check_same_kind, fitted, grown, load_together, start
from simulator.latents import LatentEpisodes
from simulator.memory import free_bytes
from simulator.optim import (
    Clock,
    Learner,
    rate_factor,
    set_rates,
    take_step,
)
from simulator.precision import fast_precision
from simulator.progress import SHOW_S, shown
from simulator.tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.tokenizer import Tokenizer, load_tokenizer
from simulator.tracking import Run, tracked_run
from simulator.train_tokenizer import made_of
from simulator.transformer import PRESETS, Prediction, Transformer
from simulator.video import to_uint8, write_video
from simulator.world_model import WEIGHTS, WorldModel, WorldModelConfig

RESUME = "world_model.resume"
TEXT_TOKENS = 48  # for the estimate, which comes before the captions are read
PREVIEW_FRAMES = 17
FOLLOW_S = 20.0  # between looks for new episodes
# or else all tensors are laid out for the convolutions, and copied for the rest
COMPILING: dict[str, Any] = {"layout_optimization": False}


def loss_of(
    model: Transformer, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "b n"]]:
    """Total loss, the data loss alone, and each frame's mean squared error in data space."""
    noisy = add_noise(batch.data, batch.noise, batch.noise_level)
    found: Prediction = model(
        noisy,
        batch.noise_level,
        batch.conditions,
        next_level=batch.next_level,
        causal=batch.causal,
        before=batch.before(noisy, batch.noise_level),
    )
    error, off = (
        rearrange((found.data - goal).square(), "b n c y x -> b n (c y x)").mean(dim=-1)
        for goal in (batch.target, batch.data)
    )
    data_loss = (batch.weight * error).mean()
    known = batch.conditions.actions_known  # at all noise levels: a rollout reads its first call's heads
    reward = (known * (found.reward - batch.rewards).square()).mean()
    ended = (
        known * binary_cross_entropy_with_logits(found.terminated, batch.terminated, reduction="none")
    ).mean()
    log_error = (found.log_error - off.detach().clamp_min(1e-6).log()).square().mean()
    return data_loss + reward + 0.1 * ended + 0.01 * log_error, data_loss.detach(), error.detach()


def save(
    out: Path,
    ema: Transformer,
    tokenizer_folder: Path,
    buckets: tuple[LatentEpisodes, ...],
    training: WorldTraining,
    clock: Clock,
    start_from: Path | None = None,
) -> None:
    """A whole world model in `out`: both networks' weights and one config that says how they were made."""
    tokenizer, data = read_json(tokenizer_folder / CONFIG), buckets[0]
    config = WorldModelConfig(data.worlds, data.action_sizes, data.height, data.width)
    if start_from is not None:
        config = sampled_as(config, start_from)
    save_weights(out / WEIGHTS, ema)
    if not (out / TOKENIZER_WEIGHTS).exists():
        shutil.copy(tokenizer_folder / TOKENIZER_WEIGHTS, out / TOKENIZER_WEIGHTS)
    write_json(
        out / CONFIG,
        {
            "world_model": asdict(config),
            "transformer": asdict(ema.config),
            "tokenizer": tokenizer["tokenizer"],
            "origins": {name: asdict(origin) for name, origin in data.origins.items()},
            "made": {
                "tokenizer": made_of(tokenizer_folder),
                "episodes": sum(bucket.episodes for bucket in buckets),
                "frames": sum(len(bucket.latents) for bucket in buckets),
                "steps": clock.step,
                "minutes": round(clock.seconds / 60, 3),
                "code": code_version(),
                "training": asdict(training),
                **({"started_from": read_json(start_from / CONFIG)["made"]} if start_from else {}),
            },
        },
    )


def sampled_as(config: WorldModelConfig, start_from: Path) -> WorldModelConfig:
    """The config with the sampler of the model that was trained further, where it is of the same worlds."""
    source = start_from / CONFIG
    theirs = as_config(WorldModelConfig, read_json(source)["world_model"], source)
    if theirs.worlds != config.worlds:
        return config
    return replace(theirs, height=config.height, width=config.width)


def preview(out: Path, model: WorldModel, data: LatentEpisodes, tokenizer: Tokenizer, run: Run) -> None:
    """A video with four recorded clips above and the dreams that their first frames and actions lead to
    below; none of a world without episodes that long."""
    columns, fps = [], model.frames_per_step / model.time_step_s
    for name in data.worlds:
        for episode in data.of_world(name, PREVIEW_FRAMES)[:2]:
            rows = slice(data.starts[episode], data.starts[episode] + PREVIEW_FRAMES)
            truth = to_uint8(tokenizer.decode(data.latents[rows][None].float()))[0]
            actions = data.actions[rows][1:, : data.action_sizes[name]].numpy()
            silent = name in data.origins and not data.origins[name].prompted
            state, first, _ = model.start([None if silent else "a clip"], name, [0], images=truth[:1])
            frames = [first[0]]
            for action in actions:
                state, new, *_ = model.step(state, action[None])
                frames.append(new[0])
            dream = np.concatenate(frames)
            columns.append(np.concatenate([truth, dream], axis=1))
    if columns:
        run.artifact(write_video(out / "preview.mp4", np.concatenate(columns, axis=2), fps, scale=2))


def train(
    data: flags.Data,
    tokenizer: Annotated[
        Path, tyro.conf.arg(help="run folder of `orrery train tokenizer`, or 'default': the shipped one")
    ],
    out: flags.Out,
    preset: Annotated[str, tyro.conf.arg(help=", ".join(PRESETS))] = "small",
    minutes: flags.Minutes = None,
    steps: flags.Steps = None,
    save_minutes: flags.SaveMinutes = None,
    world_weights: flags.WorldWeights = (),
    sweep_weights: flags.SweepWeights = (),
    picture_weights: flags.PictureWeights = (),
    picture_share: flags.PictureShare = None,
    other_sizes: flags.OtherSizes = None,
    batch_scale: flags.BatchScale = 1.0,
    rate_scale: flags.RateScale = 1.0,
    micro_batches: flags.MicroBatches = None,
    checkpoint_activations: flags.CheckpointActivations = False,
    seed: int = 0,
    resume: flags.Resume = False,
    follow: flags.Follow = False,
    start_from: flags.StartFrom = None,
    other_worlds: flags.OtherWorlds = False,
    other_latents: flags.OtherLatents = False,
    compile: flags.Compile = False,
    track: flags.Track = True,
    device: str = "cpu",
) -> int:
    """Train the world model's transformer on the latents of recorded episodes."""
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    asked = {
        "save_minutes": save_minutes,
        "picture_share": picture_share,
        "other_sizes": other_sizes,
        "micro_batches": micro_batches,
    }
    training = replace(
        TRAININGS[preset],
        world_weights=world_weights,
        sweep_weights=sweep_weights,
        picture_weights=picture_weights,
        **flags.bounds(minutes, steps),
        **{name: value for name, value in asked.items() if value is not None},
    ).scaled(batch_scale, rate_scale)
    check_writable(out)
    torch.manual_seed(seed)
    config = PRESETS[preset]
    with joined(device) as (processes, where):
        if not (resume or processes.restarts):
            check_new(out, CONFIG, RESUME)
        source, encoder = start_from and model_folder(start_from), model_folder(tokenizer)
        if follow and processes.count > 1:
            raise ValueError("--follow is for one process: several would not see new episodes at once")
        kept = (seed, resume, compile, checkpoint_activations)
        job = Job(data, encoder, out, config, training, *kept, source, other_worlds, other_latents, follow)
        return train_together(job, processes, where, track)


def train_together(job: Job, processes: Processes, where: torch.device, track: bool) -> int:
    """One process's part of the training."""
    saved, training = job.out / RESUME, job.training
    resume = job.resume or (processes.restarts > 0 and last_checkpoint(saved) is not None)
    if not training.micro_batches:
        training = replace(training, micro_batches=saved_micro_batches(saved) if resume else processes.count)
    processes.check(training.micro_batches)
    encoder = load_tokenizer(job.tokenizer, where)
    config = replace(job.config, latent_channels=encoder.config.channels)
    job = replace(job, config=config, training=training)
    pixels, factor = read_frames(training_episodes(job.data)[0]).shape[1:3], encoder.config.space_factor
    cells = (pixels[0] // factor, pixels[1] // factor)
    needed = estimate(config, training, cells, TEXT_TOKENS, processes, job.recomputed, where.type)
    if processes.first:
        print(needed, flush=True)
    check_fits(needed, free_bytes(where) / processes.local_count, job.recomputed)
    library = load_together(job, encoder, processes)
    buckets = library.buckets()
    job = fitted(job, buckets[0])
    if job.start_from:
        check_same_kind(job, buckets[0])
    learner = start(job, where, processes)
    if resume:
        load_run(saved, learner, processes)
        if processes.agree(learner.clock.progress)[0] >= 1:
            if processes.first:
                print(learner.clock.finished(job.out), file=sys.stderr)
            return 0
    elif processes.first:
        shutil.rmtree(saved, ignore_errors=True)
    job.out.mkdir(parents=True, exist_ok=True)
    follow_s = FOLLOW_S if job.follow else None
    with (
        tracked_run("orrery-world", job.out.name, track and processes.first) as run,
        beside(partial(grown, library, job.data), follow_s) as later,
    ):
        run.params({**asdict(job.training), **asdict(job.config), "processes": processes.count})
        fit(
            learner,
            buckets,
            job,
            processes,
            run,
            lambda averages, seen: keep(learner, averages, job, encoder, seen, run, processes),
            later,
        )
    return 0


def keep(
    learner: Learner[Transformer], averages, job: Job, encoder, buckets, run: Run, processes: Processes
) -> None:
    """Write the model so far, what a resumed run needs, a line of metrics and a preview."""
    seconds = round(learner.clock.seconds)  # a resumed run goes on from no less, however long saving takes
    save_run(job.out / RESUME, learner, processes, job.training.micro_batches)
    average, clock, out = gathered(learner.ema, processes), learner.clock, job.out
    if average is None:
        return
    save(out, average, job.tokenizer, buckets, job.training, clock, job.start_from)
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": clock.step, "seconds": seconds, **averages}) + "\n")
    episodes = buckets[0]
    model = WorldModel.load(out, next(average.parameters()).device)
    preview(out, model, episodes, encoder, run)


def fit(
    learner: Learner[Transformer],
    buckets: tuple[LatentEpisodes, ...],
    job: Job,
    processes: Processes,
    run: Run,
    keep_it: Callable[[dict[str, float], tuple[LatentEpisodes, ...]], None],
    later: Callable[[], tuple[LatentEpisodes, ...] | None],
) -> None:
    """The loop. What a step draws depends on the seed and the step alone (and on what `later` has brought),
    and what each of its micro-batches draws on its own index too: so a resumed run goes on as it would have,
    on any number of processes."""
    model, clock, training = learner.model, learner.clock, job.training
    where = next(model.parameters()).device
    main, *others = (bucket.on(where) for bucket in buckets)
    text_tokens = max(map(text_room, buckets))
    # compiling takes minutes a shape: worth it for the most frequent picture size, and on a CPU kind, alone
    whole = job.compiled and processes.count == 1  # split models are compiled block by block
    quick = torch.compile(loss_of, dynamic=False, options=COMPILING) if whole else loss_of
    quick_guess = torch.compile(guess, dynamic=False, options=COMPILING) if whole else guess
    losses: dict[str, Tensor] = {}  # running averages, read where they are shown: reading waits for the GPU
    frames = 0
    mine = range(processes.rank, training.micro_batches, processes.count)
    progress, seconds = processes.agree(clock.progress, clock.seconds)
    saved_s = shown_s = seconds
    with (
        shown("world model", clock, processes.first) as show,
        between_steps(clock, alone=processes.count == 1) as asked_to_stop,
    ):
        while progress < 1:
            if (more := later()) is not None:
                buckets, (main, *others) = more, (bucket.on(where) for bucket in more)
            rng = np.random.default_rng([job.seed, clock.step])
            kind = str(rng.choice([*training.shares], p=[*training.shares.values()]))
            other = bool(others) and rng.random() < training.other_sizes
            data = others[int(rng.integers(len(others)))] if other else main
            lesson = choose_lesson(training, kind, job.goes_on or progress > 1 / 3, rng)
            frequent = not other and (kind == "rollout" or where.type == "cuda")
            core, look = (quick, quick_guess) if frequent else (loss_of, guess)
            scale = tokens_in(main) / tokens_in(data)
            set_rates(learner.optimizers, rate_factor(progress))
            data_loss = torch.zeros((), device=where)
            for index in mine:
                rng = np.random.default_rng([job.seed, clock.step, 1 + index])
                batch = make_batch(data, training, kind, model.config.window, text_tokens, rng, scale)
                if lesson:
                    # autocast keeps its copies of weights until it ends: with those of this call, gradients
                    # of split blocks would come after they are summed up, and count in the next step
                    with fast_precision(where):
                        batch = lesson(batch, partial(look, model), rng)
                with fast_precision(where):
                    loss, part, _ = core(model, batch)
                (loss / len(mine)).backward()
                data_loss += part / len(mine)
                frames += batch.noise_level.numel() * processes.count
            take_step(learner, training.ema_decay)
            progress, seconds = processes.agree(clock.progress, clock.seconds)
            losses[kind] = losses.get(kind, data_loss).lerp(data_loss, 0.02)
            stop = asked_to_stop()
            due = seconds - saved_s > 60 * training.save_minutes or progress >= 1 or stop
            if seconds - shown_s < SHOW_S and not due:
                continue
            shown_s = seconds
            averages = {name: processes.mean(losses[name]) for name in training.shares if name in losses}
            show(" ".join(f"{name} {value:.4f}" for name, value in averages.items()))
            run.metrics({f"loss_{k}": v for k, v in averages.items()} | {"frames": frames}, clock.step)
            if due:
                saved_s = seconds
                keep_it(averages, buckets)
            if stop:
                break


@torch.no_grad()
def guess(model: Transformer, batch: Batch, noisy: Tensor, level: Tensor, next_level: Tensor) -> Tensor:
    """What the model predicts of a batch at other levels than its own."""
    told = batch.before(noisy, level)
    return model(noisy, level, batch.conditions, next_level=next_level, causal=batch.causal, before=told).data


def choose_lesson(
    training: WorldTraining, kind: str, dreams: bool, rng: np.random.Generator
) -> Callable[[Batch, Predict, np.random.Generator], Batch] | None:
    """What a share of the steps teaches: large steps, or, where the model `dreams` already, to follow a past
    of its own making."""
    lesson = rng.random()
    if lesson < training.flow_maps:
        return with_large_steps
    if kind == "rollout" and dreams and lesson < training.flow_maps + training.own_past:
        # drawn for all processes: each generation is a call of the model, which they make together
        generations = int(rng.integers(1, GENERATIONS + 1))
        return partial(with_own_past, generations=generations, large=bool(rng.integers(2)))
    return None


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(train))
    except ValueError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"orrery: {error}", file=sys.stderr)
        sys.exit(2)
