"""Captures on disk -> pictures and cameras: videos, photos, folders with nerfstudio's `transforms.json`.

Where no cameras are given they are estimated (`recon3d.poses`); pictures are then brought to the size that
the reconstruction works at. Blender's `transforms_train.json` (NeRF's synthetic data) is read too; what is
transparent becomes white, as is usual for it. Pictures of a lens that bends straight lines are straightened
(`recon3d.lens`).
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import av.error
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from recon3d.cameras import Cameras, from_transforms
from recon3d.lens import COEFFICIENTS, lens_of, straightened
from recon3d.poses import FEATURE_SIDES, misfit_px, register
from recon3d.similarity import NothingReconstructed

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif", ".m4v")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LISTINGS = ("transforms.json", "transforms_train.json")
FEWEST_VIEWS = 10
SMALLEST_CHECKED = 128  # px
FEWEST_MATCHES = 100
WORST_MISFIT = 0.005  # of the longer side; true cameras stay near a quarter of it
EXIF_PART, EXIF_FOCAL_35MM, FILM_WIDTH_MM = 0x8769, 0xA405, 36.0


@dataclass(frozen=True)
class Reading:
    """How a capture is read."""

    longest_side: int = 256  # pixels that pictures are brought down to, keeping their aspect
    views: int = 40  # at most so many frames of a video: the sharpest of as many equal parts
    focal_px: float | None = None  # of a capture without cameras, in pixels of its files; default: estimated
    distance_m: float | None = None  # metres from its cameras to what they look at, on average, if known


READING = Reading()


@dataclass(frozen=True)
class Capture:
    """Pictures with a camera each.

    Attributes:
        frames: of the cameras' size.
        cameras: in metres where the scale is known.
        metric: whether it is. Otherwise the unit is the cameras' mean distance from what they look at.
        masks: of the thing in each picture, where its listing names them (`mask_path`).
    """

    frames: UInt8[Tensor, "n h w 3"]
    cameras: Cameras
    metric: bool
    masks: Bool[Tensor, "n h w"] | None = None


def read_capture(source: Path, reading: Reading = READING, progress: bool = False) -> Capture:
    """Pictures and cameras of a video, a folder of photos, or a folder with `transforms.json`.

    What is left out, and what estimated cameras rest on, is said on stderr.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it is damaged, holds too few pictures, or options that do not apply.
        NothingReconstructed: it has no cameras, and they cannot be estimated from its pictures.
    """
    if reading.longest_side < 16 or reading.views < FEWEST_VIEWS:
        raise ValueError(
            f"--longest-side must be at least 16 and --views at least {FEWEST_VIEWS}, got "
            f"{reading.longest_side} and {reading.views}"
        )
    if not source.exists():
        raise FileNotFoundError(f"no file or folder at {source}; give a video or a folder of pictures")
    listing = next((source / name for name in LISTINGS if (source / name).is_file()), None)
    if listing is not None:
        if reading.focal_px is not None or reading.distance_m is not None:
            raise ValueError(f"{listing} has cameras; leave out --focal-px and --distance-m")
        capture = _shrunk(_read_posed(listing, _first_side(reading)), reading.longest_side)
        _check_cameras(capture, listing)
        return capture
    if source.is_dir():
        pictures, focal_px = _read_photos(source)
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        pictures, focal_px = _read_video(source, reading.views, progress), None
    else:
        raise ValueError(
            f"a source is a video ({', '.join(VIDEO_SUFFIXES)}), a folder of pictures or prompt:TEXT, "
            f"got {source.name}"
        )
    capture = _posed(source, pictures, reading, focal_px, progress)
    return _shrunk(capture, reading.longest_side)


def _check_cameras(capture: Capture, listing: Path) -> None:
    """Refuses cameras that contradict what their pictures show; small pictures show too little to tell."""
    side = max(capture.frames.shape[1:3])
    if side < SMALLEST_CHECKED:
        return
    misfit, matches = misfit_px(capture.frames.numpy(), capture.cameras)
    if matches >= FEWEST_MATCHES and misfit > WORST_MISFIT * side:
        raise ValueError(
            f"the cameras of {listing} do not fit its pictures: matched features are {misfit:.1f} px off, of "
            f"{side}; check focal length and axes (OpenGL: y up, looking along -z), or remove the file: then "
            "cameras are estimated"
        )


def _posed(
    source: Path, pictures: list[Image.Image], reading: Reading, guess_px: float | None, progress: bool
) -> Capture:
    """Pictures of one size with cameras estimated from them, without those that do not register."""
    if len(pictures) < FEWEST_VIEWS:
        raise ValueError(
            f"{source.name} holds {len(pictures)} pictures of one size, at least {FEWEST_VIEWS} are needed; "
            "walk around the thing and take more"
        )
    own = max(pictures[0].size)
    side = min(own, FEATURE_SIDES[1])
    frames = np.stack([np.asarray(_brought_down(picture, side)) for picture in pictures])
    found = register(
        frames,
        focal_px=None if reading.focal_px is None else reading.focal_px * side / own,
        guess_px=None if guess_px is None else guess_px * side / own,
        ordered=not source.is_dir(),
        progress=progress,
    )
    print(f"{source.name}, at {frames.shape[2]}x{frames.shape[1]}: {found}", file=sys.stderr)
    if found.verdict != "registered":
        raise NothingReconstructed(f"{found.verdict}: {found.reason}")
    if found.registered.sum() < FEWEST_VIEWS:
        raise NothingReconstructed(
            f"not one scene: {found.registered.sum()} frames register, {FEWEST_VIEWS} are needed"
        )
    left_out = (~found.registered).nonzero()[:, 0].tolist()
    if left_out:
        print(f"going on without pictures {', '.join(map(str, left_out))} (counted from 0)", file=sys.stderr)
    cameras = found.cameras[found.registered]
    if reading.distance_m is not None:
        c2w = cameras.c2w.clone()
        c2w[:, :3, 3] *= reading.distance_m
        cameras = replace(cameras, c2w=c2w)
    kept = torch.from_numpy(frames)[found.registered]
    return Capture(kept, cameras, metric=reading.distance_m is not None)


def _first_side(reading: Reading) -> int:
    """The longer side at which pictures are first kept: features are sought in them."""
    return max(reading.longest_side, FEATURE_SIDES[1])


def _shrunk(capture: Capture, longest_side: int) -> Capture:
    """The capture with smaller pictures, if they are larger than asked for; cameras follow."""
    height, width = capture.frames.shape[1:3]
    if max(height, width) <= longest_side:
        return capture
    pictures = [_brought_down(Image.fromarray(frame.numpy()), longest_side) for frame in capture.frames]
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    size = frames.shape[1:3]
    masks = capture.masks
    if masks is not None:
        masks = interpolate(masks[:, None].float(), size, mode="nearest-exact")[:, 0] > 0.5
    return replace(capture, frames=frames, cameras=capture.cameras.resized(*size), masks=masks)


def _brought_down(picture: Image.Image, longest_side: int) -> Image.Image:
    """The picture with its longer side at most so long; each new pixel is the mean of what it covers."""
    scale = longest_side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _read_video(path: Path, views: int, progress: bool) -> list[Image.Image]:
    """The sharpest frame of each of `views` equal parts of a video, or all where it has no more."""
    best: dict[int, tuple[float, Image.Image]] = {}
    try:
        with av.open(str(path)) as container:
            total = sum(packet.size > 0 for packet in container.demux(video=0))
        with av.open(str(path)) as container:
            frames = container.decode(video=0)
            for k, frame in enumerate(tqdm(frames, "frames", total, disable=not progress)):
                part = min(k * views // total, views - 1) if total > views else k
                sharp = _sharpness(frame.reformat(width=256, height=256, format="gray").to_ndarray())
                if part not in best or sharp > best[part][0]:
                    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    picture = _brought_down(Image.fromarray(np.ascontiguousarray(upright)), FEATURE_SIDES[1])
                    best[part] = (sharp, picture)
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} does not decode as a video ({error}); re-encode it, for example to H.264"
        ) from error
    pictures = [best[part][1] for part in sorted(best)]
    if len({picture.size for picture in pictures}) > 1:
        raise ValueError(f"{path} changes its size on the way; re-encode it at one size")
    return pictures


def _sharpness(grey: UInt8[np.ndarray, "h w"]) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000)."""
    x = grey.astype(np.float32)
    laplacian = x[1:-1, :-2] + x[1:-1, 2:] + x[:-2, 1:-1] + x[2:, 1:-1] - 4 * x[1:-1, 1:-1]
    return float(laplacian.var())


