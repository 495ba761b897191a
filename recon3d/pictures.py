"""Files -> pictures: a video's sharpest frames, photos turned upright, and masks that go with them."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif", ".m4v")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
EXIF_PART, EXIF_FOCAL_35MM, FILM_WIDTH_MM = 0x8769, 0xA405, 36.0


class Pictures(NamedTuple):
    """Upright pictures of one size."""

    images: list[Image.Image]  # brought down
    whole_side: int  # longer side in the files, pixels
    focal_px: float | None  # that the files name, in their pixels
    names: list[str]  # of the photos' files, without folder; empty for a video
    places: list[int]  # of each among all that there are
    count: int  # of all that there are


def read_video(path: Path, views: int, longest_side: int, progress: bool = False) -> Pictures:
    """The sharpest frame of each of `views` equal parts of a video, or all where it has no more.

    Raises ValueError if it does not decode, or changes its size on the way.
    """
    best: dict[int, tuple[float, int, Image.Image]] = {}
    sizes = set()
    try:
        with av.open(str(path)) as container:
            total = sum(packet.size > 0 for packet in container.demux(video=0))
        with av.open(str(path)) as container:
            frames = container.decode(video=0)
            for k, frame in enumerate(tqdm(frames, "frames", total, disable=not progress)):
                part = min(k * views // total, views - 1) if total > views else k
                sharp = _sharpness(frame.reformat(width=256, height=256, format="gray").to_ndarray())
                sizes.add((frame.width, frame.height))
                if part not in best or sharp > best[part][0]:
                    best[part] = (sharp, k, brought_down(_upright(frame), longest_side))
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} does not decode as a video ({error}); re-encode it, for example to H.264"
        ) from error
    if len(sizes) > 1:
        raise ValueError(f"{path} changes its size on the way; re-encode it at one size")
    chosen = [best[part] for part in sorted(best)]
    side = max((max(size) for size in sizes), default=0)
    images, places = [image for _, _, image in chosen], [k for _, k, _ in chosen]
    return Pictures(images, side, None, [], places, total)


def _upright(frame: av.VideoFrame) -> Image.Image:
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return Image.fromarray(np.ascontiguousarray(turned))


def _sharpness(grey: UInt8[np.ndarray, "h w"]) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000)."""
    x = grey.astype(np.float32)
    laplacian = x[1:-1, :-2] + x[1:-1, 2:] + x[:-2, 1:-1] + x[2:, 1:-1] - 4 * x[1:-1, 1:-1]
    return float(laplacian.var())


def read_photos(folder: Path, longest_side: int) -> Pictures:
    """Photos of the most frequent size; others are named on stderr and left out.

    Raises ValueError if there is none, or one cannot be read.
    """
    paths = in_order(folder)
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}) and no transforms.json")
    photos = [read_picture(path, longest_side) for path in paths]
    sizes = [size for _, size, _ in photos]
    size = max(sizes, key=sizes.count)
    others = [path.name for path, other in zip(paths, sizes, strict=True) if other != size]
    if others:
        print(
            f"going on without {len(others)} pictures of another size: {', '.join(others)}", file=sys.stderr
        )
    kept = [k for k, other in enumerate(sizes) if other == size]
    focals = {photos[k][2] for k in kept}
    focal_mm = focals.pop() if len(focals) == 1 else None
    focal_px = None if focal_mm is None else focal_mm / FILM_WIDTH_MM * max(size)
    images, names = [photos[k][0] for k in kept], [paths[k].name for k in kept]
    return Pictures(images, max(size), focal_px, names, kept, len(paths))


def in_order(folder: Path) -> list[Path]:
    """The pictures of a folder by name, where 2 comes before 10."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]

    def key(path: Path) -> list[int | str]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]

    return sorted(paths, key=key)


def read_picture(path: Path, longest_side: int) -> tuple[Image.Image, tuple[int, int], float | None]:
    """An upright RGB picture, on white where it is transparent, brought down, with the size that it had and
    the focal length that it names: 35 mm equivalent, in millimetres."""
    try:
        with Image.open(path) as file:
            focal_mm = file.getexif().get_ifd(EXIF_PART).get(EXIF_FOCAL_35MM)
            picture = ImageOps.exif_transpose(file)
            if "A" in picture.getbands() or "transparency" in picture.info:
                layer = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            made = brought_down(picture.convert("RGB"), longest_side)
            return made, picture.size, float(focal_mm) if focal_mm else None
    except OSError as error:
        raise ValueError(f"{path} is not a picture that can be read ({error}); replace it") from error


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """A mask in grey levels, at so many columns and rows."""
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("L").resize(size, Image.Resampling.NEAREST)
    except OSError as error:
        raise ValueError(f"{path} is not a mask that can be read ({error}); replace it") from error


def read_masks(
    source: Path, names: Sequence[str], places: Sequence[int], count: int, size: tuple[int, int]
) -> list[Image.Image]:
    """The masks of pictures, in grey levels at their size: a video, a folder with a mask for each by its name
    (`a.png` or `a.jpg.png` for `a.jpg`), or a folder with as many as there are pictures.

    Args:
        names: of the pictures' files; empty for the frames of a video.
        places: of each among all `count` that there are.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it lacks masks for some pictures, or one cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"no masks at {source}; give a folder of pictures or a video")
    if not source.is_dir():
        made = read_video(source, sys.maxsize, max(size))
        if len(made.images) != count:
            raise ValueError(f"{source} must hold {count} frames, as what it masks, got {len(made.images)}")
        return [made.images[k].convert("L").resize(size, Image.Resampling.NEAREST) for k in places]
    paths = in_order(source)
    by_name = {path.stem: path for path in paths}
    found = [by_name.get(Path(name).stem) or by_name.get(name) for name in names]
    if names and all(found):
        return [read_mask(path, size) for path in found if path is not None]
    if len(paths) != count:
        lacking = f" ({names[found.index(None)]} has none)" if names else ""
        raise ValueError(
            f"{source} must hold a mask for each picture by its name{lacking}, or {count} in their order, "
            f"got {len(paths)}"
        )
    return [read_mask(paths[k], size) for k in places]


def brought_down(picture: Image.Image, longest_side: int) -> Image.Image:
    """The picture with its longer side at most so long; each new pixel is the mean of what it covers."""
    scale = longest_side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)
