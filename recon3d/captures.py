"""Captures on disk -> pictures and cameras: videos, photos, folders with nerfstudio's `transforms.json`.

Where no cameras are given they are estimated (`recon3d.poses`); pictures are then brought to the size that
the reconstruction works at. Blender's `transforms_train.json` (NeRF's synthetic data) is read too; what is
transparent becomes white, as is usual for it. Pictures of a lens that bends straight lines are straightened
(`recon3d.lens`), and so are their masks.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from recon3d.cameras import COEFFICIENTS, Cameras, from_transforms
from recon3d.colmap import FEATURE_SIDES
from recon3d.lens import lens_of, straightened
from recon3d.misfit import misfit
from recon3d.pictures import (
    VIDEO_SUFFIXES,
    Pictures,
    brought_down,
    read_mask,
    read_masks,
    read_photos,
    read_picture,
    read_video,
)
from recon3d.poses import register
from recon3d.similarity import NothingReconstructed

LISTINGS = ("transforms.json", "transforms_train.json")
FEWEST_VIEWS = 10
SMALLEST_CHECKED = 128  # px
FEWEST_MATCHES = 100
FOCAL_FITS = 0.7  # of the misfit: a clearly different focal length that leaves less is nearer to the truth
WORST_MISFIT = 0.005  # of the longer side; true cameras stay near a quarter of it
Masks = list[Image.Image] | None


@dataclass(frozen=True)
class Reading:
    """How a capture is read. Masks are a folder, with one for each picture by its name or as many as there
    are frames, or a video of as many frames."""

    longest_side: int = 256  # pixels that pictures are brought down to, keeping their aspect
    views: int = 40  # at most so many frames of a video: the sharpest of as many equal parts
    focal_px: float | None = None  # of a capture without cameras, in pixels of its files; default: estimated
    distance_m: float | None = None  # metres from its cameras to what they look at, on average, if known
    mapping_s: float | None = None  # to fit cameras to matches in; default: 6 a picture, at least 240
    masks: Path | None = None  # white on the thing that --extract is to find
    ignore: Path | None = None  # masks, white on what moves or is not of the scene: it is left out of all


READING = Reading()


@dataclass(frozen=True)
class Capture:
    """Pictures with a camera each.

    Attributes:
        frames: of the cameras' size.
        cameras: in metres where the scale is known.
        metric: whether it is. Otherwise the unit is the cameras' mean distance from what they look at.
        masks: of the thing in each picture, where they are given or its listing names them (`mask_path`).
        ignored: what is not of the scene in each picture, where that is given.
    """

    frames: UInt8[Tensor, "n h w 3"]
    cameras: Cameras
    metric: bool
    masks: Bool[Tensor, "n h w"] | None = None
    ignored: Bool[Tensor, "n h w"] | None = None


def read_capture(source: Path, reading: Reading = READING, progress: bool = False) -> Capture:
    """Pictures and cameras of a video, a folder of photos, or a folder with `transforms.json`.

    What is left out, and what estimated cameras rest on, is said on stderr.

    Raises:
        FileNotFoundError: there is no such source, or no such masks.
        ValueError: it is damaged, holds too few pictures, or options or masks that do not apply.
        NothingReconstructed: it has no cameras, and they cannot be estimated from its pictures.
    """
    if reading.longest_side < 16 or reading.views < FEWEST_VIEWS:
        raise ValueError(
            f"--longest-side must be at least 16 and --views at least {FEWEST_VIEWS}, got "
            f"{reading.longest_side} and {reading.views}"
        )
    if not source.exists():
        raise FileNotFoundError(f"no file or folder at {source}; give a video or a folder of pictures")
    side = max(reading.longest_side, FEATURE_SIDES[1])
    listing = next((source / name for name in LISTINGS if (source / name).is_file()), None)
    if listing is not None:
        if any(given is not None for given in (reading.focal_px, reading.distance_m, reading.mapping_s)):
            raise ValueError(f"{listing} has cameras; leave out --focal-px, --distance-m and --mapping-s")
        capture = _read_posed(listing, side, reading)
        _check_cameras(capture, listing)
        return _shrunk(capture, reading.longest_side)
    if source.is_dir():
        pictures = read_photos(source, side)
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        pictures = read_video(source, reading.views, side, progress)
    else:
        raise ValueError(
            f"a source is a video ({', '.join(VIDEO_SUFFIXES)}), a folder of pictures or prompt:TEXT, "
            f"got {source.name}"
        )
    return _shrunk(_posed(source, pictures, reading, progress), reading.longest_side)


def _check_cameras(capture: Capture, listing: Path) -> None:
    """Refuses cameras that contradict what their pictures show; small or bare pictures show too little to
    tell, which is said."""
    side = max(capture.frames.shape[1:3])
    if side < SMALLEST_CHECKED:
        return
    found = misfit(capture.frames.numpy(), capture.cameras)
    if found.matches < FEWEST_MATCHES:
        print(f"cameras taken as listed: only {found.matches} features match between views", file=sys.stderr)
        return
    if found.px > WORST_MISFIT * side:
        raise ValueError(
            f"the cameras of {listing} do not fit its pictures: matched features are {found.px:.1f} px off, "
            f"of {side}; check focal length and axes (OpenGL: y up, looking along -z), or remove the file: "
            "then cameras are estimated"
        )
    if found.focal_px < FOCAL_FITS * found.px:
        raise ValueError(
            f"the focal length of {listing} does not fit its pictures: matched features are {found.px:.2f} "
            f"px off, and would be {found.focal_px:.2f} px off with {found.focal_factor:g} times it; correct "
            "fl_x (in pixels of pictures of w x h), or remove the file: then cameras are estimated"
        )


def _posed(source: Path, pictures: Pictures, reading: Reading, progress: bool) -> Capture:
    """Pictures of one size with cameras estimated from them, without those that do not register."""
    images = pictures.images
    if len(images) < FEWEST_VIEWS:
        raise ValueError(
            f"{source.name} holds {len(images)} pictures of one size, at least {FEWEST_VIEWS} are needed; "
            "walk around the thing and take more"
        )
    masks, ignored = (_masks_for(pictures, at) for at in (reading.masks, reading.ignore))
    scale = max(images[0].size) / pictures.whole_side
    found = register(
        np.stack([np.asarray(image) for image in images]),
        focal_px=None if reading.focal_px is None else reading.focal_px * scale,
        guess_px=None if pictures.focal_px is None else pictures.focal_px * scale,
        masks=None if ignored is None else _white(ignored).numpy(),
        ordered=not source.is_dir(),
        bent=True,
        mapping_s=reading.mapping_s,
        progress=progress,
    )
    width, height = images[0].size
    print(f"{source.name}, at {width}x{height}: {found}", file=sys.stderr)
    if found.verdict != "registered":
        raise NothingReconstructed(f"{found.verdict}: {found.reason}")
    if found.registered.sum() < FEWEST_VIEWS:
        raise NothingReconstructed(
            f"not one scene: {found.registered.sum()} frames register, {FEWEST_VIEWS} are needed"
        )
    left_out = (~found.registered).nonzero()[:, 0].tolist()
    if left_out:
        print(f"going on without pictures {', '.join(map(str, left_out))} (counted from 0)", file=sys.stderr)
    kept = found.registered.nonzero()[:, 0].tolist()
    cameras = found.cameras[found.registered]
    if reading.distance_m is not None:
        c2w = cameras.c2w.clone()
        c2w[:, :3, 3] *= reading.distance_m
        cameras = replace(cameras, c2w=c2w)
    images, masks, ignored = (part and [part[k] for k in kept] for part in (images, masks, ignored))
    assert images is not None
    return _straight(images, cameras, found.lens, masks, ignored, metric=reading.distance_m is not None)


def _masks_for(pictures: Pictures, source: Path | None) -> Masks:
    """The masks of pictures from what an option names, if it does."""
    if source is None:
        return None
    return read_masks(source, pictures.names, pictures.places, pictures.count, pictures.images[0].size)


def _straight(
    images: list[Image.Image],
    cameras: Cameras,
    lens: pycolmap.Camera | None,
    masks: Masks,
    ignored: Masks,
    metric: bool,
) -> Capture:
    """The capture, straightened where there is a lens."""
    if lens is not None:
        images, K = straightened(images, lens)
        masks, ignored = (part and straightened(part, lens)[0] for part in (masks, ignored))
        width, height = images[0].size
        cameras = Cameras(K.repeat(len(images), 1, 1), cameras.c2w, height, width)
    frames = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    white = (None if part is None else _white(part) for part in (masks, ignored))
    return Capture(frames, cameras, metric, *white)


def _white(masks: Sequence[Image.Image]) -> Bool[Tensor, "n h w"]:
    return torch.from_numpy(np.stack([np.asarray(mask) > 127 for mask in masks]))


def _shrunk(capture: Capture, longest_side: int) -> Capture:
    """The capture with smaller pictures, if they are larger than asked for; cameras follow. A pixel is
    ignored that holds any that is."""
    height, width = capture.frames.shape[1:3]
    if max(height, width) <= longest_side:
        return capture
    pictures = [brought_down(Image.fromarray(frame.numpy()), longest_side) for frame in capture.frames]
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    size = frames.shape[1:3]
    masks, ignored = capture.masks, capture.ignored
    if masks is not None:
        masks = interpolate(masks[:, None].float(), size, mode="nearest-exact")[:, 0] > 0.5
    if ignored is not None:
        ignored = adaptive_max_pool2d(ignored.float(), size) > 0
    return Capture(frames, capture.cameras.resized(*size), capture.metric, masks, ignored)


def _read_posed(listing: Path, longest_side: int, reading: Reading) -> Capture:
    """Pictures and cameras that a listing names; those that do not exist are named and left out."""
    try:
        transforms = json.loads(listing.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{listing} is not valid JSON ({error}); export it again") from error
    frames = transforms.get("frames") if isinstance(transforms, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{listing} must be an object with a list of frames; export it again")
    folder, images, missing, sizes = listing.parent, {}, [], set()
    for k, frame in enumerate(frames):
        name = str(frame.get("file_path", ""))
        path = folder / (name if Path(name).suffix else f"{name}.png")
        if path.is_file():
            images[k], size, _ = read_picture(path, longest_side)
            sizes.add(size)
        else:
            missing.append(name)
    count = len(images) + len(missing)
    if len(images) < max(FEWEST_VIEWS, count / 2):
        raise ValueError(
            f"{listing} lists {count} pictures, of which {len(images)} exist; {FEWEST_VIEWS} and half of "
            f"them are needed (missing: {', '.join(missing[:3]) or 'none'}); put them back, or take more"
        )
    if len(sizes) != 1:
        raise ValueError(f"pictures of {folder} must have one size, got {sorted(sizes)}; resize them")
    if missing:
        print(f"going on without {len(missing)} missing pictures: {', '.join(missing)}", file=sys.stderr)
    (whole_width, whole_height), (width, height) = sizes.pop(), next(iter(images.values())).size
    common = {key: value for key, value in transforms.items() if key != "frames"}
    described = [{"w": whole_width, "h": whole_height, **common, **transforms["frames"][k]} for k in images]
    cameras = _pinholes(described).resized(height, width)
    names = [Path(frame["file_path"]).name for frame in described]
    pictures = Pictures([*images.values()], max(whole_width, whole_height), None, names, [*images], count)
    masks, ignored = (_masks_for(pictures, at) for at in (reading.masks, reading.ignore))
    masks = _listed_masks(listing, described, width, height) if masks is None else masks
    lens = _one_lens(listing, described, cameras)
    metric = bool(transforms.get("metric", True))  # `orrery poses` says where it is not
    return _straight(pictures.images, cameras, lens, masks, ignored, metric=metric)


def _pinholes(described: Sequence[dict]) -> Cameras:
    """The cameras of frames as if they had no lens."""
    lens = (*COEFFICIENTS, "camera_model")
    frames = [{key: value for key, value in frame.items() if key not in lens} for frame in described]
    return from_transforms({"frames": frames})[0]


def _one_lens(listing: Path, described: Sequence[dict], cameras: Cameras) -> pycolmap.Camera | None:
    """The lens that all frames share, for pictures of the cameras' size; None for a pinhole."""
    height, width = cameras.height, cameras.width
    lenses = [lens_of(frame, K, height, width) for frame, K in zip(described, cameras.K, strict=True)]
    if any(str(other) != str(lenses[0]) for other in lenses):
        raise ValueError(f"frames of {listing} must share one lens (k1, ... and fl_x); undistort them first")
    return lenses[0]


def _listed_masks(listing: Path, described: Sequence[dict], width: int, height: int) -> Masks:
    """The masks, white on the thing, that a listing names for pictures, at their size; None where it names
    none."""
    paths = [listing.parent / frame["mask_path"] for frame in described if frame.get("mask_path")]
    if not paths:
        return None
    if len(paths) < len(described):
        lacking = next(frame["file_path"] for frame in described if not frame.get("mask_path"))
        raise ValueError(f"{listing} must give a mask_path to all frames or to none; {lacking} has none")
    return [read_mask(path, (width, height)) for path in paths]
