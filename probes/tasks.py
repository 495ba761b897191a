"""`orrery tasks`: every task of the canvas beside the trivial way to do it, on held-out episodes.

Each row is a mean over episodes with its 95 % interval, and the paired difference from the baseline with
its own. A task whose difference does not clear zero does not beat its baseline, and the table says so.
Episodes of other sizes, and long ones, are used where the folder holds them; rows without any say what to
record.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
import torch
import tyro
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from tqdm import tqdm

from probes.checker import Checker
from probes.subjects import ReferenceSubject
from recon3d.sweeps import orbit
from simulator import canvas
from simulator.captions import parse, swap
from simulator.checkpoint import check_writable, write_json
from simulator.clips import Episode, held_out, list_episodes, read_episode
from simulator.latents import world_name
from simulator.metrics import gradient, psnr, sharpness
from simulator.video import Frames, resize, write_image
from simulator.world_model import WorldModel

FRAMES = 16  # in a short clip
LONG = 64  # steps of a long rollout
TURN_SEED = 900_000_300  # of the first reference scene that is gone around
SHOWN_PX, LABEL_PX = 64, 96  # height of a strip of pictures, width of its name
Pair = tuple[float, float]  # the model's score and the baseline's, of one episode


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


@dataclass(frozen=True)
class Held:
    """What the tasks are judged on: the model, held-out episodes by world and size, and a checker."""

    model: WorldModel
    episodes: dict[tuple[str, int, int], list[Episode]]  # of (world, height, width)
    count: int
    checker: Checker
    shown: list[np.ndarray] = field(default_factory=list)  # what was made, to look at

    def short(self, worlds: tuple[str, ...] = ("Orbit", "Room")) -> list[Episode]:
        """Up to `count` episodes a world at the model's own size, of at least FRAMES frames."""
        size = (self.model.height, self.model.width)
        return [e for world in worlds for e in self.of(world, *size, FRAMES)]

    def of(self, world: str, height: int, width: int, frames: int) -> list[Episode]:
        found = self.episodes.get((world, height, width), [])
        return [episode for episode in found if len(episode.frames) >= frames][: self.count]


def given(episode: Episode, frames: int = FRAMES) -> canvas.Given:
    """An episode's world and actions. Words add nothing to pictures and actions, so they do not pull."""
    world = world_name(episode.env_id)
    return canvas.Given(world=world, actions=episode.actions[: frames - 1], guidance=1.0)


def made(held: Held, request: canvas.Canvas, seed: int) -> Frames:
    held.shown.append(held.model.generate(request, seed=seed))
    return held.shown[-1]


def closeness(video: Frames, truth: Frames) -> float:
    """Mean PSNR over frames, dB."""
    return float(psnr(video, truth).mean())


def animate(held: Held) -> list[Pair]:
    pairs = []
    for e in held.short():
        truth = e.frames[:FRAMES]
        video = made(held, canvas.image_to_video(truth[0], e.prompt, FRAMES, **given(e)), e.seed)
        still = np.repeat(truth[:1], FRAMES - 1, axis=0)
        pairs.append((closeness(video[1:], truth[1:]), closeness(still, truth[1:])))
    return pairs


def extend(held: Held) -> list[Pair]:
    pairs, half = [], FRAMES // 2
    for e in held.short():
        truth = e.frames[:FRAMES]
        video = made(held, canvas.extend(truth[:half], e.prompt, half, **given(e)), e.seed)
        still = np.repeat(truth[half - 1 : half], half, axis=0)
        pairs.append((closeness(video[half:], truth[half:]), closeness(still, truth[half:])))
    return pairs


def extend_back(held: Held) -> list[Pair]:
    pairs, half = [], FRAMES // 2
    for e in held.short():
        truth = e.frames[:FRAMES]
        video = made(held, canvas.extend_back(truth[half:], e.prompt, half, **given(e)), e.seed)
        still = np.repeat(truth[half : half + 1], half, axis=0)
        pairs.append((closeness(video[:half], truth[:half]), closeness(still, truth[:half])))
    return pairs


def infill(held: Held) -> list[Pair]:
    pairs, end = [], FRAMES // 4
    for e in held.short():
        truth = e.frames[:FRAMES]
        between = FRAMES - 2 * end
        request = canvas.infill(truth[:end], truth[-end:], e.prompt, between, **given(e))
        video = made(held, request, e.seed)
        fade = canvas.cross_fade(truth[end - 1], truth[-end], between)
        pairs.append((closeness(video[end:-end], truth[end:-end]), closeness(fade, truth[end:-end])))
    return pairs


def rollout(held: Held) -> list[Pair]:
    pairs = []
    for e in held.short():
        truth = e.frames[:FRAMES]
        video = rolled_out(held.model, e, FRAMES - 1)
        held.shown.append(video)
        still = np.repeat(truth[:1], FRAMES - 1, axis=0)
        pairs.append((closeness(video[1:], truth[1:]), closeness(still, truth[1:])))
    return pairs


