"""Video as arrays and as files: the types that cross the project's borders, and reading and writing them."""

from __future__ import annotations

import os
from pathlib import Path

import av
import av.error
import imageio.v3 as iio
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

Frames = UInt8[np.ndarray, "t h w 3"]
Video = Float[Tensor, "b t c h w"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
WRITTEN_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi")  # those that hold what `write_video` writes
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# x264's look ahead over macroblocks (mbtree) reads beyond small pictures: the same frames, other files
X264 = {"crf": "14", "threads": "1", "x264-params": "mbtree=0"}
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes


def to_unit(
    frames: UInt8[np.ndarray, "*b h w 3"], device: torch.device | str = "cpu"
) -> Float[Tensor, "*b 3 h w"]:
    """uint8 pixels -> floats in [-1, 1], channels first."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return rearrange(pixels, "... h w c -> ... c h w").float() / 127.5 - 1


def to_uint8(video: Float[Tensor, "*b 3 h w"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Floats in [-1, 1], channels first -> uint8 pixels; what lies outside is clamped."""
    pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "... c h w -> ... h w c").cpu().numpy()


def upscaled(frames: Frames, factor: int) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Each pixel repeated `factor` times in both directions (so that small frames survive chroma
    subsampling)."""
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def resize(frames: Frames, height: int, width: int) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Frames at another size: bicubic, anti-aliased where they shrink."""
    made = torch.nn.functional.interpolate(
        to_unit(frames), (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return to_uint8(made)


def write_video(path: str | Path, frames: Frames, fps: float | int, *, scale: int = 1) -> Path:
    """Write an H.264 mp4 that browsers play (yuv420p; `scale` repeats pixels first), whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = upscaled(frames, scale)
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=round(fps), options=X264)
            stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
            for frame in even:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_video(path: str | Path, *, limit: int | None = None) -> tuple[Frames, float]:
    """Read a video or animated image: uint8 frames and frames per second.

    Raises ValueError if the file is missing or does not decode.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a video ({', '.join(VIDEO_SUFFIXES)})")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            frames = []
            for frame in container.decode(stream):
                frames.append(frame.to_ndarray(format="rgb24"))
                if limit is not None and len(frames) >= limit:
                    break
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} does not decode as a video ({error}); re-encode it, for example to H.264"
        ) from error
    if not frames:
        raise ValueError(f"{path} holds no frame; re-encode it, for example to H.264")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError(f"{path} changes its size on the way; re-encode it at one size")
    return np.stack(frames), fps or 10.0


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read one picture as RGB, upright; an alpha channel is dropped. Raises ValueError if it does not
    decode."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a picture ({', '.join(IMAGE_SUFFIXES)})")
    try:
        with Image.open(path) as file:
            if getattr(file, "n_frames", 1) > 1:
                raise ValueError(f"{path} moves: it holds several pictures; give it as a video")
            if file.mode not in EIGHT_BIT:
                raise ValueError(f"{path} is not an 8-bit picture (mode {file.mode}); convert it to RGB PNG")
            return np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except OSError as error:
        raise ValueError(
            f"{path} does not decode as a picture ({', '.join(IMAGE_SUFFIXES)}); convert it to RGB PNG"
        ) from error


def write_image(path: str | Path, image: UInt8[np.ndarray, "h w 3"], *, scale: int = 1) -> Path:
    """Write one picture, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        iio.imwrite(partial, upscaled(image[None], scale)[0])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
