"""The command `orrery poses`: a video or photos in, a folder of pictures with their cameras out."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from recon3d.cameras import to_transforms
from recon3d.captures import READING, Capture, Reading, read_capture
from recon3d.similarity import NothingReconstructed

LARGE = replace(READING, longest_side=768)


def poses(
    source: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    reading: Annotated[Reading, tyro.conf.arg(name="")] = LARGE,
) -> int:
    """Estimate the cameras of a video or of photos, and keep both as a folder with a transforms.json.

    `orrery asset`, `orrery ns train` and other programs that read nerfstudio's format take it. What the
    cameras rest on is said on stderr.

    Args:
        source: a video, a folder of photos, or one with a transforms.json, whose lens is then straightened.
        output: a folder that is not there yet.
        reading: size of the pictures, frames of a video, what is known of its camera, what moves.

    Returns:
        0 when written, 3 when the pictures hold no cameras.
    """
    if reading.masks is not None:
        raise ValueError("--masks shows the thing to cut out: give it to `orrery asset`")
    if output.exists():
        raise FileExistsError(f"-o {output} is there already; name a new folder, or move it away")
    try:
        capture = read_capture(source, reading, progress=True)
    except NothingReconstructed as reason:
        print(f"no cameras: {reason}")
        return 3
    write_dataset(capture, output)
    print(f"{output / 'transforms.json'}: {len(capture.cameras)} pictures and their cameras")
    return 0


def write_dataset(capture: Capture, folder: Path) -> None:
    """Pictures and `transforms.json` in a new folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        part = Path(name) / folder.name
        (part / "images").mkdir(parents=True)
        paths = [f"images/{k:04d}.png" for k in range(len(capture.frames))]
        for path, frame in zip(paths, capture.frames, strict=True):
            Image.fromarray(frame.numpy()).save(part / path)
        listing = {**to_transforms(capture.cameras, paths), "metric": capture.metric}
        (part / "transforms.json").write_text(json.dumps(listing, indent=1))
        part.rename(folder)
