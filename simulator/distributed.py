"""Several processes train one model: `torchrun --nproc-per-node N -m simulator.train ...`.

Weights, gradients, optimizer state and moving average are split over the processes (FSDP2: ZeRO 3,
Rajbhandari et al. 2020). A step has a number of micro-batches, each drawn from the seed, the step and its own
index alone; processes share them out. So a step computes the same whatever the number of processes, and a run
goes on with another number where it stopped. On several machines, the run's folder must be one that all see.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import checkpoint

from simulator.devices import device_named
from simulator.optim import Learner
from simulator.transformer import Transformer, TransformerConfig

PATIENCE = timedelta(hours=2)  # of one process for another that encodes episodes or writes a preview
STEP = "step_"


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; alone unless torchrun started it."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on this machine
    local_count: int = 1
    restarts: int = 0  # of the whole group, by torchrun, after one of them died

    @property
    def first(self) -> bool:
        return self.rank == 0

    def check(self, micro_batches: int) -> None:
        """Raises ValueError if the processes cannot share out a step's batches evenly."""
        if micro_batches < 1 or micro_batches % self.count:
            near = self.count * max(1, round(micro_batches / self.count))
            raise ValueError(
                f"--micro-batches must be a positive multiple of the {self.count} processes, "
                f"got {micro_batches}; use {near}"
            )

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> float:
        """The mean over all processes of a number that each has."""
        if self.count > 1:
            value = value.detach().clone()
            dist.all_reduce(value)  # gloo has no mean
            value = value / self.count
        return float(value)

    def agree(self, *values: float) -> list[float]:
        """The first process's numbers: clocks differ, and all must do the same next."""
        numbers = torch.tensor(values, dtype=torch.float64)
        if self.count > 1:
            numbers = numbers.to(torch.device("cuda") if dist.get_backend() == "nccl" else "cpu")
            dist.broadcast(numbers, 0)
        return numbers.tolist()


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun started (its environment says which), and leave them at the end."""
    processes = Processes(
        rank=int(os.environ.get("RANK", 0)),
        count=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_count=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )
    where = device_named(device)
    if processes.count == 1:
        yield processes, where
        return
    if where.type == "cuda":
        where = device_named(f"cuda:{processes.local_rank}")
        torch.cuda.set_device(where)
    backend, store = "nccl" if where.type == "cuda" else "gloo", None
    if processes.local_count == processes.count:
        # torchrun keeps its store across restarts, where a worker could read addresses of the dead (pytorch
        # issue 135712). Restarts are counted alike on one machine alone; for several, set
        # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which makes a new store for each.
        store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
        store = dist.PrefixStore(f"start {processes.restarts}", store)
    dist.init_process_group(
        backend, store=store, rank=processes.rank, world_size=processes.count, timeout=PATIENCE
    )
    try:
        yield processes, where
    finally:
        dist.destroy_process_group()


def build(
    config: TransformerConfig,
    where: torch.device,
    processes: Processes,
    *,
    trained: bool = True,
    first: Callable[[], Transformer] | None = None,
) -> Transformer:
    """A transformer with fresh weights, or the one that `first` makes. With several processes each holds its
    share of every parameter, and only the first ever holds all of them at once."""
    first = first or partial(Transformer, config)
    if processes.count == 1:
        return first().to(where).requires_grad_(trained)
    values = first().state_dict() if processes.first else {}
    with torch.device("meta"):
        model = Transformer(config).requires_grad_(trained)
    # blocks return views, of which nothing here is changed in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = dist.init_device_mesh(where.type, (processes.count,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    assert isinstance(model, FSDPModule)
    # gloo's reduce-scatter takes a mean for a sum without a word (pytorch issue 162338)
    model.set_force_sum_reduction_for_comms(where.type == "cpu")
    model.to_empty(device=where)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, values, options=options)
    return model


def economise(model: Transformer, *, recomputed: bool, compiled: bool) -> None:
    """Change how a model's blocks run, not what they compute: compiled one by one, and with what happens
    inside them forgotten and computed again in the backward pass (Chen et al. 2016)."""
    for block in model.blocks:
        run = torch.compile(block.forward, dynamic=False) if compiled else block.forward
        if recomputed:
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        block.forward = run


def gathered(model: Transformer, processes: Processes) -> Transformer | None:
    """The whole model on the first process, None on the others. All must call it."""
    if processes.count == 1:
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if not processes.first:
        return None
    whole = Transformer(model.config).requires_grad_(False)
    whole.load_state_dict(weights)
    return whole.to(next(model.parameters()).device)


def optimizer_entries(learner: Learner[Transformer]) -> Iterator[tuple[str, dict, Tensor]]:
    """For each trained parameter its name in a checkpoint, its optimizer's state, and itself."""
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    for index, optimizer in enumerate(learner.optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield f"optimizer{index}.{names[parameter]}", optimizer.state[parameter], parameter


def state_of(learner: Learner[Transformer], micro_batches: int) -> dict[str, Tensor]:
    """All that a run needs to go on, as tensors by name; those of the two models are the models' own."""
    state = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    state |= {f"ema.{name}": value for name, value in learner.ema.state_dict().items()}
    for name, values, _ in optimizer_entries(learner):
        state |= {f"{name}.{key}": value for key, value in values.items()}
    clock = learner.clock
    numbers = {"step": clock.step, "seconds": clock.seconds, "micro_batches": micro_batches}
    return state | {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    return max(folder.glob(f"{STEP}*"), default=None)


def save_run(folder: Path, learner: Learner[Transformer], processes: Processes, micro_batches: int) -> None:
    """Write what a run needs to go on, each process its share, beside its final name, and rename it when it
    is whole; then forget the one before."""
    final = folder / f"{STEP}{learner.clock.step:09d}"
    unfinished = folder / f".{final.name}.partial"
    if processes.first:
        shutil.rmtree(unfinished, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    processes.wait()
    with quiet():
        dcp.save(state_of(learner, micro_batches), checkpoint_id=unfinished, no_dist=processes.count == 1)
    processes.wait()
    if processes.first:
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        for other in (*folder.glob(f"{STEP}*"), *folder.glob(f".{STEP}*")):
            if other != final:
                shutil.rmtree(other)
    processes.wait()


def saved_micro_batches(folder: Path) -> int:
    """The number of batches in a step of the run that is to go on."""
    state = {"micro_batches": torch.zeros((), dtype=torch.float64)}
    with quiet():
        dcp.load(state, checkpoint_id=checkpoint_to_resume(folder), no_dist=True)
    return int(state["micro_batches"])


def checkpoint_to_resume(folder: Path) -> Path:
    """The newest whole checkpoint of a run. Raises ValueError if there is none."""
    path = last_checkpoint(folder)
    if path is None:
        raise ValueError(f"--resume: {folder} is missing or holds no checkpoint; start without --resume")
    return path


def load_run(folder: Path, learner: Learner[Transformer], processes: Processes) -> None:
    """Fill a learner from a run's newest checkpoint, whatever number of processes wrote it. (Its table of
    contents is a pickle: resume only your own runs.)

    Raises ValueError if there is none, or it is of another model.
    """
    path = checkpoint_to_resume(folder)
    kept = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = state_of(learner, 0)
    for name, values, parameter in optimizer_entries(learner):
        for key in (key.removeprefix(f"{name}.") for key in kept if key.startswith(f"{name}.")):
            whole = getattr(kept[f"{name}.{key}"], "size", None) == parameter.shape
            values[key] = torch.zeros_like(parameter) if whole else torch.zeros(())
            state[f"{name}.{key}"] = values[key]
    if different := set(state) ^ set(kept):
        raise ValueError(
            f"--resume: {path} is of another model ({min(different)} is in one of them only); "
            "resume with the preset and the code that wrote it, or start without --resume"
        )
    try:
        with quiet():
            dcp.load(state, checkpoint_id=path, no_dist=processes.count == 1)
    except (CheckpointException, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"--resume: {path} does not fit ({reason}); resume with the preset that wrote it"
        ) from error
    learner.model.load_state_dict({name: state[f"model.{name}"] for name in learner.model.state_dict()})
    learner.ema.load_state_dict({name: state[f"ema.{name}"] for name in learner.ema.state_dict()})
    learner.clock.step, learner.clock.earlier_s = int(state["step"]), float(state["seconds"])


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's notes on one process saving alone, which is what one process does here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        yield
