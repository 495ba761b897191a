"""Where Lab's fixed camera stands, as plain numbers (leaf: no imports), so that a probe can turn pixels into
metres.

The camera looks level along +y at the plane y = 0, in which Lab's things start. The picture's vertical axis
is world z and its horizontal axis world x, both at `pixels_per_metre(height)` in that plane.
"""

from math import radians, tan

FOVY_DEG = 45.0
EYE = (0.0, -2.8, 1.1)
TARGET = (0.0, 0.0, 1.1)
PLANE_Y_M = 0.0
FLOOR_Z_M = 0.0
TIME_STEP_S = 0.1


def pixels_per_metre(height: int) -> float:
    """Pixels per metre in the plane y = 0 of a picture that is `height` pixels high."""
    return 0.5 * height / tan(radians(FOVY_DEG) / 2) / (PLANE_Y_M - EYE[1])


def to_metres(column: float, row: float, height: int, width: int) -> tuple[float, float]:
    """World (x, z) in metres of a point of the picture in the plane y = 0; (0, 0) is the picture's corner."""
    scale = pixels_per_metre(height)
    return EYE[0] + (column - width / 2) / scale, EYE[2] - (row - height / 2) / scale


def to_pixels(x_m: float, z_m: float, height: int, width: int) -> tuple[float, float]:
    """Picture (column, row) of the world point (x, 0, z); the inverse of `to_metres`."""
    scale = pixels_per_metre(height)
    return width / 2 + (x_m - EYE[0]) * scale, height / 2 - (z_m - EYE[2]) * scale
