"""`orrery eval`: how true a world model's dreams are to held-out episodes.

Each dream gets the true first frame (or a longer context) and its prompt, then the true actions. It is
compared with the true frames, beside repeating the last frame that it was given (what a model must beat) and
the tokenizer's own reconstruction (what it cannot beat).
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from recon3d.cameras import Cameras
from simulator import calibration, drift, rewards
from simulator.canvas import check_size
from simulator.checkpoint import check_writable, write_json
from simulator.clips import HELD_OUT_SEED, Episode, held_out, list_episodes, read_episode
from simulator.latents import world_name
from simulator.metrics import psnr, sharpness, ssim
from simulator.video import IMAGE_SUFFIXES, write_image
from simulator.world_model import WorldModel

STEPS = (1, 4, 16)
CHANGED = 8  # of 255: a pixel that differs more from the first frame has changed
BATCH = 16


@dataclass(frozen=True)
class Row:
    """Means over episodes at one step; decibels unless said otherwise."""

    world: str
    step: int
    episodes: int
    psnr: float
    interval: float  # half width of the 95 % interval of psnr
    copy: float  # PSNR of repeating the first frame
    ceiling: float  # PSNR of the tokenizer's reconstruction
    ssim: float  # in [-1, 1]
    copy_ssim: float
    changed_share: float  # of the pixels, percent
    changed_psnr: float  # on these
    changed_copy: float
    seen_share: float  # of the pixels, percent: what the first frame shows too, by depth; NaN without depth
    seen_psnr: float  # on these
    seen_copy: float
    sharpness: float  # ratio to the truth
    shuffled: float  # mean squared error with another episode's actions over that with the true ones


def dream(
    model: WorldModel,
    world: str,
    episodes: list[Episode],
    actions: Float[np.ndarray, "b steps a"],
    context: int = 1,
) -> UInt8[np.ndarray, "b t h w 3"]:
    """Roll out from each episode's prompt and its first `context` control steps under the given actions. The
    first frame is the last of these."""
    first = np.stack([episode.frames[0] for episode in episodes])
    seeds = [episode.seed for episode in episodes]
    state, frames, _ = model.start(
        [episode.prompt or None for episode in episodes], world, seeds, images=first
    )
    for step in range(context - 1):
        seen = slice(1 + step * model.frames_per_step, 1 + (step + 1) * model.frames_per_step)
        frames = np.stack([episode.frames[seen] for episode in episodes])
        state = model.observe(state, frames, np.stack([episode.actions[step] for episode in episodes]))
    found = [frames[:, -1:]]
    for step in range(actions.shape[1]):
        state, frames, *_ = model.step(state, actions[:, step])
        found.append(frames)
    return np.concatenate(found, axis=1)


def dreams_of(
    model: WorldModel, world: str, episodes: list[Episode], context: int = 1
) -> tuple[np.ndarray, ...]:
    """Truth, dreams, dreams under the next episode's actions, and reconstructions; b t h w 3 each, from the
    last frame of the context on."""
    horizon, past = max(STEPS), context - 1
    factor = model.frames_per_step
    truth = np.stack([e.frames[past * factor : (past + horizon) * factor + 1] for e in episodes])
    actions = np.stack([episode.actions[past : past + horizon] for episode in episodes])
    dreamed, shuffled, rebuilt = [], [], []
    for start in tqdm(range(0, len(episodes), BATCH), desc=f"dreaming {world}", mininterval=2):
        batch, rows = episodes[start : start + BATCH], slice(start, start + BATCH)
        dreamed.append(dream(model, world, batch, actions[rows], context))
        others = np.roll(actions, 1, axis=0)[rows, : STEPS[1]]
        shuffled.append(dream(model, world, batch, others, context))
        rebuilt.append(model.rebuilt(truth[rows]))
    return truth, np.concatenate(dreamed), np.concatenate(shuffled), np.concatenate(rebuilt)


def compare(world: str, step: int, frame: int, seen, truth, dreamed, shuffled, rebuilt) -> Row:
    """One row of the table: everything at exactly one step."""
    here, first, made = truth[:, frame], truth[:, 0], dreamed[:, frame]
    changed = (np.abs(here.astype(int) - first.astype(int)) > CHANGED).any(axis=-1)
    score = psnr(made, here)
    ratio = float("nan")
    if frame < shuffled.shape[1]:
        error, other = ((here / 255.0 - x[:, frame] / 255.0) ** 2 for x in (dreamed, shuffled))
        ratio = float(other.mean() / error.mean())
    return Row(
        world=world,
        step=step,
        episodes=len(score),
        psnr=float(score.mean()),
        interval=float(1.96 * score.std(ddof=1) / len(score) ** 0.5) if len(score) > 1 else float("nan"),
        copy=float(psnr(first, here).mean()),
        ceiling=float(psnr(rebuilt[:, frame], here).mean()),
        ssim=float(ssim(made, here).mean()),
        copy_ssim=float(ssim(first, here).mean()),
        changed_share=float(100 * changed.mean()),
        changed_psnr=mean_of_some(psnr(made, here, changed)),
        changed_copy=mean_of_some(psnr(first, here, changed)),
        seen_share=float(100 * seen.mean()) if seen.any() else float("nan"),
        seen_psnr=mean_of_some(psnr(made, here, seen)),
        seen_copy=mean_of_some(psnr(first, here, seen)),
        sharpness=float(sharpness(made, here).mean()),
        shuffled=ratio,
    )


def mean_of_some(values: Float[np.ndarray, " n"]) -> float:
    """The mean of those that are numbers; NaN where none is."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def seen_in(episode: Episode, first: int, frame: int) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a frame show a surface that the context's last frame, the `first` here, shows too.

    Their points, by true depth, fall into that picture at the depth found there (to 5 % or 5 cm). None
    where depth or cameras are missing.
    """
    height, width = episode.frames.shape[1:3]
    if episode.depth is None or episode.K is None or episode.c2w is None:
        return np.zeros((height, width), bool)
    pose = torch.from_numpy(episode.c2w[[first, frame]])
    cameras = Cameras(torch.from_numpy(episode.K).expand(2, 3, 3), pose, height, width)
    depth = torch.from_numpy(episode.depth[[first, frame]].astype(np.float32))
    places, there = cameras[0].project(rearrange(cameras.unproject(depth)[1], "h w c -> (h w) c"))
    x, y = places[0].floor().long().unbind(dim=-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (there[0] > 0)
    found = depth[0][y.clamp(0, height - 1), x.clamp(0, width - 1)]
    same = (found - there[0]).abs() < (0.05 * found).clamp_min(0.05)
    return rearrange(inside & same, "(h w) -> h w", h=height).numpy()


def picture(truth: np.ndarray, dreamed: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Two episodes, each the truth above and the dream below, at every other step."""
    stride = 2 * (truth.shape[1] - 1) // max(STEPS)
    rows = [np.concatenate(list(clip[::stride]), axis=1) for b in range(2) for clip in (truth[b], dreamed[b])]
    return np.concatenate(rows)


