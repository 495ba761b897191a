"""`orrery generate`: words (and pictures, videos, cameras) -> a video or a picture. Each task is a way to
fill in one canvas (`simulator/canvas.py`)."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import UInt8

from recon3d.cameras import Cameras
from recon3d.sweeps import arc, dolly, orbit, revisit
from simulator import canvas as tasks
from simulator.canvas import DRAFT_LEVEL, Canvas, Given, shots_of
from simulator.checkpoint import check_writable
from simulator.choosing import TRIES, names_things
from simulator.expand import expanded
from simulator.memory import check_frames_fit
from simulator.timing import TOLD_FROM_S, estimate
from simulator.video import (
    IMAGE_SUFFIXES,
    WRITTEN_SUFFIXES,
    Frames,
    read_image,
    read_video,
    write_image,
    write_video,
)
from simulator.words import COLOURS, SHAPES
from simulator.world_model import WorldModel

Task = Literal["animate", "extend", "extend-back", "infill", "loop", "blend", "edit", "upscale"]
FRAMES = 16  # of a video, where nothing is asked
CONTEXT = 8  # latent steps of a given clip that a task looks at, on each side
VOCABULARY = (
    f"it knows {', '.join(SHAPES)} in {', '.join(COLOURS)}, said as 'a red ball' (--expand adds some)"
)
SWEEPS = {"orbit": orbit, "arc": arc, "dolly": dolly, "revisit": revisit}


Count = Annotated[
    int | None, tyro.conf.arg(help=f"to make, beside those of --video; {FRAMES} where left out, 1: a picture")
]
Side = Annotated[
    int | None,
    tyro.conf.arg(help="pixels; the model's own size by default, or the clip's (to upscale, twice that)"),
]
Pull = Annotated[
    float,
    tyro.conf.arg(
        help="how strongly the prompt pulls at first pictures and at what is made at once; 1 is not at all, "
        "nor does the captioner lead them"
    ),
]
Tries = Annotated[
    int, tyro.conf.arg(help="first pictures made from words, led by the captioner, which keeps the best")
]
Checkpoint = Annotated[str, tyro.conf.arg(help="'default' or a folder of `orrery train world`")]


def sweep_cameras(name: str | None, frames: int, height: int, width: int) -> Cameras | None:
    """The named camera path with so many views. Raises ValueError for a name that is none."""
    if name is None:
        return None
    if name not in SWEEPS:
        raise ValueError(f"--sweep must be one of {', '.join(SWEEPS)}, got {name!r}")
    return SWEEPS[name](frames, height=height, width=width)


@dataclass(frozen=True)
class Request:
    """What the flags of `orrery generate` ask for."""

    prompt: str
    frames: int
    height: int | None
    width: int | None
    task: Task | None
    clips: tuple[Frames, ...]  # of --image and --video
    sweep: str | None
    level: float | None
    world: str | None
    guidance: float
    time_factor: int

    def given(self, steps: int, height: int, width: int) -> Given:
        cameras = sweep_cameras(self.sweep, steps, height, width)
        return Given(world=self.world, guidance=self.guidance, cameras=cameras)


def from_words(request: Request, height: int, width: int) -> Canvas:
    """A picture, a video, shots or a loop from words alone."""
    frames = request.frames
    if request.task == "loop":
        if frames % request.time_factor:
            raise ValueError(f"--frames of a loop must be a multiple of {request.time_factor}, got {frames}")
        frames += 1  # the last, which is the first again, is left out
    shots, steps = shots_of(request.prompt), tasks.latent_steps(frames, request.time_factor)
    given = request.given(steps, height, width)
    size = {"height": height, "width": width, "time_factor": request.time_factor}
    fewest = 3 if request.task == "loop" else 2 * len(shots) if len(shots) > 1 else 1
    if steps < fewest:
        least = (fewest - 1) * request.time_factor + (request.task != "loop")
        raise ValueError(f"--frames must be at least {least} for this, got {request.frames}")
    if request.task == "loop":
        return tasks.loop(request.prompt, frames, image=None, **size, **given)
    if len(shots) > 1:
        return tasks.multi_shot(shots, frames, **size, **given)
    return tasks.text_to_video(request.prompt, frames, **size, **given)


@dataclass(frozen=True)
class Plan:
    """A canvas, and how what it makes becomes the file: the frames before and after it, and how many of its
    own are left out at the end."""

    canvas: Canvas
    before: Frames
    after: Frames
    left_out: int = 0

    def joined(self, made: Frames) -> UInt8[np.ndarray, "t2 h w 3"]:
        kept = made[: len(made) - self.left_out]
        return np.concatenate([part for part in (self.before, kept, self.after) if len(part)])


def from_one_clip(request: Request, clip: Frames) -> Plan:
    """What a task makes of one clip."""
    height, width = clip.shape[1:3]
    factor, frames, prompt, task = request.time_factor, request.frames, request.prompt, request.task
    steps = tasks.latent_steps(frames, factor) if request.sweep is not None else 1
    how = {"time_factor": factor, **request.given(steps, height, width)}
    level = {} if request.level is None else {"level": request.level}
    nothing, head, tail = clip[:0], *context(clip, factor)
    if task == "extend":
        return Plan(tasks.extend(head, prompt, frames, **how), clip[: -len(head)], nothing)
    if task == "extend-back":
        return Plan(tasks.extend_back(tail, prompt, frames, **how), nothing, clip[len(tail) :])
    if task == "loop":  # the clip, then the way from its end to its start
        canvas = tasks.infill(head, tail, prompt, frames, **how)
        return Plan(canvas, clip[: -len(head)], nothing, left_out=len(tail))
    if task == "edit":
        return Plan(tasks.edit(clip, prompt, **level, **how), nothing, nothing)
    if task == "upscale":
        size = (request.height or 2 * height, request.width or 2 * width)
        return Plan(tasks.upscale(clip, prompt, *size, **level, **how), nothing, nothing)
    return Plan(tasks.image_to_video(clip[0], prompt, frames, **how), nothing, nothing)


def from_two_clips(request: Request, first: Frames, second: Frames) -> Plan:
    """What leads from one clip to another."""
    factor = request.time_factor
    how = {"time_factor": factor, **request.given(1, *first.shape[1:3])}
    head, tail = context(first, factor)[0], context(second, factor)[1]
    if request.task == "blend":
        how |= {} if request.level is None else {"level": request.level}
        canvas = tasks.blend(head, tail, request.prompt, request.frames, **how)
    else:
        canvas = tasks.infill(head, tail, request.prompt, request.frames, **how)
    return Plan(canvas, first[: -len(head)], second[len(tail) :])


def context(clip: Frames, factor: int) -> tuple[Frames, Frames]:
    """A clip's last latent steps and its first ones, whole steps each."""
    last, first = clip[-1 - (CONTEXT - 1) * factor :], clip[: CONTEXT * factor]
    return last[(len(last) - 1) % factor :], first[: max(1, len(first) // factor) * factor]


def plan(request: Request, height: int, width: int) -> Plan:
    """The canvas that the flags describe. Raises ValueError for a task with the wrong number of clips."""
    task, clips = request.task, request.clips
    if request.sweep is not None and task not in (None, "animate"):
        raise ValueError(f"--sweep goes with words or with --task animate, not with {task}")
    if len(shots_of(request.prompt)) > 1 and (clips or task == "loop"):
        raise ValueError("shots are made from words alone: leave out --video, --image and --task loop")
    needed = {"infill": 2, "blend": 2, "loop": min(1, len(clips)), None: min(1, len(clips))}.get(task, 1)
    if len(clips) != needed:
        kinds = "--video" if needed == 2 else "--video or --image"
        raise ValueError(f"--task {task} takes {needed} {kinds}, got {len(clips)}")
    if clips and task in (None, "animate") and len(clips[0]) > 1:
        raise ValueError(
            f"--video with {len(clips[0])} frames needs another --task than {task or 'none'}: extend goes on "
            "from its end; to animate a picture give --image"
        )
    if clips and task in (None, "animate") and request.frames == 1:
        raise ValueError("--frames must be at least 2 to animate a picture, got 1: the picture is the first")
    if not clips:
        nothing = np.zeros((0, height, width, 3), np.uint8)
        closed = request.task == "loop"  # played again, its last frame would be its first twice
        return Plan(from_words(request, height, width), nothing, nothing, left_out=int(closed))
    return from_one_clip(request, *clips) if needed == 1 else from_two_clips(request, *clips)


def read_clips(
    image: Path | None, videos: tuple[Path, ...], height: int | None, width: int | None, task: Task | None
) -> tuple[tuple[Frames, ...], set[float]]:
    """The clips that the flags name, of the size asked for, and their frames a second. Raises ValueError if
    they have another size."""
    if image is not None and videos:
        raise ValueError("give --image or --video, not both")
    read = [read_video(path) for path in videos]
    clips = [clip for clip, _ in read] if image is None else [read_image(image)[None]]
    for path, clip in zip(videos if image is None else [image], clips, strict=True):
        asked = (height or clip.shape[1], width or clip.shape[2])
        if clip.shape[1:3] != asked and task != "upscale":
            raise ValueError(
                f"{path} is {clip.shape[1]}x{clip.shape[2]}, asked for {asked[0]}x{asked[1]}; resize it"
            )
    return tuple(clips), {fps for clip, fps in read if len(clip) > 1}


def expanded_shots(prompt: str, world: str | None, seed: int) -> str:
    """The prompt, or each of its shots, expanded under one seed, so that shots stay in one scene."""
    told = [expanded(shot, world, seed=seed) for shot in shots_of(prompt)]
    return told[0] if len(told) == 1 else " ".join(f"shot {k}: {text}" for k, text in enumerate(told, 1))


def check_flags(
    counts: dict[str, int | None],
    seed: int,
    guidance: float,
    level: float | None,
    task: Task | None,
    output: Path,
    still: bool,
) -> None:
    """Raises ValueError for flags that say nothing, or an output that cannot be written."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"--guidance must be 0 or more, got {guidance}; 1 is no pull, 3 the default")
    if level is not None and task not in ("edit", "blend", "upscale"):
        raise ValueError(f"--level goes with --task edit, blend or upscale, got {task or 'none'}")
    if level is not None and not 0 < level <= 1:
        raise ValueError(f"--level must lie in (0, 1], got {level}; the more, the less of the clip stays")
    if counts["frames"] is not None and task in ("edit", "upscale"):
        raise ValueError(f"--frames goes with other tasks than {task}, which makes as many as the clip has")
    suffixes = IMAGE_SUFFIXES if still else WRITTEN_SUFFIXES
    if output.suffix.lower() not in suffixes:
        raise ValueError(
            f"-o {output} must end in {', '.join(suffixes)} for a {'picture' if still else 'video'}"
            + ("" if still else "; --frames 1 makes a picture")
        )
    if output.is_dir():
        raise ValueError(f"-o {output} is a folder; give a file")
    check_writable(output.parent)


def tell_unknown(canvas: Canvas) -> None:
    """Say so where words decide what is seen, and name nothing that the model was taught."""
    if (canvas.start_level > DRAFT_LEVEL).all() and not names_things(canvas):
        print(f"the prompt names no thing that the model knows; {VOCABULARY}", file=sys.stderr)


def generate(
    prompt: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(help="what is to be seen; 'shot 1: ... shot 2: ...' cuts between views of it"),
    ],
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], help="a video (.mp4), or a picture (.png) for --frames 1")
    ],
    frames: Count = None,
    height: Side = None,
    width: Side = None,
    image: Annotated[Path | None, tyro.conf.arg(help="picture that the video starts with")] = None,
    video: Annotated[tuple[Path, ...], tyro.conf.arg(help="clip, or two for infill and blend")] = (),
    task: Annotated[
        Task | None,
        tyro.conf.arg(
            help="animate a picture; extend a clip (or extend-back); infill between two, or blend one into "
            "the other; loop (from words, or a clip back to its start); edit (the clip under other words); "
            "upscale (to --height, --width)"
        ),
    ] = None,
    level: Annotated[
        float | None,
        tyro.conf.arg(
            help="noise, in (0, 1], that edit (.8 by default), blend (.9) and upscale (.7) start from: the "
            "more, the less of the clip stays"
        ),
    ] = None,
    sweep: Annotated[str | None, tyro.conf.arg(help="camera path: orbit, arc, dolly or revisit")] = None,
    world: Annotated[
        str | None, tyro.conf.arg(help="Room, Orbit or Lab; Orbit by default for a sweep")
    ] = None,
    seed: int = 0,
    expand: Annotated[bool, tyro.conf.arg(help="fill in what the prompt leaves open first")] = False,
    steps: Annotated[int | None, tyro.conf.arg(help="sampler steps")] = None,
    guidance: Pull = 3.0,
    tries: Tries = TRIES,
    scale: Annotated[int, tyro.conf.arg(help="repeat each pixel so many times in the file")] = 1,
    checkpoint: Checkpoint = "default",
    device: str = "cpu",
) -> int:
    """Make a video, a picture or a camera sweep from words, or from clips and words."""
    still = frames == 1 and not video and task in (None, "animate")
    # a picture that is made anew may be written as one, or as a clip of one frame
    still |= image is not None and task in ("edit", "upscale") and output.suffix.lower() in IMAGE_SUFFIXES
    counts = {"frames": frames, "scale": scale, "height": height, "width": width, "tries": tries}
    check_flags(counts, seed, guidance, level, task, output, still)
    frames = FRAMES if frames is None else frames
    clips, rates = read_clips(image, video, height, width, task)
    model = WorldModel.load(checkpoint, device).trying(tries)
    world = world or ("Orbit" if sweep else None)
    if expand:
        prompt = expanded_shots(prompt, world, seed)
        print(prompt)
    check_frames_fit(frames, scale * (height or model.height), scale * (width or model.width))
    factor = model.frames_per_step
    request = Request(prompt, frames, height, width, task, clips, sweep, level, world, guidance, factor)
    chosen = plan(request, height or model.height, width or model.width)
    expected = estimate(model, chosen.canvas, steps, always=False)
    if expected.seconds > TOLD_FROM_S:
        print(expected.words, file=sys.stderr)
    tell_unknown(chosen.canvas)
    made = model.generate(chosen.canvas, seed=seed, steps=steps, progress=True)
    if still:
        write_image(output, made[0], scale=scale)
    else:
        fps = model.frames_per_step / model.time_step_s
        for rate in rates - {fps}:
            print(f"{rate:g} frames a second are played at the model's {fps:g}", file=sys.stderr)
        write_video(output, chosen.joined(made), fps, scale=scale)
    print(output)
    return 0
