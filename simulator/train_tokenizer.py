"""`orrery train tokenizer`: fit the tokenizer to recorded frames. One visible loop: load, encode, add noise,
decode, compare, step."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from simulator import flags
from simulator.background import beside
from simulator.checkpoint import (
    CONFIG,
    check_new,
    check_writable,
    code_version,
    load_learner,
    model_folder,
    read_json,
    save_learner,
    save_weights,
    write_json,
)
from simulator.devices import device_named
from simulator.frames import Frames, draw, load_frames
from simulator.interrupts import between_steps
from simulator.metrics import psnr
from simulator.optim import Clock, Learner, make_optimizers, rate_factor, set_rates, take_step
from simulator.precision import fast_precision
from simulator.predicted import predictions
from simulator.progress import SHOW_S, shown
from simulator.tokenizer import PRESETS, WEIGHTS, Shown, Tokenizer, load_tokenizer
from simulator.tracking import Run, tracked_run
from simulator.video import to_uint8, to_unit, write_image
from simulator.world_model import WorldModel

RESUME = "tokenizer.resume.pt"
CARRY_STEPS = 6  # latent steps of a clip, if what is carried over them is all that is learned
SAVE_S = 120.0  # between checkpoints
FOLLOW_S = 60.0  # between readings of other episodes


@dataclass(frozen=True)
class TokenizerTraining:
    clip_steps: int = 4  # latent steps of a clip
    batch: int = 24  # clips a step; of other picture sizes than the most frequent as many as make its pixels
    steps: int = 200_000  # at most; 0: any number
    minutes: float = 20.0  # of training, at most; 0: any number
    matrix_rate: float = 2e-3  # Muon's learning rate
    other_rate: float = 1e-3  # AdamW's learning rate
    latent_noise: float = 0.1  # greatest noise added to bounded latents
    predictions: int = 8_000  # latent steps that a world model predicts before the training, if one is given
    predicted_share: float = 0.5  # of the batches that are of these
    ema_decay: float = 0.998
    memory_frames: int = 120_000  # frames held in memory at most


TRAININGS = {
    "tiny": TokenizerTraining(batch=8, steps=60, minutes=1.0),
    "small": TokenizerTraining(),
    "base": TokenizerTraining(batch=64, minutes=240.0, memory_frames=1_000_000),
}


def reconstruction_loss(output: Float[Tensor, "*b"], video: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    difference = (output.float() - video).abs()
    return difference.mean() + 2 * difference.square().mean()


def measure_latents(
    tokenizer: Tokenizer, frames: Frames, rng: np.random.Generator, device: torch.device
) -> None:
    """Set the tokenizer's latent mean and std from data."""
    factor = tokenizer.config.time_factor
    with torch.no_grad():  # first steps of clips, and where time is compressed the steps that follow too
        video = to_unit(frames.clips(rng, 256, 1 + (factor > 1) * factor), device)
        bounded = tokenizer.encode_bounded(video)
        tokenizer.latent_mean.copy_(bounded.mean(dim=(0, 1, 3, 4)))
        tokenizer.latent_std.copy_(bounded.std(dim=(0, 1, 3, 4)))


def save(
    out: Path,
    ema: Tokenizer,
    training: TokenizerTraining,
    clock: Clock,
    psnr_db: float,
    started_from: dict[str, Any] | None = None,
) -> None:
    """Weights, and a config that says how they were made. started_from: how those were that went on."""
    save_weights(out / WEIGHTS, ema)
    made = {
        "steps": clock.step,
        "minutes": round(clock.seconds / 60, 3),
        "code": code_version(),
        "psnr_db": psnr_db,
        **({"started_from": started_from} if started_from else {}),
    }
    write_json(out / CONFIG, {"tokenizer": asdict(ema.config), "training": asdict(training), "made": made})


def made_of(folder: Path) -> dict[str, Any]:
    """How the tokenizer of a run folder (or of a world model's) was made."""
    made = read_json(folder / CONFIG).get("made", {})
    return made.get("tokenizer", made)


