"""Outlines: pictures say where a thing ends, and its surface follows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import recon3d.outlines
from recon3d import sweeps
from recon3d.extraction import Grid, carved, closed, outlined, plane_depths
from recon3d.mesh import Mesh, camera_depths, silhouettes
from recon3d.outlines import least_cut, outline, outlines, signed_distance

SIDE, RADIUS_M = 96, 0.25
NONE = np.zeros((SIDE, SIDE), bool)
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
    found = outline(coloured(truth), rough, NONE, NONE)
    assert iou(rough, truth) < 0.9 < 0.99 < iou(found, truth)


def test_an_outline_hardly_depends_on_how_many_of_the_pixels_beside_it_are_asked(monkeypatch):
    truth, rough = disc(20), disc(22)
    whole = outline(coloured(truth), rough, NONE, NONE)
    monkeypatch.setattr(recon3d.outlines, "MOST_KNOWN", 150)
    few = outline(coloured(truth), rough, NONE, NONE)
    assert iou(few, whole) > 0.99


@pytest.mark.parametrize(
    ("foot", "kept"),
    [((0.3, 0.3, 0.3), False), (GREY, False), (RED, True), (BLUE, True)],
    ids=["in the shadow", "as the ground", "as the thing", "of its own"],
)
def test_a_foot_is_kept_unless_it_looks_like_the_ground_or_its_shadow(foot, kept):
    """A rough outline takes the ground before a disc for its foot, deeper than outlines move elsewhere."""
    thing = disc(20)
    rough = thing | disc(14, row=64)
    low = rough & (np.indices((SIDE, SIDE))[0] >= 64)
    picture = coloured(thing)
    picture[rough & ~thing] = foot
    found = outline(picture, rough, NONE, low)
    assert iou(rough, thing) < 0.88 and iou(found, rough if kept else thing) > 0.98


def test_an_outline_keeps_to_the_rough_one_where_something_hides_it():
    truth, post = disc(20), np.zeros((SIDE, SIDE), bool)
    post[:, 58:72] = True
    picture = np.where(post[..., None], BLUE, coloured(truth))
    found = outline(picture, truth, truth & post, NONE)
    assert iou(found, truth) > 0.97


def test_where_nothing_is_known_of_a_side_the_rough_outline_stays():
    rough = disc(2)
    assert np.array_equal(outline(coloured(disc(4)), rough, NONE, NONE), rough)
    nowhere = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    assert not outlines(torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8), nowhere, nowhere, nowhere).any()


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


CAMERAS, PLANE = sweeps.orbit(24, height=SIDE, width=SIDE), torch.tensor([0.0, 0.0, 1.0, 0.0])


def test_a_surface_that_sags_is_brought_back_to_its_outlines():
    """A ball on a plane whose depth is that of a smaller one, in pictures that show it whole."""
    small = ball(0.85 * RADIUS_M)
    sagging = torch.minimum(camera_depths(small, CAMERAS), plane_depths(PLANE, CAMERAS))
    masks = silhouettes(ball(RADIUS_M), CAMERAS)
    frames = torch.from_numpy(np.stack([coloured(mask) for mask in masks.numpy()]) * 255).clamp(0, 255).byte()
    rough = carved(small.vertices, sagging, CAMERAS, PLANE, 0.01, cells=40)
    found, _ = outlined(rough, frames, sagging, CAMERAS, PLANE, 0.01, cells=40)
    before, after = (iou(silhouettes(mesh, CAMERAS), masks) for mesh in (rough, found))
    assert before < 0.8 and after > 0.93


def test_a_shadow_that_passed_for_a_foot_becomes_the_plane_again():
    """The same ball in its shadow, which depth takes for a slab of a sixth of its height."""
    truth, slab = ball(RADIUS_M), ball(0.9 * RADIUS_M)
    flat = torch.tensor([1.0, 1.0, 0.18])
    slab = replace(slab, vertices=(slab.vertices - torch.tensor([0.06, 0.0, 0.1])).clamp(min=-9) * flat)
    flat_shadow = replace(slab, vertices=slab.vertices * torch.tensor([1.0, 1.0, 1e-3]))
    masks, dark = silhouettes(truth, CAMERAS), silhouettes(flat_shadow, CAMERAS)
    ground = plane_depths(PLANE, CAMERAS)
    wrong = camera_depths(truth, CAMERAS).minimum(camera_depths(slab, CAMERAS)).minimum(ground)
    wrong[:, -8:] *= 0.9  # something else, before the table
    pictures = np.stack([coloured(mask) for mask in masks.numpy()])
    pictures[(dark & ~masks).numpy()] *= 0.5
    frames = torch.from_numpy(pictures * 255).clamp(0, 255).byte()
    points = torch.cat([truth.vertices, slab.vertices])
    rough = carved(points[points[:, 2] > 0.03], wrong, CAMERAS, PLANE, 0.01, cells=40)
    found, depth = outlined(rough, frames, wrong, CAMERAS, PLANE, 0.01, cells=40)
    before, after = (iou(silhouettes(mesh, CAMERAS), masks) for mesh in (rough, found))
    assert before < 0.88 and after > 0.93
    taken, right = wrong < ground - 0.01, torch.minimum(camera_depths(truth, CAMERAS), ground)
    foot = taken & ~masks
    foot[:, -8:] = False
    assert ((depth - right).abs()[foot] < 1e-4).float().mean() > 0.9
    assert torch.equal(depth[~silhouettes(rough, CAMERAS)], wrong[~silhouettes(rough, CAMERAS)])


@pytest.mark.parametrize("floor", [0.0, None], ids=["on a plane", "in the air"])
def test_of_two_pieces_on_a_plane_the_one_that_stands_out_is_the_thing(floor):
    """A slab as a bulge of the plane would be, and a tower of fewer voxels."""
    axes = [0.01 * torch.arange(40, dtype=torch.float64) for _ in range(3)]
    empty = torch.ones(40, 40, 40)
    empty[3:25, 3:37, 3:6] = -1
    empty[29:37, 10:20, 3:30] = -1
    made = closed(Grid(axes, 0.01, torch.eye(3, dtype=torch.float64), floor, 0.03, 2), empty)
    tall, wide = made.vertices[:, 2].max().item() > 0.2, np.ptp(made.vertices[:, 0].numpy()) > 0.15
    assert (tall, wide) == ((True, False) if floor is not None else (False, True))
