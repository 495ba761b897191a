"""`orrery tasks`: every task of the canvas beside the trivial way to do it, on held-out episodes.

Each row is a mean over episodes with its 95 % interval, and the paired difference from the baseline with
its own. A task whose difference does not clear zero does not beat its baseline, and the table says so.
Episodes of other sizes, and long ones, are used where the folder holds them; rows without any say what to
record.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from tqdm import tqdm

from probes.checker import Checker
from probes.task_scores import TASKS, Held, Pair, Task
from simulator.checkpoint import check_writable, write_json
from simulator.clips import Episode, held_out, list_episodes, read_episode
from simulator.latents import world_name
from simulator.video import resize, write_image
from simulator.world_model import WorldModel

SHOWN_PX, LABEL_PX = 64, 96  # height of a strip of pictures, width of its name


@dataclass(frozen=True)
class Row:
    """One task. `difference` is score - baseline, paired by episode; intervals are 95 %, NaN without any."""

    task: str
    measure: str
    episodes: int
    score: float
    score_interval: float
    baseline_name: str
    baseline: float
    difference: float
    difference_interval: float
    verdict: str  # beats, does not beat, cannot judge
    note: str = ""


def half_width(values: Float[np.ndarray, " n"]) -> float:
    """Half of the 95 % interval of the mean."""
    return float(1.96 * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def row_of(name: str, task: Task, pairs: list[Pair]) -> Row:
    """The task's line of the table."""
    if len(pairs) < 2:
        nothing = float("nan")
        numbers = (nothing, nothing, task.baseline, nothing, nothing, nothing)
        return Row(name, task.measure, len(pairs), *numbers, "cannot judge", f"needs {task.needs}")
    ours, theirs = np.array(pairs).T
    difference, interval = float((ours - theirs).mean()), half_width(ours - theirs)
    return Row(
        name,
        task.measure,
        len(pairs),
        float(ours.mean()),
        half_width(ours),
        task.baseline,
        float(theirs.mean()),
        difference,
        interval,
        "beats" if difference > interval else "does not beat",
    )


def table(rows: list[Row]) -> str:
    lines = ["| task | measure (episodes) | score | baseline | difference | |", "|---" * 6 + "|"]
    for r in rows:
        if r.verdict == "cannot judge":
            lines.append(
                f"| {r.task} | {r.measure} ({r.episodes}) | | {r.baseline_name} | | {r.verdict}: {r.note} |"
            )
            continue
        lines.append(
            f"| {r.task} | {r.measure} ({r.episodes}) | {r.score:.2f} ± {r.score_interval:.2f} "
            f"| {r.baseline:.2f} ({r.baseline_name}) "
            f"| {r.difference:+.2f} ± {r.difference_interval:.2f} | {r.verdict} |"
        )
    return "\n".join(lines)


def strip(name: str, shown: list[np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
    """A task's name and eight frames of the first clip that it made (or its first eight pictures)."""
    clip = shown[0] if len(shown[0]) > 1 else np.concatenate(shown[:8])
    frames = clip[np.linspace(0, len(clip) - 1, 8).round().astype(int)]
    width = round(SHOWN_PX * frames.shape[2] / frames.shape[1])
    row = np.concatenate(list(resize(frames, SHOWN_PX, width)), axis=1)
    label = Image.new("RGB", (LABEL_PX, SHOWN_PX), "white")
    ImageDraw.Draw(label).text((4, SHOWN_PX // 2 - 6), name, fill="black")
    return np.concatenate([np.asarray(label), row], axis=1)


def sheet(strips: list[np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
    """Strips under each other, filled up with white."""
    width = max(row.shape[1] for row in strips)
    fill = ((0, 0), (0, 0))
    return np.concatenate(
        [np.pad(row, (fill[0], (0, width - row.shape[1]), fill[1]), constant_values=255) for row in strips]
    )


def held_out_by_size(data: Path) -> dict[tuple[str, int, int], list[Episode]]:
    """Held-out episodes under a folder by world and picture size. Raises ValueError if there are none."""
    found: dict[tuple[str, int, int], list[Episode]] = {}
    for path in list_episodes(data):
        if held_out(path):
            episode = read_episode(path)
            key = (world_name(episode.env_id), *episode.frames.shape[1:3])
            found.setdefault(key, []).append(episode)
    if not found:
        raise ValueError(
            f"--data {data} holds no held-out episode; record some with `orrery record ENV_ID --held-out`"
        )
    return found


def tasks(
    checkpoint: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(help="'default' or a folder of `orrery train world`")
    ],
    data: Annotated[
        Path,
        tyro.conf.arg(
            help="folder of held-out episodes of Orbit and Room; other sizes and lengths as there are"
        ),
    ],
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="names of tasks; all where left out")] = (),
    episodes: Annotated[int, tyro.conf.arg(help="of each world, at most")] = 16,
    out: Annotated[Path | None, tyro.conf.arg(help="also write the rows as JSON to this file")] = None,
    image: Annotated[
        Path | None, tyro.conf.arg(help="also write a picture of what each task made to this .png")
    ] = None,
    device: str = "cpu",
) -> int:
    """Each task of the canvas on a model's weights, beside the trivial way to do it."""
    unknown = sorted(set(only) - set(TASKS))
    if unknown:
        raise ValueError(f"--only may name {', '.join(TASKS)}, got {unknown[0]!r}")
    if episodes < 2:
        raise ValueError(f"--episodes must be at least 2 to give an interval, got {episodes}")
    for path in (out, image):
        if path is not None:
            check_writable(path.parent)
    model = WorldModel.load(checkpoint, device)
    if lacking := [world for world in ("Orbit", "Room") if world not in model.worlds]:
        raise ValueError(
            f"tasks are judged in Orbit and Room, and {checkpoint} knows no {lacking[0]}; "
            "`orrery eval` judges dreams of any world"
        )
    held = Held(model, held_out_by_size(data), episodes, Checker.load())
    rows, strips = [], []
    for name in tqdm([name for name in TASKS if name in (only or TASKS)], desc="tasks", mininterval=2):
        held.shown.clear()
        rows.append(row_of(name, TASKS[name], TASKS[name].run(held)))
        strips += [strip(name, held.shown)] if held.shown else []
    print(table(rows))
    if image is not None:
        write_image(image, sheet(strips))
    if out is not None:
        write_json(out, json.loads(json.dumps([asdict(row) for row in rows]).replace("NaN", "null")))
    return 0
