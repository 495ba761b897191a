"""`python -m simulator.scaling`: does a larger model with more compute still get better, and how fast?

Models of several widths train on the same rollout batches, each with its own budget of arithmetic, a fixed
ratio above the one before (model and data grow together, Hoffmann et al. 2022). All are measured on the same
held-out windows under the same noise. The losses are fitted by a power law of compute.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.stats import t as student
from tqdm import tqdm

from simulator.batches import TRAININGS, Batch, WorldTraining, make_batch, text_room
from simulator.checkpoint import (
    check_writable,
    fingerprint,
    load_learner,
    read_json,
    save_learner,
    write_json,
)
from simulator.clips import held_out_episodes
from simulator.devices import device_named
from simulator.estimate import Shape, trace
from simulator.flow import loss_weight
from simulator.latents import LatentEpisodes, load_latents
from simulator.optim import Clock, Learner, make_optimizers, rate_factor, set_rates, take_step
from simulator.precision import fast_precision
from simulator.tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.tokenizer import load_tokenizer
from simulator.train import loss_of
from simulator.transformer import PRESETS, Transformer, TransformerConfig

MEASUREMENTS = 8  # of the held-out loss, evenly over a run


@dataclass(frozen=True)
class Trained:
    """One model of the series."""

    width: int
    parameters: int
    steps: int
    tflop: list[float]  # spent at each measurement
    losses: list[float]  # held out, there
    windows: list[float]  # the last loss, by held-out window

    @property
    def falling(self) -> bool:
        return self.losses[-1] < self.losses[-2]


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + factor * compute ** -exponent."""

    floor: float
    factor: float
    exponent: float
    interval: tuple[float, float]  # 95 %, of the exponent, given the floor
    error: float  # root mean square of the residuals of log(loss - floor)

    def at(self, compute: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return self.floor + self.factor * compute**-self.exponent


def fit_power_law(
    compute: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], floor: float = 0.0
) -> PowerLaw:
    """Least squares in logarithms above a given floor, with Student's interval of the slope.

    Raises ValueError for fewer than 3 points, or a floor that is not below all losses.
    """
    if len(compute) < 3:
        raise ValueError(f"a power law with an interval needs at least 3 points, got {len(compute)}")
    if floor >= loss.min():
        raise ValueError(f"floor must be below every loss ({loss.min():.4g}), got {floor:.4g}")
    x, y = np.log(compute), np.log(loss - floor)
    (slope, offset), n = np.polyfit(x, y, 1), len(x)
    residual = y - (slope * x + offset)
    spread = np.sqrt(residual @ residual / (n - 2) / ((x - x.mean()) ** 2).sum())
    half = float(student.ppf(0.975, n - 2) * spread)
    exponent = -float(slope)
    return PowerLaw(
        floor,
        float(np.exp(offset)),
        exponent,
        (exponent - half, exponent + half),
        float(np.sqrt((residual**2).mean())),
    )


