"""`orrery train world`: fit the transformer to latents of recorded episodes. One visible loop: draw a batch,
add noise, predict, compare in data space, step. What a batch is, `simulator/batches.py` says."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._pytree import tree_map
from tqdm import tqdm

from simulator.batches import (
    TRAININGS,
    Batch,
    WorldTraining,
    make_batch,
    text_room,
    tokens_in,
    with_large_steps,
    with_own_past,
)
from simulator.checkpoint import (
    CONFIG,
    check_writable,
    code_version,
    fingerprint,
    load_learner,
    read_json,
    save_learner,
    save_weights,
    write_json,
)
from simulator.flow import add_noise, loss_weight
from simulator.latents import LatentEpisodes, load_latents
from simulator.optim import Clock, Learner, fast_precision, make_optimizers, rate_factor, set_rates, take_step
from simulator.tokenizer import Tokenizer
from simulator.tracking import Run, tracked_run
from simulator.train_tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.train_tokenizer import load_tokenizer
from simulator.transformer import PRESETS, Prediction, Transformer
from simulator.video import to_uint8, write_video
from simulator.world_model import WEIGHTS, WorldModel, WorldModelConfig

RESUME = "world_model.resume.pt"
PREVIEW_FRAMES = 17


def loss_of(
    model: Transformer, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "b n"]]:
    """Total loss, the data loss alone, and each frame's mean squared error in data space."""
    noisy = add_noise(batch.data, batch.noise, batch.noise_level)
    found: Prediction = model(
        noisy, batch.noise_level, batch.conditions, batch.allowed, next_level=batch.next_level
    )
    error, off = (
        rearrange((found.data - goal).square(), "b n c y x -> b n (c y x)").mean(dim=-1)
        for goal in (batch.target, batch.data)
    )
    data_loss = (loss_weight(batch.noise_level) * error).mean()
    clean = (1 - batch.noise_level) * batch.conditions.actions_known
    reward = (clean * (found.reward - batch.rewards).square()).mean()
    ended = (
        clean * binary_cross_entropy_with_logits(found.terminated, batch.terminated, reduction="none")
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
) -> None:
    """A whole world model in `out`: both networks' weights and one config that says how they were made."""
    tokenizer, data = read_json(tokenizer_folder / CONFIG), buckets[0]
    config = WorldModelConfig(data.worlds, data.action_sizes, data.height, data.width)
    save_weights(out / WEIGHTS, ema)
    if not (out / TOKENIZER_WEIGHTS).exists():
        shutil.copy(tokenizer_folder / TOKENIZER_WEIGHTS, out / TOKENIZER_WEIGHTS)
    write_json(
        out / CONFIG,
        {
            "world_model": asdict(config),
            "transformer": asdict(ema.config),
            "tokenizer": tokenizer["tokenizer"],
            "made": {
                "tokenizer": tokenizer["made"],
                "episodes": sum(bucket.episodes for bucket in buckets),
                "frames": sum(len(bucket.latents) for bucket in buckets),
                "steps": clock.step,
                "minutes": round(clock.seconds / 60, 1),
                "code": code_version(),
                "training": asdict(training),
            },
        },
    )


def preview(out: Path, model: WorldModel, data: LatentEpisodes, tokenizer: Tokenizer, run: Run) -> None:
    """A video with four recorded clips above and the dreams that their first frames and actions lead to
    below."""
    columns = []
    for name in data.worlds:
        for episode in data.of_world(name, PREVIEW_FRAMES)[:2]:
            rows = slice(data.starts[episode], data.starts[episode] + PREVIEW_FRAMES)
            truth = to_uint8(tokenizer.decode(data.latents[rows][None].float()))[0]
            actions = data.actions[rows][1:, : data.action_sizes[name]].numpy()
            state, first, _ = model.start(["a clip"], name, [0], images=truth[:1])
            frames = [first[0]]
            for action in actions:
                state, new, *_ = model.step(state, action[None])
                frames.append(new[0])
            dream = np.concatenate(frames)
            columns.append(np.concatenate([truth, dream], axis=1))
    run.artifact(write_video(out / "preview.mp4", np.concatenate(columns, axis=2), 10, scale=2))


