"""Frames and cameras -> radiance field, with nerfstudio: this file and `nerf_model` know its conventions.

`orrery-nerf` is a nerfstudio method (entry point `nerfstudio.method_configs`) around `recon3d.field`, made
for a CPU; `reconstruct` trains it on frames in memory. Inside nerfstudio's box lengths are scaled so that the
cameras' mean distance from their focus point is 1, with that point at the origin: our own similarity
(`recon3d.similarity`), whose inverse is kept. Axes need no change, since rays are handed over and not poses.
Pose correction and exposures per frame stay off unless asked for, or they would absorb the inconsistency that
a held-out view is to reveal. nerfstudio's `depth` is the distance along the ray; `View.depth` is camera z,
converted here, once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d
from tqdm import tqdm

from recon3d.cameras import Cameras
from recon3d.field import FieldConfig
from recon3d.mesh import DepthMaps, Mesh, PointCloud
from recon3d.nerf_model import RATES, OrreryNerfModel, OrreryNerfModelConfig
from recon3d.nerfstudio_shims import allow_checkpoint_scalars, no_perceptual_download
from recon3d.refinement import fitted_poses, psnr_after_gain, reanchored
from recon3d.similarity import NothingReconstructed, Similarity, focus_similarity
from recon3d.stereo import corrected_depths, on_planes, steadied, trusted, untold
from recon3d.torchvision_operators import declare_missing_operators
from recon3d.training_rays import TrainingRays, training_rays
from recon3d.views import HeldOut, View, as_uint8, normals_from_depth, psnr, resized, score_held_out

declare_missing_operators()
allow_checkpoint_scalars()

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig  # noqa: E402 (after the shims)
from nerfstudio.cameras.rays import RayBundle  # noqa: E402
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig  # noqa: E402
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig  # noqa: E402
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig  # noqa: E402
from nerfstudio.data.scene_box import SceneBox  # noqa: E402
from nerfstudio.engine.callbacks import (  # noqa: E402
    TrainingCallbackAttributes,
    TrainingCallbackLocation,
)
from nerfstudio.engine.optimizers import OptimizerConfig, Optimizers  # noqa: E402
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig  # noqa: E402
from nerfstudio.engine.trainer import TrainerConfig  # noqa: E402
from nerfstudio.models.base_model import Model  # noqa: E402
from nerfstudio.models.nerfacto import NerfactoModelConfig  # noqa: E402
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig  # noqa: E402
from nerfstudio.plugins.types import MethodSpecification  # noqa: E402

LEAST_GAIN_DB = 1.0  # over the mean image; a fit to pure noise gains 0.3 by being smooth


@dataclass
class FusedAdamConfig(OptimizerConfig):
    """Adam in one pass over memory, without which the update costs as much as the rest of a step on a CPU."""

    _target: type = torch.optim.Adam
    lr: float = 0.1
    eps: float = 1e-12
    betas: tuple[float, float] = (0.9, 0.99)
    fused: bool = True


@dataclass(frozen=True)
class NerfPreset:
    """How long and how finely to train."""

    steps: int
    rays_per_step: int
    field: FieldConfig


PRESETS = {
    "tiny": NerfPreset(80, 2048, FieldConfig((16, 40), coarse_samples=48, fine_samples=24)),
    "cpu": NerfPreset(400, 2048, FieldConfig()),
    "gpu": NerfPreset(
        6000,
        16384,
        FieldConfig((24, 64, 160, 320), coarse_samples=160, fine_samples=64, baked_resolution=128),
    ),
}


def preset_for(name: str, cameras: Cameras) -> NerfPreset:
    """A preset, where `cpu` trains up to twice as long on pictures larger than 64 x 64, which show more."""
    chosen = PRESETS[name]
    if name != "cpu":
        return chosen
    more = min(max((cameras.height * cameras.width) ** 0.5 / 64, 1.0), 2.0)
    return replace(chosen, steps=round(chosen.steps * more))


def placed(cameras: Cameras, preset: str) -> Cameras:
    """The cameras where a preset trains: `gpu` on a CUDA device, if there is one."""
    return cameras.to("cuda") if preset == "gpu" and torch.cuda.is_available() else cameras


def method(
    preset: NerfPreset, seed: int = 0, *, exposure: bool = False, poses: bool = False, normals: bool = False
) -> TrainerConfig:
    """nerfstudio's configuration of a training run of our model.

    Args:
        exposure: also fit a gain per training frame.
        poses: also fit a pose correction per training frame; it starts once there is something to align to.
        normals: also render normals, as nerfstudio's exporters want them (`render` has them from depth).
    """
    optimizers = {}
    for name, rate in RATES.items():
        quick = preset.steps // 4
        decay = ExponentialDecaySchedulerConfig(
            lr_final=0.05 * rate,
            max_steps=preset.steps,
            warmup_steps=quick if name == "camera_opt" else min(20, quick),
            ramp="linear",
        )
        optimizers[name] = {"optimizer": FusedAdamConfig(lr=rate), "scheduler": decay}
    return TrainerConfig(
        method_name="orrery-nerf",
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        max_num_iterations=preset.steps,
        steps_per_save=max(preset.steps // 4, 1),
        steps_per_eval_batch=100,
        steps_per_eval_image=max(preset.steps // 4, 1),
        steps_per_eval_all_images=preset.steps,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=preset.rays_per_step,
                eval_num_rays_per_batch=preset.rays_per_step,
            ),
            model=OrreryNerfModelConfig(
                field=preset.field,
                coarse_steps=preset.steps // 2,
                seed=seed,
                exposure=exposure,
                normals=normals,
                camera_optimizer=CameraOptimizerConfig(mode="SO3xR3" if poses else "off"),
            ),
        ),
        optimizers=optimizers,
        viewer=ViewerConfig(num_rays_per_chunk=8192),
        vis="viewer",
    )


def nerfacto() -> TrainerConfig:
    """nerfstudio's own default method in its torch implementation, as a peer to be timed beside ours."""
    adam = OptimizerConfig(lr=1e-2, eps=1e-15)
    decay = ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=200000)
    model = NerfactoModelConfig(
        implementation="torch",
        use_appearance_embedding=False,
        average_init_density=0.01,
        camera_optimizer=CameraOptimizerConfig(mode="off"),
    )
    return TrainerConfig(
        method_name="nerfacto",
        pipeline=VanillaPipelineConfig(model=model),
        optimizers={n: {"optimizer": adam, "scheduler": decay} for n in ("proposal_networks", "fields")},
    )