def held_out_episodes(model: WorldModel, data: Path, context: int = 1) -> dict[str, list[Episode]]:
    """Held-out episodes of the model's frames per step and long enough for the steps that are judged after
    the context, by world. Raises ValueError if there are none, or some of seeds that are not held out."""
    by_world: dict[str, list[Episode]] = defaultdict(list)
    needed = max(STEPS) + context - 1
    for path in list_episodes(data):
        if not held_out(path):
            raise ValueError(
                f"{path} is not held out: fidelity needs seeds of {HELD_OUT_SEED} and above; "
                "record them with `orrery record ENV_ID --held-out`"
            )
        episode = read_episode(path)
        name = world_name(episode.env_id)
        pixels = episode.frames.shape[1:3] == (model.height, model.width)
        fits = pixels and episode.frames_per_step == model.frames_per_step
        if name in model.worlds and fits and len(episode.actions) >= needed:
            by_world[name].append(episode)
    if not by_world:
        raise ValueError(
            f"--data {data} has no episode of {needed} steps of {model.frames_per_step} frames, "
            f"{model.height}x{model.width} pixels each, in a world of this model "
            f"({', '.join(model.worlds)}); record some with `orrery record ENV_ID --held-out "
            f"--height {model.height} --width {model.width} --frames-per-step {model.frames_per_step}`"
        )
    return by_world