def train(
    data: Annotated[Path, tyro.conf.arg(help="folder of recorded episodes (searched with its sub-folders)")],
    tokenizer: Annotated[Path, tyro.conf.arg(help="run folder of `orrery train tokenizer`")],
    out: Annotated[Path, tyro.conf.arg(help="run folder to write")],
    preset: Annotated[str, tyro.conf.arg(help="tiny, small or base")] = "small",
    minutes: Annotated[float | None, tyro.conf.arg(help="training time, instead of the preset's")] = None,
    steps: Annotated[
        int | None, tyro.conf.arg(help="training steps at most, instead of the preset's")
    ] = None,
    world_weights: Annotated[
        tuple[float, ...], tyro.conf.arg(help="how often to draw each world, by name's order")
    ] = (),
    sweep_weights: Annotated[tuple[float, ...], tyro.conf.arg(help="for camera sweeps")] = (),
    picture_weights: Annotated[
        tuple[float, ...], tyro.conf.arg(help="the same for pictures from words")
    ] = (),
    picture_share: Annotated[
        float | None, tyro.conf.arg(help="of the batches, instead of the preset's")
    ] = None,
    seed: int = 0,
    resume: Annotated[bool, tyro.conf.arg(help="go on with the run in --out")] = False,
    compile: Annotated[
        bool, tyro.conf.arg(help="torch.compile: faster after minutes, needs a C++ compiler")
    ] = False,
    track: Annotated[bool, tyro.conf.arg(help="log to MLflow")] = True,
    device: str = "cpu",
) -> int:
    """Train the world model's transformer on the latents of recorded episodes."""
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    asked = {"minutes": minutes, "steps": steps, "picture_share": picture_share}
    training = replace(
        TRAININGS[preset],
        world_weights=world_weights,
        sweep_weights=sweep_weights,
        picture_weights=picture_weights,
        **{name: value for name, value in asked.items() if value is not None},
    )
    check_writable(out)
    torch.manual_seed(seed)
    where = torch.device(device)
    encoder = load_tokenizer(tokenizer, where)
    config = replace(PRESETS[preset], latent_channels=encoder.config.channels)
    buckets = load_latents(data, encoder, fingerprint(tokenizer / TOKENIZER_WEIGHTS), config.action_width)
    model = Transformer(config).to(where)
    optimizers = make_optimizers(model, training.matrix_rate, training.other_rate)
    average = copy.deepcopy(model).requires_grad_(False)
    learner = Learner(model, average, optimizers, Clock(training.steps, training.minutes))
    if resume:
        load_learner(out / RESUME, learner)
    out.mkdir(parents=True, exist_ok=True)
    with tracked_run("orrery-world", out.name, track) as run:
        run.params({"preset": preset, **asdict(training), **asdict(config)})
        fit(
            learner,
            buckets,
            training,
            seed,
            compile,
            run,
            lambda averages: keep(learner, averages, out, tokenizer, encoder, buckets, training, run),
        )
    return 0


def keep(
    learner: Learner[Transformer], averages, out, tokenizer_folder, encoder, buckets, training, run
) -> None:
    """Write the model so far, what a resumed run needs, a line of metrics and a preview."""
    clock = learner.clock
    save(out, learner.ema, tokenizer_folder, buckets, training, clock)
    save_learner(out / RESUME, learner)
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": clock.step, "seconds": round(clock.seconds), **averages}) + "\n")
    episodes = buckets[0]
    config = WorldModelConfig(episodes.worlds, episodes.action_sizes, episodes.height, episodes.width)
    preview(out, WorldModel(config, encoder, learner.ema), episodes, encoder, run)


def fit(
    learner: Learner[Transformer],
    buckets: tuple[LatentEpisodes, ...],
    training: WorldTraining,
    seed: int,
    compiled: bool,
    run: Run,
    keep_it: Callable[[dict[str, float]], None],
) -> None:
    """The loop. Every step's draw depends on the seed and the step alone, so a resumed run goes on as it
    would have."""
    model, clock, (main, *others) = learner.model, learner.clock, buckets
    where = next(model.parameters()).device
    text_tokens = max(map(text_room, buckets))
    # compiling takes minutes a shape: worth it for the most frequent picture size alone
    quick = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    quick_guess = torch.compile(guess, dynamic=False) if compiled else guess
    averages, frames = {name: float("nan") for name in training.shares}, 0
    saved_s = clock.seconds
    with tqdm(total=1000, mininterval=10, bar_format="world model {percentage:3.0f}% {postfix}") as bar:
        while clock.progress < 1:
            rng = np.random.default_rng([seed, clock.step])
            kind = str(rng.choice([*averages], p=[*training.shares.values()]))
            other = bool(others) and rng.random() < training.other_sizes
            data = others[int(rng.integers(len(others)))] if other else main
            core, look = (loss_of, guess) if other else (quick, quick_guess)
            scale = tokens_in(main) / tokens_in(data)
            batch = make_batch(data, training, kind, model.config.window, text_tokens, rng, scale)
            batch = tree_map(lambda value: value.to(where), batch)
            set_rates(learner.optimizers, rate_factor(clock.progress))
            with fast_precision(where):
                batch = with_lessons(batch, partial(look, model, batch), training, kind, clock.progress, rng)
                loss, data_loss, _ = core(model, batch)
            take_step(learner, loss, training.ema_decay)
            frames += batch.noise_level.numel()
            before, now = averages[kind], float(data_loss)
            averages[kind] = now if math.isnan(before) else 0.98 * before + 0.02 * now
            if clock.step % 50 == 0:
                bar.n = int(1000 * clock.progress)
                losses = " ".join(f"{name} {value:.4f}" for name, value in averages.items())
                bar.set_postfix_str(f"step {clock.step} {losses} left {clock.left_s / 60:.0f} min")
                run.metrics({f"loss_{k}": v for k, v in averages.items()} | {"frames": frames}, clock.step)
            if clock.seconds - saved_s > 60 * training.save_minutes or clock.progress >= 1:
                saved_s = clock.seconds
                keep_it(averages)


@torch.no_grad()
def guess(model: Transformer, batch: Batch, noisy: Tensor, level: Tensor, next_level: Tensor) -> Tensor:
    """What the model predicts of a batch at other levels than its own."""
    return model(noisy, level, batch.conditions, batch.allowed, next_level=next_level).data


def with_lessons(
    batch: Batch,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    training: WorldTraining,
    kind: str,
    progress: float,
    rng: np.random.Generator,
) -> Batch:
    """The batch, a share of which teaches large steps or to follow a past of the model's own making."""
    lesson = rng.random()
    if lesson < training.flow_maps:
        return with_large_steps(batch, predict, rng)
    if kind == "rollout" and progress > 0.5 and lesson < training.flow_maps + training.own_past:
        return with_own_past(batch, predict, rng)
    return batch
