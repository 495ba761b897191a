"""`orrery bench`: how fast everything is, in one run on this machine, with what the numbers rest on beside
it.

Contestants take turns in short blocks, so that a busy machine slows all of them alike. Wall time says what a
user gets; CPU time (of all threads of this process) says what it costs even under load; multiply-adds say
why.
"""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import gymnasium
import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import envs
from probes.nerf_bench import reconstructions
from probes.peers import peer_step
from probes.subjects import HELD_OUT_SEED
from probes.tables import aligned
from simulator.canvas import text_to_video
from simulator.devices import device_named
from simulator.full_window import FullWindow
from simulator.timing import estimate
from simulator.world_model import WorldModel

REFERENCE_IDS = ("orrery/Room-v0", "orrery/Orbit-v0", "orrery/Lab-v0")
WARM_UP_STEPS = 8
BLOCK_MULTIPLY_ADDS = 2e10  # in one turn beside peers: about a second
COST_ONLY = (
    "A step is one control step of each row, decoded. Times and multiply-adds compare cost only: the dream\n"
    "without cache runs our weights; a peer has random weights, which say nothing of its quality."
)
What = Literal["all", "dream", "worlds", "nerf", "peers", "estimate", "scenes", "poses", "scaling"]
FORETOLD_STEPS = (1, 8, 16, 32)  # latent steps of the generations whose time is foretold


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        name: as printed.
        threads: how many threads torch may use.
        block: does so many steps.
        block_size: steps in one turn.
        rows: env steps in one step (rows of a batch).
        multiply_adds: of one env step; NaN where it cannot be counted.
        setting: contestants of one setting are compared with the first of them.
    """

    name: str
    threads: int
    block: Callable[[int], None]
    block_size: int
    rows: int = 1
    multiply_adds: float = math.nan
    setting: str = ""


@dataclass(frozen=True)
class Timing:
    """One line of the table; rates and costs are medians over the turns.

    Attributes:
        name: the contestant.
        threads: threads torch had.
        rate: units per second of wall time.
        slowest: the slowest turn's rate.
        fastest: the fastest turn's rate.
        cpu_ms: CPU milliseconds per unit.
        multiply_adds: per unit, in millions.
        turns: how many turns the medians rest on.
        setting: what it has in common with those it is compared with.
    """

    name: str
    threads: int
    rate: float
    slowest: float
    fastest: float
    cpu_ms: float
    multiply_adds: float
    turns: int
    setting: str = ""


RECONSTRUCTIONS = ("all", "nerf", "scenes", "poses", "scaling")


def bench(
    checkpoint: str = "default",
    what: What = "all",
    steps: int = 20,
    turns: int = 5,
    batch: int = 16,
    preset: Literal["tiny", "cpu", "gpu"] = "cpu",
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None,
    seed: int = 0,
    peer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    sizes: tuple[int, ...] = (64, 128),
    rows: tuple[int, ...] = (1, 8, 16),
    threads: tuple[int, ...] = (1, 2),
    nerfacto_minutes: float | None = None,
    scenes: int = 10,
    size: int = 128,
    device: str = "cpu",
    compiled: bool = False,
) -> int:
    """Speed of the dream, of the reference worlds and of the NeRF beside nerfacto, in one run.

    Args:
        checkpoint: the world model: default, or a folder.
        what: one part only. Not in all: peers, the dream beside itself uncached and beside --peer; estimate,
            generations beside the time foretold; scenes, surfaces rebuilt from pictures; poses, cameras found
            from frames alone, both beside the truth; scaling, what views and pixels cost the NeRF.
        steps: control steps in one turn of an env.
        turns: how often each contestant has its turn; medians are printed.
        batch: rows of the batched dream.
        preset: how long our NeRF trains; nerfacto gets the same seconds, unless nerfacto-minutes says else.
        out: also write the results as JSON to this file, and the figure of scaling beside it (.png).
        seed: seed of scenes and noise.
        peer: also time another project's world model, NAME=PATH of a checkout (diamond=PATH).
        sizes: heights (and widths) of the pictures for peers, estimate and scaling.
        rows: rows of a batch for peers.
        threads: threads for peers.
        nerfacto_minutes: let nerfacto train so long and say how much sooner our NeRF reaches its best.
        scenes: how many scenes are rebuilt or filmed; their seeds follow one another.
        size: height (and width) of the pictures of scenes and poses.
        device: of the dream: cpu, or cuda.
        compiled: also time one row's dream in compiled code: minutes to make it, and a C++ compiler."""
    counts = {"steps": [steps], "turns": [turns], "batch": [batch], "scenes": [scenes], "size": [size]}
    for name, values in (counts | {"sizes": sizes, "rows": rows, "threads": threads}).items():
        if min(values, default=0) < 1:
            raise ValueError(f"--{name} must be at least 1, got {', '.join(map(str, values)) or 'nothing'}")
    if peer and what not in ("all", "peers"):
        raise ValueError(f"--peer goes with --what peers (or all), got --what {what}")
    where, before = device_named(device), os.getloadavg()[0]
    contestants: list[Contestant] = []
    if what in ("all", "dream"):
        contestants += dream_contestants(WorldModel.load(checkpoint, where), steps, batch, seed, compiled)
    if what == "peers" or (what == "all" and peer):
        grid = (sizes, rows, threads) if what == "peers" else ((64,), (1,), (1, 2))
        contestants += peer_contestants(WorldModel.load(checkpoint), peer, *grid, steps, seed)
    if what in ("all", "worlds"):
        contestants += [world_contestant(env_id, steps, seed) for env_id in REFERENCE_IDS]
    if what == "estimate":
        print(foretold(WorldModel.load(checkpoint), sizes))
    timings = race(contestants, turns) if contestants else []
    tables, results = [], {}
    if what in RECONSTRUCTIONS:
        tables, results = reconstructions(what, preset, seed, nerfacto_minutes, scenes, size, sizes, out)
    after, machine = os.getloadavg()[0], machine_of(device)
    print(f"{machine}; load {before:.1f} before, {after:.1f} after (other programs' load slows wall times)")
    if timings:
        tables = [speed_table(timings), *([COST_ONLY] if any(t.setting for t in timings) else []), *tables]
    for table in tables:
        print(f"\n{table}")
    if out is not None:
        body = {"machine": machine, "load": [before, after], "seed": seed}
        write_json(out, body | {"timings": [asdict(t) for t in timings], "nerf": []} | results)
    return 0