def measure(model: WorldModel, data: Path, context: int = 1) -> tuple[list[Row], UInt8[np.ndarray, "h w 3"]]:
    """Fidelity of every world of which `data` holds held-out episodes, and a picture of some of them."""
    rows, pictures = [], []
    for world, episodes in sorted(held_out_episodes(model, data, context).items()):
        parts = dreams_of(model, world, episodes, context)
        for step in STEPS:
            frame, first = step * model.frames_per_step, (context - 1) * model.frames_per_step
            seen = np.stack([seen_in(episode, first, first + frame) for episode in episodes])
            rows.append(compare(world, step, frame, seen, *parts))
        pictures.append(picture(*parts[:2]))
    return rows, np.concatenate(pictures)


def fidelity_table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| world | step | PSNR dB | copy | gain | ceiling | SSIM | copy | changed % "
        "| PSNR there | copy there | gain there | seen % | PSNR there | gain there | sharpness "
        "| shuffled ratio |",
        "|---" * 17 + "|",
    ]
    for r in rows:
        line = (
            f"| {r.world} ({r.episodes}) | {r.step} | {r.psnr:.2f} ± {r.interval:.2f} | {r.copy:.2f} "
            f"| {r.psnr - r.copy:+.2f} | {r.ceiling:.1f} | {r.ssim:.3f} | {r.copy_ssim:.3f} "
            f"| {r.changed_share:.1f} | {r.changed_psnr:.2f} | {r.changed_copy:.2f} "
            f"| {r.changed_psnr - r.changed_copy:+.2f} | {r.seen_share:.0f} | {r.seen_psnr:.2f} "
            f"| {r.seen_psnr - r.seen_copy:+.2f} | {r.sharpness:.2f} | {r.shuffled:.2f} |"
        )
        lines.append(re.sub(r"(± )?[+-]?\bnan\b", "", line))  # nothing to measure
    return "\n".join(lines)


@dataclass(frozen=True)
class Setting:
    """How a rollout's steps are sampled, and what comes of it in one world."""

    steps: int
    power: float
    large_steps: bool
    commit: bool
    pulled: bool  # by words or actions, as the model is set
    world: str
    rows: tuple[Row, ...]
    ms: float  # wall time of one step of one row


def settings(model: WorldModel, data: Path) -> list[Setting]:
    """Quality and cost of few and of more sampler steps, spaced evenly or densely near clean."""
    found = []
    for world, longer in sorted(held_out_episodes(model, data).items()):
        episodes = longer[:COMPARED]
        for setting in SETTINGS:
            names = ("sampler_steps", "schedule_power", "large_steps", "commit")
            asked = model.with_config(**dict(zip(names, setting[:4], strict=True)))
            if not setting[4]:
                asked = asked.with_config(word_guidance={}, action_guidance={})
            parts = dreams_of(asked, world, episodes)
            nothing = np.zeros(parts[0].shape[:1] + parts[0].shape[2:4], bool)
            rows = (compare(world, step, step * model.frames_per_step, nothing, *parts) for step in STEPS)
            began = time.perf_counter()
            dream(asked, world, episodes[:1], episodes[0].actions[None, : max(STEPS)])
            ms = 1000 * (time.perf_counter() - began) / (max(STEPS) + 1)
            found.append(Setting(*setting, world, tuple(rows), ms))
    return found


COMPARED = 24  # episodes of a world
SETTINGS = (  # steps, power, told how far they lead, a call of its own to keep the past, pulled
    (1, 1.0, False, True, True),
    *((1, 1.0, large, True, False) for large in (False, True)),
    *((2, 2.0, large, True, False) for large in (False, True)),
    *((2, 4.0, large, False, False) for large in (False, True)),
    *((4, 2.0, large, False, False) for large in (False, True)),
    (4, 4.0, False, True, False),
    (4, 10.0, False, True, False),
    (8, 1.0, False, True, False),
)


def settings_table(found: list[Setting]) -> str:
    """The settings as a Markdown table."""
    heads = " | ".join(f"gain at {step} | sharpness" for step in STEPS)
    lines = [
        f"| world (episodes) | sampler steps | power | large steps | commit | pulled | {heads} | ms |",
        "|---" * (7 + 2 * len(STEPS)) + "|",
    ]
    for s in found:
        gains = " | ".join(f"{r.psnr - r.copy:+.2f} | {r.sharpness:.2f}" for r in s.rows)
        lines.append(
            f"| {s.world} ({s.rows[0].episodes}) | {s.steps} | {s.power:g} "
            f"| {'yes' if s.large_steps else 'no'} | {'yes' if s.commit else 'no'} "
            f"| {'yes' if s.pulled else 'no'} | {gains} | {s.ms:.0f} |"
        )
    return "\n".join(lines)


