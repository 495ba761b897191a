"""`python -m probes.framing`: does a model that learnt from whole pictures frame its things better than one
that learnt from square crops of the same pictures (Brooks et al. 2024, "Video generation models as world
simulators")?

Two models train for equally long from the same seed, one on wide episodes as they were recorded, one on their
middle squares. Both are then asked for the same held-out prompts. A colour that a prompt names is whole, cut
by the picture's edge, or missing, as the checker's painter sees it; the recorded pictures, read in the same
way, show what is possible.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from probes.checker import Checker
from probes.measurement import wilson_interval
from simulator import canvas
from simulator.batches import TRAININGS
from simulator.captions import parse
from simulator.checkpoint import check_writable, write_json
from simulator.clips import (
    Episode,
    episode_path,
    held_out_episodes,
    read_episode,
    training_episodes,
    write_episode,
)
from simulator.distributed import joined, last_checkpoint
from simulator.flags import bounds
from simulator.job import Job
from simulator.latents import world_name
from simulator.train import RESUME, train_together
from simulator.transformer import PRESETS
from simulator.video import write_image
from simulator.world_model import WorldModel

FEWEST_PLACES = 4  # of the painter's map (2x2 px each) that a thing covers at least
DONE = "done"
SHOWN = 8  # pictures of each row that are kept to look at
Pictures = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True)
class Framed:
    """How the things that prompts name are framed: shares of them all, and `cut`'s share of those that are
    found with its 95 % interval."""

    trained_on: str
    picture: str
    things: int
    whole: float
    cut: float
    missing: float
    cut_of_found: float
    interval: tuple[float, float]


def middle_square(episode: Episode) -> Episode:
    """The middle square of an episode's frames, with the cameras of that crop.

    Raises ValueError for frames that are not wider than high.
    """
    height, width = episode.frames.shape[1:3]
    if width <= height:
        raise ValueError(
            f"episode {episode.seed} must be wider than high, got {height}x{width}; "
            "record with --width above --height"
        )
    left = (width - height) // 2
    K = None if episode.K is None else episode.K - np.array([[0, 0, left], [0, 0, 0], [0, 0, 0]])
    depth = None if episode.depth is None else episode.depth[:, :, left : left + height]
    frames = np.ascontiguousarray(episode.frames[:, :, left : left + height])
    return replace(episode, frames=frames, K=K, depth=depth)


def framed(trained_on: str, pictures: Pictures, named: list[list[str]], checker: Checker) -> Framed:
    """Counts whole, cut and missing things in pictures of prompts, whose named colours are given."""
    paint = checker.paint(pictures)
    states = [
        framing_of(paint[row, checker.colours.index(colour)])
        for row, colours in enumerate(named)
        for colour in colours
    ]
    whole, cut, missing = (states.count(word) for word in ("whole", "cut", "missing"))
    found = whole + cut
    return Framed(
        trained_on,
        f"{pictures.shape[1]}x{pictures.shape[2]}",
        len(states),
        whole / len(states),
        cut / len(states),
        missing / len(states),
        cut / found if found else float("nan"),
        wilson_interval(cut, found) if found else (float("nan"), float("nan")),
    )


def framing_of(place: Bool[np.ndarray, "rows columns"]) -> str:
    """`missing`, `cut` if the colour reaches the edge of the picture, else `whole`."""
    if place.sum() < FEWEST_PLACES:
        return "missing"
    edge = place[0].any() or place[-1].any() or place[:, 0].any() or place[:, -1].any()
    return "cut" if edge else "whole"


def table(rows: list[Framed]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| trained on | picture | things named | whole | cut by the edge | missing | cut, of those found |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        low, high = row.interval
        lines.append(
            f"| {row.trained_on} | {row.picture} | {row.things} | {row.whole:.0%} | {row.cut:.0%} "
            f"| {row.missing:.0%} | {row.cut_of_found:.0%} [{low:.0%}, {high:.0%}] |"
        )
    return "\n".join(lines)


def learnt(data: Path, tokenizer: Path, out: Path, minutes: float, preset: str, seed: int) -> WorldModel:
    """A model that saw nothing but single pictures with their captions. A run that ended is kept,
    one that was stopped goes on."""
    training = replace(
        TRAININGS[preset],
        **bounds(minutes, None),
        clip_share=0.0,
        shots_share=0.0,
        sweep_share=0.0,
        picture_share=1.0,
    )
    stopped = last_checkpoint(out / RESUME) is not None
    job = Job(data, tokenizer, out, PRESETS[preset], training, seed, stopped, False, False)
    if not (out / DONE).is_file():
        with joined("cpu") as (processes, where):
            train_together(job, processes, where, track=False)
        (out / DONE).touch()
    return WorldModel.load(out)


def pictures_of(model: WorldModel, asked: list[Episode], height: int, width: int) -> Pictures:
    """One picture for each episode's prompt."""
    made = []
    for episode in tqdm(asked, desc=f"pictures of {height}x{width}"):
        world = world_name(episode.env_id)
        request = canvas.text_to_video(episode.prompt, 1, height=height, width=width, world=world)
        made.append(model.generate(request, seed=episode.seed)[0])
    return np.stack(made)


