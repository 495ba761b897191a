"""Train prompt following's checker on recorded Orbit episodes: `python -m probes.train_checker --help`."""

import sys
import time
from pathlib import Path

import numpy as np
import tyro

from probes.checker import ABSENT, PRETRAINED, Checker, CheckerTraining, accuracy, fit_checker, save_checker
from probes.subjects import labelled_frames
from simulator.words import COLOURS, SHAPES


def train_checker(
    data: Path,
    held_out: Path,
    out: Path = PRETRAINED,
    episodes: int = 1500,
    frames_per_episode: int = 10,
    training: CheckerTraining = CheckerTraining(),  # noqa: B008 (frozen; tyro makes flags of it)
) -> int:
    """Train, print the accuracy on held-out reference frames, and write checker.safetensors and config.json.

    Args:
        data: folder of recorded Orbit episodes.
        held_out: folder of Orbit episodes with held-out seeds (900,000,000 and above).
        out: where the weights go.
        episodes: how many episodes are read.
        frames_per_episode: frames taken from each.
        training: steps, batch, learning rate, seed.
    """
    colours, shapes = COLOURS, SHAPES
    seen = labelled_frames(data, episodes=episodes, frames_per_episode=frames_per_episode, seed=training.seed)
    unseen = labelled_frames(
        held_out, episodes=episodes, frames_per_episode=frames_per_episode, seed=training.seed
    )
    started = time.perf_counter()
    checker = fit_checker(seen, colours, shapes, training)
    seconds = time.perf_counter() - started
    made = {
        "trained_on": f"{len(seen.labels)} reference frames of orrery/Orbit-v0 at 64x64",
        "training": vars(training),
        "seconds": round(seconds),
        "held_out_frames": len(unseen.labels),
        "held_out_accuracy": {},
    }
    save_checker(checker, out, made)
    checker = Checker.load(out)
    made["held_out_accuracy"] = {
        name: round(value, 4) for name, value in accuracy(checker, unseen.pictures, unseen.labels).items()
    }
    save_checker(checker, out, made)
    size = (out / "checker.safetensors").stat().st_size / 1e6
    print(
        f"{seconds:.0f} s, {size:.2f} MB; {len(unseen.labels)} held-out frames: {made['held_out_accuracy']}"
    )
    print(confusions(checker, unseen.pictures, unseen.labels))
    return 0


def confusions(checker: Checker, pictures: np.ndarray, labels: np.ndarray) -> str:
    """A table of held-out shapes (rows) as they were read (columns), counts."""
    found = checker.read(pictures)
    names = ("absent", *checker.shapes)
    there = labels > ABSENT
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels[there], found[there]), 1)
    head = " ".join(f"{name:>9}" for name in ("", *names))
    rows = [
        " ".join(f"{cell:>9}" for cell in (name, *row))
        for name, row in zip(names[1:], counts[1:], strict=True)
    ]
    return "\n".join([head, *rows])


if __name__ == "__main__":
    sys.exit(tyro.cli(train_checker))
