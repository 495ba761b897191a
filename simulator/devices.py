"""Where tensors go, by name."""

import torch


def device_named(name: str | torch.device) -> torch.device:
    """The device of a name such as cpu, cuda or cuda:1. Raises ValueError if torch has none such here: better
    known before the work than after."""
    try:
        device = torch.device(name)
        if device.type != "cuda":  # where trying would take a process's share of the first GPU's memory
            torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {str(name)!r}") from None
    if device.type == "cuda" and (device.index or 0) >= (found := torch.cuda.device_count()):
        sees = f"only {found} of them" if found else "none"
        raise ValueError(f"--device {name} needs a CUDA device, and torch sees {sees}; use --device cpu")
    return device
