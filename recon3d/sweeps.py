"""Camera paths around and through a scene (a leaf: torch only). Lengths in metres, angles in degrees."""

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.cameras import Cameras, intrinsics, look_at

Point = tuple[float, float, float]


def orbit(
    views: int = 40,
    *,
    radius_m: float = 1.5,
    elevation_deg: float = 30.0,
    degrees: float = 360.0,
    start_deg: float = 0.0,
    target: Point = (0.0, 0.0, 0.15),
    fovy_deg: float = 60.0,
    height: int = 64,
    width: int = 64,
) -> Cameras:
    """Cameras on a circle that look at its centre, counter-clockwise seen from above.

    The step is `degrees / views`, so that a whole turn does not repeat its first view. At azimuth a and
    elevation e the eye is at target + radius * (cos e cos a, cos e sin a, sin e).
    """
    step = torch.arange(_checked(views), dtype=torch.float64) / views
    return _around(start_deg + degrees * step, radius_m, elevation_deg, target, fovy_deg, height, width)


def arc(
    views: int = 20,
    *,
    radius_m: float = 1.5,
    elevation_deg: float = 30.0,
    degrees: float = 90.0,
    centre_deg: float = 0.0,
    target: Point = (0.0, 0.0, 0.15),
    fovy_deg: float = 60.0,
    height: int = 64,
    width: int = 64,
) -> Cameras:
    """Part of an orbit, symmetric about the azimuth `centre_deg`, both ends included."""
    azimuth = centre_deg + degrees * torch.linspace(-0.5, 0.5, _checked(views), dtype=torch.float64)
    return _around(azimuth, radius_m, elevation_deg, target, fovy_deg, height, width)


def dolly(
    views: int = 20,
    *,
    start_m: float = 1.8,
    end_m: float = 1.0,
    elevation_deg: float = 30.0,
    azimuth_deg: float = 0.0,
    target: Point = (0.0, 0.0, 0.15),
    fovy_deg: float = 60.0,
    height: int = 64,
    width: int = 64,
) -> Cameras:
    """Straight towards (or away from) the target, from distance `start_m` to `end_m`, both included."""
    radius = torch.linspace(start_m, end_m, _checked(views), dtype=torch.float64)
    azimuth = torch.full_like(radius, azimuth_deg)
    return _around(azimuth, radius, elevation_deg, target, fovy_deg, height, width)


def revisit(
    views: int = 40,
    *,
    radius_m: float = 1.5,
    elevation_deg: float = 30.0,
    degrees: float = 180.0,
    start_deg: float = 0.0,
    target: Point = (0.0, 0.0, 0.15),
    fovy_deg: float = 60.0,
    height: int = 64,
    width: int = 64,
) -> Cameras:
    """Out along an orbit and back the same way: view k and view `views - 1 - k` are the same camera."""
    if _checked(views) % 2:
        raise ValueError(f"a revisit needs an even number of views, got {views}; add one")
    out = torch.linspace(0.0, 1.0, views // 2, dtype=torch.float64)
    azimuth = start_deg + degrees * torch.cat([out, out.flip(0)])
    return _around(azimuth, radius_m, elevation_deg, target, fovy_deg, height, width)


def _checked(views: int) -> int:
    if views < 1:
        raise ValueError(f"a sweep needs at least 1 view, got {views}; ask for more")
    return views


def _around(
    azimuth_deg: Float[Tensor, " n"],
    radius_m: float | Float[Tensor, " n"],
    elevation_deg: float,
    target: Point,
    fovy_deg: float,
    height: int,
    width: int,
) -> Cameras:
    azimuth = torch.deg2rad(azimuth_deg)
    elevation = torch.deg2rad(torch.full_like(azimuth, elevation_deg))
    radius = torch.as_tensor(radius_m).to(azimuth).expand_as(azimuth)
    flat = torch.cos(elevation)
    offset = torch.stack([flat * torch.cos(azimuth), flat * torch.sin(azimuth), torch.sin(elevation)], dim=-1)
    centre = torch.tensor(target, dtype=torch.float64).expand_as(offset)
    c2w = look_at(centre + radius[:, None] * offset, centre).float()
    return Cameras(intrinsics(fovy_deg, height, width).repeat(len(c2w), 1, 1), c2w, height, width)
