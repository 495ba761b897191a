"""What the two training loops share: optimizers, the learning-rate schedule, precision, and the run's
clock."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


def make_optimizers(model: nn.Module, matrix_rate: float, other_rate: float) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) on hidden matrices, AdamW on the rest: biases, gains, embeddings, first and
    last layers.

    A module names its own exceptions in `not_for_muon` (a set of parameter names).
    """
    exceptions = getattr(model, "not_for_muon", frozenset())
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden_matrix = parameter.ndim == 2 and min(parameter.shape) > 8 and name not in exceptions
        (matrices if hidden_matrix else others).append(parameter)
    return [
        Muon(matrices, lr=matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(progress: float, warmup: float = 0.01, decay: float = 0.4) -> float:
    """Learning rate relative to its peak at `progress` in [0, 1]: warm up, hold, and fall linearly over the
    last part."""
    return max(0.0, min(1.0, progress / warmup if warmup else 1.0, (1 - progress) / decay))


def set_rates(optimizers: list[Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = group["peak"] * factor


def fast_precision(device: torch.device) -> AbstractContextManager:
    """bf16 autocast where the processor multiplies bf16 faster than fp32; elsewhere nothing changes."""
    if device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported()
    else:
        enabled = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@dataclass
class Clock:
    """How far a run is: by steps or by minutes of training, whichever is further. Survives a resume."""

    max_steps: int
    max_minutes: float
    step: int = 0
    earlier_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.earlier_s + time.monotonic() - self.started_s

    @property
    def progress(self) -> float:
        by_minutes = self.seconds / 60 / self.max_minutes if self.max_minutes else 0.0
        return min(1.0, max(self.step / self.max_steps, by_minutes))

    @property
    def left_s(self) -> float:
        return self.seconds * (1 - self.progress) / self.progress if self.progress else float("nan")


Model = TypeVar("Model", bound=nn.Module)


@dataclass
class Learner(Generic[Model]):
    """All that a run of training changes."""

    model: Model
    ema: Model  # the moving average of the weights, which is what ships
    optimizers: list[Optimizer]
    clock: Clock


def take_step(learner: Learner, loss: Tensor, ema_decay: float) -> None:
    """One optimisation step: backward, clip, step, follow with the moving average (faster while it is
    young)."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
    for optimizer in learner.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    learner.clock.step += 1
    ema_update(
        learner.ema, learner.model, min(ema_decay, (1 + learner.clock.step) / (10 + learner.clock.step))
    )


def ema_update(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights; buffers are left alone."""
    with torch.no_grad():
        for kept, new in zip(ema.parameters(), model.parameters(), strict=True):
            kept.lerp_(new.to(kept.dtype), 1 - decay)
