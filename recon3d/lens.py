"""Lenses that bend straight lines: their pictures as a pinhole would have taken them, by COLMAP's models.

Pictures keep their focal length and become larger or smaller until all of their pixels are seen: what the
lens saw beyond is cut off.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycolmap
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from recon3d.cameras import COEFFICIENTS, STRAIGHT

LEAST_BEND = 1e-3  # of the longer side, in a corner
FISHEYE = "OPENCV_FISHEYE"
PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")


def lens_of(
    values: Mapping[str, Any], K: Float[Tensor, "3 3"], height: int, width: int
) -> pycolmap.Camera | None:
    """The lens that a frame of nerfstudio's `transforms.json` names; None for a pinhole.

    Args:
        values: of the frame, with those that stand once for all.
        K: in pixels of a picture of so many rows and columns.

    Raises:
        ValueError: its camera model is none of OpenCV's, or k4 is given for a perspective lens.
    """
    model = values.get("camera_model", "OPENCV")
    if model not in (*PERSPECTIVE, FISHEYE):
        known = ", ".join((*PERSPECTIVE, FISHEYE))
        raise ValueError(f"camera_model must be one of {known}, got {model!r}; undistort the pictures first")
    k1, k2, k3, k4, p1, p2 = (float(values.get(name) or 0.0) for name in COEFFICIENTS)
    pinhole = [*K.diagonal()[:2].tolist(), *K[:2, 2].tolist()]
    if model == FISHEYE:
        return _camera(FISHEYE, [*pinhole, k1, k2, k3, k4], height, width)
    if abs(k4) > STRAIGHT:
        raise ValueError(f"k4 is for {FISHEYE} alone, got {k4} with {model}; undistort the pictures first")
    if max(abs(k) for k in (k1, k2, k3, p1, p2)) <= STRAIGHT:
        return None
    return _camera("FULL_OPENCV", [*pinhole, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0], height, width)


def simple_lens(focal_px: float, k: float, height: int, width: int) -> pycolmap.Camera | None:
    """A lens of one radial coefficient about the picture's centre; None where it hardly bends anything."""
    corner = math.hypot(height, width) / 2 / focal_px
    if abs(k) * corner**3 * focal_px < LEAST_BEND * max(height, width):
        return None
    return _camera("SIMPLE_RADIAL", [focal_px, width / 2, height / 2, k], height, width)


def _camera(model: str, parameters: list[float], height: int, width: int) -> pycolmap.Camera:
    return pycolmap.Camera(model=model, width=width, height=height, params=parameters, camera_id=1)


def straightened(
    pictures: Sequence[Image.Image], lens: pycolmap.Camera
) -> tuple[list[Image.Image], Float[Tensor, "3 3"]]:
    """Pictures of a lens as a pinhole sees them, and its matrix in their pixels."""
    options = pycolmap.UndistortCameraOptions()
    made = []
    for picture in pictures:
        bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(np.asarray(picture)))
        straight, _ = pycolmap.undistort_image(options, bitmap, lens)
        made.append(Image.fromarray(straight.to_array()))
    K = pycolmap.undistort_camera(options, lens).calibration_matrix()
    return made, torch.from_numpy(K).float()
