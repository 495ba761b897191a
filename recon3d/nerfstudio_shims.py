"""What nerfstudio 1.1.5 needs on a CPU today, besides `torchvision_operators`; each part goes when upstream does.

- nerfstudio resumes with `torch.load(path)`, whose default since torch 2.6 refuses the NumPy scalars that its
  learning-rate schedulers store (nerfstudio issue 3683). Allowing exactly these types keeps the loader safe.
- nerfacto builds LPIPS, and so downloads AlexNet, when it is constructed, though only its image metrics use it.
"""

import contextlib
import importlib
from collections.abc import Iterator

import numpy
import torch


def allow_checkpoint_scalars() -> None:
    """Lets `torch.load` in its safe mode read the NumPy scalars in nerfstudio's own checkpoints."""
    scalar = numpy.float64(0.0).__reduce__()[0]
    torch.serialization.add_safe_globals([scalar, numpy.dtype, numpy.dtypes.Float64DType])


class NoPerceptualMetric(torch.nn.Module):
    """Stands where LPIPS would; says NaN, never a score."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return torch.tensor(float("nan"))


@contextlib.contextmanager
def no_perceptual_download() -> Iterator[None]:
    """Inside, torchmetrics' LPIPS is a metric that is NaN, so that nerfacto can be built without the network."""
    lpip = importlib.import_module("torchmetrics.image.lpip")
    original = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = NoPerceptualMetric
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = original