def train_tokenizer(
    data: flags.Data,
    out: flags.Out,
    preset: Annotated[str, tyro.conf.arg(help="tiny, small or base")] = "small",
    minutes: flags.Minutes = None,
    steps: flags.Steps = None,
    time_factor: Annotated[
        int | None,
        tyro.conf.arg(help="video frames in a latent step: 1, 2 or 4, instead of the preset's"),
    ] = None,
    seed: int = 0,
    resume: flags.Resume = False,
    follow: flags.Follow = False,
    start_from: flags.StartFromTokenizer = None,
    only: flags.OnlyPart = None,
    predicted_by: flags.PredictedBy = None,
    batch_scale: flags.BatchScale = 1.0,
    compile: flags.Compile = False,
    track: flags.Track = True,
    device: str = "cpu",
) -> int:
    """Train the video tokenizer on recorded episodes, of one picture size or several."""
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if not batch_scale > 0:
        raise ValueError(f"--batch-scale must be above 0, got {batch_scale}")
    if only and start_from is None:
        raise ValueError(f"--only {only} needs --start-from: the tokenizer whose {only} is trained")
    if predicted_by and only is None:
        raise ValueError("--predicted-by goes with --only: latents must stay those of the model")
    if start_from and time_factor is not None:
        raise ValueError(f"--time-factor is that of the tokenizer in {start_from}; leave it out")
    training = replace(TRAININGS[preset], **flags.bounds(minutes, steps))
    training = replace(training, batch=max(1, round(training.batch * batch_scale)))
    check_writable(out)
    if not resume:
        check_new(out, CONFIG, RESUME)
    torch.manual_seed(seed)
    where = device_named(device)
    config = PRESETS[preset] if time_factor is None else replace(PRESETS[preset], time_factor=time_factor)
    model = Tokenizer(config).to(where)
    if start_from is not None:
        model = load_tokenizer(model_folder(start_from), where).train().requires_grad_(True)
        if only:
            training = replace(training, **train_only(model, only))
    needed = (training.memory_frames, training.clip_steps * model.config.time_factor)
    sizes = load_frames(data, *needed, np.random.default_rng(seed))
    for frames in sizes:
        model.check_size(*frames.pixels.shape[1:3])
    predicted: tuple[Frames, ...] = ()
    if predicted_by is not None:
        known = (WorldModel.load(predicted_by, where), model, data, training.predictions)
        predicted = predictions(*known, np.random.default_rng([seed, 2]))
    optimizers = make_optimizers(model, training.matrix_rate, training.other_rate)
    average = copy.deepcopy(model).requires_grad_(False)
    learner = Learner(model, average, optimizers, Clock(training.steps, training.minutes))
    if resume:
        load_learner(out / RESUME, learner)
        if learner.clock.progress >= 1:
            print(learner.clock.finished(out), file=sys.stderr)
            return 0
    out.mkdir(parents=True, exist_ok=True)
    read = partial(load_frames, data, *needed, np.random.default_rng([seed, 1]), progress=False)
    with (
        tracked_run("orrery-tokenizer", out.name, track) as run,
        beside(read, FOLLOW_S if follow else None) as later,
    ):
        run.params({"preset": preset, **asdict(training), **asdict(model.config)})
        fit(learner, sizes, predicted, training, seed, out, run, compile, later, start_from)
    return 0


def train_only(model: Tokenizer, part: str) -> dict[str, int]:
    """Hold all else as it is; what of the training that changes."""
    model.encoder.requires_grad_(False)
    if part == "decoder":
        return {}
    if model.carry is None:
        raise ValueError("--only carry needs a tokenizer of a carry_width above 0; this one carries nothing")
    model.requires_grad_(False)
    model.carry.requires_grad_(True)
    return {"clip_steps": CARRY_STEPS}


