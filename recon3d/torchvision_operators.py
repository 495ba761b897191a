"""A leaf that anyone may import: makes `import torchvision` work beside a CPU build of torch.

PyPI's torchvision is built for CUDA; beside a CPU torch its compiled operators do not load and its own import
then fails with `operator torchvision::nms does not exist`. transformers and nerfstudio import torchvision but
call none of these operators, so declaring their signatures is enough. Gone when PyPI serves a CPU build.
"""

import importlib.util
from pathlib import Path

import torch

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def operators_load() -> bool:
    """Whether torchvision's compiled operators load beside this torch (True without any torchvision)."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.origin:
        return True
    libraries = [
        path for path in Path(spec.origin).parent.glob("_C*") if path.suffix in (".so", ".pyd", ".dylib")
    ]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)


def declare_missing_operators() -> None:
    """Declare torchvision's operators where they do not load; harmless to call twice or where they do."""
    if operators_load():
        return
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", SIGNATURE)
