"""Other projects' world models, timed from a checkout of their code with random weights: cost only, no
quality.

A peer's network is imported from its own files and run with its published default settings.
Nothing of it is copied here, and no file of it runs but those named below.
"""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch

Step = Callable[[], None]


def peer_step(spec: str, size: int = 64, rows: int = 1) -> tuple[str, Step]:
    """A peer's name as printed, and a function that does one of its environment steps (one frame a row).

    Args:
        spec: NAME=PATH with the path of a checkout.
        size: height and width of its frames in pixels.
        rows: environments in a batch.

    Raises:
        ValueError: the peer is not known, or its checkout lacks the files.
    """
    name, _, path = spec.partition("=")
    if name not in PEERS or not path:
        raise ValueError(f"--peer must be NAME=PATH with NAME one of {', '.join(PEERS)}, got {spec!r}")
    return PEERS[name](Path(path), size, rows)


def diamond(checkout: Path, size: int, rows: int) -> tuple[str, Step]:
    """DIAMOND (Alonso et al. 2024), github.com/eloialonso/diamond: its Atari denoiser, 3 steps a frame, and
    no cache: four past frames are stacked as channels. Its reward model, a smaller network, is left out."""
    calls, past = 3, 4
    network = _import_from(checkout / "src" / "models", "diffusion.inner_model")
    config = network.InnerModelConfig(
        img_channels=3,
        num_steps_conditioning=past,
        cond_channels=256,
        depths=[2, 2, 2, 2],
        channels=[64, 64, 64, 64],
        attn_depths=[False] * 4,
        num_actions=18,
    )
    model = network.InnerModel(config).eval().requires_grad_(False)
    seen = torch.zeros(rows, 3 * past, size, size)
    actions = torch.zeros(rows, past, dtype=torch.int64)

    def step() -> None:
        frame = torch.zeros(rows, 3, size, size)
        for _ in range(calls):
            frame = model(frame, torch.zeros(rows), seen, actions)

    return f"DIAMOND, {calls} calls, random weights", step


def _import_from(folder: Path, module: str) -> types.ModuleType:
    """A module of a folder of packages whose own `__init__` files (and what they would need) stay unread."""
    file = folder / (module.replace(".", "/") + ".py")
    if not file.is_file():
        raise ValueError(f"--peer: {file} is missing; give the root of a checkout of the peer")
    root = f"peer_{abs(hash(str(folder.resolve())))}"
    for parts in range(len(module.split("."))):
        inner = module.split(".")[:parts]
        package = types.ModuleType(".".join([root, *inner]))
        package.__path__ = [str(folder.joinpath(*inner))]
        sys.modules[package.__name__] = package
    return importlib.import_module(f"{root}.{module}")


PEERS: dict[str, Callable[[Path, int, int], tuple[str, Step]]] = {"diamond": diamond}
