"""`python -m simulator.export RUN [OUT]`: a run's world model, its weights rounded to bf16: half the size.

OUT is `simulator/pretrained` unless given. The rounding is part of the model: measure the exported one.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import tyro

from simulator.checkpoint import CONFIG, PRETRAINED, model_folder, read_json, save_weights, write_json
from simulator.optim import ema_update
from simulator.tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.tokenizer import load_tokenizer, same_latents
from simulator.train_tokenizer import made_of
from simulator.world_model import WEIGHTS, WorldModel


def export(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="folder of `orrery train world`")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="folder to write")] = PRETRAINED,
    mean_with: Annotated[
        Path | None,
        tyro.conf.arg(
            help="the run that it went on from ('default': the shipped one): half way between both, which "
            "keeps more of the old"
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        tyro.conf.arg(help="run of `orrery train tokenizer --only ...`, in place of the model's own"),
    ] = None,
) -> int:
    """Write a world model's weights in bf16, with its config.

    Half way between a model and what it became on other data is often better on both (Wortsman et al. 2022,
    "Robust fine-tuning of zero-shot models"). Raises ValueError if the run did not go on from that model, or
    grew, or if the tokenizer is of other latents.
    """
    model, config = WorldModel.load(run), read_json(run / CONFIG)
    if mean_with is not None:
        other, source = WorldModel.load(mean_with).transformer, model_folder(mean_with)
        same = other.config == model.transformer.config
        if not same or read_json(source / CONFIG)["made"] != config["made"].get("started_from"):
            raise ValueError(f"--mean-with {mean_with} is not what {run} went on from, at the same size")
        ema_update(model.transformer, other, 0.5)
        config["made"]["weights"] = "the mean of these and of those that they started from"
    if tokenizer is not None:
        finished = load_tokenizer(tokenizer)
        if not same_latents(model.tokenizer, finished):
            raise ValueError(
                f"--tokenizer {tokenizer} is of other latents than {run}: train the model on them"
            )
        model.tokenizer = finished
        config["tokenizer"], config["made"]["tokenizer"] = asdict(finished.config), made_of(tokenizer)
    save_weights(out / WEIGHTS, model.transformer, torch.bfloat16)
    save_weights(out / TOKENIZER_WEIGHTS, model.tokenizer, torch.bfloat16)
    write_json(out / CONFIG, config)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(export))
