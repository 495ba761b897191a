"""Several processes: the same gradients, steps and checkpoints as one; a killed worker costs nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from test_simulator_networks import randomised
from test_simulator_world_model import moving_square

from simulator.batches import Batch
from simulator.clips import write_episode
from simulator.distributed import (
    Processes,
    build,
    economise,
    gathered,
    joined,
    last_checkpoint,
    load_run,
    save_run,
    saved_micro_batches,
)
from simulator.optim import Clock, Learner, ema_update, make_optimizers, take_step
from simulator.train import loss_of
from simulator.train_tokenizer import train_tokenizer
from simulator.transformer import PRESETS, Conditions

TINY = PRESETS["tiny"]
MICRO_BATCHES = 4
CPU = torch.device("cpu")


def learner(processes: Processes, *, recomputed: bool = False) -> Learner:
    """A tiny model; that of one process without the zeros of a fresh one, so that every weight matters."""
    torch.manual_seed(0)
    model, average = build(TINY, CPU, processes), build(TINY, CPU, processes, trained=False)
    if processes.count == 1:
        randomised(model)
    ema_update(average, model, 0.0)
    economise(model, recomputed=recomputed, compiled=False)
    return Learner(model, average, make_optimizers(model, 2e-3, 1e-3), Clock(10, 0.0))


def micro_batch(step: int, index: int) -> Batch:
    g = torch.Generator().manual_seed(1000 * step + index)
    b, n, cells = 2, 4, 4
    conditions = Conditions(
        text=torch.randn(b, 5, TINY.text_width, generator=g),
        text_known=torch.ones(b, 5, dtype=torch.bool),
        text_shot=torch.zeros(b, 5, dtype=torch.long),
        shot=torch.zeros(b, n, dtype=torch.long),
        world=torch.ones(b, dtype=torch.long),
        actions=torch.randn(b, n, TINY.action_width, generator=g),
        actions_known=torch.ones(b, n, dtype=torch.bool),
        rays=torch.randn(b, n, 6, cells, cells, generator=g),
        rays_known=torch.ones(b, n, dtype=torch.bool),
    )
    data, noise = (torch.randn(b, n, TINY.latent_channels, cells, cells, generator=g) for _ in range(2))
    level, share = torch.rand(2, b, n, generator=g)
    return Batch(data, noise, level, level * share, data, conditions, True, None, None, share, share.round())


def backward(one: Learner, processes: Processes) -> float:
    """The gradients of a step, and its mean loss, as `train.fit` accumulates them."""
    mine = range(processes.rank, MICRO_BATCHES, processes.count)
    total = torch.zeros(())
    for index in mine:
        loss, _, _ = loss_of(one.model, micro_batch(one.clock.step, index))
        (loss / len(mine)).backward()
        total += loss.detach() / len(mine)
    return processes.mean(total)


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def gradients(one: Learner) -> dict[str, torch.Tensor]:
    return {name: whole(p.grad).clone() for name, p in one.model.named_parameters() if p.grad is not None}


def steps(one: Learner, processes: Processes, until: int) -> None:
    while one.clock.step < until:
        backward(one, processes)
        take_step(one, 0.9)


def two_processes(rank: int, folder: Path, port: int) -> None:
    """What each of two processes does: go on with one process's run, and save for one process."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    with joined("cpu") as (processes, _):
        for recomputed in (False, True):
            one = learner(processes, recomputed=recomputed)
            load_run(folder / "from_one", one, processes)
            loss = backward(one, processes)
            found = {"loss": torch.tensor(loss), **gradients(one)}
            if processes.first:
                torch.save(found, folder / f"gradients_{recomputed}.pt")
            one.model.zero_grad()
        steps(one, processes, 4)
        save_run(folder / "from_two", one, processes, MICRO_BATCHES)
        average = gathered(one.ema, processes)
        if average is not None:
            torch.save(average.state_dict(), folder / "average.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Learner]:
    """One process takes two steps and saves; two go on from there, and so does a copy of the one."""
    folder, alone = tmp_path_factory.mktemp("runs"), Processes()
    one = learner(alone)
    steps(one, alone, 2)
    save_run(folder / "from_one", one, alone, MICRO_BATCHES)
    mp.spawn(two_processes, (folder, 20000 + os.getpid() % 20000), nprocs=2)
    return folder, one


@pytest.mark.parametrize("recomputed", [False, True])
def test_two_processes_have_the_loss_and_the_gradients_of_one(runs, recomputed: bool):
    """Also with activations computed again in the backward pass."""
    folder, _ = runs
    found = torch.load(folder / f"gradients_{recomputed}.pt")
    one = learner(Processes())
    load_run(folder / "from_one", one, Processes())
    assert one.clock.step == 2
    assert backward(one, Processes()) == pytest.approx(float(found.pop("loss")), rel=1e-5)
    wanted = gradients(one)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
    assert sum(float(g.square().sum()) for g in wanted.values()) > 1e-4


def apart(one: torch.nn.Module, other: torch.nn.Module, start: torch.nn.Module) -> float:
    """How far two models are from each other, relative to how far they came."""
    rows = list(zip(one.parameters(), other.parameters(), start.parameters(), strict=True))
    difference = sum(float((a - b).square().sum()) for a, b, _ in rows)
    return (difference / sum(float((a - c).square().sum()) for a, _, c in rows)) ** 0.5


def test_two_processes_take_the_steps_of_one_and_their_checkpoint_resumes_on_one(runs):
    """Muon included, which needs whole matrices. Both optimizers make much of small gradients and Muon works
    in bf16: adding up the micro-batches of one process in another order makes 0.3 % of difference."""
    folder, one = runs
    start, other = learner(Processes()), learner(Processes())
    load_run(folder / "from_one", start, Processes())
    steps(one, Processes(), 4)
    assert saved_micro_batches(folder / "from_two") == MICRO_BATCHES
    load_run(folder / "from_two", other, Processes())
    assert other.clock.step == 4
    assert apart(one.model, other.model, start.model) < 0.01
    assert apart(one.ema, other.ema, start.ema) < 0.01
    average = torch.load(folder / "average.pt")
    assert all(torch.equal(value, average[name]) for name, value in other.ema.state_dict().items())
    steps(one, Processes(), 6)
    steps(other, Processes(), 6)  # with the momenta that two processes left
    assert apart(one.model, other.model, start.model) < 0.01


def test_only_the_newest_whole_checkpoint_is_kept_and_another_models_is_refused(tmp_path: Path):
    alone, one = Processes(), learner(Processes())
    (tmp_path / ".step_000000009.partial").mkdir()
    for _ in range(2):
        steps(one, alone, one.clock.step + 1)
        save_run(tmp_path, one, alone, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000002"]
    one.optimizers.pop()
    with pytest.raises(ValueError, match=r"--resume: .* is of another model"):
        load_run(tmp_path, one, alone)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_run(tmp_path / "nowhere", one, alone)


def test_micro_batches_that_processes_cannot_share_are_refused():
    with pytest.raises(ValueError, match="multiple of the 4 processes, got 6; use 8"):
        Processes(count=4).check(6)


def workers_of(launcher: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the workers' ids as Linux lists them")
def test_a_killed_worker_resumes_and_ends_where_an_undisturbed_run_ends(tmp_path: Path):
    """kill -9 of one of two workers: torchrun starts both again, they go on from the last checkpoint, and no
    episode is lost or seen twice, since the weights at the end are those of two undisturbed workers."""
    for seed in range(4):
        write_episode(tmp_path / "data", moving_square(seed))
    train_tokenizer(tmp_path / "data", tmp_path / "tokenizer", preset="tiny", steps=2, track=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def begun(out: Path) -> subprocess.Popen:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(
                "--max-restarts",
                "1",
                "-m",
                "simulator.train",
                "--data",
                tmp_path / "data",
                "--preset",
                "tiny",
            ),
            *("--tokenizer", tmp_path / "tokenizer", "--out", out, "--steps", "5"),
            *("--micro-batches", "2", "--save-minutes", "0", "--no-track"),
        ]
        log, root = (tmp_path / f"{out.name}.log").open("w"), Path(__file__).parents[1]
        return subprocess.Popen(list(map(str, command)), cwd=root, env=environment, stdout=log, stderr=log)

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    undisturbed = begun(calm)
    assert undisturbed.wait(timeout=400) == 0, (tmp_path / "calm.log").read_text()[-3000:]
    job = begun(killed)
    try:
        end = time.monotonic() + 400
        while last_checkpoint(killed / "world_model.resume") is None:
            assert job.poll() is None and time.monotonic() < end, (tmp_path / "killed.log").read_text()[
                -3000:
            ]
            time.sleep(0.02)
        os.kill(workers_of(job.pid)[-1], signal.SIGKILL)
        code = job.wait(timeout=400)
    finally:
        job.kill()
    said = (tmp_path / "killed.log").read_text()
    assert code == 0 and "exitcode: -9" in said, said[-3000:]
    one, other = (load_file(out / "world_model.safetensors") for out in (calm, killed))
    change = sum(float((one[name] - other[name]).square().sum()) for name in one)
    size = sum(float(value.square().sum()) for value in one.values())
    assert (change / size) ** 0.5 < 1e-6
    assert not list(tmp_path.rglob("*.partial*"))
