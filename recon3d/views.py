"""Rendered views and how well held-out ones agree with the truth (tensors only)."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from recon3d.cameras import Cameras


@dataclass(frozen=True)
class View:
    """What n cameras see.

    Attributes:
        rgb: colours.
        depth: camera z of the surface, metres.
        normals: unit, in the world, facing the camera.
        opacity: share of the light that the scene stops, in [0, 1]; the rest comes from the sky.
    """

    rgb: UInt8[Tensor, "n h w 3"]
    depth: Float[Tensor, "n h w"]
    normals: Float[Tensor, "n h w 3"]
    opacity: Float[Tensor, "n h w"]


@dataclass(frozen=True)
class HeldOut:
    """Agreement on views that training never saw, one value a view, beside two baselines.

    Attributes:
        views: indices into the frames that were given.
        psnr: of the reconstruction, dB, on [0, 1] RGB after rounding to uint8.
        ssim: of the reconstruction.
        copy_psnr: of the training view whose camera is nearest, dB.
        mean_image_psnr: of the mean of the training views, dB.
        fitted_psnr: of the reconstruction after each view's own pose or gain was fitted too, as the training
            views' were (`recon3d.refinement` says how); None where nothing is fitted to single frames, dB.
    """

    views: Int[Tensor, " n"]
    psnr: Float[Tensor, " n"]
    ssim: Float[Tensor, " n"]
    copy_psnr: Float[Tensor, " n"]
    mean_image_psnr: Float[Tensor, " n"]
    fitted_psnr: Float[Tensor, " n"] | None = None

    def cpu(self) -> "HeldOut":
        return HeldOut(
            self.views.cpu(),
            self.psnr.cpu(),
            self.ssim.cpu(),
            self.copy_psnr.cpu(),
            self.mean_image_psnr.cpu(),
            None if self.fitted_psnr is None else self.fitted_psnr.cpu(),
        )

    @property
    def gain_db(self) -> float:
        """Mean PSNR over that of the better baseline, dB."""
        return (self.psnr.mean() - torch.maximum(self.copy_psnr.mean(), self.mean_image_psnr.mean())).item()


def score_held_out(
    rendered: UInt8[Tensor, "m h w 3"],
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    held_out: Bool[Tensor, " n"],
    ignored: Bool[Tensor, "n h w"] | None = None,
) -> HeldOut:
    """Scores the renderings of the held-out views of a sweep against its frames, but for what is ignored."""
    truth, known = frames[held_out], frames[~held_out]
    nearest = nearest_views(cameras[held_out], cameras[~held_out])
    mean_image = known.float().mean(0).round().to(torch.uint8).expand_as(truth)
    kept = None if ignored is None else ~ignored[held_out]
    return HeldOut(
        views=held_out.nonzero()[:, 0],
        psnr=psnr(rendered, truth, kept),
        ssim=ssim(rendered, truth, kept),
        copy_psnr=psnr(known[nearest], truth, kept),
        mean_image_psnr=psnr(mean_image, truth, kept),
    )


def nearest_views(cameras: Cameras, among: Cameras) -> Int[Tensor, " n"]:
    """Index of the nearest of other cameras for each: by optical centre, then by viewing direction."""
    distance = torch.cdist(cameras.centres, among.centres)
    scale = distance.max().clamp(min=1e-6)
    agreement = cameras.c2w[:, :3, 2] @ among.c2w[:, :3, 2].T
    return (distance / scale - 1e-2 * agreement).argmin(-1)


def psnr(
    images: UInt8[Tensor, "n h w 3"],
    truth: UInt8[Tensor, "n h w 3"],
    kept: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio on [0, 1] RGB, dB, of the pixels that are kept (all); infinite where they
    are equal, NaN where there are none."""
    error = ((images.float() - truth.float()) / 255).square()
    if kept is None:
        return -10 * torch.log10(error.mean((1, 2, 3)))
    return -10 * torch.log10((error.mean(-1) * kept).sum((1, 2)) / kept.sum((1, 2)))


def ssim(
    images: UInt8[Tensor, "n h w 3"],
    truth: UInt8[Tensor, "n h w 3"],
    kept: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, " n"]:
    """Structural similarity (Wang et al. 2004, eq. 13; Gaussian window of 11 px, std 1.5), mean over RGB and
    the windows around pixels that are kept (all)."""
    offsets = torch.arange(11, device=images.device) - 5.0
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = (line / line.sum())[:, None] * (line / line.sum())[None]

    def local_mean(x: Float[Tensor, "m h w"]) -> Float[Tensor, "m h2 w2"]:
        return torch.nn.functional.conv2d(x[:, None], window[None, None])[:, 0]

    a, b = (rearrange(x.float() / 255, "n h w c -> (n c) h w") for x in (images, truth))
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a = local_mean(a * a) - mean_a**2
    var_b = local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score = score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    if kept is None:
        return score.mean((1, 2)).view(len(images), 3).mean(1)
    middles = kept[:, 5:-5, 5:-5]
    return (rearrange(score, "(n c) h w -> n c h w", c=3).mean(1) * middles).sum((1, 2)) / middles.sum((1, 2))


def normals_from_depth(cameras: Cameras, depth: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w 3"]:
    """Unit world normals, facing the camera, from central differences of the unprojected depth."""
    points = cameras.unproject(depth)
    padded = torch.cat([points[:, :1], points, points[:, -1:]], 1)
    down = padded[:, 2:] - padded[:, :-2]
    padded = torch.cat([points[:, :, :1], points, points[:, :, -1:]], 2)
    right = padded[:, :, 2:] - padded[:, :, :-2]
    return torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)


def as_uint8(rgb: Float[Tensor, "*b 3"]) -> UInt8[Tensor, "*b 3"]:
    """Colours in [0, 1] as bytes, rounded; beyond that range they saturate, as in a camera."""
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def resized(frames: UInt8[Tensor, "n h w 3"], height: int, width: int) -> UInt8[Tensor, "n height width 3"]:
    """Pictures of another size: smoothly interpolated, and averaged where they shrink."""
    if frames.shape[1:3] == (height, width):
        return frames
    channels_first = rearrange(frames.float(), "n h w c -> n c h w")
    made = torch.nn.functional.interpolate(channels_first, (height, width), mode="bilinear", antialias=True)
    return rearrange(made, "n c h w -> n h w c").round().clamp(0, 255).to(torch.uint8)