def asked_model(
    checkpoint: str,
    device: str,
    size: tuple[int | None, int | None],
    averaging: bool,
    steps: int | None,
    action_guidance: float | None,
) -> WorldModel:
    """The checkpoint under the settings that are asked for. size: height and width, None as it was trained.
    Raises ValueError for a size that its tokenizer cannot divide, and a pull out of range."""
    if action_guidance is not None and not 0 < action_guidance < 10:
        raise ValueError(f"--action-guidance must lie between 0 and 10, got {action_guidance}")
    model = WorldModel.load(checkpoint, device)
    height, width = size[0] or model.height, size[1] or model.width
    check_size(height, width, model.size_unit)
    model = model.with_config(height=height, width=width)
    model = model.averaging() if averaging else model
    if steps is not None:
        model = model.with_config(sampler_steps=steps)
    if action_guidance is not None:
        model = model.with_config(action_guidance=dict.fromkeys(model.worlds, action_guidance))
    return model


Table = Literal["fidelity", "drift", "uncertainty", "rewards", "sampler"]


def evaluate(
    checkpoint: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(help="'default' or a folder of `orrery train world`")
    ],
    data: Annotated[
        Path, tyro.conf.arg(help="folder of held-out episodes (`orrery record ENV_ID --held-out`)")
    ],
    table: Annotated[
        Table,
        tyro.conf.arg(
            help="fidelity at 1, 4 and 16 steps; drift of rollouts that go on to 256; uncertainty against "
            "the true error; rewards and returns against the true ones; or the sampler's settings compared"
        ),
    ] = "fidelity",
    out: Annotated[Path | None, tyro.conf.arg(help="also write the rows as JSON to this file")] = None,
    image: Annotated[
        Path | None, tyro.conf.arg(help="also write a picture, truth above dream, to this .png")
    ] = None,
    context: Annotated[
        int, tyro.conf.arg(help="true control steps before the dream; 1 is the first frame alone")
    ] = 1,
    height: Annotated[
        int | None, tyro.conf.arg(help="pixels of the recordings that are taken, instead of the model's own")
    ] = None,
    width: Annotated[int | None, tyro.conf.arg(help="the same")] = None,
    steps: Annotated[int | None, tyro.conf.arg(help="sampler steps, instead of the checkpoint's")] = None,
    averaging: Annotated[
        bool, tyro.conf.arg(help="go to the mean of what may come: higher PSNR, blurred further on")
    ] = False,
    action_guidance: Annotated[
        float | None,
        tyro.conf.arg(
            help="how strongly actions pull once all is in doubt (a fifth of it at first), in all worlds, "
            "instead of the checkpoint's setting in its config.json: 1 is not at all, 1.5 much"
        ),
    ] = None,
    device: str = "cpu",
) -> int:
    """Held-out fidelity: dreams against true continuations, beside copying the first frame."""
    for path in (out, image):
        if path is not None:
            check_writable(path.parent)
    if image is not None and image.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"--image {image} must end in {', '.join(IMAGE_SUFFIXES)}")
    if image is not None and table != "fidelity":
        raise ValueError(f"--image goes with --table fidelity, not with {table}")
    if context < 1 or (context > 1 and table != "fidelity"):
        raise ValueError(f"--context must be 1, or more with --table fidelity, got {context} with {table}")
    model = asked_model(checkpoint, device, (height, width), averaging, steps, action_guidance)
    if table == "fidelity":
        rows, pictures = measure(model, data, context)
        print(fidelity_table(rows))
        if image is not None:
            write_image(image, pictures, scale=2)
    elif table == "sampler":
        rows = settings(model, data)
        print(settings_table(rows))
    else:
        part, show = {
            "drift": (drift.drifts, drift.table),
            "uncertainty": (calibration.calibrations, calibration.table),
            "rewards": (rewards.rewards, rewards.table),
        }[table]
        rows = [
            row
            for world, episodes in sorted(held_out_episodes(model, data).items())
            for row in part(model, world, episodes)
        ]
        print(show(rows))
    if out is not None:
        write_json(out, [asdict(row) for row in rows])
    return 0
