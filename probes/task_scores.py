"""What `orrery tasks` measures: each task's score and its baseline's, episode by episode."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TypedDict

import numpy as np
import torch

from probes.checker import Checker
from probes.subjects import ReferenceSubject
from recon3d.sweeps import orbit
from simulator import canvas
from simulator.captions import parse, swap
from simulator.clips import Episode
from simulator.latents import world_name
from simulator.metrics import gradient, psnr, sharpness
from simulator.video import Frames, resize
from simulator.world_model import WorldModel

FRAMES = 16  # in a short clip
LONG = 64  # steps of a long rollout
TURN_SEED = 900_000_300  # of the first reference scene that is gone around
Pair = tuple[float, float]  # the model's score and the baseline's, of one episode


@dataclass(frozen=True, eq=False)  # told apart by identity, so that what two tasks judge is made once
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


def edit(held: Held, word: str) -> list[Pair]:
    """Whether the checker reads the new colour or shape, and no longer the old one, in the first frame;
    beside it the source's."""
    pairs, named = [], {"colour": held.checker.colours, "shape": held.checker.shapes}[word]
    for source, video, prompt, old, new in edited(held, word):
        read = held.checker.read(np.stack([video[0], source[0]]))
        if word == "colour":
            found = read[:, [named.index(old), named.index(new)]] > 0
        else:
            its = next(thing["colour"] for thing in parse(prompt).things if thing["shape"] == new)
            label = read[:, held.checker.colours.index(its)] - 1
            found = np.stack([label == named.index(old), label == named.index(new)], axis=1)
        pairs.append(tuple(float(now and not before) for before, now in found))
    return pairs


def edit_layout(held: Held) -> list[Pair]:
    """Correlation of a clip in which a shape is changed with its source; beside it the next one's source."""
    both = [(source, video) for source, video, *_ in edited(held, "shape")]
    return [
        (correlation(source, video), correlation(other, video))
        for (source, video), (other, _) in zip(both, both[1:] + both[:1], strict=True)
    ]


@cache
def edited(held: Held, word: str) -> list[tuple[Frames, Frames, str, str, str]]:
    """True clips, the same made again with one word of their prompts changed, these prompts, and the old word
    and the new one."""
    rng, found = np.random.default_rng(0), []
    for e in held.short(("Orbit",)):
        if not parse(e.prompt).things:
            continue
        prompt, old, new = swap(e.prompt, word, rng)
        source = e.frames[: FRAMES // 2]
        video = made(held, canvas.edit(source, prompt, world="Orbit"), e.seed)
        found.append((source, video, prompt, old, new))
    return found


def text_to_image(held: Held, times: int = 1) -> list[Pair]:
    """Share of the colours that the prompt names which the checker finds in a picture of so many times the
    model's own size; beside it the next prompt's."""
    pairs, episodes = [], [e for e in held.short(("Orbit",)) if parse(e.prompt).things]
    if not episodes:
        return pairs
    size, own = size_of(held.model, times), size_of(held.model)
    pictures = [
        made(held, canvas.text_to_video(e.prompt, 1, world="Orbit", **size), e.seed) for e in episodes
    ]
    found = held.checker.read(resize(np.concatenate(pictures), **own)) > 0
    named = [
        [held.checker.colours.index(thing["colour"]) for thing in parse(e.prompt).things] for e in episodes
    ]
    for row, (mine, other) in enumerate(zip(named, named[1:] + named[:1], strict=True)):
        pairs.append((float(found[row, mine].mean()), float(found[row, other].mean())))
    return pairs


class Size(TypedDict):
    height: int
    width: int


def size_of(model: WorldModel, times: int = 1) -> Size:
    return Size(height=times * model.height, width=times * model.width)


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
    return [
        (float(sharpness(video, truth).mean()), float(sharpness(resize(draft, height, width), truth).mean()))
        for truth, draft, video in made_again(held, height, width)
    ]


def kept_layout(held: Held, height: int, width: int) -> list[Pair]:
    """Correlation with the draft of what was made of it at full size, shrunk; beside it the next draft's."""
    both = [(draft, resize(video, *draft.shape[1:3])) for _, draft, video in made_again(held, height, width)]
    return [
        (correlation(draft, video), correlation(other, video))
        for (draft, video), (other, _) in zip(both, both[1:] + both[:1], strict=True)
    ]


@cache
def made_again(held: Held, height: int, width: int) -> list[tuple[Frames, Frames, Frames]]:
    """True clips of that size, the same shrunk to the model's own, and these made again at full size."""
    found = []
    for e in held.of("Orbit", height, width, FRAMES // 2):
        truth = e.frames[: FRAMES // 2]
        draft = resize(truth, held.model.height, held.model.width)
        video = made(held, canvas.upscale(draft, e.prompt, height, width, world="Orbit"), e.seed)
        found.append((truth, draft, video))
    return found


def correlation(a: Frames, b: Frames) -> float:
    """Pearson's, over all pixels and colours."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


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
    "edit a colour": Task(lambda held: edit(held, "colour"), "share with the new colour", "the source"),
    "edit a shape": Task(lambda held: edit(held, "shape"), "share with the new shape", "the source"),
    "edit's layout": Task(edit_layout, "correlation with the source", "another source"),
    "shots": Task(shots, "colour likeness across the cut", "a clip made alone"),
    "long rollout": Task(long_rollout, f"PSNR dB at step {LONG}", "frozen frame", "episodes of 65 frames"),
    "64x96": Task(lambda held: any_size(held, 64, 96), "PSNR dB", "square result resized", "episodes of it"),
    "96x64": Task(lambda held: any_size(held, 96, 64), "PSNR dB", "square result resized", "episodes of it"),
    "128x128": Task(
        lambda held: any_size(held, 128, 128), "PSNR dB", "square result resized", "episodes of it"
    ),
    "text to 128x128": Task(
        lambda held: text_to_image(held, 2), "share of named colours found", "another prompt's colours"
    ),
    "upscale": Task(
        lambda held: upscale(held, 128, 128), "sharpness, of the truth's", "resized", "episodes of 128x128"
    ),
    "upscale's layout": Task(
        lambda held: kept_layout(held, 128, 128),
        "correlation with the draft",
        "another draft",
        "episodes of it",
    ),
}
