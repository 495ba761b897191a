"""`orrery bench --what scenes`: how right the surfaces of a reference world come out of pictures alone.

Each scene is seen by a 40-view, 360-degree sweep, of which every fifth view is held out. The NeRF gets the
pictures and their cameras, nothing else; its mesh is compared with the exact one inside the ball that
`Reconstruction.mesh` keeps, on surfaces that at least three views see. The scene's size is that ball's
diameter. Beside all surfaces stand the things alone, without their table, and the thing that `orrery asset
--extract` would cut out: its silhouette against the true thing's in all views.
"""

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

import envs
from probes.tables import aligned
from recon3d import nerf, sweeps
from recon3d.cameras import Cameras
from recon3d.extraction import NothingExtracted, extract
from recon3d.mesh import DepthMaps, Mesh, MeshScore, cleaned, score, silhouette_iou
from recon3d.views import resized

VIEWS = 40
SHARES = (0.01, 0.02)
"""Thresholds of the F-score as shares of the scene's size."""


@dataclass(frozen=True)
class Scene:
    """A sweep of a reference scene with its truth."""

    frames: UInt8[Tensor, "n h w 3"]
    cameras: Cameras
    depth: Float[Tensor, "n h w"]
    mesh: Mesh
    owners: Int[Tensor, " f"]  # the thing that a face belongs to; below 0: to none
    words: str


@dataclass(frozen=True)
class SceneScore:
    """One line of the table; lengths in metres, times in seconds."""

    seed: int
    words: str
    psnr_db: float
    surface: MeshScore
    things: MeshScore
    silhouette: float  # mean over views of the intersection over the union
    size_m: float
    train_s: float
    mesh_s: float


def reference_scene(seed: int, size: int, env_id: str = "orrery/Orbit-v0", views: int = VIEWS) -> Scene:
    """Renders a scene of a reference world, with its exact depth and surface."""
    cameras = sweeps.orbit(views, height=size, width=size)
    with gymnasium.make(
        f"{envs.__name__}:{env_id}", height=size, width=size, disable_env_checker=True
    ) as env:
        env.reset(seed=seed)
        world = env.unwrapped
        frames, depth = world.render_at(cameras)  # pyright: ignore[reportAttributeAccessIssue]
        vertices, faces, owners = world.mesh()  # pyright: ignore[reportAttributeAccessIssue]
        words = world.captions()[0]  # pyright: ignore[reportAttributeAccessIssue]
    grey = torch.full((len(vertices), 3), 128, dtype=torch.uint8)
    mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(faces).long(), grey)
    return Scene(
        torch.from_numpy(frames), cameras, torch.from_numpy(depth), mesh, torch.from_numpy(owners), words
    )


def scored_scene(seed: int, size: int, preset: str = "cpu", views: int = VIEWS) -> SceneScore:
    """Reconstructs one scene from its pictures and scores the surface."""
    scene = reference_scene(seed, size, views=views)
    made = nerf.reconstruct(scene.frames, scene.cameras, preset)  # pyright: ignore[reportArgumentType]
    start = time.perf_counter()
    maps = made.depth_maps()
    mesh = cleaned(made.mesh(maps=maps))
    mesh_s = time.perf_counter() - start
    radius, focus = made.radius_m, made.similarity.centre.cpu()
    maps = DepthMaps(maps.chosen.cpu(), maps.cameras.to("cpu"), maps.depth.cpu())

    def compared(faces: Bool[Tensor, " f"] | None) -> MeshScore:
        return score(
            mesh,
            scene.mesh,
            scene.cameras,
            scene.depth,
            thresholds_m=tuple(share * 2 * radius for share in SHARES),
            generator=torch.Generator().manual_seed(seed),
            centre=focus,
            radius_m=radius,
            faces=faces,
        )

    psnr = made.held_out.psnr.mean().item()
    surface, things = compared(None), compared(scene.owners >= 0)
    frames = resized(made.frames.cpu()[maps.chosen], maps.cameras.height, maps.cameras.width)
    silhouette = cut_out(scene, mesh, maps, focus, made.voxel_m(maps.cameras), frames)
    return SceneScore(seed, scene.words, psnr, surface, things, silhouette, 2 * radius, made.seconds, mesh_s)


