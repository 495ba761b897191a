"""The command `orrery asset`: posed pictures in, a mesh out, with its held-out PSNR."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from recon3d import assets, nerf
from recon3d.cameras import Cameras, from_transforms
from recon3d.mesh import cleaned, decimated

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".gif")
FEWEST_VIEWS = 10


def asset(
    source: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    preset: Literal["tiny", "cpu", "gpu"] = "cpu",
    seed: int = 0,
    held_out_every: int = 5,
    faces: int = 100_000,
) -> int:
    """Rebuild a thing in 3D from posed pictures and write it as a mesh.

    Args:
        source: a folder with pictures and a transforms.json (nerfstudio's format), or prompt:TEXT.
        output: where the mesh goes; .glb (+Y up, as glTF demands), .ply or .obj (+Z up); metres.
        preset: how long to train: tiny for a quick look, cpu, or gpu for a finer grid on a CUDA device.
        seed: of the training.
        held_out_every: every so manieth view is kept from training, to be predicted.
        faces: at most so many triangles.

    Returns:
        0 when written, 3 when the pictures hold nothing that could be reconstructed.
    """
    assets.checked_suffix(output)
    frames, cameras = read_capture(Path(source))
    if preset == "gpu":
        cameras = cameras.to("cuda" if torch.cuda.is_available() else "cpu")
    return write_asset(frames, cameras, output, preset, seed, held_out_every, faces)


def write_asset(
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    output: Path,
    preset: Literal["tiny", "cpu", "gpu"] = "cpu",
    seed: int = 0,
    held_out_every: int = 5,
    faces: int = 100_000,
) -> int:
    """Reconstructs posed frames, prints held-out scores and writes the mesh; 3 where there is nothing."""
    try:
        result = nerf.reconstruct(
            frames, cameras, preset, seed=seed, held_out_every=held_out_every, progress=True
        )
    except nerf.NothingReconstructed as reason:
        print(f"nothing reconstructed: {reason}")
        return 3
    mesh = decimated(cleaned(result.mesh()), faces)
    if not len(mesh.faces):
        print("nothing reconstructed: no surface stands where the cameras look")
        return 3
    assets.write(mesh, output)
    scores = result.held_out
    print(f"{output}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces, metres")
    print(f"training {result.seconds:.0f} s, {result.steps} steps, {len(scores.views)} views held out")
    print(
        f"SSIM {scores.ssim.mean():.3f}; nearest training view {scores.copy_psnr.mean():.1f} dB, "
        f"mean image {scores.mean_image_psnr.mean():.1f} dB"
    )
    print(f"PSNR {scores.psnr.mean():.1f} dB")
    return 0


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