# the focus of nerfstudio's own data parser is not ours: its box is filled by the cameras
orrery_nerf = MethodSpecification(
    config=method(replace(PRESETS["cpu"], field=replace(FieldConfig(), inner=1.0)), normals=True),
    description="Voxel-pyramid NeRF of the Orrery project, made for a CPU.",
)


Watch = Callable[[Model, int, float], None]
"""Looks at a model in training: the model, the steps done, the seconds of training so far."""


def fit(
    config: TrainerConfig,
    rays: TrainingRays,
    steps: int,
    rays_per_step: int,
    seed: int = 0,
    seconds: float | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> tuple[Model, int]:
    """Trains any ray-based nerfstudio method on rays in memory with its own losses, optimisers, callbacks.

    Args:
        seconds: stop after this wall time, even if fewer steps were reached (for peers that are too slow).
        watch: called after every step; its own time does not count.

    Returns:
        the model in evaluation mode and the steps that were done.
    """
    device = rays.origins.device
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), no_perceptual_download():
        torch.manual_seed(
            seed
        )  # the networks of nerfstudio's models are initialised from torch's own generator
        box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
        model = config.pipeline.model.setup(scene_box=box, num_train_data=rays.frames, metadata={}).to(device)
        collinear = isinstance(model, OrreryNerfModel) and model.config.bend_loss_mult > 0
        draw = rays.draw_triplets if collinear else rays.draw
        optimizers = Optimizers(dict(config.optimizers), model.get_param_groups())
        callbacks = model.get_training_callbacks(TrainingCallbackAttributes(None, None, None, None))
        model.train()
        start, done, watched = time.perf_counter(), 0, 0.0
        for step in tqdm(range(steps), desc=config.method_name, disable=not progress):
            spent = time.perf_counter() - start - watched
            if seconds is not None and spent > seconds:
                break
            batch = draw(rays_per_step, generator).to(device)
            for callback in callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
            truth = {"image": rays.colours[batch]}
            outputs = model(
                _bundle(rays.origins[batch], rays.directions[batch], rays.frame[batch], collinear)
            )
            losses = model.get_loss_dict(outputs, truth, model.get_metrics_dict(outputs, truth))
            optimizers.zero_grad_all()
            sum(losses.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
            optimizers.optimizer_step_all()
            for scheduler in optimizers.schedulers.values():
                scheduler.step()
            for callback in callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
            done = step + 1
            if watch is not None:
                before = time.perf_counter()
                watch(model, done, before - start - watched)
                watched += time.perf_counter() - before
    if isinstance(model, OrreryNerfModel):
        model.settle()
    return model.eval(), done


@dataclass(frozen=True)
class Reconstruction:
    """A trained radiance field in metres.

    Attributes:
        model: the nerfstudio model, in its box.
        similarity: world to that box.
        cameras: the cameras of the training views, corrected where that was asked for.
        frames: the training views.
        ignored: what of them is not of the scene; None: nothing.
        held_out: agreement on the views that were held out, on the CPU.
        steps: training steps done.
        seconds: wall time of training.
    """

    model: Model
    similarity: Similarity
    cameras: Cameras
    frames: UInt8[Tensor, "n h w 3"]
    held_out: HeldOut
    steps: int
    seconds: float
    ignored: Bool[Tensor, "n h w"] | None = None

    def render(self, cameras: Cameras) -> View:
        """Colour, depth, normals and opacity as any cameras see them, on the device of the model."""
        return render(self.model, self.similarity, cameras.to(self.cameras.K.device))

    @property
    def radius_m(self) -> float:
        """Of the ball around the point that the cameras look at, which `mesh` keeps."""
        return FieldConfig().inner / self.similarity.scale

    def depth_maps(self, side: int = 128, views: int = 40, progress: bool = False) -> DepthMaps:
        """How deep some of the training views see: by the field, corrected by how well the pictures match
        where it lies, if they show one scene (`recon3d.stereo`).

        Args:
            side: longer side of the maps, pixels; pictures of less than half are enlarged twice only.
            views: from how many of the cameras, evenly chosen.
        """
        chosen = torch.linspace(0, len(self.cameras) - 1, min(views, len(self.cameras))).round().long()
        chosen = chosen.to(self.cameras.K.device)
        cameras = self.cameras[chosen]
        factor = min(side / max(cameras.height, cameras.width), 2.0)
        cameras = cameras.resized(round(factor * cameras.height), round(factor * cameras.width))
        view = self.render(cameras)
        frames = resized(self.frames[chosen.to(self.frames.device)], cameras.height, cameras.width)
        unit, focus = 1 / self.similarity.scale, self.similarity.centre
        corrected = corrected_depths(frames, cameras, view.depth, focus, 0.1 * unit, progress=progress)
        solid = view.opacity > 0.5
        own, corrected = (depth.masked_fill(~solid, 0.0) for depth in (view.depth, corrected))
        within = solid & ((cameras.unproject(corrected) - focus).norm(dim=-1) < self.radius_m)
        flat = on_planes(cameras, corrected, within, 2 * self.voxel_m(cameras))
        steady = steadied(corrected, own, flat, unit)
        known = trusted(cameras, steady, within, unit)
        if known is not None:
            known[within & ~flat & untold(frames, cameras, steady, focus, unit)] = 0.0
        depth = (own if known is None else known).masked_fill(~solid, torch.inf)
        if self.ignored is not None:
            shown = self.ignored[chosen].float()
            depth = depth.masked_fill(adaptive_max_pool2d(shown, depth.shape[1:]) > 0, 0.0)
        return DepthMaps(chosen, cameras, depth, own=known is None)

    def voxel_m(self, cameras: Cameras) -> float:
        """What fusion of such cameras' depth resolves: a pixel's footprint at the focus, over 1.5."""
        return 1 / (1.5 * self.similarity.scale * cameras.K[0, 1, 1].item())

    def mesh(
        self, voxel_m: float | None = None, maps: DepthMaps | None = None, progress: bool = False
    ) -> Mesh:
        """Surface around the point that the cameras look at, fused from `depth_maps` (new ones if none are
        given)."""
        maps = maps or self.depth_maps(progress=progress)
        cameras, chosen = maps.cameras, maps.chosen.to(self.frames.device)
        frames = resized(self.frames[chosen], cameras.height, cameras.width)
        return maps.fused(frames, self.similarity.centre, self.radius_m, voxel_m or self.voxel_m(cameras))

    def point_cloud(self) -> PointCloud:
        """The surface seen by each pixel of the training cameras, with colours and normals."""
        view = self.render(self.cameras)
        keep = view.opacity > 0.5
        return PointCloud(self.cameras.unproject(view.depth)[keep], view.rgb[keep], view.normals[keep])


def reconstruct(
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    preset: Literal["tiny", "cpu", "gpu"] = "cpu",
    *,
    seed: int = 0,
    held_out_every: int = 5,
    exposure: bool = False,
    poses: bool = False,
    ignored: Bool[Tensor, "_ _ _"] | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Trains `orrery-nerf` on posed frames, without every k-th view, and scores it on those.

    Preset `gpu` runs on a CUDA device if there is one, all else on that of the cameras; deterministic under a
    seed on a CPU with a fixed number of threads.

    Args:
        frames: one picture per camera, of the cameras' size.
        held_out_every: k; views k - 1, 2k - 1, ... are held out.
        exposure: also fit a gain per training frame and colour channel, for sweeps whose brightness wobbles.
        poses: also correct the pose of each training frame, for sweeps whose cameras are not quite right.
        ignored: what moves or is not of the scene: it is neither learned nor scored, and no surface.

    Raises:
        ValueError: frames and cameras do not match, too few views to hold any out, or a view all ignored.
        NothingReconstructed: no parallax, or held-out views come out hardly better than a mean image.
    """
    chosen, cameras = preset_for(preset, cameras), placed(cameras, preset)
    result = train_and_score(
        method(chosen, seed, exposure=exposure, poses=poses),
        frames,
        cameras,
        chosen.steps,
        chosen.rays_per_step,
        seed,
        held_out_every,
        progress,
        ignored=ignored,
    )
    found, floor = result.held_out.psnr.mean().item(), result.held_out.mean_image_psnr.mean().item()
    if not found > floor + LEAST_GAIN_DB:
        raise NothingReconstructed(
            f"held-out views are predicted at {found:.1f} dB, by their mean image at {floor:.1f} dB: "
            "no still scene fits these cameras; check their axes (OpenGL: y up), or dream with another seed"
        )
    return result


def train_and_score(
    config: TrainerConfig,
    frames: UInt8[Tensor, "n h w 3"],
    cameras: Cameras,
    steps: int,
    rays_per_step: int,
    seed: int = 0,
    held_out_every: int = 5,
    progress: bool = False,
    seconds: float | None = None,
    watch: Watch | None = None,
    ignored: Bool[Tensor, "_ _ _"] | None = None,
) -> Reconstruction:
    """Any nerfstudio method under the protocol of `reconstruct`, on the device of the cameras; `seconds`
    bounds slow peers."""
    held_out = held_out_views(frames, cameras, held_out_every)
    frames = frames.to(cameras.K.device)
    ignored = None if ignored is None else _checked_ignored(ignored, frames).to(cameras.K.device)
    left, unseen = (None if ignored is None else ignored[which] for which in (~held_out, held_out))
    kept = None if unseen is None else ~unseen
    known = cameras[~held_out]
    similarity = focus_similarity(known)
    start = time.perf_counter()
    rays = training_rays(frames[~held_out], known, similarity, left)
    model, done = fit(config, rays, steps, rays_per_step, seed, seconds, progress, watch)
    elapsed = time.perf_counter() - start
    wanted, truth = cameras[held_out], frames[held_out]
    refined = model.pose_adjustment if isinstance(model, OrreryNerfModel) else None
    if refined is not None:
        similarity, known = reanchored(similarity, known, refined)
    scores = score_held_out(render(model, similarity, wanted).rgb, frames, cameras, held_out, ignored)
    if isinstance(model, OrreryNerfModel) and refined is not None:
        draws = torch.Generator().manual_seed(seed)
        wanted = fitted_poses(model.field, similarity, wanted, truth, draws, unseen)
        scores = replace(scores, fitted_psnr=psnr(render(model, similarity, wanted).rgb, truth, kept))
    if isinstance(model, OrreryNerfModel) and model.exposure is not None:
        shown = render(model, similarity, wanted).rgb
        scores = replace(scores, fitted_psnr=psnr_after_gain(shown, truth, kept))
    return Reconstruction(model, similarity, known, frames[~held_out], scores.cpu(), done, elapsed, left)


def _checked_ignored(
    ignored: Bool[Tensor, "_ _ _"], frames: UInt8[Tensor, "n h w 3"]
) -> Bool[Tensor, "n h w"]:
    if ignored.shape != frames.shape[:3]:
        raise ValueError(
            f"what is ignored must be {tuple(frames.shape[:3])}, as the frames, got {tuple(ignored.shape)}"
        )
    if whole := ignored.flatten(1).all(1).nonzero()[:, 0].tolist():
        raise ValueError(f"nothing is left of views {whole} (counted from 0) but what is ignored; drop them")
    return ignored


def held_out_views(frames: UInt8[Tensor, "n h w 3"], cameras: Cameras, every: int) -> Bool[Tensor, " n"]:
    """Which views are held out: the last of each `every`."""
    if frames.shape[:3] != (len(cameras), cameras.height, cameras.width):
        raise ValueError(
            f"frames must match their cameras ({len(cameras)} of {cameras.height} x {cameras.width}), got "
            f"{tuple(frames.shape[:3])}; resize one of them"
        )
    if not 2 <= every <= len(cameras):
        raise ValueError(
            f"held_out_every must lie in [2, {len(cameras)}], the views, got {every}; 5 is usual"
        )
    return torch.arange(len(cameras), device=cameras.K.device) % every == every - 1


@torch.no_grad()
def render(model: Model, similarity: Similarity, cameras: Cameras) -> View:
    """What cameras see of a trained nerfstudio model; distance along the ray becomes camera z, metres."""
    origins, directions = similarity.rays(cameras)
    flat_origins, flat_directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    parts: dict[str, list[Tensor]] = {"rgb": [], "depth": [], "accumulation": []}
    chunk = model.config.eval_num_rays_per_chunk
    for o, d in zip(flat_origins.split(chunk), flat_directions.split(chunk), strict=True):
        outputs = model(_bundle(o, d, torch.zeros(len(o), dtype=torch.int64, device=o.device)))
        for name, part in parts.items():
            part.append(outputs[name])
    shape = dict(n=len(cameras), h=cameras.height, w=cameras.width)
    whole = {k: rearrange(torch.cat(v), "(n h w) c -> n h w c", **shape) for k, v in parts.items()}
    forward = cameras.c2w[:, None, None, :3, 2]
    depth = similarity.metres(whole["depth"][..., 0]) * (directions * forward).sum(-1)
    normals = normals_from_depth(cameras, depth)
    return View(as_uint8(whole["rgb"]), depth, normals, whole["accumulation"][..., 0].clamp(0, 1))


def _bundle(
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    camera: Int[Tensor, " r"],
    collinear: bool = False,
) -> RayBundle:
    ones = torch.ones_like(origins[:, :1])
    return RayBundle(
        origins=origins,
        directions=directions,
        pixel_area=ones * 1e-6,
        camera_indices=camera[:, None],
        metadata={"directions_norm": ones} | ({"collinear": ones} if collinear else {}),
    )