def fit(
    learner: Learner[Tokenizer],
    sizes: tuple[Frames, ...],
    predicted: tuple[Frames, ...],
    training: TokenizerTraining,
    seed: int,
    out: Path,
    run: Run,
    compiled: bool,
    later: Callable[[], tuple[Frames, ...] | None],
    source: Path | None,
) -> None:
    """The loop. Saves every few minutes, so that a killed run goes on with `--resume`, as it would have:
    what a step draws depends on the seed and the step alone."""
    origin = made_of(model_folder(source)) if source else None
    model, clock = learner.model, learner.clock
    where = next(model.parameters()).device
    length = 1 + (training.clip_steps - 1) * model.config.time_factor
    core = torch.compile(reconstruct, dynamic=False) if compiled else reconstruct  # once for each size
    saved_s = shown_s = clock.seconds
    progress, stop = clock.progress, False
    with shown("tokenizer", clock) as show, between_steps(clock) as asked_to_stop:
        while progress < 1 and not stop:
            rng = np.random.default_rng([seed, clock.step])
            sizes = later() or sizes
            chosen = predicted if predicted and rng.random() < training.predicted_share else sizes
            drawn = draw(
                chosen, model.config, training.batch, training.clip_steps, training.latent_noise, rng
            ).to(where)
            set_rates(learner.optimizers, rate_factor(progress))
            with fast_precision(where):
                output = core(model, *drawn)
            loss = reconstruction_loss(output, drawn.video)
            loss.backward()
            take_step(learner, training.ema_decay)
            progress, seconds, stop = clock.progress, clock.seconds, asked_to_stop()
            due = seconds - saved_s > SAVE_S or progress >= 1 or stop
            if seconds - shown_s >= SHOW_S or due:
                shown_s = seconds
                show(f"loss {loss.item():.4f}")
                # as many pixels as so many frames of the most frequent size have
                run.metrics({"loss": loss.item(), "frames": clock.step * training.batch * length}, clock.step)
            if due:
                saved_s = seconds
                keep(learner, sizes, training, out, run, origin)


def reconstruct(model: Tokenizer, video: Tensor, noise: Tensor, shown: Tensor) -> Tensor:
    latents = model.encode_bounded(video) + noise
    output, _ = model.decode_bounded(latents, shown=Shown(video, shown))
    return output[:, model.config.time_factor - 1 :]


def keep(
    learner: Learner[Tokenizer],
    sizes: tuple[Frames, ...],
    training: TokenizerTraining,
    out: Path,
    run: Run,
    origin: dict[str, Any] | None,
) -> None:
    """Measure on a fixed draw of clips of each size; write weights, a picture (truth above, reconstruction
    below) of the most frequent and resume state."""
    ema, clock = learner.ema, learner.clock
    where = next(ema.parameters()).device
    if next(learner.model.encoder.parameters()).requires_grad:  # else the latents stay what they were
        measure_latents(ema, sizes[0], np.random.default_rng(1), where)
    scores = {}
    for frames in reversed(sizes):  # the most frequent comes last, and its picture is kept
        height, width = frames.pixels.shape[1:3]
        clips = frames.clips(
            np.random.default_rng(1), 32, 1 + (training.clip_steps - 1) * ema.config.time_factor
        )
        with torch.no_grad(), fast_precision(where):
            video = to_unit(clips, where)
            output = to_uint8(ema.decode(ema.encode(video), Shown.first(video)))
        score = psnr(*(rearrange(video, "b t h w c -> (b t) h w c") for video in (output, clips)))
        name = "psnr_db" if frames is sizes[0] else f"psnr_db_{height}x{width}"
        scores[name] = round(float(score.mean()), 2)
    save(out, ema, training, clock, scores["psnr_db"], origin)
    rows = [np.concatenate(list(video[:8, 0]), axis=1) for video in (clips, output)]
    picture = write_image(out / "reconstruction.png", np.concatenate(rows), scale=2)
    with (out / "metrics.jsonl").open("a") as file:
        line = {"step": clock.step, "seconds": round(clock.seconds), **scores}
        file.write(json.dumps(line) + "\n")
    run.metrics(scores, clock.step)
    run.artifact(picture)
    save_learner(out / RESUME, learner)
