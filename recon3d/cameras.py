"""Pinhole cameras: the one file that knows the camera convention of the project (a leaf: torch only).

World right-handed, +Z up, metres. Camera OpenCV: x right, y down, z forward. `c2w` maps camera to world.
The centre of the first pixel is at (0.5, 0.5), so a centred principal point is (W / 2, H / 2).
Projection as in Hartley and Zisserman, "Multiple View Geometry", 2nd ed., eq. 6.11.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

COEFFICIENTS, STRAIGHT = ("k1", "k2", "k3", "k4", "p1", "p2"), 1e-6  # of a lens; up to this it is a pinhole
NOT_RIGID = 0.01  # by which the columns of a rotation may miss length 1 and right angles
OPENGL_FROM_OPENCV = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


@dataclass(frozen=True)
class Cameras:
    """n pinhole cameras that share one picture size.

    Attributes:
        K: intrinsics in pixels.
        c2w: camera-to-world poses, OpenCV axes, metres.
        height: picture height in pixels.
        width: picture width in pixels.
    """

    K: Float[Tensor, "n 3 3"]
    c2w: Float[Tensor, "n 4 4"]
    height: int
    width: int

    def __len__(self) -> int:
        return self.K.shape[0]

    def __getitem__(
        self, index: int | slice | Sequence[int] | Int[Tensor, " m"] | Bool[Tensor, " n"]
    ) -> "Cameras":
        """Some of the cameras, always as `Cameras` (an int gives one camera)."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"camera {index} of {len(self)}")
            index = [index]
        index = list(index) if isinstance(index, Sequence) else index
        return Cameras(self.K[index], self.c2w[index], self.height, self.width)

    @property
    def w2c(self) -> Float[Tensor, "n 4 4"]:
        """World-to-camera poses: the inverse of a rigid motion, written out."""
        return rigid_inverse(self.c2w)

    @property
    def centres(self) -> Float[Tensor, "n 3"]:
        """Optical centres in the world, metres."""
        return self.c2w[:, :3, 3]

    def resized(self, height: int, width: int) -> "Cameras":
        """The same cameras with pictures of another size (the field of view stays)."""
        scale = torch.diag(torch.tensor([width / self.width, height / self.height, 1.0])).to(self.K)
        return Cameras(scale @ self.K, self.c2w, height, width)

    def relative_to_first(self) -> "Cameras":
        """The same cameras seen from the first one, whose pose becomes the identity."""
        return self.moved(rigid_inverse(self.c2w[:1])[0])

    def moved(self, motion: Float[Tensor, "4 4"]) -> "Cameras":
        """The same cameras after a rigid motion of the world."""
        return Cameras(self.K, motion @ self.c2w, self.height, self.width)

    def to(self, device: str | torch.device) -> "Cameras":
        return Cameras(self.K.to(device), self.c2w.to(device), self.height, self.width)

    def rays(self) -> tuple[Float[Tensor, "n h w 3"], Float[Tensor, "n h w 3"]]:
        """Origins (metres) and unit directions in the world of the rays through all pixel centres."""
        return self._grid_rays(self.height, self.width)

    def plucker(self, height: int, width: int) -> Float[Tensor, "n 6 height width"]:
        """Pluecker coordinates (direction, origin x direction) of the rays through the centres of cells.

        Args:
            height: rows of cells that cover the picture; a cell may be larger than a pixel.
            width: columns of cells.
        """
        origins, directions = self._grid_rays(height, width)
        lines = torch.cat([directions, torch.linalg.cross(origins, directions)], dim=-1)
        return rearrange(lines, "n h w c -> n c h w")

    def project(self, points: Float[Tensor, "p 3"]) -> tuple[Float[Tensor, "n p 2"], Float[Tensor, "n p"]]:
        """Pixel coordinates (x, y) and depth (camera z, metres; not in front when <= 0) of world points."""
        image = self.homogeneous(points)
        return image[..., :2] / image[..., 2:], image[..., 2]

    def homogeneous(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "n p 3"]:
        """Depth (camera z, metres) times pixel coordinates, and depth, of world points: linear in these."""
        w2c = self.w2c
        local = einsum(w2c[:, :3, :3], points, "n i j, p j -> n p i") + w2c[:, None, :3, 3]
        return einsum(self.K, local, "n i j, n p j -> n p i")

    def unproject(self, depth: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w 3"]:
        """World points (metres) at a depth (camera z, metres) on the ray of each pixel."""
        return self.c2w[:, None, None, :3, 3] + self._directions(self.height, self.width) * depth[..., None]

    def _directions(self, height: int, width: int) -> Float[Tensor, "n height width 3"]:
        """World directions with camera z = 1 through the centres of a grid of cells."""
        y, x = torch.meshgrid(
            (torch.arange(height, device=self.K.device) + 0.5) * (self.height / height),
            (torch.arange(width, device=self.K.device) + 0.5) * (self.width / width),
            indexing="ij",
        )
        pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).to(self.K)
        local = einsum(torch.linalg.inv_ex(self.K)[0], pixels, "n i j, h w j -> n h w i")
        return einsum(self.c2w[:, :3, :3], local, "n i j, n h w j -> n h w i")

    def _grid_rays(
        self, height: int, width: int
    ) -> tuple[Float[Tensor, "n height width 3"], Float[Tensor, "n height width 3"]]:
        directions = self._directions(height, width)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.c2w[:, None, None, :3, 3].expand_as(directions), directions


