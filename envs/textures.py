"""Pictures of the named materials, made by arithmetic and always the same (uint8 h w 3, tileable)."""

from functools import cache

import numpy as np
from jaxtyping import UInt8

SIDE_PX = 128


def _smooth(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Periodic value noise in [0, 1]: a grid of random values, smoothly interpolated to side x side."""
    grid = rng.random((cells, cells))
    place = np.arange(side) * cells / side
    low = place.astype(int)
    weight = place - low
    weight = weight * weight * (3 - 2 * weight)
    high = (low + 1) % cells
    rows = grid[low] * (1 - weight)[:, None] + grid[high] * weight[:, None]
    return rows[:, low] * (1 - weight) + rows[:, high] * weight


def _blend(amount: np.ndarray, low: tuple, high: tuple) -> np.ndarray:
    return np.asarray(low) + amount[..., None] * (np.asarray(high) - np.asarray(low))


def _planks(side: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    boards = 4
    row = np.arange(side) * boards // side
    tone = np.array([0.15, 0.75, 0.4, 1.0])[row]
    grain = 0.12 * (_smooth(rng, 16, side)[:, :1] - 0.5) + np.zeros((side, side))
    image = _blend(np.clip(tone[:, None] + grain, 0, 1), (0.50, 0.31, 0.16), (0.76, 0.54, 0.31))
    edge = np.arange(side) % (side // boards) < max(side // 48, 1)
    image[edge] = (0.33, 0.20, 0.10)
    return image


def _tiles(side: int) -> np.ndarray:
    tile = side // 2
    row, column = np.divmod(np.arange(side), tile)[0], np.divmod(np.arange(side), tile)[0]
    image = _blend(((row[:, None] + column[None]) % 2).astype(float), (0.36, 0.46, 0.58), (0.80, 0.83, 0.86))
    joint = np.arange(side) % tile < max(side // 40, 1)
    image[joint] = image[:, joint] = (0.62, 0.62, 0.62)
    return image


def _cloudy(seed: int, cells: int, low: tuple, high: tuple, side: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    amount = 0.7 * _smooth(rng, cells, side) + 0.3 * _smooth(rng, 2 * cells, side)
    return _blend(amount, low, high)


def _confetti(side: int) -> np.ndarray:
    """Noise under random discs and squares of many sizes and colours: rich in corners and blobs."""
    rng = np.random.default_rng(7)
    image = _blend(_smooth(rng, 16, side), (0.2, 0.2, 0.3), (0.8, 0.8, 0.7))
    y, x = np.mgrid[:side, :side]
    count = 420
    radii = np.sort(side * np.exp(rng.uniform(np.log(0.010), np.log(0.07), count)))[::-1]
    for radius, centre, colour, square, angle in zip(
        radii, rng.random((count, 2)) * side, rng.random((count, 3)), rng.random(count) < 0.6,
        rng.random(count) * np.pi, strict=True,
    ):  # fmt: skip
        dx = (x - centre[0] + side / 2) % side - side / 2
        dy = (y - centre[1] + side / 2) % side - side / 2
        if square:
            a, b = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
            inside = np.maximum(abs(a), abs(b)) < radius
        else:
            inside = dx * dx + dy * dy < radius * radius
        image[inside] = colour
    return image


@cache
def texture(material: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of one named material (`envs.vocabulary.FLOORS` or `TEST_FLOORS`).

    Raises:
        ValueError: the material is not in the library.
    """
    makers = {
        "wooden": lambda: _planks(SIDE_PX),
        "tiled": lambda: _tiles(SIDE_PX),
        "marble": lambda: _cloudy(3, 4, (0.62, 0.62, 0.66), (0.93, 0.92, 0.90), SIDE_PX),
        "grassy": lambda: _cloudy(4, 6, (0.26, 0.40, 0.20), (0.50, 0.62, 0.36), SIDE_PX),
        "sandy": lambda: _cloudy(5, 5, (0.74, 0.62, 0.44), (0.88, 0.79, 0.60), SIDE_PX),
        "grey": lambda: np.full((8, 8, 3), 0.50),
        "confetti": lambda: _confetti(512),
    }
    if material not in makers:
        raise ValueError(f"floor must be one of {', '.join(makers)}, got {material!r}")
    return (np.clip(makers[material](), 0, 1) * 255).round().astype(np.uint8)
