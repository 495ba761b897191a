"""What the two training loops share: optimizers, the learning-rate schedule and the run's
clock."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Muon, Optimizer


class ShardedMuon(Muon):
    """Muon on matrices that are split over processes, with the same result as on whole ones.

    Its step is not elementwise: it needs the whole matrix. Torch's own runs on split ones, at about a dozen
    collectives a matrix, each of the matrix's size. Here momentum stays split; matrices are taken in rounds
    of as many as there are processes, each process gathers and orthogonalises one of a round, and sends it
    to all: two transfers a matrix, and the work is shared out as well.
    """

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        """One step. The closure of torch's optimizers is not taken: the loop computes the loss."""
        if closure is not None:
            raise ValueError("ShardedMuon takes no closure; compute the loss before the step")
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            count = dist.get_world_size()
            for start in range(0, len(matrices), count):
                self._round(matrices[start : start + count], group)

    def _round(self, matrices: list[DTensor], group: dict) -> None:
        rank, mine = dist.get_rank(), None
        for owner, matrix in enumerate(matrices):
            whole = self._update(matrix, group).full_tensor()
            mine = whole if owner == rank else mine
        change = None if mine is None else _orthogonal_change(mine, group)
        for owner, matrix in enumerate(matrices):
            whole = change if owner == rank else None
            if whole is None:
                whole = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
            dist.broadcast(whole, owner)
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None))

    def _update(self, matrix: DTensor, group: dict) -> DTensor:
        """The gradient with momentum, as torch's Muon computes it."""
        state, gradient = self.state[matrix], matrix.grad
        assert isinstance(gradient, DTensor)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer  # type: ignore


def _orthogonal_change(update: Tensor, group: dict) -> Tensor:
    """What torch's own Muon does to a matrix: its step from zero, without momentum, for an update."""
    change = nn.Parameter(torch.zeros_like(update))
    change.grad = update
    same = {name: group[name] for name in ("ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
    Muon([change], lr=group["lr"], weight_decay=0.0, momentum=0.0, nesterov=False, **same).step()
    return change.data


def _muon_rate(group: dict, shape: torch.Size) -> float:
    """The rate at which Muon's steps are as large as AdamW's (Liu et al. 2025, section 2.2)."""
    return group["lr"] * 0.2 * max(shape) ** 0.5


def _orthogonal(updates: Float[Tensor, "m rows columns"], group: dict) -> Float[Tensor, "m rows columns"]:
    """The orthogonal matrix nearest to each, about: Newton and Schulz's iteration (Jordan et al. 2024)."""
    a, b, c = group["ns_coefficients"]
    tall = updates.shape[1] > updates.shape[2]
    x = updates.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(updates.dtype)


class BatchedMuon(Muon):
    """Muon on whole matrices, those of one shape at once, for a GPU: there a step is otherwise thousands of
    small products that wait for each other (on a CPU torch's own is sooner done)."""

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        """One step. The closure of torch's optimizers is not taken: the loop computes the loss."""
        if closure is not None:
            raise ValueError("BatchedMuon takes no closure; compute the loss before the step")
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for shape, matrices in shapes.items():
                self._together(matrices, shape, group)

    def _together(self, matrices: list[Tensor], shape: torch.Size, group: dict) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        changes = _orthogonal(torch.stack(updates), group).unbind()
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, changes, alpha=-_muon_rate(group, shape))


def make_optimizers(model: nn.Module, matrix_rate: float, other_rate: float) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) on hidden matrices, AdamW on the rest: biases, gains, embeddings, first and
    last layers.

    A module names its own exceptions in `not_for_muon` (a set of parameter names).
    """
    matrices, others = split_parameters(model)
    split = any(isinstance(matrix, DTensor) for matrix in matrices)
    muon = ShardedMuon if split else BatchedMuon if any(matrix.is_cuda for matrix in matrices) else Muon
    hidden = {"lr": matrix_rate, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    found: list[Optimizer] = [muon(matrices, **hidden)] if matrices else []
    return [*found, AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters: hidden matrices, and the others."""
    exceptions = getattr(model, "not_for_muon", frozenset())
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden_matrix = parameter.ndim == 2 and min(parameter.shape) > 8 and name not in exceptions
        (matrices if hidden_matrix else others).append(parameter)
    return matrices, others


def rate_factor(progress: float, warmup: float = 0.01, decay: float = 0.4) -> float:
    """Learning rate relative to its peak at `progress` in [0, 1]: warm up, hold, and fall linearly over the
    last part. Not from zero, or the first of a number of steps would teach nothing."""
    warm = 0.1 + 0.9 * progress / warmup if warmup else 1.0
    return max(0.0, min(1.0, warm, (1 - progress) / decay))


def set_rates(optimizers: list[Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = group["peak"] * factor


@dataclass
class Clock:
    """How far a run is: by steps or by minutes of training, whichever is further. Survives a resume."""

    max_steps: int  # 0: any number
    max_minutes: float  # 0: any number
    step: int = 0
    earlier_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.earlier_s + time.monotonic() - self.started_s

    @property
    def progress(self) -> float:
        by_minutes = self.seconds / 60 / self.max_minutes if self.max_minutes else 0.0
        by_steps = self.step / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(by_steps, by_minutes))

    @property
    def left_s(self) -> float:
        return self.seconds * (1 - self.progress) / self.progress if self.progress else float("nan")

    def finished(self, out: Path) -> str:
        """What to say of a run that is to be resumed and has nothing left to do."""
        done = f"{self.step} steps, {self.seconds / 60:.1f} minutes"
        return f"{out} is already finished ({done}); give more --minutes or --steps to go on"


Model = TypeVar("Model", bound=nn.Module)


@dataclass
class Learner(Generic[Model]):
    """All that a run of training changes."""

    model: Model
    ema: Model  # the moving average of the weights, which is what ships
    optimizers: list[Optimizer]
    clock: Clock


def take_step(learner: Learner, ema_decay: float) -> None:
    """One optimisation step on the gradients: clip, step, follow with the moving average (faster while it is
    young)."""
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
    kept: list[Tensor] = list(ema.parameters())
    new = [part.to(old.dtype) for part, old in zip(model.parameters(), kept, strict=True)]
    with torch.no_grad():
        torch._foreach_lerp_(kept, new, 1 - decay)
