"""Weights and runs on disk. Weights are safetensors beside a readable `config.json`; nothing is ever
unpickled from a file that a user names, and loading is strict: an unknown or missing key is an error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from simulator.optim import Learner

CONFIG = "config.json"
PRETRAINED = Path(__file__).parent / "pretrained"
Config = TypeVar("Config")


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a model by its name: "default" is the shipped one."""
    return PRETRAINED if str(name_or_path) == "default" else Path(name_or_path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def check_writable(folder: Path) -> None:
    """Raises ValueError if a folder cannot be made or written to: better known before the work than after."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"{folder} cannot be made: {nearest} is a file; choose another folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{folder} cannot be written: no permission for {nearest}; choose another folder")


def check_new(out: Path, *names: str) -> None:
    """Raises ValueError if a run's folder holds one of these files: training anew would write over it."""
    if held := [name for name in names if (out / name).exists()]:
        raise ValueError(
            f"--out {out} holds a run already ({held[0]}); go on with it with --resume, or give another --out"
        )


def read_json(path: Path) -> Any:
    """Read JSON. Raises ValueError naming the file if it is missing or damaged."""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; a checkpoint is a folder with {path.name} and .safetensors files"
        )
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it or train again") from error


def read_world_model(name_or_path: str | Path) -> tuple[Path, dict[str, Any]]:
    """A world model's folder and what its config says. Raises ValueError if it is none."""
    folder = model_folder(name_or_path)
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint {name_or_path} is not a folder; give 'default' or one of `orrery train world`"
        )
    values = read_json(folder / CONFIG)
    for key in ("tokenizer", "transformer", "world_model"):
        if key not in values:
            raise ValueError(f"{folder / CONFIG} has no {key!r}; give one of `orrery train world`")
    return folder, values


def as_config(kind: type[Config], values: dict[str, Any], source: Path) -> Config:
    """A config dataclass from its JSON. Raises ValueError on unknown or missing keys."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := set(values) - names:
        raise ValueError(
            f"{source} has unknown keys {sorted(unknown)} for {kind.__name__}; it fits another version"
        )
    if missing := names - set(values):
        raise ValueError(
            f"{source} lacks the keys {sorted(missing)} of {kind.__name__}; it fits another version"
        )
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def save_weights(path: Path, module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Write a module's weights, whole or not at all; `dtype` rounds floating weights (buffers too) to save
    space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.to(dtype) if dtype and value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(weights, partial)
    partial.chmod(0o644)
    os.replace(partial, path)


def load_weights(path: Path, module: nn.Module) -> None:
    """Fill a module from safetensors, strictly. Raises ValueError naming the file and what is wrong with
    it."""
    if not path.is_file():
        raise ValueError(f"checkpoint file {path} is missing; give a folder that `orrery train` wrote")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); pickled checkpoints (.pt, .pth) are refused since "
            "they can run code: convert it with safetensors.torch.save_file"
        ) from error
    try:
        module.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its {CONFIG}: {str(error).splitlines()[1].strip()}") from error


def fingerprint(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256: names caches after the weights that made them."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def code_version() -> str:
    """The git commit of this code, with `+` if the tree has changes; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True
        )
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return (commit.stdout.strip() + ("+" if changes.stdout.strip() else "")) or "unknown"


def save_learner(path: Path, learner: Learner) -> None:
    """Write what a run needs to go on, whole or not at all."""
    state = {
        "model": learner.model.state_dict(),
        "ema": learner.ema.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
        "step": learner.clock.step,
        "seconds": learner.clock.seconds,
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_learner(path: Path, learner: Learner) -> None:
    """Fill a learner from a run's own resume file; only tensors and plain values are accepted."""
    if not path.is_file():
        raise ValueError(f"--resume: {path} is missing; start without --resume")
    state = torch.load(path, map_location="cpu", weights_only=True)
    learner.model.load_state_dict(state["model"])
    learner.ema.load_state_dict(state["ema"])
    for optimizer, values in zip(learner.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    learner.clock.step, learner.clock.earlier_s = state["step"], state["seconds"]
