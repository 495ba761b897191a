"""`orrery eval --table uncertainty`: does a dream know when it is wrong?

Rank correlation (Spearman) across held-out episodes between the uncertainty that the dream gives at one step
and its true error there, at a fixed step, so that counting steps earns nothing; 95 % intervals by bootstrap
over episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from simulator.clips import Episode
from simulator.world_model import WorldModel

STEPS = (1, 4, 16)
BATCH = 16
FEWEST = 8  # episodes that are ranked
DRAWS = 1000


@dataclass(frozen=True)
class Calibration:
    world: str
    step: int
    episodes: int
    correlation: float
    low: float
    high: float
    surest: float  # root mean square error of the surest quarter of the episodes, grey levels
    least_sure: float  # of the least sure quarter


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0; equal values share theirs."""
    order = np.sort(values)
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right") - 1) / 2


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Rank correlation; NaN where one of them does not vary."""
    a, b = ranks(a), ranks(b)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else float("nan")


def calibrations(model: WorldModel, world: str, episodes: list[Episode]) -> list[Calibration]:
    """Uncertainty against error at each step, over these episodes."""
    said, erred = [], []
    for start in range(0, len(episodes), BATCH):
        rows = episodes[start : start + BATCH]
        state, _, _ = model.start(
            [e.prompt or None for e in rows],
            world,
            [e.seed for e in rows],
            images=np.stack([e.frames[0] for e in rows]),
        )
        uncertainties, errors = [], []
        for k in range(max(STEPS)):
            state, video, *_, uncertainty = model.step(state, np.stack([e.actions[k] for e in rows]))
            truth = np.stack([e.frames[(k + 1) * model.frames_per_step] for e in rows]).astype(float)
            uncertainties.append(uncertainty)
            errors.append(((video[:, -1] - truth) ** 2).mean(axis=(1, 2, 3)) ** 0.5)
        said.append(np.stack(uncertainties, axis=1))
        erred.append(np.stack(errors, axis=1))
    said, erred = np.concatenate(said), np.concatenate(erred)
    return [row_of(world, step, said[:, step - 1], erred[:, step - 1]) for step in STEPS]


def row_of(
    world: str, step: int, said: Float[np.ndarray, " n"], erred: Float[np.ndarray, " n"]
) -> Calibration:
    rng, n = np.random.default_rng(0), len(said)
    draws = [spearman(said[pick], erred[pick]) for pick in rng.integers(n, size=(DRAWS, n))]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    order, quarter = np.argsort(said), max(1, n // 4)
    sure, unsure = erred[order[:quarter]], erred[order[-quarter:]]
    means = (float((part**2).mean() ** 0.5) for part in (sure, unsure))
    return Calibration(world, step, n, spearman(said, erred), float(low), float(high), *means)


def table(rows: list[Calibration]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| world (episodes) | step | rank correlation with the error | error of the surest quarter "
        "| of the least sure |",
        "|---" * 5 + "|",
    ]
    for r in rows:
        if r.episodes < FEWEST:
            few = f"cannot judge: {r.episodes} episodes, {FEWEST} or more are needed"
            lines.append(f"| {r.world} ({r.episodes}) | {r.step} | {few} | | |")
            continue
        lines.append(
            f"| {r.world} ({r.episodes}) | {r.step} | {r.correlation:.2f} [{r.low:.2f}, {r.high:.2f}] "
            f"| {r.surest:.1f} | {r.least_sure:.1f} |"
        )
    return "\n".join(lines)
