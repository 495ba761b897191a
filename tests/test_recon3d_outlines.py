"""Outlines: pictures say where a thing ends, and its surface follows."""

import numpy as np
import pytest
import torch

from recon3d import sweeps
from recon3d.extraction import carved, outlined
from recon3d.mesh import Mesh, camera_depths, silhouettes
from recon3d.outlines import least_cut, outline, outlines, signed_distance

SIDE, RADIUS_M = 96, 0.25
GREY, RED, BLUE = (0.6, 0.6, 0.6), (0.7, 0.1, 0.1), (0.1, 0.2, 0.8)


def disc(radius_px: float, row: float = 48, column: float = 48) -> np.ndarray:
    rows, columns = np.indices((SIDE, SIDE)) + 0.5
    return np.hypot(rows - row, columns - column) < radius_px


def coloured(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.01, (SIDE, SIDE, 3))
    return np.where(mask[..., None], RED, GREY) + noise


def iou(one, other) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("rough", [disc(18), disc(22), disc(20, row=50)], ids=["small", "large", "moved"])
def test_an_outline_goes_to_where_colours_change(rough):
    truth = disc(20)
    found = outline(coloured(truth), rough, np.zeros_like(truth))
    assert iou(rough, truth) < 0.9 < 0.99 < iou(found, truth)


def test_an_outline_keeps_to_the_rough_one_where_something_hides_it():
    truth, post = disc(20), np.zeros((SIDE, SIDE), bool)
    post[:, 58:72] = True
    picture = np.where(post[..., None], BLUE, coloured(truth))
    found = outline(picture, truth, truth & post)
    assert iou(found, truth) > 0.97


def test_where_nothing_is_known_of_a_side_the_rough_outline_stays():
    rough, none = disc(2), np.zeros((SIDE, SIDE), bool)
    assert np.array_equal(outline(coloured(disc(4)), rough, none), rough)
    nowhere = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    assert not outlines(torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8), nowhere, nowhere).any()


def test_distance_to_a_border_is_signed():
    mask = np.zeros((6, 9), bool)
    mask[:, :4] = True
    assert np.array_equal(signed_distance(mask), np.tile(3.5 - np.arange(9.0), (6, 1)))


def test_the_cut_is_the_least_of_all():
    generator = np.random.default_rng(1)
    gain, picture = generator.normal(size=(3, 3)) * 2, generator.random((3, 3, 3))
    whole = np.ones((3, 3), bool)

    def worth(mask):
        change = np.square(np.diff(picture, axis=1)).sum(-1).mean()
        total = gain[mask].sum()
        for a, b in ((a, b) for a in np.ndindex(3, 3) for b in np.ndindex(3, 3) if a < b):
            apart = np.hypot(a[0] - b[0], a[1] - b[1])
            if apart < 1.5 and mask[a] != mask[b]:
                differ = np.square(picture[a] - picture[b]).sum()
                total -= 2.0 * np.exp(-differ / (2 * change + 1e-6)) / apart
        return total

    best = max(worth(np.array(list(f"{k:09b}")).reshape(3, 3) == "1") for k in range(512))
    assert worth(least_cut(gain, whole, picture, whole)) == pytest.approx(best, abs=0.02)


def ball(radius_m: float) -> Mesh:
    around, up = np.meshgrid(np.linspace(0, 2 * np.pi, 49), np.linspace(-np.pi / 2, np.pi / 2, 25))
    points = np.stack([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)], -1)
    index = np.arange(points[..., 0].size).reshape(around.shape)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    faces = torch.from_numpy(np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]))
    vertices = torch.from_numpy(radius_m * points.reshape(-1, 3)).float() + torch.tensor([0, 0, RADIUS_M])
    return Mesh(vertices, faces, torch.full((len(vertices), 3), 128, dtype=torch.uint8))


def test_a_surface_that_sags_is_brought_back_to_its_outlines():
    """A ball on a plane whose depth is that of a smaller one, in pictures that show it whole."""
    cameras, truth = sweeps.orbit(24, height=SIDE, width=SIDE), ball(RADIUS_M)
    plane, up = torch.tensor([0.0, 0.0, 1.0, 0.0]), cameras.rays()[1][..., 2]
    table = cameras.c2w[:, 2, 3, None, None] / -up.clamp(max=-1e-3)
    table = table * (cameras.rays()[1] * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    sagging = torch.minimum(camera_depths(ball(0.85 * RADIUS_M), cameras), table)
    masks = silhouettes(truth, cameras)
    frames = torch.from_numpy(np.stack([coloured(mask) for mask in masks.numpy()]) * 255).clamp(0, 255).byte()
    rough = carved(ball(0.85 * RADIUS_M).vertices, sagging, cameras, plane, 0.01, cells=40)
    found = outlined(rough, frames, sagging, cameras, plane, 0.01, cells=40)
    before, after = (iou(silhouettes(mesh, cameras), masks) for mesh in (rough, found))
    assert before < 0.8 and after > 0.93
