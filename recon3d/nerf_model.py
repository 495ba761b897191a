"""Our radiance field as a nerfstudio model: losses, schedules, and what may be fitted to each frame.

Two things can be fitted per training frame beside the scene, both off by default, because they absorb the
very inconsistency that a held-out view is to reveal: an exposure (a gain per colour channel) and a pose
correction (nerfstudio's own camera optimiser). Both have mean zero over the frames, so that held-out views,
which have neither, are rendered as by the mean frame.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from recon3d.field import FieldConfig, RadianceField
from recon3d.torchvision_operators import declare_missing_operators
from recon3d.views import as_uint8, psnr, ssim
from recon3d.volume import bend, even_colour

declare_missing_operators()

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig  # noqa: E402 (after the shim)
from nerfstudio.cameras.rays import RayBundle  # noqa: E402
from nerfstudio.engine.callbacks import (  # noqa: E402
    TrainingCallback,
    TrainingCallbackAttributes,
    TrainingCallbackLocation,
)
from nerfstudio.models.base_model import Model, ModelConfig  # noqa: E402

SCENE_RATES = {"density": 0.1, "colour": 0.1, "features": 0.1, "sky": 0.05, "shading": 2e-3}
RATES = {**SCENE_RATES, "exposure": 5e-2, "camera_opt": 1e-3}  # learning rates by group of parameters
OUTPUTS = {"accumulation": "opacity", "depth": "median", "expected_depth": "expected"}


class Exposure(nn.Module):
    """A gain per frame and colour channel, as log, with mean zero over the frames (see `settle`)."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(frames, 3))

    def forward(self, rgb: Float[Tensor, "r 3"], frame: Int[Tensor, " r"]) -> Float[Tensor, "r 3"]:
        return rgb * torch.exp(self.log_gain[frame])


@dataclass
class OrreryNerfModelConfig(ModelConfig):
    """nerfstudio's configuration of our model (tyro shows the comments)."""

    _target: type = field(default_factory=lambda: OrreryNerfModel)
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    field: FieldConfig = field(default_factory=FieldConfig)
    coarse_steps: int = 200  # steps until the finest voxels take part
    bake_every: int = 16  # steps between refreshes of the density grid that guides sampling
    distortion_loss_mult: float = 0.03
    exposure: bool = False  # fit a gain per training frame and colour channel
    bend_loss_mult: float = 0.03  # flatness where colours are even; needs triplets, as `reconstruct` draws
    normals: bool = False  # also render the surface's, as nerfstudio's exporters and viewer take them
    seed: int = 0
    enable_collider: bool = False
    eval_num_rays_per_chunk: int = 8192


class OrreryNerfModel(Model):
    """`RadianceField` as a nerfstudio model."""

    config: OrreryNerfModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        self.field = RadianceField(self.config.field)
        self.compactness = 1.0  # how much of the distortion loss counts; see update_to_step
        self.generators: dict[torch.device, torch.Generator] = {}
        self.exposure = Exposure(self.num_train_data) if self.config.exposure else None
        self.camera_optimizer = self.config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu"
        )

    @property
    def pose_adjustment(self) -> Float[Tensor, "n 6"] | None:
        """Shift (in the box) and turn (radians) of each training frame, where poses are refined."""
        if self.config.camera_optimizer.mode == "off":
            return None
        return self.camera_optimizer.pose_adjustment.detach()

    def generator(self) -> torch.Generator:
        """Source of the random sample positions, on the device of the model."""
        if self.device not in self.generators:
            self.generators[self.device] = torch.Generator(self.device).manual_seed(self.config.seed)
        return self.generators[self.device]

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        parts = {name: getattr(self.field, name) for name in SCENE_RATES}
        parts |= {"exposure": self.exposure} if self.exposure else {}
        groups = {name: list(part.parameters()) for name, part in parts.items()}
        self.camera_optimizer.get_param_groups(groups)
        return groups

    def update_to_step(self, step: int) -> None:
        """Coarse to fine; and weights drawn together little by little, or the first fog would dissolve."""
        total = len(self.config.field.resolutions)
        self.field.levels = min(total, 1 + step * total // max(self.config.coarse_steps, 1))
        self.compactness = min(1.0, 4 * step / max(self.config.coarse_steps, 1))

    def before_step(self, step: int) -> None:
        self.update_to_step(step)
        if step % self.config.bake_every == 0:
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Refreshes the sampling grid, and gives what is fitted per frame a mean of zero."""
        self.field.bake()
        if self.exposure is not None:
            self.exposure.log_gain.sub_(self.exposure.log_gain.mean(0))
        if self.pose_adjustment is not None:
            self.pose_adjustment.sub_(self.pose_adjustment.mean(0))

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before_step)]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Colours, accumulation and distance along the ray (nerfstudio calls it depth); where asked for, and
        not in training, normals that face the camera, as (n + 1) / 2."""
        generator = self.generator() if self.training else None
        if self.training:
            self.camera_optimizer.apply_to_raybundle(ray_bundle)
        out = self.field(ray_bundle.origins, ray_bundle.directions, generator)
        outputs = {name: out[key][..., None] for name, key in OUTPUTS.items()} | {"rgb": out["rgb"]}
        if self.training:
            if self.exposure is not None:
                frame = ray_bundle.camera_indices[:, 0]  # pyright: ignore[reportOptionalSubscript]
                outputs["rgb"] = self.exposure(outputs["rgb"], frame)
            outputs["spread"] = out["spread"]
            if "collinear" in ray_bundle.metadata:
                outputs["bend"] = bend(out["disparity"], ray_bundle.directions)
        elif self.config.normals:
            surface = ray_bundle.origins + outputs["depth"] * ray_bundle.directions
            normals = self.field.normals(surface)
            away = (normals * ray_bundle.directions).sum(-1, keepdim=True) > 0
            outputs["normals"] = (torch.where(away, -normals, normals) + 1) / 2
        return outputs

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        error = (outputs["rgb"].detach() - batch["image"].to(self.device)).square().mean()
        return {"psnr": -10 * torch.log10(error)}

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: dict | None = None
    ) -> dict[str, Tensor]:
        error = (outputs["rgb"] - batch["image"].to(self.device)).square().mean()
        losses = {"rgb_loss": error}
        if self.training:
            losses["distortion_loss"] = (
                self.compactness * self.config.distortion_loss_mult * outputs["spread"]
            )
            if "bend" in outputs:
                flat = even_colour(batch["image"].to(self.device))
                losses["bend_loss"] = self.config.bend_loss_mult * (flat * outputs["bend"]).mean()
            self.camera_optimizer.get_loss_dict(losses)
        return losses

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Colours with opacity beside them: nerfstudio's exporter leaves points of the sky out by it."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], dim=-1)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        truth = as_uint8(batch["image"].to(outputs["rgb"]))[None]
        rendered = as_uint8(outputs["rgb"])[None]
        metrics = {"psnr": psnr(rendered, truth).item(), "ssim": ssim(rendered, truth).item()}
        return metrics, {"img": torch.cat([truth[0], rendered[0]], dim=1) / 255, "depth": outputs["depth"]}
