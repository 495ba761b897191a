"""`orrery generate`: a prompt (and a picture, cameras, actions) -> a video or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from recon3d.cameras import Cameras
from recon3d.sweeps import arc, dolly, orbit, revisit
from simulator.canvas import Canvas, image_to_video, text_to_video
from simulator.checkpoint import check_writable
from simulator.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_image, write_image, write_video
from simulator.world_model import WorldModel

SWEEPS = {"orbit": orbit, "arc": arc, "dolly": dolly, "revisit": revisit}


def sweep_cameras(name: str | None, frames: int, height: int, width: int) -> Cameras | None:
    """The named camera path with so many views. Raises ValueError for a name that is none."""
    if name is None:
        return None
    if name not in SWEEPS:
        raise ValueError(f"--sweep must be one of {', '.join(SWEEPS)}, got {name!r}")
    return SWEEPS[name](frames, height=height, width=width)


def make_canvas(
    model: WorldModel,
    prompt: str,
    frames: int,
    height: int | None,
    width: int | None,
    image: Path | None,
    sweep: str | None,
    world: str | None,
    guidance: float,
) -> Canvas:
    """The canvas that the flags of `orrery generate` describe."""
    factor = model.frames_per_step
    views = (frames - 1) // factor + 1
    if image is not None:
        picture = read_image(image)
        asked = (height or picture.shape[0], width or picture.shape[1])
        if picture.shape[:2] != asked:
            raise ValueError(
                f"{image} is {picture.shape[0]}x{picture.shape[1]}, "
                f"asked for {asked[0]}x{asked[1]}; resize it"
            )
        cameras = sweep_cameras(sweep, views, *asked)
        return image_to_video(
            picture, prompt, frames, world=world, cameras=cameras, guidance=guidance, time_factor=factor
        )
    height, width = height or model.height, width or model.width
    cameras = sweep_cameras(sweep, views, height, width)
    return text_to_video(
        prompt,
        frames,
        world=world,
        height=height,
        width=width,
        cameras=cameras,
        guidance=guidance,
        time_factor=factor,
    )


def generate(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="what is to be seen")],
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], help="a video (.mp4), or a picture (.png) for --frames 1")
    ],
    frames: Annotated[int, tyro.conf.arg(help="1 makes a picture")] = 16,
    height: Annotated[int | None, tyro.conf.arg(help="pixels; the model's own size by default")] = None,
    width: Annotated[int | None, tyro.conf.arg(help="pixels; the model's own size by default")] = None,
    image: Annotated[Path | None, tyro.conf.arg(help="picture that the video starts with")] = None,
    sweep: Annotated[str | None, tyro.conf.arg(help="camera path: orbit, arc, dolly or revisit")] = None,
    world: Annotated[
        str | None, tyro.conf.arg(help="Room, Orbit or Lab; Orbit by default for a sweep")
    ] = None,
    seed: int = 0,
    steps: Annotated[int | None, tyro.conf.arg(help="sampler steps")] = None,
    guidance: Annotated[float, tyro.conf.arg(help="how strongly the prompt pulls; 1 is not at all")] = 3.0,
    scale: Annotated[int, tyro.conf.arg(help="repeat each pixel so many times in the file")] = 1,
    checkpoint: Annotated[
        str, tyro.conf.arg(help="'default' or a folder of `orrery train world`")
    ] = "default",
    device: str = "cpu",
) -> int:
    """Make a video, a picture or a camera sweep from words."""
    suffixes = IMAGE_SUFFIXES if frames == 1 else VIDEO_SUFFIXES
    if output.suffix.lower() not in suffixes:
        raise ValueError(f"-o {output} must end in {', '.join(suffixes)} for --frames {frames}")
    if frames < 1:
        raise ValueError(f"--frames must be at least 1, got {frames}")
    check_writable(output.parent)
    model = WorldModel.load(checkpoint, device)
    world = world or ("Orbit" if sweep else None)
    canvas = make_canvas(model, prompt, frames, height, width, image, sweep, world, guidance)
    video = model.generate(canvas, seed=seed, steps=steps, progress=True)
    if frames == 1:
        write_image(output, video[0], scale=scale)
    else:
        write_video(output, video, 1 / model.time_step_s, scale=scale)
    return 0
