"""`orrery eval --table uncertainty`: does a dream know when it is wrong?

Rank correlation (Spearman) across held-out episodes between the uncertainty that the dream gives at one step
and its true error there, at a fixed step, so that counting steps earns nothing; 95 % intervals by bootstrap
over episodes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float

from simulator import doubt
from simulator.clips import Episode, list_episodes, read_episode
from simulator.latents import world_name
from simulator.state import State
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
    expected: float  # error, mean over the episodes, grey levels
    true: float
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


def rollouts(
    model: WorldModel, world: str, episodes: list[Episode], steps: int
) -> Iterator[
    tuple[State, Float[np.ndarray, " b"], Float[np.ndarray, "b h w c"], Float[np.ndarray, "b h w c"]]
]:
    """Of every step of some episodes at a time, dreamt from their first frames under their actions: the state
    after it, the uncertainty, the last frame, and the true one."""
    for start in range(0, len(episodes), BATCH):
        rows = episodes[start : start + BATCH]
        first, seeds = np.stack([e.frames[0] for e in rows]), [e.seed for e in rows]
        state, _, _ = model.start([e.prompt or None for e in rows], world, seeds, images=first)
        for k in range(steps):
            state, video, *_, uncertainty = model.step(state, np.stack([e.actions[k] for e in rows]))
            truth = np.stack([e.frames[(k + 1) * model.frames_per_step] for e in rows])
            yield state, uncertainty, video[:, -1].astype(float), truth.astype(float)


def calibrations(model: WorldModel, world: str, episodes: list[Episode]) -> list[Calibration]:
    """Uncertainty against error at each step, over these episodes."""
    steps, said, erred = max(STEPS), [], []
    for _, uncertainty, made, truth in rollouts(model, world, episodes, steps):
        said.append(uncertainty)
        erred.append(((made - truth) ** 2).mean(axis=(1, 2, 3)) ** 0.5)

    def at(values: list[np.ndarray], step: int) -> Float[np.ndarray, " n"]:
        return np.concatenate(values[step - 1 :: steps])

    return [row_of(world, step, at(said, step), at(erred, step)) for step in STEPS]


def row_of(
    world: str, step: int, said: Float[np.ndarray, " n"], erred: Float[np.ndarray, " n"]
) -> Calibration:
    rng, n = np.random.default_rng(0), len(said)
    draws = [spearman(said[pick], erred[pick]) for pick in rng.integers(n, size=(DRAWS, n))]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    order, quarter = np.argsort(said), max(1, n // 4)
    sure, unsure = erred[order[:quarter]], erred[order[-quarter:]]
    means = (float((part**2).mean() ** 0.5) for part in (sure, unsure))
    ranked = spearman(said, erred), float(low), float(high)
    return Calibration(world, step, n, *ranked, float(said.mean()), float(erred.mean()), *means)


def table(rows: list[Calibration]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| world (episodes) | step | rank correlation with the error | error expected (true) "
        "| of the surest quarter | of the least sure |",
        "|---" * 6 + "|",
    ]
    for r in rows:
        if r.episodes < FEWEST:
            few = f"cannot judge: {r.episodes} episodes, {FEWEST} or more are needed"
            lines.append(f"| {r.world} ({r.episodes}) | {r.step} | {few} | | | |")
            continue
        lines.append(
            f"| {r.world} ({r.episodes}) | {r.step} | {r.correlation:.2f} [{r.low:.2f}, {r.high:.2f}] "
            f"| {r.expected:.1f} ({r.true:.1f}) | {r.surest:.1f} | {r.least_sure:.1f} |"
        )
    return "\n".join(lines)


def fit(data: Path, checkpoint: str = "default", episodes: int = 96) -> int:
    """What `doubt.py` makes of a model's doubt, fitted by least squares to the logarithm of the error of 16
    steps of so many recorded episodes of each world that the folder holds.

    Args:
        data: recorded episodes, not held out.
        checkpoint: the world model: default, or a folder.
        episodes: of each world, at most."""
    model = WorldModel.load(checkpoint)
    found = []
    for world, some in recorded(model, data, episodes).items():
        shown = np.stack([episode.frames[0] for episode in some]).astype(float)
        for k, (state, _, made, truth) in enumerate(rollouts(model, world, some, max(STEPS))):
            first = shown[k // max(STEPS) * BATCH :][:BATCH]
            changed, erred = (((made - other) ** 2).mean(axis=(1, 2, 3)) ** 0.5 for other in (first, truth))
            found.append((np.array(state.doubts), changed, erred))
    scale, of_doubt, of_change = fitted(*(np.concatenate(each) for each in zip(*found, strict=True)))
    print(f"SCALE, OF_DOUBT, OF_CHANGE = {scale:.1f}, {of_doubt:.2f}, {of_change:.2f}")
    return 0


def fitted(
    doubts: Float[np.ndarray, " n"], changed: Float[np.ndarray, " n"], erred: Float[np.ndarray, " n"]
) -> tuple[float, float, float]:
    """Scale and powers by which errors follow doubt and change (see `doubt.py`): least squares of logarithms,
    where half a grey level more keeps what is hardly wrong from counting most."""
    features = np.stack([np.ones(len(doubts)), np.log(doubt.share_in_doubt(doubts)), np.log(1 + changed)], 1)
    (level, of_doubt, of_change), *_ = np.linalg.lstsq(features, np.log(erred + 0.5), rcond=None)
    return float(np.exp(level)), float(of_doubt), float(of_change)


def recorded(model: WorldModel, data: Path, episodes: int) -> dict[str, list[Episode]]:
    """So many episodes of each of the model's worlds, of its pictures' size and long enough to be judged."""
    chosen: dict[str, list[Episode]] = {}
    worlds: dict[Path, str] = {}  # of folders
    for path in list_episodes(data):
        if len(chosen.get(worlds.get(path.parent, ""), ())) == episodes:
            continue
        episode = read_episode(path)
        world = worlds[path.parent] = world_name(episode.env_id)
        fits = episode.frames.shape[1:3] == (model.height, model.width) and len(episode.actions) >= max(STEPS)
        if world in model.worlds and fits and len(chosen.get(world, ())) < episodes:
            chosen.setdefault(world, []).append(episode)
    return chosen


if __name__ == "__main__":
    sys.exit(tyro.cli(fit))
