"""Pictures of a MuJoCo model from any pinhole camera; the one place that touches OpenGL.

One GL context per process, made at the first picture; one MjrContext per model. MuJoCo's cameras look along
-z (OpenGL); everything that enters or leaves this file is OpenCV (x right, y down, z forward).
"""

import os
import sys
from importlib import import_module
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

SUPERSAMPLING = 2
NEAR_M, FAR_M = 0.02, 20.0

_context: dict[int, Any] = {}


def _new_context() -> Any:
    """A GL context without a window: EGL on Linux unless MUJOCO_GL names another, whenever mujoco was
    imported.
    """
    wanted = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform == "linux" else "")
    maker = import_module(f"mujoco.{wanted}") if wanted in ("egl", "osmesa") else mujoco
    return maker.GLContext(64, 64)


def _make_current() -> None:
    """Make this process's GL context current, creating it at the first call.

    Raises:
        RuntimeError: the process was forked after its parent had made a context, which would hang.
    """
    pid = os.getpid()
    if _context and pid not in _context:
        raise RuntimeError("OpenGL does not survive a fork; start worker processes with the spawn method")
    if pid not in _context:
        _context[pid] = _new_context()
    _context[pid].make_current()


def look_along(eye: np.ndarray, forward: np.ndarray) -> Float64[np.ndarray, "4 4"]:
    """OpenCV camera-to-world of a camera at `eye` that looks along `forward` (not vertical), +Z up in the
    picture.
    """
    z = np.asarray(forward, np.float64) / np.linalg.norm(forward)
    x = np.cross(z, (0.0, 0.0, 1.0))
    x /= np.linalg.norm(x)
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([x, np.cross(z, x), z], axis=1)
    c2w[:3, 3] = eye
    return c2w


def intrinsics(fovy_deg: float, height: int, width: int) -> Float64[np.ndarray, "3 3"]:
    """Square pixels, centred principal point, vertical field of view `fovy_deg`."""
    focal = 0.5 * height / np.tan(np.radians(fovy_deg) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


class Renderer:
    """Renders one model; made lazily by its env, closed with it."""

    def __init__(self, model: mujoco.MjModel) -> None:
        _make_current()
        self._model = model
        self._scene = mujoco.MjvScene(model, maxgeom=400)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = (1, 1, 1, 0, 0, 0)
        self._free = mujoco.MjvCamera()
        self._perturb = mujoco.MjvPerturb()
        self._buffers = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._buffers)
        self._size = (model.vis.global_.offheight, model.vis.global_.offwidth)

    def close(self) -> None:
        """Give back the model's GL buffers."""
        if self._buffers is not None:
            _make_current()
            self._buffers.free()
            self._buffers = None

    def rgb(
        self,
        data: mujoco.MjData,
        K: Float[np.ndarray, "3 3"],
        c2w: Float[np.ndarray, "4 4"],
        height: int,
        width: int,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of the current state: rendered at twice the size and averaged down."""
        _make_current()
        rows, columns = height * SUPERSAMPLING, width * SUPERSAMPLING
        if rows > self._size[0] or columns > self._size[1]:
            self._size = (max(rows, self._size[0]), max(columns, self._size[1]))
            mujoco.mjr_resizeOffscreen(self._size[1], self._size[0], self._buffers)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._buffers)
        kinds = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, data, self._options, self._perturb, self._free, kinds, self._scene
        )
        self._aim(K, c2w, height, width)
        picture = np.empty((rows, columns, 3), np.uint8)
        area = mujoco.MjrRect(0, 0, columns, rows)
        mujoco.mjr_render(area, self._scene, self._buffers)
        mujoco.mjr_readPixels(picture, None, area, self._buffers)
        s = SUPERSAMPLING
        sums = np.zeros((height, width, 3), np.uint16)
        for corner in range(s * s):
            sums += picture[corner // s :: s, corner % s :: s]
        sums = sums[::-1]
        return ((sums + s * s // 2) // (s * s)).astype(np.uint8)

    def _aim(self, K: np.ndarray, c2w: np.ndarray, height: int, width: int) -> None:
        """Put the scene's GL camera where the OpenCV camera is, with its field of view and centre."""
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        for camera in self._scene.camera:
            camera.pos[:] = c2w[:3, 3]
            camera.forward[:] = c2w[:3, 2]
            camera.up[:] = -c2w[:3, 1]
            camera.frustum_near, camera.frustum_far = NEAR_M, FAR_M
            camera.frustum_top = NEAR_M * cy / fy
            camera.frustum_bottom = -NEAR_M * (height - cy) / fy
            camera.frustum_center = NEAR_M * (width / 2 - cx) / fx
            camera.frustum_width = NEAR_M * width / 2 / fx


def cast_rays(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    K: Float[np.ndarray, "3 3"],
    c2w: Float[np.ndarray, "4 4"],
    height: int,
    width: int,
) -> tuple[Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Exact depth (camera z, metres; inf where nothing is hit) and geom ids (-1 there), without OpenGL."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    seen = np.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], np.ones_like(rows)], axis=-1)
    length = np.linalg.norm(seen, axis=-1)
    directions = (seen / length[..., None]).reshape(-1, 3) @ c2w[:3, :3].T
    ids = np.full(height * width, -1, np.int32)
    distance = np.full(height * width, -1.0)
    groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)
    origin = np.ascontiguousarray(c2w[:3, 3], dtype=np.float64)
    mujoco.mj_multiRay(
        model,
        data,
        origin,
        directions.ravel(),
        groups,
        True,
        -1,
        ids,
        distance,
        None,
        len(ids),
        mujoco.mjMAXVAL,
    )
    distance = np.where(ids < 0, np.inf, distance)
    return (distance.reshape(height, width) / length).astype(np.float32), ids.reshape(height, width)
