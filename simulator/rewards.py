"""`orrery eval --table rewards`: are a dream's rewards those that the true env gives for the same actions?

The dream starts at the true first frame. Returns are sums of rewards up to a step; that they rank episodes as
the truth does (Spearman) is what choosing between plans in a dream rests on. 95 % intervals by bootstrap over
episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from simulator.calibration import BATCH, DRAWS, STEPS, spearman
from simulator.clips import Episode
from simulator.world_model import WorldModel


@dataclass(frozen=True)
class Rewards:
    """Correlations as (value, low, high)."""

    world: str
    step: int
    episodes: int
    reward: tuple[float, float, float]  # with the true one at this step, Pearson
    returns: tuple[float, float, float]  # with the true sum up to this step, Spearman
    true_return: float  # mean over episodes
    error: float  # of the dream's return: root mean square
    spread: float  # of the true return: standard deviation, the error of always guessing its mean


def rewards(model: WorldModel, world: str, episodes: list[Episode]) -> list[Rewards]:
    """Dreamt against true rewards at each step, over these episodes."""
    dreamt = []
    for start in range(0, len(episodes), BATCH):
        rows = episodes[start : start + BATCH]
        prompts, seeds = [e.prompt or None for e in rows], [e.seed for e in rows]
        state, _, _ = model.start(prompts, world, seeds, images=np.stack([e.frames[0] for e in rows]))
        found = []
        for k in range(max(STEPS)):
            state, _, reward, *_ = model.step(state, np.stack([e.actions[k] for e in rows]))
            found.append(reward)
        dreamt.append(np.stack(found, axis=1))
    truth = np.stack([e.rewards[: max(STEPS)] for e in episodes])
    return [row_of(world, step, np.concatenate(dreamt), truth) for step in STEPS]


def row_of(
    world: str, step: int, dreamt: Float[np.ndarray, "n steps"], truth: Float[np.ndarray, "n steps"]
) -> Rewards:
    """The row of one step, from the rewards of all."""
    returns, true_returns = dreamt[:, :step].sum(axis=1), truth[:, :step].sum(axis=1)
    return Rewards(
        world,
        step,
        len(truth),
        _with_interval(pearson, dreamt[:, step - 1], truth[:, step - 1]),
        _with_interval(spearman, returns, true_returns),
        float(true_returns.mean()),
        float(((returns - true_returns) ** 2).mean() ** 0.5),
        float(true_returns.std()),
    )


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Linear correlation; NaN where one of them does not vary."""
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else float("nan")


def _with_interval(
    of: Callable[[np.ndarray, np.ndarray], float], a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]
) -> tuple[float, float, float]:
    picks = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
    draws = np.array([of(a[pick], b[pick]) for pick in picks])
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return of(a, b), float(low), float(high)


def _shown(correlation: tuple[float, float, float]) -> str:
    value, low, high = correlation
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(value) else "the truth does not vary"


def table(rows: list[Rewards]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| world (episodes) | step | correlation with the true reward | rank correlation of returns so far "
        "| true return | error of the dreamt (of guessing the mean) |",
        "|---" * 6 + "|",
    ]
    for r in rows:
        reward, returns = (_shown(each) for each in (r.reward, r.returns))
        lines.append(
            f"| {r.world} ({r.episodes}) | {r.step} | {reward} | {returns} "
            f"| {r.true_return:.2f} | {r.error:.2f} ({r.spread:.2f}) |"
        )
    return "\n".join(lines)
