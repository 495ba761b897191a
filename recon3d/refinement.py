"""What is fitted to single frames beside the scene: exposures and camera poses (tensors only).

A pose correction turns a camera about its own optical centre and shifts it, in world axes: SO(3) x R^3, as
nerfstudio's camera optimiser has it. While a scene is learned coarse to fine, poses learn with it (BARF, Lin
et al. 2021, arXiv:2104.06405). Views that were held out have neither correction; they can be scored as given,
or after fitting their own pose to the frozen scene and their own gain to the other half of the picture. These
scores flatter a scene that bends, so they stand beside the plain ones, never instead of them.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from recon3d.cameras import Cameras
from recon3d.field import RadianceField
from recon3d.similarity import Similarity
from recon3d.training_rays import training_rays
from recon3d.views import psnr


def corrected(cameras: Cameras, adjustment: Float[Tensor, "n 6"]) -> Cameras:
    """Cameras shifted (first three, metres) and turned about their own centres (last three, radians)."""
    pose = cameras.c2w.clone()
    pose[:, :3, :3] = rotations(adjustment[:, 3:]) @ cameras.c2w[:, :3, :3]
    pose[:, :3, 3] = cameras.c2w[:, :3, 3] + adjustment[:, :3]
    return Cameras(cameras.K, pose, cameras.height, cameras.width)


def reanchored(
    similarity: Similarity, cameras: Cameras, adjustment: Float[Tensor, "n 6"]
) -> tuple[Similarity, Cameras]:
    """Corrected cameras in the world again, and the similarity that leads from there to the learned scene.

    Pictures do not tell a scene from a larger one seen from farther away, so that corrections may drift
    together. The new similarity has the centre and scale that bring the corrected optical centres nearest to
    the given ones (least squares); a common turn is excluded by corrections whose mean is zero.

    Args:
        adjustment: shifts in the scene's unit and turns in radians.
    """
    moved = (cameras.centres - similarity.centre) * similarity.scale + adjustment[:, :3]
    given = cameras.centres - cameras.centres.mean(0)
    scale = (given * (moved - moved.mean(0))).sum() / given.square().sum()
    anchored = Similarity(cameras.centres.mean(0) - moved.mean(0) / scale, scale.item())
    shift = anchored.centre + moved / scale - cameras.centres
    return anchored, corrected(cameras, torch.cat([shift, adjustment[:, 3:]], dim=-1))


def rotations(turn: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    """Rotation matrices of axis times angle (radians): the matrix exponential of the cross product."""
    zero = torch.zeros_like(turn[:, 0])
    x, y, z = turn.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    return torch.linalg.matrix_exp(rearrange(cross, "n (i j) -> n i j", i=3))


def fitted_poses(
    field: RadianceField,
    similarity: Similarity,
    cameras: Cameras,
    frames: UInt8[Tensor, "n h w 3"],
    generator: torch.Generator,
    ignored: Bool[Tensor, "n h w"] | None = None,
    steps: int = 100,
    rays_per_step: int = 2048,
    rate: float = 3e-3,
) -> Cameras:
    """The cameras from which a frozen scene looks most like the frames, started at the given ones.

    Args:
        rate: learning rate of Adam, in radians and in the scene's unit (the mean camera distance).
    """
    rays = training_rays(frames, cameras, similarity, ignored)
    adjustment = torch.zeros(len(cameras), 6, device=rays.origins.device, requires_grad=True)
    optimizer = torch.optim.Adam([adjustment], lr=rate)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.03 ** (1 / steps))
    frozen = [parameter for parameter in field.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for _ in range(steps):
            batch = rays.draw(rays_per_step, generator).to(rays.origins.device)
            own = adjustment[rays.frame[batch]]
            turned = (rotations(own[:, 3:]) @ rays.directions[batch, :, None])[..., 0]
            error = field(rays.origins[batch] + own[:, :3], turned)["rgb"] - rays.colours[batch]
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()
            decay.step()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    found = adjustment.detach()
    return corrected(cameras, torch.cat([similarity.metres(found[:, :3]), found[:, 3:]], dim=-1))


def psnr_after_gain(
    rendered: UInt8[Tensor, "n h w 3"],
    truth: UInt8[Tensor, "n h w 3"],
    kept: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, " n"]:
    """PSNR (dB) where each half of a picture is scored under the gain per channel that suits the other half.

    Halves left and right, as in NeRF in the Wild (Martin-Brualla et al. 2021, section 5), so that no pixel is
    fitted to itself.
    """
    made, real = rendered.float(), truth.float()
    counted = torch.ones_like(made) if kept is None else kept[..., None].expand_as(made).float()
    middle = rendered.shape[2] // 2
    halves = (slice(None, middle), slice(middle, None))
    best = made.clone()
    for here, there in (halves, halves[::-1]):
        known, wanted = made[:, :, there], real[:, :, there]
        weight = counted[:, :, there]
        energy = (weight * known.square()).sum((1, 2)).clamp(min=1e-6)
        gain = (weight * known * wanted).sum((1, 2)) / energy
        best[:, :, here] = made[:, :, here] * gain[:, None, None]
    return psnr(best.round().clamp(0, 255).to(torch.uint8), truth, kept)
