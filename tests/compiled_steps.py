"""What `test_simulator_compiled.py` runs by itself, as torch.compile does not follow the checks of shapes
that the tests are run with: the same dreams in plain and in compiled code, as one line of JSON."""

import json
from dataclasses import replace

import numpy as np
import torch
from torch._dynamo.utils import counters

from simulator.state import State, rows, stacked
from simulator.tokenizer import PRESETS as TOKENIZERS
from simulator.tokenizer import Tokenizer
from simulator.transformer import PRESETS, Transformer
from simulator.world_model import WorldModel, WorldModelConfig

WINDOW = 3
WORDS = (
    ("a red ball", "a red ball and a big blue box on a wooden floor"),
    ("a red ball", None),
    (None, None),
)


def small_model() -> WorldModel:
    """Random weights in every path, full layers; steps go to the mean and actions pull."""
    torch.manual_seed(0)
    transformer = Transformer(replace(PRESETS["tiny"], layers=1, full_every=1, window=WINDOW))
    tokenizer = Tokenizer(replace(TOKENIZERS["tiny"], outer_blocks=1, carry_width=0))  # else twice as long
    with torch.no_grad():
        for parameter in (*transformer.parameters(), *tokenizer.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    config = WorldModelConfig(("Room",), {"Room": 5}, 32, 32, sampler_steps=1, action_guidance={"Room": 1.5})
    return WorldModel(config, tokenizer, transformer)


def begun(model: WorldModel, words: tuple[str | None, str | None]) -> State:
    """Two rows, one of them two steps older."""
    older, younger = (model.start([own], "Room", [seed])[0] for seed, own in enumerate(words))
    for _ in range(2):
        older, *_ = model.step(older, np.full((1, 5), 0.5, np.float32))
    return stacked([*rows(older), *rows(younger)])


def dreamt(model: WorldModel, state: State) -> np.ndarray:
    frames = []
    for action in np.random.default_rng(0).uniform(-1, 1, (2 * WINDOW, 2, 5)).astype(np.float32):
        state, new, *_ = model.step(state, action)
        frames.append(new)
    return np.concatenate(frames, axis=1).astype(int)


def main() -> None:
    model = small_model()
    quick, starts = model.compiled(), [begun(model, words) for words in WORDS]
    plain, same = (np.stack([dreamt(kind, start) for start in starts]) for kind in (model, quick))
    found = {
        "away": int(np.abs(plain - same).max()),
        "moves": int(np.abs(np.diff(plain, axis=2)).max(axis=(1, 2, 3, 4, 5)).min()),
        "graphs": counters["stats"]["unique_graphs"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
