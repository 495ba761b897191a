"""What nerfstudio 1.1.5 needs on a CPU besides `torchvision_operators`, and its command line after that.

- nerfstudio resumes with `torch.load(path)`, whose default since torch 2.6 refuses the NumPy scalars that its
  learning-rate schedulers store (nerfstudio issue 3683). Allowing exactly these types keeps the loader safe.
- nerfacto builds LPIPS, and so downloads AlexNet, when constructed, though only its image metrics use it.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points

import numpy
import torch

from recon3d.torchvision_operators import declare_missing_operators
from recon3d.viser_page import serve_untracked_pages


def allow_checkpoint_scalars() -> None:
    """Lets `torch.load` in its safe mode read the NumPy scalars in nerfstudio's own checkpoints."""
    scalar = numpy.float64(0.0).__reduce__()[0]
    torch.serialization.add_safe_globals([scalar, numpy.dtype, numpy.dtypes.Float64DType])  # pyright: ignore[reportArgumentType]


class NoPerceptualMetric(torch.nn.Module):
    """Stands where LPIPS would; says NaN, never a score."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return torch.tensor(float("nan"))


@contextlib.contextmanager
def no_perceptual_download() -> Iterator[None]:
    """Inside, torchmetrics' LPIPS is a metric that is NaN, so that nerfacto is built without a download."""
    lpip = importlib.import_module("torchmetrics.image.lpip")
    original = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = NoPerceptualMetric  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = original  # pyright: ignore[reportAttributeAccessIssue]


COMMANDS = {"train": "train", "viewer": "viewer.run_viewer", "export": "exporter", "eval": "eval"}


def run(words: list[str]) -> int:
    """nerfstudio's own command line after the shims: `train|viewer|export|eval ARGS...`.

    Raises:
        ValueError: it is none of these commands.
    """
    if not words or words[0] not in COMMANDS:
        found = words[0] if words else "nothing"
        raise ValueError(f"orrery ns runs {', '.join(COMMANDS)}, got {found}; add --help for its options")
    declare_missing_operators()
    allow_checkpoint_scalars()
    serve_untracked_pages()
    if not entry_points(group="nerfstudio.method_configs", name="orrery-nerf"):  # run from a checkout
        os.environ.setdefault("NERFSTUDIO_METHOD_CONFIGS", "orrery-nerf=recon3d.nerf:orrery_nerf")
    with no_perceptual_download():
        script = importlib.import_module(f"nerfstudio.scripts.{COMMANDS[words[0]]}")
        arguments, sys.argv = sys.argv, [f"ns-{words[0]}", *words[1:]]
        try:
            script.entrypoint()
        finally:
            sys.argv = arguments
    return 0