def machine_of(device: str) -> str:
    """What the numbers were taken on."""
    gpu = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}{gpu}"


def dream_contestants(
    model: WorldModel, steps: int, batch: int, seed: int, compiled: bool
) -> list[Contestant]:
    """The dream's Room, decode included: one row and `batch` rows on 1 and, where the CPU does the work, on 2
    threads, in fp32 and in bf16; where actions do not pull, which saves a call a step; and one row in
    `compiled` code."""
    threadings = (1, 2) if model.device.type == "cpu" else (1,)
    plain, fast = model.with_config(word_guidance={}, action_guidance={}), model.faster()
    kinds = {"": model, ", not pulled": plain, ", bf16": fast, ", not pulled, bf16": plain.faster()}
    some = [(said, kind, rows) for (said, kind), rows in product(kinds.items(), (1, batch))]
    if compiled:
        some += [(", compiled", model.compiled(), 1), (", compiled, bf16", fast.compiled(), 1)]
    found, before = [], torch.get_num_threads()
    for said, kind, rows in some:
        name = f"dream Room {model.height}x{model.width}, {rows} row{'s' * (rows > 1)}{said}"
        rollout = DreamRollout(kind, rows, seed)
        # counting would put compiled code aside for good
        adds = (DreamRollout(model, rows, seed) if kind.in_compiled_code else rollout).multiply_adds()
        for threads in threadings:
            if kind.in_compiled_code:
                torch.set_num_threads(threads)  # for which code is made
                rollout.advance(1)
            found.append(Contestant(name, threads, rollout.advance, steps, rows, adds))
    torch.set_num_threads(before)
    return found


class DreamRollout:
    """A running dream whose state is kept between turns, so that its cache is full as in long use."""

    def __init__(self, model: WorldModel, rows: int, seed: int, size: int | None = None) -> None:
        self._model, self._rows = model, rows
        self._actions = np.random.default_rng(seed).uniform(-1, 1, (64, rows, model.action_size("Room")))
        seeds = [HELD_OUT_SEED + seed + row for row in range(rows)]
        prompts = ["a room"] * rows  # nothing to try several first pictures for
        self._state, _, _ = model.start(prompts, "Room", seeds, height=size, width=size)
        self._count = 0
        if isinstance(model, FullWindow):
            self._state = model.filled(self._state)
        self.advance(1 if isinstance(model, FullWindow) else model.transformer.config.window)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            actions = self._actions[self._count % len(self._actions)].astype(np.float32)
            self._state, *_ = self._model.step(self._state, actions)
            self._count += 1

    def multiply_adds(self) -> float:
        """Of one control step of one row."""
        return counted(self.advance) / self._rows


