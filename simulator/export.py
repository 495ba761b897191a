"""`python -m simulator.export RUN [OUT]`: a run's world model, its weights rounded to bf16: half the size.

OUT is `simulator/pretrained` unless given. The rounding is part of the model: measure the exported one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro

from simulator.checkpoint import CONFIG, PRETRAINED, read_json, save_weights, write_json
from simulator.train_tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.world_model import WEIGHTS, WorldModel


def export(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="folder of `orrery train world`")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="folder to write")] = PRETRAINED,
) -> int:
    """Write a world model's weights in bf16, with its config."""
    model = WorldModel.load(run)
    save_weights(out / WEIGHTS, model.transformer, torch.bfloat16)
    save_weights(out / TOKENIZER_WEIGHTS, model.tokenizer, torch.bfloat16)
    write_json(out / CONFIG, read_json(run / CONFIG))
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(export))