def long_rollout(held: Held) -> list[Pair]:
    pairs = []
    for world in ("Orbit", "Room"):
        for e in held.of(world, held.model.height, held.model.width, LONG + 1):
            held.shown.append(rolled_out(held.model, e, LONG))
            video, truth = held.shown[-1][-1:], e.frames[LONG : LONG + 1]
            pairs.append((closeness(video, truth), closeness(e.frames[:1], truth)))
    return pairs


def rolled_out(model: WorldModel, e: Episode, steps: int) -> Frames:
    """The dream from an episode's first frame under its actions, steps + 1 frames."""
    state, first, _ = model.start([e.prompt], world_name(e.env_id), [e.seed], images=e.frames[:1])
    frames = [first[0]]
    for action in e.actions[:steps]:
        state, video, *_ = model.step(state, action[None])
        frames.append(video[0])
    return np.concatenate(frames)


def blend(held: Held) -> list[Pair]:
    """Sharpness of the frames between, over that of the clips: a fade of two pictures loses contrast."""
    pairs, episodes, end = [], held.short(("Orbit",)), 4
    for a, b in zip(episodes, episodes[1:] + episodes[:1], strict=True):
        before, after = a.frames[:end], b.frames[-end:]
        request = canvas.blend(before, after, b.prompt, FRAMES - 2 * end, world="Orbit")
        ends = np.concatenate([before, after])
        fade = canvas.cross_fade(before[-1], after[0], FRAMES - 2 * end)
        video = made(held, request, a.seed)[end:-end]
        sharp = gradient(ends).mean()
        pairs.append((gradient(video).mean() / sharp, gradient(fade).mean() / sharp))
    return pairs