def counted(advance: Callable[[int], None]) -> float:
    """Multiply-adds of one step, in matrix products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        advance(1)
    return counter.get_total_flops() / 2


def peer_contestants(
    model: WorldModel,
    peers: Sequence[str],
    sizes: Sequence[int],
    rows: Sequence[int],
    threads: Sequence[int],
    steps: int,
    seed: int,
) -> list[Contestant]:
    """The dream, the dream without its cache, and each peer, all at every size, batch and thread count."""
    found: list[Contestant] = []
    multiply_adds: dict[tuple[str, int], float] = {}  # of one row: the same for any batch
    for size, count in product(sizes, rows):
        window = model.transformer.config.window
        uncached = FullWindow(model.config, model.tokenizer, model.transformer)
        runners = {
            "dream": DreamRollout(model, count, seed, size).advance,
            f"dream without cache, window {window}": DreamRollout(uncached, count, seed, size).advance,
            **dict(peer_runner(spec, size, count) for spec in peers),
        }
        for name, advance in runners.items():
            if (name, size) not in multiply_adds:
                multiply_adds[name, size] = counted(advance) / count
        for number in threads:
            setting = f"{size}x{size}, {count} row{'s' * (count > 1)}, {number} thread{'s' * (number > 1)}"
            for name, advance in runners.items():
                adds = multiply_adds[name, size]
                block = max(1, min(steps, round(BLOCK_MULTIPLY_ADDS / (adds * count))))
                found.append(Contestant(name, number, advance, block, count, adds, setting))
    return found


def peer_runner(spec: str, size: int, rows: int) -> tuple[str, Callable[[int], None]]:
    """A peer's name and what does so many of its steps."""
    name, step = peer_step(spec, size, rows)

    def advance(steps: int) -> None:
        for _ in range(steps):
            step()

    advance(1)
    return name, advance


def world_contestant(env_id: str, steps: int, seed: int) -> Contestant:
    """A reference world under random actions, rendering included."""
    env = gymnasium.make(f"{envs.__name__}:{env_id}")
    env.reset(seed=HELD_OUT_SEED + seed)
    env.action_space.seed(seed)

    def advance(count: int) -> None:
        for _ in range(count):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()

    advance(WARM_UP_STEPS)
    return Contestant(f"{env_id} (MuJoCo)", 1, advance, steps)


def race(contestants: Sequence[Contestant], turns: int) -> list[Timing]:
    """Time the contestants turn by turn, all of them in every turn."""
    walls: list[list[float]] = [[] for _ in contestants]
    cpus: list[list[float]] = [[] for _ in contestants]
    threads_before = torch.get_num_threads()
    with torch.no_grad(), tqdm(total=turns * len(contestants), desc="bench", unit="turn", leave=False) as bar:
        for _ in range(turns):
            for k, contestant in enumerate(contestants):
                torch.set_num_threads(contestant.threads)
                bar.set_postfix_str(contestant.name)
                wall, cpu = time.perf_counter(), time.process_time()
                contestant.block(contestant.block_size)
                done = contestant.block_size * contestant.rows
                walls[k].append((time.perf_counter() - wall) / done)
                cpus[k].append((time.process_time() - cpu) / done)
                bar.update()
    torch.set_num_threads(threads_before)
    return [
        Timing(
            name=contestant.name,
            threads=contestant.threads,
            rate=1 / statistics.median(wall),
            slowest=1 / max(wall),
            fastest=1 / min(wall),
            cpu_ms=1000 * statistics.median(cpu),
            multiply_adds=contestant.multiply_adds / 1e6,
            turns=turns,
            setting=contestant.setting,
        )
        for contestant, wall, cpu in zip(contestants, walls, cpus, strict=True)
    ]


def foretold(model: WorldModel, sizes: Sequence[int]) -> str:
    """Generations of several lengths and sizes, and how long each was expected to take."""
    rows = [("picture", "frames", "steps", "foretold s", "taken s", "taken / foretold")]
    for size, latent_steps in product(sizes, FORETOLD_STEPS):
        frames = 1 + (latent_steps - 1) * model.frames_per_step
        canvas = text_to_video(
            "a red mug", frames, height=size, width=size, time_factor=model.frames_per_step
        )
        expected = estimate(model, canvas)
        start = time.perf_counter()
        model.generate(canvas)
        taken = time.perf_counter() - start
        ratio = f"{taken / expected.seconds:.2f}"
        cells = (f"{expected.seconds:.2f}", f"{taken:.2f}", ratio)
        rows.append((f"{size}x{size}", str(frames), str(expected.steps), *cells))
    return aligned(rows)


def speed_table(timings: Sequence[Timing]) -> str:
    """Every contestant's rate, also as a multiple of the first one's of its setting."""
    first = {t.setting: t.rate for t in reversed(timings)}
    rows = [
        (
            f"{t.setting}: {t.name}" if t.setting else t.name,
            str(t.threads),
            f"{t.rate:.1f} ({t.slowest:.1f}-{t.fastest:.1f})",
            f"{t.cpu_ms:.2f}",
            "-" if math.isnan(t.multiply_adds) else f"{t.multiply_adds:.0f}",
            f"{t.rate / first[t.setting]:.2f}",
        )
        for t in timings
    ]
    return aligned(
        [("env", "threads", "steps/s (slowest-fastest)", "CPU ms/step", "MMAC/step", "x first"), *rows]
    )


def write_json(path: Path, body: dict) -> None:
    """Write whole or not at all; NaN as null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = json.dumps(body, indent=1)
    beside.write_text(text.replace("NaN", "null") + "\n")
    os.replace(beside, path)