def fit_with_floor(compute: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> PowerLaw:
    """The floor, too, by least squares: the loss that no compute takes away. Needs 4 points."""
    if len(compute) < 4:
        raise ValueError(f"a power law with a floor needs at least 4 points, got {len(compute)}")

    def error(floor: float) -> float:
        return fit_power_law(compute, loss, floor).error

    best = minimize_scalar(error, bounds=(0.0, 0.999 * float(loss.min())), method="bounded")
    floor = float(best.x) if best.fun < error(0.0) else 0.0
    return fit_power_law(compute, loss, floor)


def of_width(width: int, channels: int) -> TransformerConfig:
    """The small preset at another width: as deep, with heads of about 32 channels."""
    heads = max(2, 2 * round(width / 64))
    if width % heads or width // heads % 8:
        raise ValueError(
            f"--widths {width} does not split into {heads} heads of a multiple of 8 channels; "
            "use multiples of 64, or 48 or 96"
        )
    return replace(PRESETS["small"], latent_channels=channels, width=width, heads=heads, kv_heads=heads // 2)


def held_out_batches(
    data: LatentEpisodes, training: WorldTraining, window: int, text_tokens: int, windows: int
) -> list[Batch]:
    """Windows with their noise, the same for every model: all that could be told is told."""
    told = replace(training, drop_text=0.0, drop_actions=0.0)
    count = -(-windows // training.rollout_clips)
    return [
        make_batch(data, told, "rollout", window, text_tokens, np.random.default_rng([k, 900_000_000]))
        for k in range(count)
    ]


@torch.no_grad()
def held_out_losses(model: Transformer, batches: Sequence[Batch]) -> Float[np.ndarray, " windows"]:
    """The weighted squared error in data space of each window."""
    where = next(model.parameters()).device
    found = []
    for batch in batches:
        batch = batch.to(where)
        with fast_precision(where):
            _, _, error = loss_of(model, batch)
        found.append((loss_weight(batch.noise_level) * error).mean(dim=1).cpu().numpy())
    return np.concatenate(found)


def train_one(
    config: TransformerConfig,
    tflop: float,
    data: LatentEpisodes,
    held_out: Sequence[Batch],
    training: WorldTraining,
    out: Path,
    seed: int,
    where: torch.device,
) -> Trained:
    """Train one model for its budget, and measure it on the way. Goes on where a killed run stopped."""
    text_tokens = held_out[0].conditions.text.shape[1]
    height, width = data.latents.shape[-2:]
    shape = Shape(training.rollout_clips, config.window, height, width, text_tokens)
    traced = trace(config, shape)
    a_step = traced.total_flop / 1e12
    steps = max(MEASUREMENTS, round(tflop / a_step))
    torch.manual_seed(seed)
    model = Transformer(config).to(where)
    average = copy.deepcopy(model).requires_grad_(False)
    learner = Learner(
        model,
        average,
        make_optimizers(model, training.matrix_rate, training.other_rate),
        Clock(steps, 0.0),
    )
    resume, notes = out / f"width_{config.width}.resume.pt", out / f"width_{config.width}.partial.json"
    seen = read_json(notes) if resume.exists() else {"step": [], "loss": []}
    if resume.exists():
        load_learner(resume, learner)
    due = {round(steps * (k + 1) / MEASUREMENTS) for k in range(MEASUREMENTS)}
    windows = np.zeros(0)
    with tqdm(total=steps, initial=learner.clock.step, desc=f"width {config.width}", mininterval=10) as bar:
        while learner.clock.step < steps:
            rng = np.random.default_rng([seed, learner.clock.step])
            batch = make_batch(data, training, "rollout", config.window, text_tokens, rng)
            batch = batch.to(where)
            set_rates(learner.optimizers, rate_factor(learner.clock.progress))
            with fast_precision(where):
                loss, _, _ = loss_of(model, batch)
            loss.backward()
            take_step(learner, training.ema_decay)
            bar.update()
            if learner.clock.step in due:
                windows = held_out_losses(average, held_out)
                seen["step"].append(learner.clock.step)
                seen["loss"].append(float(windows.mean()))
                write_json(notes, seen)
                save_learner(resume, learner)
    spent = [step * a_step for step in seen["step"]]
    return Trained(config.width, traced.parameters, steps, spent, seen["loss"], windows.tolist())


def scaling(
    data: Annotated[Path, tyro.conf.arg(help="folder of recorded episodes")],
    held_out: Annotated[Path, tyro.conf.arg(help="folder of episodes with held-out seeds")],
    tokenizer: Annotated[Path, tyro.conf.arg(help="run folder of `orrery train tokenizer`")],
    out: Annotated[Path, tyro.conf.arg(help="run folder; what is there already is not trained again")],
    widths: Annotated[tuple[int, ...], tyro.conf.arg(help="of the models, growing")] = (48, 64, 96, 128, 192),
    tflop: Annotated[float, tyro.conf.arg(help="training arithmetic of the first, in TFLOP")] = 0.6,
    ratio: Annotated[float, tyro.conf.arg(help="of the next one's to it")] = 2.1,
    clips: Annotated[int, tyro.conf.arg(help="windows in a batch")] = 12,
    windows: Annotated[int, tyro.conf.arg(help="held-out windows to measure on")] = 48,
    picture: Annotated[Path | None, tyro.conf.arg(help="where to draw the result as well")] = None,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Train a series of models and fit how their held-out loss falls with compute."""
    if len(widths) < 4:
        raise ValueError(f"--widths needs at least 4 sizes to fit a law, got {len(widths)}")
    check_writable(out)
    where = device_named(device)
    configs = [of_width(width, load_tokenizer(tokenizer).config.channels) for width in widths]
    finished: list[Trained] = []
    missing = [config for config in configs if not (out / f"width_{config.width}.json").exists()]
    training = replace(TRAININGS["small"], rollout_clips=clips)
    if missing:
        encoder = load_tokenizer(tokenizer, where)
        version = fingerprint(tokenizer / TOKENIZER_WEIGHTS)
        width = configs[0].action_width
        episodes = load_latents(data, encoder, version, width)[0]
        others = load_latents(held_out, encoder, version, width, held_out_episodes)[0]
        if episodes.worlds != others.worlds:
            raise ValueError(
                f"--data has the worlds {', '.join(episodes.worlds)}, --held-out {', '.join(others.worlds)}; "
                "give folders with the same worlds"
            )
        text_tokens = max(text_room(episodes), text_room(others))
        batches = held_out_batches(others, training, configs[0].window, text_tokens, windows)
        out.mkdir(parents=True, exist_ok=True)
        for config in missing:
            budget = tflop * ratio ** widths.index(config.width)
            one = train_one(config, budget, episodes, batches, training, out, seed, where)
            write_json(out / f"width_{config.width}.json", asdict(one))
    finished = [Trained(**read_json(out / f"width_{width}.json")) for width in widths]
    compute = np.array([one.tflop[-1] for one in finished])
    loss = np.array([one.losses[-1] for one in finished])
    plain, floored = fit_power_law(compute, loss), fit_with_floor(compute, loss)
    for one in finished:
        print(
            f"width {one.width:4d}  {one.parameters / 1e6:6.2f}M parameters  {one.steps:5d} steps  "
            f"{one.tflop[-1]:7.1f} TFLOP  held-out loss {one.losses[-1]:.4f}  "
            f"{'still falling' if one.falling else 'not falling'}"
        )
    for path in filter(None, (out / "scaling.png", picture)):
        draw_scaling(path, finished, plain, floored)
    write_json(out / "scaling.json", {"plain": asdict(plain), "with_floor": asdict(floored)})
    low, high = plain.interval
    print(
        f"loss ~ compute^-{plain.exponent:.3f} [{low:.3f}, {high:.3f}] "
        f"over {compute[-1] / compute[0]:.0f} times the compute; "
        + (f"with a floor of {floored.floor:.3f}" if floored.floor else "no floor shows yet")
    )
    return 0


def draw_scaling(path: Path, finished: Sequence[Trained], plain: PowerLaw, floored: PowerLaw) -> None:
    """Held-out loss against compute: each model on its way, where it ended, and the fitted laws."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for k, one in enumerate(finished):
        colour = f"C{k}"
        axes.plot(one.tflop, one.losses, color=colour, lw=0.8, alpha=0.6)
        label = f"width {one.width}, {one.parameters / 1e6:.1f}M"
        axes.plot(one.tflop[-1], one.losses[-1], "o", color=colour, label=label)
    ends = np.array([one.tflop[-1] for one in finished])
    compute = np.geomspace(ends.min() / 1.5, ends.max() * 4, 100)
    low, high = plain.interval
    text = f"C$^{{-{plain.exponent:.3f}}}$ [{low:.3f}, {high:.3f}]"
    axes.plot(compute, plain.at(compute), "k--", lw=1, label=text)
    if floored.floor:
        text = f"{floored.floor:.3f} + {floored.factor:.2f} C$^{{-{floored.exponent:.2f}}}$"
        axes.plot(compute, floored.at(compute), "k:", lw=1, label=text)
    axes.set(xscale="log", yscale="log", xlabel="training compute, TFLOP", ylabel="held-out loss")
    axes.legend(fontsize=8)
    axes.set_title("Rollout loss on held-out episodes, same noise for all", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    tyro.cli(scaling)