def framing(
    data: Annotated[Path, tyro.conf.arg(help="folder of wide episodes, 64 px high, some of them held out")],
    tokenizer: Annotated[Path, tyro.conf.arg(help="run folder of `orrery train tokenizer`")],
    out: Annotated[Path, tyro.conf.arg(help="folder for both runs, the squares, pictures and the table")],
    minutes: Annotated[float, tyro.conf.arg(help="of training, for each of the two models")] = 10.0,
    prompts: Annotated[int, tyro.conf.arg(help="held-out prompts to draw, at most")] = 96,
    preset: str = "small",
    seed: int = 0,
) -> int:
    """Train on wide pictures and on their middle squares, and count the things that edges cut."""
    check_writable(out)
    asked = [read_episode(path) for path in held_out_episodes(data)]
    asked = [episode for episode in asked if parse(episode.prompt).things][:prompts]
    if not asked:
        raise ValueError(
            f"{data} holds no held-out episode whose prompt names a thing; record orrery/Orbit-v0"
        )
    height, width = asked[0].frames.shape[1:3]
    squares = [middle_square(episode) for episode in asked]
    for path in tqdm(training_episodes(data), desc="middle squares"):
        episode = read_episode(path)
        if not episode_path(out / "squares", episode.seed).is_file():
            write_episode(out / "squares", middle_square(episode))
    checker = Checker.load()
    named = [[thing["colour"] for thing in parse(episode.prompt).things] for episode in asked]
    whole = learnt(data, tokenizer, out / "whole", minutes, preset, seed)
    square = learnt(out / "squares", tokenizer, out / "square", minutes, preset, seed)
    shown = {
        ("whole pictures", "wide"): pictures_of(whole, asked, height, width),
        ("middle squares", "wide"): pictures_of(square, asked, height, width),
        ("middle squares", "square"): pictures_of(square, asked, height, height),
        ("recorded: whole pictures", "wide"): np.stack([episode.frames[0] for episode in asked]),
        ("recorded: middle squares", "square"): np.stack([episode.frames[0] for episode in squares]),
    }
    rows = [framed(name, pictures, named, checker) for (name, _), pictures in shown.items()]
    strips = [np.concatenate(list(pictures[:SHOWN]), axis=1) for pictures in shown.values()]
    side = max(strip.shape[1] for strip in strips)
    padded = [np.pad(strip, ((0, 4), (0, side - strip.shape[1]), (0, 0))) for strip in strips]
    write_image(out / "framing.png", np.concatenate(padded))
    write_json(out / "framing.json", {"minutes": minutes, "rows": [asdict(row) for row in rows]})
    print(table(rows))
    return 0


if __name__ == "__main__":
    tyro.cli(framing)
