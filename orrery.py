"""The front door: `orrery COMMAND ...`, one command composed of the rooms' own commands.

Every command is one annotated function in its room, whose signature and docstring tyro turns into options and
help. Rooms are imported only when one of their commands runs, so that `orrery --help` answers at once and a
missing optional package matters only to the commands that need it.

Exit codes: 0 done; 2 bad input (one line on stderr); 3 done, but refused or "cannot judge"; 130 interrupted.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import tyro

# no telemetry; a renderer that works without a screen, unless the user chose one
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# threads that wait sleep soon: long spinning made small steps 20 times slower on a machine with other work
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

SWEEP_VIEWS = 40


@dataclass(frozen=True)
class Command:
    """Where a command lives (`module:function`), what it does, and one example."""

    target: str
    summary: str
    example: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "probes.demo:demo",
        "dream, sweep, NeRF, mesh and physics probes beside the reference world; writes report.html",
        "orrery demo --out demo",
    ),
    "record": Command(
        "envs.record:record",
        "record episodes of any Gymnasium env with image observations",
        "orrery record orrery/Room-v0 --episodes 100 --out data/room",
    ),
    "train tokenizer": Command(
        "simulator.train_tokenizer:train_tokenizer",
        "train the causal video autoencoder on recorded episodes",
        "orrery train tokenizer --preset tiny --data data --out runs/tokenizer",
    ),
    "train world": Command(
        "simulator.train:train",
        "train the world model on recorded episodes",
        "orrery train world --preset tiny --data data --tokenizer runs/tokenizer --out runs/world",
    ),
    "train detail": Command(
        "simulator.train_detail:train_detail",
        "train a world model's last convolutions alone, fast, to train it further after",
        "orrery train detail --data data --tokenizer runs/tokenizer --start-from runs/world --out runs/more",
    ),
    "train captioner": Command(
        "simulator.train_captioner:train_captioner",
        "train the captioner on recorded episodes and a tokenizer's latents",
        "orrery train captioner --preset tiny --data data --tokenizer runs/tokenizer --out runs/captioner",
    ),
    "caption": Command(
        "simulator.captioner:caption",
        "say what a video or a picture shows",
        "orrery caption clip.mp4 --style all",
    ),
    "expand": Command(
        "simulator.expand:expand",
        "make a short prompt a fuller one",
        'orrery expand "two balls on a table"',
    ),
    "generate": Command(
        "simulator.generate:generate",
        "text, a picture or a clip in; a video or a picture out",
        'orrery generate "a red box on a table" --frames 16 --seed 0 -o clip.mp4',
    ),
    "rollout": Command(
        "envs.rollout:rollout",
        "run a policy in a reference world or in the dream",
        "orrery rollout orrery/Dream-v0 --policy random --episodes 2 --out rollouts",
    ),
    "asset": Command(
        "recon3d.asset:asset",
        "a video, pictures or prompt:TEXT in; a mesh out (.glb .ply .obj .xml)",
        'orrery asset "prompt:a blue mug" -o mug.glb',
    ),
    "poses": Command(
        "recon3d.dataset:poses",
        "a video or photos in; a folder of pictures with their cameras out, as nerfstudio reads it",
        "orrery poses clip.mp4 -o dataset",
    ),
    "probe": Command(
        "probes.probe:probe",
        "measure how consistent a video, an env or a checkpoint is",
        "orrery probe orrery/Lab-v0 --out probes-lab",
    ),
    "eval captions": Command(
        "probes.eval_captions:eval_captions",
        "accuracy of the captioner on held-out episodes, beside blind guessing",
        "orrery eval captions --data heldout",
    ),
    "eval": Command(
        "simulator.fidelity:evaluate",
        "fidelity on held-out seeds, beside copying the first frame",
        "orrery eval default --data data",
    ),
    "tasks": Command(
        "probes.tasks:tasks",
        "every generation task on a model's weights, each beside the trivial way to do it",
        "orrery tasks default --data heldout",
    ),
    "factors": Command(
        "simulator.time_factors:factors",
        "compare world models of different time factors: fidelity, speed, control delay",
        "orrery factors runs/factor1 runs/factor2 --data heldout",
    ),
    "bench": Command(
        "probes.bench:bench",
        "speed of the dream, the reference worlds and the NeRF, in one run",
        "orrery bench",
    ),
    "ns": Command(
        "recon3d.nerfstudio_shims:run",
        "nerfstudio's own train, viewer, export and eval, with orrery-nerf among its methods",
        "orrery ns train orrery-nerf --data captures/thing",
    ),
}

EXTRA_OF_PACKAGE = {
    "coacd": "recon3d",
    "nerfstudio": "recon3d",
    "open3d": "recon3d",
    "pycolmap": "recon3d",
    "skimage": "recon3d",
    "torchvision": "recon3d",
    "trimesh": "recon3d",
    "xatlas": "recon3d",
    "diffusers": "pretrained",
    "ray": "scale",
    "stable_baselines3": "agents",
}

BAD_INPUT = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code.

    Args:
        arguments: what follows `orrery`; the process's own without it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="nerfstudio")
    if arguments is None:  # being ended also cleans up what is half-made
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = run(words)
    except KeyboardInterrupt as stop:
        code = complain(str(stop) or "interrupted", 130)
    except BAD_INPUT as error:
        if os.environ.get("ORRERY_DEBUG"):
            raise
        code = complain(one_line(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRA_OF_PACKAGE:
            raise
        code = complain(f"{package} is not installed; pip install 'orrery[{EXTRA_OF_PACKAGE[package]}]'")
    sys.exit(code)


def run(words: list[str]) -> int:
    """Find the command in the words and call it; the exit code.

    Raises:
        ValueError: there is no such command, or its options do not parse.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"orrery {importlib.metadata.version('orrery')}")
        return 0
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS), None)
    if name is None:
        return offer(words)
    rest = words[len(name.split()) :]
    module, function = COMMANDS[name].target.split(":")
    command = getattr(importlib.import_module(module), function)
    if name == "ns":
        return command(rest)
    call = parse(command, name, rest)
    return call(dream=dream_the_prompt) if name == "asset" else call()


