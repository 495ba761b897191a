"""Masks of the thing in a capture: `mask_path` of the frames of a `transforms.json`, white on the thing."""

import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor


def read_masks(source: Path, count: int, height: int, width: int) -> Bool[Tensor, "n h w"] | None:
    """The masks of those of a capture's pictures that exist, in their order; None where it has none.

    Args:
        source: the capture's folder.
        count: how many pictures it gave.
        height: pixels that the masks are resized to (nearest).

    Raises:
        ValueError: some pictures have masks and others do not, or a mask cannot be read.
    """
    listing = source / "transforms.json"
    if not listing.is_file():
        return None
    frames = [f for f in json.loads(listing.read_text())["frames"] if (source / f["file_path"]).is_file()]
    names = [frame.get("mask_path") for frame in frames]
    if not any(names):
        return None
    lacking = [frame["file_path"] for frame, name in zip(frames, names, strict=True) if not name]
    if lacking:
        raise ValueError(f"{listing} must give a mask_path to all frames or to none; {lacking[0]} has none")
    if len(names) != count:
        raise ValueError(f"{source} gave {count} pictures and {len(names)} masks; give one mask per picture")
    return torch.stack([_read_mask(source / str(name), height, width) for name in names])


def _read_mask(path: Path, height: int, width: int) -> Bool[Tensor, "h w"]:
    try:
        with Image.open(path) as picture:
            grey = picture.convert("L").resize((width, height), Image.Resampling.NEAREST)
    except OSError as error:
        raise ValueError(f"{path} is not a mask that can be read ({error}); replace it") from error
    return torch.from_numpy(np.asarray(grey) > 127)
