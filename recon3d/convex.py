"""Convex parts of a solid (CoACD; Wei et al. 2022, arXiv:2205.02961), in a process of its own.

CoACD cannot be interrupted, writes to the standard output, and ends the process on some surfaces; apart, none
of that reaches the caller. Run as a script, this file is that process.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull, QhullError

CORNERS = 64  # of a part at most; more make collisions slow and nothing else
CONCAVITY = 0.05  # how far a part may be from convex, CoACD's own default
SMALLEST_SHARE = 1e-4  # of the volume of all parts; less is a sliver that collides with nothing
PARTS_LIMITS = (1, 128)


def convex_parts(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    most: int = 32,
    *,
    seed: int = 0,
    seconds: float = 600.0,
) -> list[Float[np.ndarray, "_ 3"]]:
    """Corners of at most so many convex parts that together are nearly the solid; one part is its hull.

    Args:
        vertices: metres.
        seed: of the search; the same parts come of it.
        seconds: wall time that the search may take.

    Raises:
        ValueError: `most` is out of range, the search took too long or failed, or the solid is flat.
        ModuleNotFoundError: coacd is not installed.
    """
    check_parts(most)
    parts = [vertices] if most == 1 else _decomposed(vertices, faces, most, seed, seconds)
    solid = [(points, hull) for points in parts if (hull := _hull(points)) is not None]
    whole = sum(hull.volume for _, hull in solid)
    kept = [points[hull.vertices] for points, hull in solid if hull.volume > SMALLEST_SHARE * whole]
    if not kept:
        raise ValueError("the surface encloses no volume, so it has no mass; extract one closed thing of it")
    return kept


def check_parts(most: int) -> None:
    """Raises ValueError if a solid cannot be asked for in so many convex parts."""
    low, high = PARTS_LIMITS
    if not low <= most <= high:
        raise ValueError(f"convex parts (--parts) must be from {low} to {high}, got {most}; 32 is usual")


def _hull(points: np.ndarray) -> ConvexHull | None:
    try:
        return ConvexHull(points)
    except QhullError:
        return None


def _decomposed(
    vertices: np.ndarray, faces: np.ndarray, most: int, seed: int, seconds: float
) -> list[np.ndarray]:
    if importlib.util.find_spec("coacd") is None:
        raise ModuleNotFoundError("coacd is not installed", name="coacd")
    with tempfile.TemporaryDirectory(prefix="orrery-convex-") as folder:
        given, found = Path(folder, "solid.npz"), Path(folder, "parts.npz")
        np.savez(given, vertices=vertices.astype(np.float64), faces=faces.astype(np.int32))
        words = [sys.executable, "-P", __file__, str(given), str(found), str(most), str(seed)]
        try:
            done = subprocess.run(words, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"the convex decomposition took longer than {seconds:.0f} s; ask for --parts 1, the hull"
            ) from None
        if done.returncode or not found.is_file():
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise ValueError(
                f"the convex decomposition failed (exit code {done.returncode}: {last}); "
                "ask for --parts 1, the hull"
            )
        with np.load(found) as arrays:
            return [arrays[name] for name in sorted(arrays.files)]


def _run_coacd(given: str, found: str, most: str, seed: str) -> None:
    import coacd

    coacd.set_log_level("error")
    with np.load(given) as solid:
        mesh = coacd.Mesh(solid["vertices"], solid["faces"])
    parts = coacd.run_coacd(
        mesh,
        threshold=CONCAVITY,
        max_convex_hull=int(most),
        max_ch_vertex=CORNERS,
        seed=int(seed),
        resolution=1000,
        mcts_nodes=10,  # a search of seconds, a tenth of the usual one
        mcts_iterations=10,
        mcts_max_depth=2,
    )
    np.savez(found, **{f"part{k:03d}": points for k, (points, _) in enumerate(parts)})


if __name__ == "__main__":
    _run_coacd(*sys.argv[1:])
