"""What a training step will cost before it is run: parameters, memory and arithmetic, by tracing.

The network and its backward pass run on fake tensors (shapes without numbers): products are counted by
torch's own formulas, and every tensor is entered when it is made and when it is freed. So the estimate
follows the network's code, whatever changes in it, and a model of billions of parameters is traced in
seconds anywhere.
"""

from __future__ import annotations

import functools
import math
import weakref
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from simulator.batches import WorldTraining
from simulator.distributed import Processes, economise
from simulator.optim import split_parameters
from simulator.precision import fast_precision
from simulator.text import WIDTH
from simulator.transformer import Conditions, Transformer, TransformerConfig

# of activations, what glibc's heap keeps when they are freed, without and with recomputing: the resident
# memory of the small preset beside that under a fixed MALLOC_MMAP_THRESHOLD_
GLIBC_KEEPS = (0.7, 2.0)


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
    total_flop: int  # forward and backward, with what is computed again
    peak_bytes: int  # at the fullest moment, beside weights and gradients


class Live(TorchDispatchMode):
    """While it is on, keeps a list of what is allocated and freed (a storage's number and its bytes, negative
    when freed), and counts operations as torch's FlopCounterMode does (which keeps tensors alive)."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        self.events: list[tuple[int, int]] = []
        self._known: dict[int, tuple[int, weakref.ref]] = {}  # by address: the storage's number, and itself

    def number_of(self, tensor: Tensor) -> int:
        """The number of a tensor's storage in `events`; a new one is entered."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._known:
            number, size = len(self.events), storage.nbytes()
            self.events.append((number, size))

            def freed(_) -> None:
                self.events.append((number, -size))
                del self._known[address]

            self._known[address] = number, weakref.ref(storage, freed)
        return self._known[address][0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=found)
        tree_map_only(Tensor, self.number_of, found)
        return found

    def peak(self, without: set[int]) -> int:
        """The most bytes at once, some storages left out."""
        sizes = (size for number, size in self.events if number not in without)
        return max(accumulate(sizes, initial=0))


def example(config: TransformerConfig, shape: Shape) -> tuple[Tensor, Tensor, Conditions]:
    """Latents, noise levels and conditions of a batch: zeros, for their shapes."""
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
    latents = torch.zeros(b, n, config.latent_channels, *cells)
    return latents, torch.zeros(b, n), conditions


@functools.lru_cache(maxsize=16)
def trace(config: TransformerConfig, shape: Shape, recomputed: bool = False) -> Traced:
    """Run one forward and backward pass without numbers. recomputed: activations, in the backward pass."""
    with FakeTensorMode(), Live() as live:
        model = Transformer(config)
        economise(model, recomputed=recomputed, compiled=False)
        own = {live.number_of(parameter) for parameter in model.parameters()}
        with fast_precision(torch.device("cpu")):
            found = model(*example(config, shape), causal=shape.causal)
        forward = live.flop
        total = found.data.sum() + found.reward.sum() + found.terminated.sum() + found.log_error.sum()
        del found
        total.backward()
        own |= {live.number_of(p.grad) for p in model.parameters() if p.grad is not None}
        peak = live.peak(own)
    count = sum(parameter.numel() for parameter in model.parameters())
    return Traced(count, forward, live.flop, peak)


@dataclass(frozen=True)
class Estimate:
    """What training takes. Bytes are of one process at its fullest; arithmetic is of all of them."""

    parameters: int
    weights: float
    gradients: float
    optimizer: float
    average: float  # the moving average of the weights
    activations: float  # and their gradients, at the fullest moment
    heap: float  # of freed activations that a CPU's allocator keeps
    gathered: float  # parameters that a process holds whole for a moment
    tflop: float  # of one step

    @property
    def total(self) -> float:
        model = self.weights + self.gradients + self.optimizer + self.average
        return model + self.activations + self.heap + self.gathered

    def __str__(self) -> str:
        gb = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "moving average": self.average,
            "activations": self.activations,
            "heap": self.heap,
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
    device: str = "cpu",
) -> Estimate:
    """Memory and arithmetic of a step of training.

    Kinds of batch count by their shares, and so do the lessons that look ahead without a gradient; memory is
    that of the largest kind. cells: height and width of the latents.
    """
    forward, total, activations = 0.0, 0.0, 0.0
    for kind, share in training.shares.items():
        clips, frames = training.windows(kind, config.window)
        found = trace(config, Shape(clips, frames, *cells, text_tokens), recomputed)
        if share:
            activations = max(activations, float(found.peak_bytes))
        ahead = 2 * training.flow_maps + (3 * training.own_past if kind == "rollout" else 0)
        forward += share * ahead * found.forward_flop
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
        GLIBC_KEEPS[recomputed] * activations if device == "cpu" else 0.0,
        whole,
        (training.micro_batches * (forward + total) + sum(map(muon_flop, matrices))) / 1e12,
    )


def muon_flop(matrix: Tensor) -> int:
    """Of orthogonalising one matrix: five Newton-Schulz steps of three products."""
    short, long = sorted(matrix.shape)
    return 5 * (4 * short * short * long + 2 * short**3)


def check_fits(needed: Estimate, free: float, recomputed: bool) -> None:
    """Raises ValueError if training needs more memory than a process has, with what would help."""
    if needed.total <= free:
        return
    fixed = needed.activations + needed.heap + needed.gathered
    cure = "choose a smaller --preset"
    if not recomputed:
        cure = "add --checkpoint-activations"
    elif free > fixed:
        more = math.ceil((needed.total - fixed) / (free - fixed))
        cure = f"split it over {more} times as many GPUs or machines (torchrun), or {cure}"
    raise ValueError(
        f"training needs {needed.total / 1e9:.1f} GB a process, {free / 1e9:.1f} GB are free; {cure}"
    )