def _read_photos(folder: Path) -> tuple[list[Image.Image], float | None]:
    """Photos of the most frequent size, turned upright, and the focal length in pixels that they name."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    paths.sort(key=lambda path: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", path.name)])
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}) and no transforms.json")
    photos = [_read_picture(path) for path in paths]
    sizes = [photo.size for photo, _ in photos]
    size = max(sizes, key=sizes.count)
    others = [path.name for path, other in zip(paths, sizes, strict=True) if other != size]
    if others:
        print(
            f"going on without {len(others)} pictures of another size: {', '.join(others)}", file=sys.stderr
        )
    focals = {focal for photo, focal in photos if photo.size == size}
    focal_mm = focals.pop() if len(focals) == 1 else None
    focal_px = None if focal_mm is None else focal_mm / FILM_WIDTH_MM * max(size)
    return [photo for photo, _ in photos if photo.size == size], focal_px


def _read_picture(path: Path) -> tuple[Image.Image, float | None]:
    """An upright RGB picture, on white where it is transparent, and the focal length that it names: 35 mm
    equivalent, in millimetres."""
    try:
        with Image.open(path) as file:
            focal_mm = file.getexif().get_ifd(EXIF_PART).get(EXIF_FOCAL_35MM)
            picture = ImageOps.exif_transpose(file)
            if "A" in picture.getbands() or "transparency" in picture.info:
                layer = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return picture.convert("RGB"), float(focal_mm) if focal_mm else None
    except OSError as error:
        raise ValueError(f"{path} is not a picture that can be read ({error}); replace it") from error


def _read_posed(listing: Path, longest_side: int) -> Capture:
    """Pictures and cameras that a listing names; those that do not exist are named and left out."""
    try:
        transforms = json.loads(listing.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{listing} is not valid JSON ({error}); export it again") from error
    folder, pictures, missing, sizes = listing.parent, {}, [], set()
    for k, frame in enumerate(transforms.get("frames") or []):
        name = str(frame.get("file_path", ""))
        path = folder / (name if Path(name).suffix else f"{name}.png")
        if path.is_file():
            picture = _read_picture(path)[0]
            sizes.add(picture.size)
            pictures[k] = _brought_down(picture, longest_side)
        else:
            missing.append(name)
    count = len(pictures) + len(missing)
    if len(pictures) < max(FEWEST_VIEWS, count / 2):
        raise ValueError(
            f"{listing} lists {count} pictures, of which {len(pictures)} exist; {FEWEST_VIEWS} and half of "
            f"them are needed (missing: {', '.join(missing[:3]) or 'none'})"
        )
    if len(sizes) != 1:
        raise ValueError(f"pictures of {folder} must have one size, got {sorted(sizes)}; resize them")
    if missing:
        print(f"going on without {len(missing)} missing pictures: {', '.join(missing)}", file=sys.stderr)
    (whole_width, whole_height), (width, height) = sizes.pop(), next(iter(pictures.values())).size
    common = {key: value for key, value in transforms.items() if key != "frames"}
    described = [{"w": whole_width, "h": whole_height, **common, **transforms["frames"][k]} for k in pictures]
    cameras = _pinholes(described).resized(height, width)
    masks = _read_masks(listing, described, height, width)
    return _straight(listing, described, [*pictures.values()], cameras, masks)


def _pinholes(described: Sequence[dict]) -> Cameras:
    """The cameras of frames as if they had no lens."""
    lens = (*COEFFICIENTS, "camera_model")
    frames = [{key: value for key, value in frame.items() if key not in lens} for frame in described]
    return from_transforms({"frames": frames})[0]


def _straight(
    listing: Path,
    described: Sequence[dict],
    pictures: list[Image.Image],
    cameras: Cameras,
    masks: list[Image.Image] | None,
) -> Capture:
    """The capture of frames that a listing describes, straightened where it names a lens."""
    height, width = cameras.height, cameras.width
    lenses = [lens_of(frame, K, height, width) for frame, K in zip(described, cameras.K, strict=True)]
    lens = lenses[0]
    if any(str(other) != str(lens) for other in lenses):
        raise ValueError(f"frames of {listing} must share one lens (k1, ... and fl_x); undistort them first")
    if lens is not None:
        pictures, K = straightened(pictures, lens)
        masks = None if masks is None else straightened(masks, lens)[0]
        width, height = pictures[0].size
        cameras = Cameras(K.expand(len(pictures), 3, 3), cameras.c2w, height, width)
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    white = None if masks is None else torch.from_numpy(np.stack([np.asarray(m) > 127 for m in masks]))
    return Capture(frames, cameras, metric=True, masks=white)


def _read_masks(listing: Path, found: Sequence[dict], height: int, width: int) -> list[Image.Image] | None:
    """The masks, white on the thing, that a listing names for pictures, at their size; None where it names
    none."""
    paths = [listing.parent / frame["mask_path"] for frame in found if frame.get("mask_path")]
    if not paths:
        return None
    if len(paths) < len(found):
        lacking = next(frame["file_path"] for frame in found if not frame.get("mask_path"))
        raise ValueError(f"{listing} must give a mask_path to all frames or to none; {lacking} has none")
    masks = []
    for path in paths:
        try:
            with Image.open(path) as file:
                grey = file.convert("L").resize((width, height), Image.Resampling.NEAREST)
        except OSError as error:
            raise ValueError(f"{path} is not a mask that can be read ({error}); replace it") from error
        masks.append(grey)
    return masks
