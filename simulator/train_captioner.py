"""`orrery train captioner`: fit the captioner to recorded episodes. One visible loop: draw clips of latents,
find, compare, step."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from simulator import flags
from simulator.captioner import CONFIG, PRESETS, Captioner, Found, load_captioner, save_captioner
from simulator.checkpoint import PRETRAINED, check_writable, code_version, fingerprint
from simulator.clips import training_episodes
from simulator.devices import device_named
from simulator.interrupts import between_steps
from simulator.optim import Clock, Learner, make_optimizers, rate_factor, set_rates, take_step
from simulator.precision import fast_precision
from simulator.progress import shown
from simulator.sightings import ABSENT, ALL_KINDS, SEEN, UNCLEAR, SeenLatents, load_sightings
from simulator.tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.tokenizer import Latents, load_tokenizer
from simulator.words import WORLDS

LAB = WORLDS.index("Lab")
OCCLUDED = ALL_KINDS.index("occluder")
OVERSHOT = 1.2  # of a change's length: how far its steps go together, before it is cut to it


@dataclass(frozen=True)
class CaptionerTraining:
    frames_a_step: int = 128  # so many single frames, or fewer clips of some
    steps: int = 100_000  # at most; 0: any number
    minutes: float = 8.0  # of training, at most; 0: any number
    matrix_rate: float = 3e-3  # Muon's learning rate
    other_rate: float = 2e-3  # AdamW's learning rate
    latent_noise: float = 0.3  # standard deviation, at most; what video files and dreams do to latents
    against: float = 0.0  # length, at most, of changes made against it (see `changed_against`)
    spared: float = 0.25  # share of single frames that are not changed so
    from_start: float = 0.4  # share of clips that begin at the episode's first frame
    longest: int = 40  # frames from a clip's first to its last, at most
    ema_decay: float = 0.998


TRAININGS = {
    "tiny": CaptionerTraining(frames_a_step=32, steps=60, minutes=1.0),
    "small": CaptionerTraining(),
    "base": CaptionerTraining(frames_a_step=1024, minutes=60.0),
}


class Lesson(NamedTuple):
    """A batch of clips and what is true of them; -1 where it is not known."""

    latents: Latents
    at_first: Int[Tensor, "b colours"]
    at_all: Int[Tensor, "b colours"]
    shape: Int[Tensor, "b colours"]
    size: Int[Tensor, "b colours"]
    place: Float[Tensor, "b colours 2"]
    around: Int[Tensor, "b 4"]  # world, kind, floor, wall


def draw_lesson(
    data: SeenLatents, training: CaptionerTraining, frames: int, rng: np.random.Generator
) -> Lesson:
    """Clips of so many frames, worlds alike; the first ones of an episode more often than chance.

    What happens in Lab can be told only from its start; the wall ahead is known at the first frame only.
    """
    rows: dict[str, list] = {name: [] for name in Lesson._fields}
    worlds = np.array([s.world for s in data.sightings])
    by_world = [np.flatnonzero(worlds == w) for w in np.unique(worlds)]
    for _ in range(max(1, training.frames_a_step // frames)):
        episode = int(rng.choice(by_world[rng.integers(len(by_world))]))
        truth, latents = data.sightings[episode], data.latents[episode]
        last = len(latents) - 1
        lab, at_start = truth.world == LAB, rng.random() < training.from_start
        first = (
            0 if at_start or last < frames else int(rng.integers(min(5, last) if lab else last - frames + 1))
        )
        first = 0 if truth.kind == OCCLUDED else first
        end = int(rng.integers(min(first + frames - 1, last), min(last, first + training.longest) + 1))
        picked = np.linspace(first, end, frames).round().astype(int)
        seen = truth.seen[picked]
        some = np.where(
            (seen == SEEN).any(axis=0), SEEN, np.where((seen == ABSENT).all(axis=0), ABSENT, UNCLEAR)
        )
        some = np.where(truth.seen[0] == SEEN, SEEN, some) if truth.kind == OCCLUDED else some
        there = some == SEEN
        rows["latents"].append(latents[picked])
        rows["at_first"].append(seen[0])
        rows["at_all"].append(some)
        rows["shape"].append(np.where(there, truth.shape, -1))
        rows["size"].append(np.where(there, truth.size, -1))
        rows["place"].append(np.stack([truth.x[first], np.log(truth.depth_m[first].clip(0.05))], axis=-1))
        kind = truth.kind if frames > 1 or not lab else -1
        rows["around"].append([truth.world, kind, truth.floor, truth.wall if first == 0 else -1])
    return Lesson(*(torch.from_numpy(np.stack(column)) for column in rows.values()))


def loss_of(found: Found, lesson: Lesson) -> Float[Tensor, ""]:
    """Everything that is known, each part on its own scale."""

    def classes(logits: Tensor, truth: Tensor) -> Tensor:
        known = (truth >= 0).sum().clamp(min=1)
        flat = logits.flatten(0, -2)
        return F.cross_entropy(flat, truth.flatten(), ignore_index=-1, reduction="sum") / known

    def presence(logits: Tensor, truth: Tensor) -> Tensor:
        known = truth != UNCLEAR
        return F.binary_cross_entropy_with_logits(logits[known], truth[known].float())

    there = lesson.at_first == SEEN
    place = F.smooth_l1_loss(found.place[there], lesson.place[there].float(), beta=0.1)
    parts = [
        4 * presence(found.at_first, lesson.at_first),
        4 * presence(found.at_all, lesson.at_all),
        2 * place,
    ]
    parts += [classes(found.shape, lesson.shape), 0.5 * classes(found.size, lesson.size)]
    around = (found.world, found.kind, found.floor, found.wall)
    parts += [0.5 * classes(logits, lesson.around[:, k]) for k, logits in enumerate(around)]
    return torch.stack(parts).sum()


def changed_against(
    model: Captioner, latents: Latents, lesson: Lesson, lengths: Float[Tensor, " b"], steps: int = 2
) -> Latents:
    """Changes of latents, up to these lengths (L2), under which the captioner reads them wrong, found by
    gradient ascent (Madry et al. 2018). Without them as lessons it is led by changes that nobody else sees;
    one that withstands them has to be shown the thing (Santurkar et al. 2019)."""
    radius, change = lengths[:, None, None, None, None], torch.zeros_like(latents)
    for _ in range(steps):
        change.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_of(model(latents + change), lesson), change)
        with torch.no_grad():
            change = change + OVERSHOT / steps * radius * gradient / _length(gradient)
            change = change * (radius / _length(change)).clamp(max=1)
    return change.detach()


def _length(change: Latents) -> Float[Tensor, "b 1 1 1 1"]:
    return change.square().sum(dim=(1, 2, 3, 4), keepdim=True).sqrt().clamp(min=1e-12)


def train_captioner(
    data: flags.Data,
    tokenizer: Annotated[Path, tyro.conf.arg(help="folder of the tokenizer whose latents are read")],
    out: Annotated[Path, tyro.conf.arg(help="folder to write")],
    preset: Annotated[str, tyro.conf.arg(help="tiny, small or base")] = "small",
    minutes: flags.Minutes = None,
    steps: flags.Steps = None,
    start_from: flags.StartFromCaptioner = None,
    rate_scale: flags.RateScale = 1.0,
    against: flags.Against = 0.0,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Train the captioner on recorded episodes of the reference worlds."""
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    training = replace(TRAININGS[preset], against=against, **flags.bounds(minutes, steps))
    if not 0 <= against < math.inf:
        raise ValueError(f"--against is a length, 0 or more, got {against}")
    check_writable(out)
    if (out / CONFIG).exists():
        raise ValueError(f"--out {out} holds a captioner already ({CONFIG}); give another --out")
    torch.manual_seed(seed)
    rng, where = np.random.default_rng(seed), device_named(device)
    encoder = load_tokenizer(tokenizer, where)
    version = fingerprint(tokenizer / TOKENIZER_WEIGHTS)
    model = Captioner(PRESETS[preset].of(encoder.config.channels)).to(where)
    if start_from is not None:
        model = load_captioner(PRETRAINED if str(start_from) == "default" else start_from, encoder)
        model.train().requires_grad_(True)
    side = model.config.grid * encoder.config.space_factor
    episodes = load_sightings(training_episodes(data), encoder, version, side)
    average = copy.deepcopy(model).requires_grad_(False)
    rates = (rate_scale * training.matrix_rate, rate_scale * training.other_rate)
    optimizers = make_optimizers(model, *rates)
    learner = Learner(model, average, optimizers, Clock(training.steps, training.minutes))
    out.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        made = {"episodes": len(episodes.latents), "steps": learner.clock.step, "seed": seed}
        made |= {"minutes": round(learner.clock.seconds / 60, 1), "code": code_version()}
        save_captioner(out, learner.ema, encoder, made | {"training": asdict(training)})

    with between_steps(learner.clock, then=f"{out} holds what it had learned") as asked_to_stop:
        fit(learner, episodes, training, rng, out, asked_to_stop)
        save()
    return 0