def rigid_inverse(pose: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 4 4"]:
    """Inverse of rigid motions (rotation and translation, no scale)."""
    inverse = torch.zeros_like(pose)
    rotation = rearrange(pose[:, :3, :3], "n i j -> n j i")
    inverse[:, :3, :3] = rotation
    inverse[:, :3, 3] = -einsum(rotation, pose[:, :3, 3], "n i j, n j -> n i")
    inverse[:, 3, 3] = 1.0
    return inverse


def look_at(eye: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4 4"]:
    """Poses at `eye` that look at `target` with the picture's up side towards the world's +Z (metres).

    Raises:
        ValueError: eye and target coincide, or the view is along the vertical, which leaves up open.
    """
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).to(eye).expand_as(eye)
    right = torch.linalg.cross(forward, up)
    if bool((right.norm(dim=-1) < 1e-6).any()):
        raise ValueError(
            "look_at needs a view that is not vertical and not of zero length; move eye sideways"
        )
    right = torch.nn.functional.normalize(right, dim=-1)
    pose = torch.eye(4).to(eye).repeat(eye.shape[0], 1, 1)
    pose[:, :3, 0] = right
    pose[:, :3, 1] = torch.linalg.cross(forward, right)
    pose[:, :3, 2] = forward
    pose[:, :3, 3] = eye
    return pose


def intrinsics(fovy_deg: float, height: int, width: int) -> Float[Tensor, "3 3"]:
    """K of a camera with square pixels and a centred principal point from its vertical field of view.

    Raises:
        ValueError: the field of view is not between 0 and 180 degrees.
    """
    if not 0.0 < fovy_deg < 180.0:
        raise ValueError(f"fovy_deg must lie between 0 and 180, got {fovy_deg}; 60 is usual")
    focal = height / 2 / math.tan(math.radians(fovy_deg) / 2)
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def concatenate(parts: Sequence[Cameras]) -> Cameras:
    """All cameras of the parts in order.

    Raises:
        ValueError: no parts, or picture sizes differ.
    """
    sizes = {(part.height, part.width) for part in parts}
    if len(sizes) != 1:
        raise ValueError(f"cameras to join need one picture size, got {sorted(sizes)}; use resized() first")
    height, width = sizes.pop()
    return Cameras(torch.cat([p.K for p in parts]), torch.cat([p.c2w for p in parts]), height, width)


def to_transforms(cameras: Cameras, file_paths: Sequence[str]) -> dict[str, Any]:
    """The content of a nerfstudio `transforms.json` (OpenGL axes on disk, intrinsics per frame).

    Args:
        cameras: one camera per picture.
        file_paths: where the pictures are, relative to the folder of the file.
    """
    if len(file_paths) != len(cameras):
        raise ValueError(f"transforms need one file per camera, got {len(file_paths)} for {len(cameras)}")
    poses = cameras.c2w.double().cpu() @ OPENGL_FROM_OPENCV.double()
    frames = []
    for path, K, pose in zip(file_paths, cameras.K.double().cpu(), poses, strict=True):
        focal = {"fl_x": K[0, 0].item(), "fl_y": K[1, 1].item(), "cx": K[0, 2].item(), "cy": K[1, 2].item()}
        frames.append({"file_path": str(path), **focal, "transform_matrix": pose.tolist()})
    return {"camera_model": "OPENCV", "h": cameras.height, "w": cameras.width, "frames": frames}


def _pose_of(frame: dict[str, Any]) -> Float[Tensor, "4 4"]:
    """A frame's matrix. Raises ValueError where it is not a rotation and a position."""
    try:
        pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
    except (TypeError, ValueError):
        pose = torch.empty(0)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    if pose.shape == (3, 4):
        pose = torch.cat([pose, last[None]])
    turn = pose[:3, :3]
    if (
        pose.shape != (4, 4)
        or not pose.isfinite().all()
        or not torch.allclose(turn @ turn.T, torch.eye(3).double(), atol=NOT_RIGID)
        or torch.linalg.det(turn) < 0
    ):
        raise ValueError(
            f"the transform_matrix of {frame['file_path']} must be a rotation and a position, 4 rows of 4 "
            "numbers; export it again without scale, or leave the frame out"
        )
    return pose


def from_transforms(transforms: dict[str, Any]) -> tuple[Cameras, list[str]]:
    """Cameras and picture paths from the content of a nerfstudio `transforms.json`.

    Intrinsics may stand per frame or once for all; the focal length may be given as `camera_angle_x`.

    Raises:
        ValueError: no frames, no intrinsics, several picture sizes, lens distortion, or a matrix that is no
            pose.
    """
    frames = transforms.get("frames") or []
    if not frames:
        raise ValueError("transforms.json must list frames, got none; export it again")
    matrices, sizes = [], set()
    for frame in frames:
        values = {**{k: v for k, v in transforms.items() if k != "frames"}, **frame}
        bent = [name for name in COEFFICIENTS if abs(values.get(name) or 0.0) > STRAIGHT]
        if bent or values.get("camera_model", "OPENCV") not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
            found = bent or values["camera_model"]
            raise ValueError(f"transforms.json must describe pinhole cameras, got {found}; undistort first")
        lacking = [k for k in ("h", "w", "transform_matrix", "file_path") if k not in values]
        if lacking or not ("fl_x" in values or "camera_angle_x" in values):
            raise ValueError(
                f"a frame of transforms.json lacks {lacking or 'fl_x'}; add it per frame or once for all"
            )
        height, width = int(values["h"]), int(values["w"])
        sizes.add((height, width))
        fl_x = values.get("fl_x") or width / 2 / math.tan(values["camera_angle_x"] / 2)
        fl_y = values.get("fl_y", fl_x)
        cx, cy = values.get("cx", width / 2), values.get("cy", height / 2)
        matrices.append([[fl_x, 0.0, cx], [0.0, fl_y, cy], [0.0, 0.0, 1.0]])
    if len(sizes) != 1:
        raise ValueError(
            f"transforms.json must have one picture size, got {sorted(sizes)}; resize the pictures"
        )
    (height, width) = sizes.pop()
    poses = torch.stack([_pose_of(frame) for frame in frames])
    c2w = (poses @ OPENGL_FROM_OPENCV.double()).float()
    return Cameras(torch.tensor(matrices, dtype=torch.float32), c2w, height, width), [
        f["file_path"] for f in frames
    ]