def edit(held: Held) -> list[Pair]:
    """Whether the checker reads the new colour, and no longer the old one, in the first frame."""
    pairs, rng = [], np.random.default_rng(0)
    for e in held.short(("Orbit",)):
        if not parse(e.prompt).things:
            continue
        prompt, old, new = swap(e.prompt, "colour", rng)
        source = e.frames[: FRAMES // 2]
        request = canvas.edit(source, prompt, level=0.9, world="Orbit")
        columns = [held.checker.colours.index(colour) for colour in (old, new)]
        found = held.checker.read(np.stack([made(held, request, e.seed)[0], source[0]]))[:, columns] > 0
        pairs.append(tuple(float(now and not before) for before, now in found))
    return pairs


def text_to_image(held: Held) -> list[Pair]:
    """Share of the colours that the prompt names which the checker finds; beside it the next prompt's."""
    pairs, episodes = [], [e for e in held.short(("Orbit",)) if parse(e.prompt).things]
    pictures = [
        made(held, canvas.text_to_video(e.prompt, 1, world="Orbit", **size_of(held.model)), e.seed)[0]
        for e in episodes
    ]
    found = held.checker.read(np.stack(pictures)) > 0
    named = [
        [held.checker.colours.index(thing["colour"]) for thing in parse(e.prompt).things] for e in episodes
    ]
    for row, (own, other) in enumerate(zip(named, named[1:] + named[:1], strict=True)):
        pairs.append((float(found[row, own].mean()), float(found[row, other].mean())))
    return pairs


class Size(TypedDict):
    height: int
    width: int


def size_of(model: WorldModel) -> Size:
    return Size(height=model.height, width=model.width)


def sweep(held: Held) -> list[Pair]:
    """A first picture taken around the thing by known cameras: closeness to the true views."""
    return [
        (closeness(video[1:], truth[1:]), closeness(np.repeat(truth[:1], len(truth) - 1, axis=0), truth[1:]))
        for truth, video, _ in turns(held, 20, closed=False)
    ]


def loop(held: Held) -> list[Pair]:
    """A full turn that ends where it began: closeness to the true turn, beside half a turn there and back."""
    pairs = []
    for truth, video, half in turns(held, 32, closed=True):
        back = np.concatenate([half, half[::-1]])[: len(truth)]
        pairs.append((closeness(video[1:-1], truth[1:-1]), closeness(back[1:-1], truth[1:-1])))
    return pairs


def turns(held: Held, views: int, closed: bool) -> Iterator[tuple[Frames, np.ndarray, np.ndarray]]:
    """True and dreamed turns around reference scenes, and dreamed halves of them; a closed turn's last view
    is its first."""
    subject = ReferenceSubject("orrery/Orbit-v0", **size_of(held.model))
    for seed in range(TURN_SEED, TURN_SEED + min(held.count, 8)):
        cameras = orbit(views, **size_of(held.model))
        clip = subject.sweep(None, cameras, seed)
        ring = torch.cat([torch.arange(views), torch.zeros(int(closed), dtype=torch.long)])
        truth, first = clip.video[ring.numpy()], clip.video[0]
        how = canvas.Given(world="Orbit", cameras=cameras[ring])
        if closed:
            request = canvas.loop(clip.prompt, len(truth), image=first, **how)
        else:
            request = canvas.image_to_video(first, clip.prompt, len(truth), **how)
        video, middle = made(held, request, seed), views // 2 + 1
        how = canvas.Given(world="Orbit", cameras=cameras[:middle])
        half = held.model.generate(canvas.image_to_video(first, clip.prompt, middle, **how), seed=seed)
        yield truth, video, half


def shots(held: Held) -> list[Pair]:
    """Likeness of the colours on both sides of a cut, beside a clip of the same prompt made alone."""
    pairs = []
    for e in held.short(("Orbit",)):
        both = (e.prompt, e.captions[0])
        video = made(held, canvas.multi_shot(both, FRAMES, world="Orbit", **size_of(held.model)), e.seed)
        alone = canvas.text_to_video(e.captions[0], FRAMES // 2, world="Orbit", **size_of(held.model))
        first, second = video[: FRAMES // 2], video[FRAMES // 2 :]
        other = made(held, alone, e.seed + 1)
        pairs.append((likeness(first, second), likeness(first, other)))
    return pairs


def likeness(a: Frames, b: Frames) -> float:
    """Overlap of two clips' colour histograms (8 bins a channel), 0 to 1."""
    histograms = []
    for video in (a, b):
        bins = (video // 32).reshape(-1, 3).astype(int) @ [64, 8, 1]
        histograms.append(np.bincount(bins, minlength=512) / len(bins))
    return float(np.minimum(*histograms).sum())


def any_size(held: Held, height: int, width: int) -> list[Pair]:
    """A picture of another size animated under true actions, beside the square dream resized."""
    model, pairs, frames = held.model, [], FRAMES // 2
    for world in ("Orbit", "Room"):
        for e in held.of(world, height, width, frames):
            truth, how = e.frames[:frames], given(e, frames)
            video = made(held, canvas.image_to_video(truth[0], e.prompt, frames, **how), e.seed)
            small = resize(truth[:1], model.height, model.width)[0]
            square = made(held, canvas.image_to_video(small, e.prompt, frames, **how), e.seed)
            resized = resize(square, height, width)
            pairs.append((closeness(video[1:], truth[1:]), closeness(resized[1:], truth[1:])))
    return pairs


def upscale(held: Held, height: int, width: int) -> list[Pair]:
    """Sharpness of a draft made again at full size, over the truth's, beside the draft resized."""
    model, pairs, frames = held.model, [], FRAMES // 2
    for e in held.of("Orbit", height, width, frames):
        truth = e.frames[:frames]
        draft = resize(truth, model.height, model.width)
        video = made(held, canvas.upscale(draft, e.prompt, height, width, world="Orbit"), e.seed)
        plain = resize(draft, height, width)
        pairs.append((float(sharpness(video, truth).mean()), float(sharpness(plain, truth).mean())))
    return pairs


@dataclass(frozen=True)
class Task:
    run: Callable[[Held], list[Pair]]
    measure: str
    baseline: str
    needs: str = "episodes of Orbit and Room"


TASKS = {
    "text to image": Task(text_to_image, "share of named colours found", "another prompt's colours"),
    "image to video": Task(animate, "PSNR dB", "the picture, still"),
    "rollout": Task(rollout, "PSNR dB", "the picture, still"),
    "extend": Task(extend, "PSNR dB", "the last frame, still"),
    "extend back": Task(extend_back, "PSNR dB", "the first frame, still"),
    "infill": Task(infill, "PSNR dB", "linear fade"),
    "loop": Task(loop, "PSNR dB", "half a turn, there and back", "MuJoCo"),
    "sweep": Task(sweep, "PSNR dB", "the first view", "MuJoCo"),
    "blend": Task(blend, "sharpness, of the clips'", "cross-fade"),
    "edit": Task(edit, "share with the new colour", "the source"),
    "shots": Task(shots, "colour likeness across the cut", "a clip made alone"),
    "long rollout": Task(long_rollout, f"PSNR dB at step {LONG}", "frozen frame", "episodes of 65 frames"),
    "64x96": Task(lambda held: any_size(held, 64, 96), "PSNR dB", "square result resized", "episodes of it"),
    "96x64": Task(lambda held: any_size(held, 96, 64), "PSNR dB", "square result resized", "episodes of it"),
    "128x128": Task(
        lambda held: any_size(held, 128, 128), "PSNR dB", "square result resized", "episodes of it"
    ),
    "upscale": Task(
        lambda held: upscale(held, 128, 128), "sharpness, of the truth's", "resized", "episodes of 128x128"
    ),
}


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
    held = Held(WorldModel.load(checkpoint, device), held_out_by_size(data), episodes, Checker.load())
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