def overview(prefix: str = "") -> str:
    """The help of the front door: one line and one example per command (those that start with `prefix`)."""
    chosen = {name: command for name, command in COMMANDS.items() if name.startswith(prefix)}
    width = max(map(len, chosen))
    lines = ["Orrery: dream worlds from prompts, step them, rebuild them in 3D, measure their physics.", ""]
    lines += [
        f"usage: orrery {prefix or 'COMMAND '}...    (orrery COMMAND --help shows a command's options)",
        "",
    ]
    lines += [f"  {name:{width}}  {command.summary}" for name, command in chosen.items()]
    lines += ["", "examples:", *(f"  {command.example}" for command in chosen.values())]
    lines += ["", "exit codes: 0 done, 2 bad input, 3 done but refused or cannot judge, 130 interrupted"]
    return "\n".join(lines)


def offer(words: list[str]) -> int:
    """Answer words that are no command: a group's own help, or the nearest command."""
    group = words[0] + " "
    members = [name for name in COMMANDS if name.startswith(group)]
    if members and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(overview(group))
        return 0
    wanted = " ".join(words[:2]) if members else words[0]
    near = difflib.get_close_matches(wanted, members or COMMANDS, n=1, cutoff=0.4)
    hint = f"did you mean `orrery {near[0]}`?" if near else "`orrery --help` lists them"
    raise ValueError(f"no command {wanted!r}; {hint}")


def parse(command, name: str, words: list[str]):
    """The command's call with its options parsed from the words; nothing of the room runs yet.

    Raises:
        ValueError: the words do not parse; the message is tyro's, on one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(deferred(command), prog=f"orrery {name}", args=words)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{flattened(said.getvalue())}; see orrery {name} --help") from None


def deferred(command):
    """The same command with the same signature that, called, returns its call, which takes more keywords."""

    @functools.wraps(command)
    def call_later(*args, **kwargs):
        return lambda **more: command(*args, **(kwargs | more))

    return call_later


def flattened(box: str) -> str:
    """What tyro's error box says, on one line, without its frame and its pointers to the help."""
    sections = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text and not text.strip("─"):
            sections.append([])
        elif "─" not in text and text:
            sections[-1].append(text)
    kept = [" ".join(lines) for lines in sections if lines and "helptext" not in lines[0]]
    return "; ".join(kept) or "the options do not parse"


def one_line(error: Exception) -> str:
    """An error's message on one line; an OSError names its file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def complain(message: str, code: int = 2) -> int:
    """One line on stderr, and the exit code."""
    print(f"orrery: {message}", file=sys.stderr)
    return code


def dream_the_prompt(prompt: str, seed: int):
    """A capture of what the shipped weights dream of a prompt: one whole turn, settled into one scene
    (`recon3d.settle`)."""
    names = ("simulator.canvas", "simulator.walk", "simulator.world_model", "recon3d.captures")
    canvas, walk, world_model, captures = (importlib.import_module(name) for name in names)
    sweeps, settle, torch = map(importlib.import_module, ("recon3d.sweeps", "recon3d.settle", "torch"))
    cameras, model = sweeps.orbit(SWEEP_VIEWS), world_model.WorldModel.load("default")
    request = canvas.text_to_video(prompt, SWEEP_VIEWS, world="Orbit", cameras=cameras)
    dreamt = torch.from_numpy(model.generate(request, seed=seed, progress=True))
    drawn = walk.again(model, prompt, cameras, seed=seed + 1)
    frames, rounds, before = settle.settled(dreamt, cameras, drawn, seed=seed, progress=True)
    if before is not None:
        print(
            f"as dreamt, held-out views are predicted at {before.psnr.mean():.1f} dB (nearest view copied "
            f"{before.copy_psnr.mean():.1f}); drawn again in {rounds} rounds to be nearer to one scene",
            file=sys.stderr,
        )
    return captures.Capture(frames, cameras, metric=True)


if __name__ == "__main__":
    main()