def fit(
    learner: Learner[Captioner],
    episodes: SeenLatents,
    training: CaptionerTraining,
    rng: np.random.Generator,
    out: Path,
    asked_to_stop: Callable[[], bool],
) -> None:
    """The loop. Single frames and clips take turns."""
    model, clock = learner.model, learner.clock
    where = next(model.parameters()).device
    with shown("captioner", clock) as show:
        while clock.progress < 1 and not asked_to_stop():
            frames = 1 if clock.step % 2 else model.config.frames
            lesson = Lesson(*(part.to(where) for part in draw_lesson(episodes, training, frames, rng)))
            latents = lesson.latents.float()
            noise = training.latent_noise * torch.rand_like(latents[:, :1, :1, :1, :1])
            latents = latents + noise * torch.randn_like(latents)
            set_rates(learner.optimizers, rate_factor(clock.progress))
            if frames == 1 and training.against:
                chance = torch.rand(2, len(latents), device=where)
                lengths = training.against * chance[0] * (chance[1] >= training.spared)
                latents = latents + changed_against(model, latents, lesson, lengths)
            with fast_precision(where):
                found = model(latents)
            loss = loss_of(found, lesson)
            loss.backward()
            take_step(learner, training.ema_decay)
            if clock.step % 50 == 0:
                show(f"loss {loss.item():.3f}")
                line = {"step": clock.step, "seconds": round(clock.seconds), "loss": round(loss.item(), 4)}
                with (out / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
