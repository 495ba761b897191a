"""A tiny ray-traced scene with exact depth: spheres and a box on a patterned table, a floor, a sky.

Everything is known in closed form, so it is the truth that reconstruction tests measure against.
"""

import torch
from torch import Tensor

from recon3d.cameras import Cameras

SPHERES = (  # centre (m), radius (m), colour
    ((0.25, 0.05, 0.18), 0.18, (0.85, 0.2, 0.15)),
    ((-0.22, 0.2, 0.13), 0.13, (0.15, 0.35, 0.85)),
    ((0.0, -0.3, 0.1), 0.1, (0.95, 0.8, 0.2)),
)
BOX = ((-0.3, -0.25, 0.0), (-0.1, -0.05, 0.3), (0.2, 0.65, 0.3))
TABLE_RADIUS, FLOOR_HEIGHT = 0.9, -0.6
LIGHT = torch.nn.functional.normalize(torch.tensor([0.4, 0.3, 0.9]), dim=0)


def _sphere(o: Tensor, d: Tensor, centre: Tensor, radius: float) -> Tensor:
    to = o - centre
    b = (to * d).sum(-1)
    disc = b * b - (to * to).sum(-1) + radius**2
    near = -b - disc.clamp(min=0).sqrt()
    return torch.where((disc > 0) & (near > 1e-4), near, torch.inf)


def _box(o: Tensor, d: Tensor, low: Tensor, high: Tensor) -> Tensor:
    inverse = 1 / torch.where(d.abs() < 1e-9, 1e-9, d)
    a, b = (low - o) * inverse, (high - o) * inverse
    enter, leave = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
    return torch.where((enter < leave) & (enter > 1e-4), enter, torch.inf)


def trace(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Colour in [0, 1] and distance (m, inf for the sky) along rays p 3 with unit directions."""
    hits, normals, colours = [], [], []
    for centre, radius, colour in SPHERES:
        c = torch.tensor(centre)
        t = _sphere(o, d, c, radius)
        hits.append(t)
        normals.append((o + t.nan_to_num(posinf=0)[:, None] * d - c) / radius)
        colours.append(torch.tensor(colour).expand_as(o))
    low, high = torch.tensor(BOX[0]), torch.tensor(BOX[1])
    t = _box(o, d, low, high)
    hits.append(t)
    local = (o + t.nan_to_num(posinf=0)[:, None] * d - (low + high) / 2) / ((high - low) / 2)
    axis = torch.nn.functional.one_hot(local.abs().argmax(-1), 3)
    normals.append(axis * local.sign())
    colours.append(torch.tensor(BOX[2]).expand_as(o))
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(o)
    for height, radius in ((0.0, TABLE_RADIUS), (FLOOR_HEIGHT, torch.inf)):
        t = (height - o[:, 2]) / d[:, 2]
        p = o + t[:, None] * d
        inside = (t > 1e-4) & (p[:, :2].norm(dim=-1) < radius)
        hits.append(torch.where(inside, t, torch.inf))
        normals.append(up)
        if radius == TABLE_RADIUS:
            wave = torch.sin(6 * p[:, :1] + 2 * torch.sin(4 * p[:, 1:2])) * torch.sin(7 * p[:, 1:2])
            colours.append(
                0.55 + 0.3 * wave * torch.tensor([1.0, 0.4, -0.5]) + torch.tensor([0.1, 0.0, -0.1])
            )
        else:
            wave = torch.sin(1.5 * p[:, :1]) * torch.sin(1.5 * p[:, 1:2])
            colours.append(torch.tensor([0.3, 0.32, 0.36]) + 0.1 * wave / (1 + 0.1 * t[:, None] ** 2))
    t = torch.stack(hits)
    first, which = t.min(0)
    pick = which[None, :, None].expand(1, -1, 3)
    normal = torch.stack(normals).gather(0, pick)[0]
    colour = torch.stack(colours).nan_to_num().gather(0, pick)[0]
    shaded = colour * (0.45 + 0.55 * (normal * LIGHT).sum(-1, keepdim=True).clamp(min=0))
    sky = torch.tensor([0.45, 0.6, 0.8]) + (d[:, 2:].clamp(-0.2, 1) * 0.4)
    return torch.where(first.isinf()[:, None], sky, shaded).clamp(0, 1), first


def render(cameras: Cameras, supersampling: int = 3) -> tuple[Tensor, Tensor]:
    """Anti-aliased uint8 n h w 3 frames and exact depth n h w (m, inf for the sky) at pixel centres."""
    h, w, s = cameras.height, cameras.width, supersampling
    o, d = cameras.resized(h * s, w * s).rays()
    rgb = trace(o.reshape(-1, 3), d.reshape(-1, 3))[0].reshape(len(cameras), h, s, w, s, 3).mean((2, 4))
    o, d = cameras.rays()
    distance = trace(o.reshape(-1, 3), d.reshape(-1, 3))[1].reshape(len(cameras), h, w)
    z = (d * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    return (rgb * 255).round().to(torch.uint8), distance * z
