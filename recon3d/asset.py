"""The command `orrery asset`: a video or pictures in, a mesh out, with its held-out PSNR."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from jaxtyping import Bool, UInt8
from torch import Tensor

from recon3d import nerf, viewer
from recon3d.cameras import Cameras
from recon3d.captures import READING, Capture, Reading, read_capture
from recon3d.extraction import NothingExtracted
from recon3d.form import Form, checked, shaped, texture_gain, write_shape
from recon3d.mesh import silhouettes

PLAIN = Form()
PROMPT = "prompt:"
Dream = Callable[[str, int], Capture]
OWN = "views do not show quite one scene: the surface is the field's own, of what they have in common"
SCRAPS = 0.1  # of the pixels of held-out views; a scene's mesh that covers less is not much of it

UNKNOWN_SCALE = (
    "scale unknown: the cameras are 1 from what they look at, on average (--distance-m makes it metres)"
)


def asset(
    source: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    *,
    preset: Literal["tiny", "cpu", "gpu"] = "cpu",
    seed: int = 0,
    held_out_every: int = 5,
    form: Annotated[Form, tyro.conf.arg(name="")] = PLAIN,
    refine_exposure: bool = False,
    refine_poses: bool = False,
    reading: Annotated[Reading, tyro.conf.arg(name="")] = READING,
    view: bool = False,
    port: int = 8080,
    dream: Annotated[Dream | None, tyro.conf.Fixed, tyro.conf.Suppress] = None,
) -> int:
    """Rebuild a thing in 3D from a video or pictures and write it as a mesh.

    Args:
        source: a video, a folder of photos, one with a transforms.json (nerfstudio's format), or prompt:TEXT.
        output: where it goes; .glb (+Y up, as glTF demands), .ply or .obj (+Z up), .xml for a MuJoCo body of
            the thing alone with its mesh and texture beside it; metres where the scale is known.
        preset: how long to train: tiny for a quick look, cpu, or gpu for a finer grid on a CUDA device.
        seed: of the training.
        held_out_every: every so manieth view is kept from training, to be predicted.
        form: the whole scene or the thing alone, how finely, in colours or a texture.
        refine_exposure: also fit a gain per picture, where brightness wobbles.
        refine_poses: also correct each picture's camera, where cameras are not quite right.
        reading: size of the pictures, frames of a video, what is known of its camera, masks.
        view: then show it in the browser, with the cameras, their frames and the radiance field.
        port: of this machine, to show it on.
        dream: makes the capture of a prompt, from its words and a seed.

    Returns:
        0 when written, 3 when the pictures hold nothing that could be reconstructed or extracted.
    """
    form = checked(form, output)
    _check_possible(preset, form, reading, dream, source.startswith(PROMPT))
    for name, value, least in (("seed", seed, 0), ("held-out-every", held_out_every, 2)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if view:
        viewer.check_port(port)
    try:
        if source.startswith(PROMPT) and dream is not None:
            capture = dream(source.removeprefix(PROMPT).strip(), seed)
        else:
            capture = read_capture(Path(source), reading, progress=True)
    except nerf.NothingReconstructed as reason:
        print(f"nothing reconstructed: {reason}")
        return 3
    frames, cameras = capture.frames, capture.cameras
    port_shown = port if view else None
    refined = {"exposure": refine_exposure, "poses": refine_poses}
    unit = "metres" if capture.metric or form.size_m else UNKNOWN_SCALE
    return write_asset(
        frames,
        cameras,
        output,
        preset,
        seed,
        held_out_every,
        form,
        capture.masks,
        port_shown,
        ignored=capture.ignored,
        unit=unit,
        **refined,
    )


def _check_possible(preset: str, form: Form, reading: Reading, dream: Dream | None, asked: bool) -> None:
    """Raises ValueError for options that do not go together, or not here. asked: for a prompt's dream."""
    if preset == "gpu" and not torch.cuda.is_available():
        raise ValueError("--preset gpu needs a CUDA device, and torch sees none; use --preset cpu")
    if asked and (dream is None or reading != READING):
        raise ValueError(
            f"{PROMPT} is what the command `orrery asset` dreams, at its own size and cameras; leave out "
            "options of pictures that are there (--views, --longest-side, --masks and so on)"
        )
    if reading.masks is not None and not form.extract:
        raise ValueError("--masks shows the thing to cut out: add --extract, or write an .xml")


def write_asset(
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    output: Path,
    preset: Literal["tiny", "cpu", "gpu"] = "cpu",
    seed: int = 0,
    held_out_every: int = 5,
    form: Form = PLAIN,
    masks: Bool[Tensor, "n h w"] | None = None,
    port_shown: int | None = None,
    *,
    ignored: Bool[Tensor, "n h w"] | None = None,
    unit: str = "metres",
    exposure: bool = False,
    poses: bool = False,
) -> int:
    """Reconstructs posed frames, prints held-out scores and writes the mesh; 3 where there is nothing.

    ignored: what of the frames is not of the scene.
    port_shown: where it is shown in the browser until Ctrl-C, if anywhere.
    """
    try:
        result = nerf.reconstruct(
            frames,
            cameras,
            preset,
            seed=seed,
            held_out_every=held_out_every,
            exposure=exposure,
            poses=poses,
            ignored=ignored,
            progress=True,
        )
    except nerf.NothingReconstructed as reason:
        print(f"nothing reconstructed: {reason}")
        return 3
    try:
        shape = shaped(result, form, masks, seed, progress=True)
    except NothingExtracted as reason:
        print(f"nothing extracted: {reason}")
        return 3
    if not len(shape.mesh.faces):
        print("nothing reconstructed: no surface stands where the cameras look")
        return 3
    for line in write_shape(shape, output, form, unit, seed):
        print(line)
    if shape.own:
        print(OWN)
    scores = result.held_out
    covered = silhouettes(shape.mesh, cameras[scores.views]).float().mean().item()
    scraps = ": fragments; take more views, closer together" if covered < SCRAPS and not form.extract else ""
    print(f"the mesh covers {covered:.0%} of the held-out views{scraps}")
    if form.texture:
        plain, baked = texture_gain(shape, frames[scores.views], cameras[scores.views])
        print(f"held-out pixels on the mesh: {plain:.1f} dB by vertex colours, {baked:.1f} dB by the texture")
    print(f"training {result.seconds:.0f} s, {result.steps} steps, {len(scores.views)} views held out")
    print(
        f"SSIM {scores.ssim.mean():.3f}; nearest training view {scores.copy_psnr.mean():.1f} dB, "
        f"mean image {scores.mean_image_psnr.mean():.1f} dB"
    )
    if scores.fitted_psnr is not None:
        print(f"{scores.fitted_psnr.mean():.1f} dB with each held-out view's own pose or gain fitted too")
    print(f"PSNR {scores.psnr.mean():.1f} dB", flush=True)
    if port_shown is not None:
        scene = viewer.Scene(shape.mesh, cameras, frames, result.point_cloud(), result.render)
        server = viewer.serve(scene, port_shown)
        print(f"look at http://{viewer.LOOPBACK}:{port_shown} (Ctrl-C ends)", flush=True)
        viewer.until_interrupted(server)
    return 0