def cut_out(
    scene: Scene,
    mesh: Mesh,
    maps: DepthMaps,
    focus: Float[Tensor, " 3"],
    voxel_m: float,
    frames: UInt8[Tensor, "n h w 3"] | None = None,
) -> float:
    """How well the extracted thing's silhouette agrees with that of the true thing it is most like; 0 where
    none was extracted. voxel_m: of the mesh; frames: what the maps' cameras saw, at their size."""
    try:
        thing = extract(mesh, maps.depth, maps.cameras, focus, voxel_m, frames=frames).mesh
    except NothingExtracted:
        return 0.0
    truths = [
        replace(scene.mesh, faces=scene.mesh.faces[scene.owners == k])
        for k in scene.owners.unique()
        if k >= 0
    ]
    return max(silhouette_iou(thing, truth, scene.cameras).mean().item() for truth in truths)


def scenes_table(seeds: Sequence[int], size: int, preset: str = "cpu") -> tuple[list[SceneScore], str]:
    """Scores of scenes, and the same as text: a line each, then the mean and the worst of every column."""
    found = []
    for seed in tqdm(seeds, desc="scenes", unit="scene"):
        found.append(scored_scene(seed, size, preset))
        tqdm.write("  ".join([str(seed), *_cells(_numbers(found[-1]))]), file=sys.stderr)
    numbers = np.array([_numbers(line) for line in found])
    lines = [(str(line.seed), *_cells(row), line.words) for line, row in zip(found, numbers, strict=True)]
    worst = np.where([better == "higher" for _, better, _ in COLUMNS], numbers.min(0), numbers.max(0))
    lines += [("mean", *_cells(numbers.mean(0)), ""), ("worst", *_cells(worst), "")]
    header = ("seed", *(name for name, _, _ in COLUMNS), "scene")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    notes = (
        f"{len(found)} scenes of orrery/Orbit-v0, {VIEWS} views of {size}x{size}, every 5th held out, preset "
        f"{preset}; scene's size {found[0].size_m:.2f} m (diameter of the ball that is scored), F at 1 % and "
        f"2 % of it; acc., comp. and Chamfer in cm; peak memory of the process {peak:.2f} GiB"
    )
    return found, aligned([header, *lines]) + "\n" + notes


COLUMNS = (
    ("PSNR dB", "higher", ".1f"),
    ("acc.", "lower", ".2f"),
    ("comp.", "lower", ".2f"),
    ("Chamfer", "lower", ".2f"),
    ("% of size", "lower", ".2f"),
    ("F 1%", "higher", ".3f"),
    ("F 2%", "higher", ".3f"),
    ("normals", "higher", ".3f"),
    ("things Chamfer", "lower", ".2f"),
    ("things F 1%", "higher", ".3f"),
    ("things F 2%", "higher", ".3f"),
    ("IoU", "higher", ".3f"),
    ("train s", "lower", ".0f"),
    ("mesh s", "lower", ".0f"),
)


def _numbers(line: SceneScore) -> list[float]:
    surface, things = line.surface, line.things
    share = 100 * surface.chamfer_m / line.size_m
    lengths = [100 * length for length in (surface.accuracy_m, surface.completeness_m, surface.chamfer_m)]
    return [
        line.psnr_db,
        *lengths,
        share,
        *surface.f_score,
        surface.normal_consistency,
        100 * things.chamfer_m,
        *things.f_score,
        line.silhouette,
        line.train_s,
        line.mesh_s,
    ]


def _cells(row: Sequence[float]) -> list[str]:
    return ["-" if math.isnan(x) else format(x, form) for x, (_, _, form) in zip(row, COLUMNS, strict=True)]
