"""What a training step will cost before it is run: parameters, memory and arithmetic, by tracing.

The network and its backward pass run on fake tensors (shapes without numbers): torch's own counter counts the
products, and hooks count what autograd keeps for the backward pass. So the estimate follows the network's
code, whatever changes in it, and a model of billions of parameters is traced in seconds on any machine.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from simulator.batches import WorldTraining
from simulator.distributed import Processes
from simulator.optim import fast_precision, split_parameters
from simulator.text import WIDTH
from simulator.transformer import Conditions, Transformer, TransformerConfig, frame_mask


@dataclass(frozen=True)
class Shape:
    """One batch: `clips` windows of `frames` latent steps of `height` x `width` cells."""

    clips: int
    frames: int
    height: int = 8
    width: int = 8
    text_tokens: int = 24
    causal: bool = True


@dataclass(frozen=True)
class Traced:
    """What the forward and the backward pass of one batch take."""

    parameters: int
    forward_flop: int
    total_flop: int  # forward and backward
    kept_bytes: int  # for the backward pass
    block_bytes: tuple[int, ...]  # of them, by each block
    block_input_bytes: int  # what one block is given


def example(config: TransformerConfig, shape: Shape) -> tuple[Tensor, Tensor, Conditions, Tensor]:
    """Latents, noise levels, conditions and mask of a batch: zeros, for their shapes."""
    b, n, words = shape.clips, shape.frames, shape.text_tokens
    cells = (shape.height, shape.width)
    conditions = Conditions(
        text=torch.zeros(b, words, WIDTH),
        text_known=torch.ones(b, words, dtype=torch.bool),
        text_shot=torch.zeros(b, words, dtype=torch.long),
        shot=torch.zeros(b, n, dtype=torch.long),
        world=torch.zeros(b, dtype=torch.long),
        actions=torch.zeros(b, n, config.action_width),
        actions_known=torch.ones(b, n, dtype=torch.bool),
        rays=torch.zeros(b, n, 6, *cells),
        rays_known=torch.ones(b, n, dtype=torch.bool),
    )
    mask = frame_mask(n, torch.full((b,), shape.causal), config.window)
    return torch.zeros(b, n, config.latent_channels, *cells), torch.zeros(b, n), conditions, mask


@functools.lru_cache(maxsize=16)
def trace(config: TransformerConfig, shape: Shape) -> Traced:
    """Run one forward and backward pass without numbers."""
    kept: dict[int, int] = {}
    by_block: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = Transformer(config)
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        inputs: list[int] = []

        def enter(_, arguments) -> None:
            inputs.append(arguments[0].numel() * arguments[0].element_size())
            by_block.append(sum(kept.values()))

        def leave(*_) -> None:
            by_block[-1] = sum(kept.values()) - by_block[-1]

        for block in model.blocks:
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(leave)
        with fast_precision(torch.device("cpu")), saved_tensors_hooks(keep, lambda tensor: tensor):
            found = model(*example(config, shape))
        forward = counter.get_total_flops()
        (found.data.sum() + found.reward.sum() + found.terminated.sum() + found.log_error.sum()).backward()
    return Traced(
        sum(parameter.numel() for parameter in model.parameters()),
        forward,
        counter.get_total_flops(),
        sum(size for storage, size in kept.items() if storage not in own),
        tuple(by_block),
        max(inputs),
    )


@dataclass(frozen=True)
class Estimate:
    """What training takes. Bytes are of one process at its fullest; arithmetic is of all of them."""

    parameters: int
    weights: float
    gradients: float
    optimizer: float
    average: float  # the moving average of the weights
    activations: float  # kept for the backward pass, and the largest block's gradients
    gathered: float  # parameters that a process holds whole for a moment
    tflop: float  # of one step

    @property
    def total(self) -> float:
        parts = (self.weights, self.gradients, self.optimizer, self.average, self.activations, self.gathered)
        return sum(parts)

    def __str__(self) -> str:
        gb = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "moving average": self.average,
            "activations": self.activations,
            "gathered": self.gathered,
        }
        parts = " + ".join(f"{name} {value / 1e9:.2f}" for name, value in gb.items() if value)
        return (
            f"{self.parameters / 1e6:,.1f}M parameters; {self.total / 1e9:.2f} GB a process ({parts}); "
            f"{self.tflop:,.3g} TFLOP a step"
        )


def estimate(
    config: TransformerConfig,
    training: WorldTraining,
    cells: tuple[int, int],
    text_tokens: int,
    processes: Processes,
    recomputed: bool,
) -> Estimate:
    """Memory and arithmetic of a step of training.

    Kinds of batch count by their shares, and so do the lessons that look ahead without a gradient; memory is
    that of the largest kind. cells: height and width of the latents.
    """
    forward, total, activations = 0.0, 0.0, 0.0
    for kind, share in training.shares.items():
        clips, frames = training.windows(kind, config.window)
        found = trace(config, Shape(clips, frames, *cells, text_tokens))
        blocks, largest = sum(found.block_bytes), max(found.block_bytes)
        kept = found.kept_bytes + largest
        if recomputed:
            kept += config.layers * found.block_input_bytes + largest - blocks
        if share:
            activations = max(activations, float(kept))
        ahead = 2 * training.flow_maps + (training.own_past / 2 if kind == "rollout" else 0)
        forward += share * (ahead + recomputed) * found.forward_flop
        total += share * found.total_flop
    with torch.device("meta"):
        model = Transformer(config)
    matrices, others = split_parameters(model)
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    count, n = sum(p.numel() for p in model.parameters()), processes.count
    matrix, other = (sum(p.numel() for p in group) for group in (matrices, others))
    whole = 4.0 * (count - sum(sizes) + 2 * max(sizes)) if n > 1 else 0.0
    return Estimate(
        count,
        *(4 * count / n, 4 * count / n, (4 * matrix + 8 * other) / n, 4 * count / n),
        activations,
        whole,
        (training.micro_batches * (forward + total) + sum(map(muon_flop, matrices))) / 1e12,
    )


def muon_flop(matrix: Tensor) -> int:
    """Of orthogonalising one matrix: five Newton-Schulz steps of three products."""
    short, long = sorted(matrix.shape)
    return 5 * (4 * short * short * long + 2 * short**3)


def free_bytes(where: torch.device, processes: Processes) -> float:
    """What one process may use of this machine's memory, or of its GPU's."""
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    else:  # macOS says only how much there is
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":
        free = min(free, int(allowed) - int(limit.with_name("memory.current").read_text()))
    return free / processes.local_count


def check_fits(needed: Estimate, free: float, recomputed: bool) -> None:
    """Raises ValueError if training needs more memory than a process has, with what would help."""
    if needed.total <= free:
        return
    split = needed.total - needed.activations - needed.gathered
    cure = "choose a smaller --preset"
    if not recomputed:
        cure = "add --checkpoint-activations"
    elif free > needed.activations + needed.gathered:
        more = math.ceil(split / (free - needed.activations - needed.gathered))
        cure = f"split it over {more} times as many GPUs or machines (torchrun), or {cure}"
    raise ValueError(
        f"training needs {needed.total / 1e9:.1f} GB a process, {free / 1e9:.1f} GB are free; {cure}"
    )
