"""`orrery train world`: fit the transformer to latents of recorded episodes. One visible loop: draw windows,
add noise, predict, compare in data space, step.

Three kinds of batch share the weights: rollouts (causal, sliding window, actions), sweeps (bidirectional,
cameras, more frames, sometimes skipping) and pictures (one frame from words). Noise levels are drawn per
frame (Diffusion Forcing, Chen et al. 2024), with a share of nearly clean frames drawn per clip, so that
rollouts meet in training what they meet in use.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._pytree import tree_map
from tqdm import tqdm

from simulator.checkpoint import (
    CONFIG,
    check_writable,
    code_version,
    ema_update,
    fingerprint,
    load_resume,
    read_json,
    save_resume,
    save_weights,
    write_json,
)
from simulator.flow import Levels, add_noise, loss_weight
from simulator.latents import LatentEpisodes, Windows, draw, load_latents
from simulator.optim import Clock, fast_precision, make_optimizers, rate_factor, set_rates
from simulator.text import WIDTH, pad
from simulator.tokenizer import Tokenizer
from simulator.tracking import Run, tracked_run
from simulator.train_tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.train_tokenizer import load_tokenizer
from simulator.transformer import PRESETS, Conditions, Prediction, Transformer, frame_mask
from simulator.video import to_uint8, write_video
from simulator.world_model import WEIGHTS, WorldModel, WorldModelConfig

RESUME = "world_model.resume.pt"
PREVIEW_FRAMES = 17


@dataclass(frozen=True)
class WorldTraining:
    steps: int = 1_000_000  # at most
    minutes: float = 120.0  # of training, at most
    matrix_rate: float = 2e-3  # Muon's learning rate
    other_rate: float = 1e-3  # AdamW's learning rate
    ema_decay: float = 0.999
    rollout_clips: int = 16  # windows in a rollout batch
    sweep_clips: int = 6  # windows in a sweep batch
    sweep_frames: int = 40  # latent steps in a sweep window
    pictures: int = 256  # single frames in a picture batch
    sweep_share: float = 0.2  # of the batches
    picture_share: float = 0.15  # of the batches
    world_weights: tuple[
        float, ...
    ] = ()  # how often each world is drawn, by name's order; empty: by its episodes
    sweep_weights: tuple[float, ...] = ()  # the same for sweeps; empty: as world_weights
    drop_text: float = 0.1
    drop_actions: float = 0.1
    save_minutes: float = 5.0


TRAININGS = {
    "tiny": WorldTraining(steps=40, minutes=1.0, rollout_clips=4, sweep_clips=2, sweep_frames=9, pictures=16),
    "small": WorldTraining(),
    "base": WorldTraining(minutes=24 * 60.0, rollout_clips=64, sweep_clips=24, pictures=1024),
}


class Batch(NamedTuple):
    """What one step of training needs, with noise levels drawn."""

    data: Float[Tensor, "b n c y x"]
    noise: Float[Tensor, "b n c y x"]
    noise_level: Levels
    conditions: Conditions
    allowed: Bool[Tensor, "b n m"]
    rewards: Float[Tensor, "b n"]
    terminated: Float[Tensor, "b n"]


def draw_levels(rng: np.random.Generator, clips: int, frames: int, kind: str) -> Float[np.ndarray, "b n"]:
    """Noise levels of a batch, one per frame.

    Rollouts: each clip draws how many of its frames are nearly clean (as a rollout's past is), the others are
    uniform with some pure noise. Sweeps: half share one level in all frames (as in sampling), a third of
    these with a clean first frame.
    """
    level = np.where(rng.random((clips, frames)) < 0.15, 1.0, rng.random((clips, frames)))
    if kind == "picture":
        return level.astype(np.float32)
    clean_share = rng.random((clips, 1))
    nearly_clean = np.where(
        rng.random((clips, frames)) < clean_share, rng.uniform(0, 0.12, (clips, frames)), level
    )
    if kind == "rollout":
        return nearly_clean.astype(np.float32)
    together = np.repeat(level[:, :1], frames, axis=1)
    with_first = together.copy()
    with_first[:, 0] = rng.uniform(0, 0.12, clips)
    choice = rng.random((clips, 1))
    return np.where(choice < 0.35, together, np.where(choice < 0.5, with_first, nearly_clean)).astype(
        np.float32
    )


def choose_episodes(
    data: LatentEpisodes,
    training: WorldTraining,
    rng: np.random.Generator,
    count: int,
    frames: int,
    with_cameras: bool,
) -> np.ndarray:
    """Random episodes of enough frames, worlds first (by weight), then one of the world's; sweeps need moving
    cameras."""
    by_world = [data.of_world(name, frames) for name in data.worlds]
    asked = (training.sweep_weights if with_cameras else ()) or training.world_weights
    weights = np.array(asked or [len(found) for found in by_world], float)
    if len(weights) != len(by_world):
        raise ValueError(
            f"--world-weights and --sweep-weights need one entry a world, got {len(weights)} "
            f"for {', '.join(data.worlds)}"
        )
    if with_cameras:
        weights = weights * np.array(
            [len(found) and moving_cameras(data, int(found[0])) for found in by_world]
        )
    if not weights.sum():
        raise ValueError(
            f"no episode of {frames} latent steps{' with moving cameras' * with_cameras}; "
            "record longer ones, or set the share of such batches to 0"
        )
    world = rng.choice(len(by_world), size=count, p=weights / weights.sum())
    return np.array([rng.choice(by_world[w]) for w in world])


def moving_cameras(data: LatentEpisodes, episode: int) -> bool:
    c2w = data.c2w[data.starts[episode] : data.starts[episode + 1]]
    return bool((~c2w.isnan()).all() and (c2w - c2w[:1]).abs().max() > 1e-3)


def make_batch(
    data: LatentEpisodes,
    training: WorldTraining,
    kind: str,
    window: int,
    text_tokens: int,
    rng: np.random.Generator,
) -> Batch:
    """Draw windows of one kind and what they are conditioned on."""
    clips, frames = {
        "rollout": (training.rollout_clips, window),
        "picture": (training.pictures, 1),
        "sweep": (training.sweep_clips, training.sweep_frames),
    }[kind]
    episodes = choose_episodes(data, training, rng, clips, frames, kind == "sweep")
    windows = draw(
        data,
        episodes,
        frames,
        rng,
        from_start={"rollout": 0.25, "picture": 0.6, "sweep": 0.5}[kind],
        max_stride=1 if kind == "rollout" else 3,
    )
    causal = rng.random(clips) < (0.85 if kind == "rollout" else 0.0)
    level = torch.from_numpy(draw_levels(rng, clips, frames, kind))
    noise = torch.from_numpy(rng.standard_normal(windows.latents.shape, dtype=np.float32))
    return Batch(
        windows.latents,
        noise,
        level,
        _conditions(data, windows, training, kind, text_tokens, rng),
        frame_mask(frames, torch.from_numpy(causal), window),
        windows.rewards,
        windows.terminated,
    )


def _conditions(
    data: LatentEpisodes,
    windows: Windows,
    training: WorldTraining,
    kind: str,
    text_tokens: int,
    rng: np.random.Generator,
) -> Conditions:
    clips = len(windows.captions)

    def kept(share: float) -> Tensor:
        return torch.from_numpy(rng.random((clips, 1)) < share)

    text, known = pad([data.text[row].float() for row in windows.captions])
    room = torch.zeros(clips, text_tokens, WIDTH)
    room[:, : text.shape[1]] = text
    known_room = torch.zeros(clips, text_tokens, dtype=torch.bool)
    known_room[:, : text.shape[1]] = known
    cameras = ~windows.rays.isnan().any(dim=(2, 3, 4)) & kept(
        {"rollout": 0.15, "picture": 0.0, "sweep": 0.95}[kind]
    )
    return Conditions(
        text=room,
        text_known=known_room & kept(1 - training.drop_text),
        world=torch.where(kept(0.9)[:, 0], windows.world, torch.zeros_like(windows.world)),
        actions=windows.actions,
        actions_known=windows.follows & kept(1 - training.drop_actions if kind == "rollout" else 0.3),
        rays=windows.rays.nan_to_num(),
        rays_known=cameras,
    )


def loss_of(
    model: Transformer, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "b n"]]:
    """Total loss, the data loss alone, and each frame's mean squared error in data space."""
    noisy = add_noise(batch.data, batch.noise, batch.noise_level)
    found: Prediction = model(noisy, batch.noise_level, batch.conditions, batch.allowed)
    error = rearrange((found.data - batch.data).square(), "b n c y x -> b n (c y x)").mean(dim=-1)
    data_loss = (loss_weight(batch.noise_level) * error).mean()
    clean = (1 - batch.noise_level) * batch.conditions.actions_known
    reward = (clean * (found.reward - batch.rewards).square()).mean()
    ended = (
        clean * binary_cross_entropy_with_logits(found.terminated, batch.terminated, reduction="none")
    ).mean()
    log_error = (found.log_error - error.detach().clamp_min(1e-6).log()).square().mean()
    return data_loss + reward + 0.1 * ended + 0.01 * log_error, data_loss.detach(), error.detach()


def save(
    out: Path,
    ema: Transformer,
    tokenizer_folder: Path,
    data: LatentEpisodes,
    training: WorldTraining,
    clock: Clock,
) -> None:
    """A whole world model in `out`: both networks' weights and one config that says how they were made."""
    tokenizer = read_json(tokenizer_folder / CONFIG)
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
                "episodes": data.episodes,
                "frames": len(data.latents),
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
    sweep_weights: Annotated[tuple[float, ...], tyro.conf.arg(help="the same for camera sweeps")] = (),
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
    changes = {name: value for name, value in (("minutes", minutes), ("steps", steps)) if value is not None}
    training = replace(TRAININGS[preset], world_weights=world_weights, sweep_weights=sweep_weights, **changes)
    check_writable(out)
    torch.manual_seed(seed)
    where = torch.device(device)
    encoder = load_tokenizer(tokenizer, where)
    config = replace(PRESETS[preset], latent_channels=encoder.config.channels)
    episodes = load_latents(data, encoder, fingerprint(tokenizer / TOKENIZER_WEIGHTS), config.action_width)
    model = Transformer(config).to(where)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizers(model, training.matrix_rate, training.other_rate)
    clock = Clock(training.steps, training.minutes)
    if resume:
        saved = load_resume(out / RESUME)
        model.load_state_dict(saved["model"])
        ema.load_state_dict(saved["ema"])
        for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        clock.step, clock.earlier_s = saved["step"], saved["seconds"]
    out.mkdir(parents=True, exist_ok=True)
    with tracked_run("orrery-world", out.name, track) as run:
        run.params({"preset": preset, **asdict(training), **asdict(config)})
        fit(model, ema, optimizers, episodes, encoder, tokenizer, training, clock, seed, out, run, compile)
    return 0


def fit(
    model, ema, optimizers, episodes, encoder, tokenizer_folder, training, clock, seed, out, run, compiled
) -> None:
    """The loop. Every step's draw depends on the seed and the step alone, so a resumed run goes on as it
    would have."""
    where = next(model.parameters()).device
    text_tokens = -(-max(len(e) for e in episodes.text) // 8) * 8
    core = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    kinds, shares = ("rollout", "sweep", "picture"), [0.0, training.sweep_share, training.picture_share]
    shares[0] = 1 - sum(shares)
    bar = tqdm(
        total=1000, desc="world model", mininterval=10, bar_format="{desc} {percentage:3.0f}% {postfix}"
    )
    saved_s, averages, frames = clock.seconds, dict.fromkeys(kinds, float("nan")), 0
    while clock.progress < 1:
        rng = np.random.default_rng([seed, clock.step])
        kind = str(rng.choice(kinds, p=shares))
        batch = make_batch(episodes, training, kind, model.config.window, text_tokens, rng)
        batch = tree_map(lambda value: value.to(where), batch)
        set_rates(optimizers, rate_factor(clock.progress))
        with fast_precision(where):
            loss, data_loss, _ = core(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        clock.step += 1
        frames += batch.noise_level.numel()
        ema_update(ema, model, min(training.ema_decay, (1 + clock.step) / (10 + clock.step)))
        value = float(data_loss)
        averages[kind] = value if averages[kind] != averages[kind] else 0.98 * averages[kind] + 0.02 * value
        if clock.step % 50 == 0:
            bar.n = int(1000 * clock.progress)
            bar.set_postfix_str(
                f"step {clock.step} "
                + " ".join(f"{k} {v:.4f}" for k, v in averages.items())
                + f" left {clock.left_s / 60:.0f} min"
            )
            run.metrics({f"loss_{k}": v for k, v in averages.items()} | {"frames": frames}, clock.step)
        if clock.seconds - saved_s > 60 * training.save_minutes or clock.progress >= 1:
            saved_s = clock.seconds
            save(out, ema, tokenizer_folder, episodes, training, clock)
            save_resume(
                out / RESUME,
                {
                    "model": model.state_dict(),
                    "ema": ema.state_dict(),
                    "step": clock.step,
                    "seconds": clock.seconds,
                    "optimizers": [o.state_dict() for o in optimizers],
                },
            )
            with (out / "metrics.jsonl").open("a") as file:
                file.write(
                    json.dumps({"step": clock.step, "seconds": round(clock.seconds), **averages}) + "\n"
                )
            shown = WorldModel(
                WorldModelConfig(episodes.worlds, episodes.action_sizes, episodes.height, episodes.width),
                encoder,
                ema,
            )
            preview(out, shown, episodes, encoder, run)
    bar.close()
