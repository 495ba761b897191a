"""Captures on disk -> pictures and cameras: folders with `transforms.json` (nerfstudio's format)."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from recon3d.cameras import Cameras, from_transforms

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif")
FEWEST_VIEWS = 10


def read_capture(source: Path) -> tuple[UInt8[Tensor, "n h w 3"], Cameras]:
    """Pictures and cameras of a folder with `transforms.json`.

    Listed pictures that do not exist are named on stderr and left out, if enough remain.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it has no cameras, is damaged, or too few of its pictures exist.
    """
    if not source.exists():
        raise FileNotFoundError(f"no file or folder at {source}; give a folder with transforms.json")
    listing = source / "transforms.json"
    if source.suffix.lower() in VIDEO_SUFFIXES or (source.is_dir() and not listing.is_file()):
        raise ValueError(
            f"{source.name} has no cameras, and they cannot be estimated from pictures yet; "
            "give a folder with transforms.json"
        )
    if not source.is_dir():
        raise ValueError(
            f"a source is a folder with transforms.json or prompt:TEXT, got the file {source.name}"
        )
    try:
        cameras, names = from_transforms(json.loads(listing.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{listing} is not valid JSON ({error}); export it again") from error
    there = [k for k, name in enumerate(names) if (source / name).is_file()]
    missing = [name for name in names if not (source / name).is_file()]
    if len(there) < max(FEWEST_VIEWS, len(names) / 2):
        raise ValueError(
            f"{listing} lists {len(names)} pictures, of which {len(there)} exist; {FEWEST_VIEWS} and half of "
            f"them are needed (missing: {', '.join(missing[:3]) or 'none'})"
        )
    if missing:
        print(f"going on without {len(missing)} missing pictures: {', '.join(missing)}", file=sys.stderr)
    pictures = [_read_picture(source / names[k]) for k in there]
    sizes = {tuple(picture.shape[:2]) for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"pictures of {source} must have one size, got {sorted(sizes)}; resize them")
    frames = torch.stack(pictures)
    cameras = cameras[there]
    if frames.shape[1:3] != (cameras.height, cameras.width):
        cameras = cameras.resized(frames.shape[1], frames.shape[2])
    return frames, cameras


def _read_picture(path: Path) -> UInt8[Tensor, "h w 3"]:
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).copy()
    except OSError as error:
        raise ValueError(f"{path} is not a picture that can be read ({error}); replace it") from error
    return torch.from_numpy(pixels)
