"""A wider transformer that computes what a trained narrow one does, to train on from there.

New channels of the residual stream start at zero, and nothing listens yet to new heads, hidden units,
farther patches of the frame before and convolutions. What reads the channels has fresh weights, so what
writes and what listens learns from the first step, and the readers from the second. Net2Net (Chen et al.
2016), with zeros in place of copies as in LEMON (Wang et al. 2024).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from simulator.checkpoint import CONFIG, as_config, load_weights, read_json
from simulator.transformer import Transformer, TransformerConfig
from simulator.world_model import WEIGHTS

# what writes into the residual stream, and what reads it behind a norm
WRITERS = ("patch_in", "previous_in", "rays_in", "rays_unknown", "register", "action_in.2")
WRITERS += (".out.", ".down.", "to_tokens")
READERS = (".queries.", "attention.keys_values.", "gate_up.", "from_tokens.weight")
READERS += ("patch_out.weight", "heads_out.0.weight")
PARTS = {"keys_values.": 2, "gate_up.": 2, "modulation": 6}  # stacked in one tensor's rows
OF_WORLDS = ("world.", "action_in.0.")  # what means nothing in other worlds
SHIFTS = (0, 3)  # of the six parts of a modulation


def grows_into(small: TransformerConfig, large: TransformerConfig) -> bool:
    """Whether two shapes differ by whole heads of the same width, a longer reach, and convolutions where
    there were none, alone."""
    same = replace(large, width=small.width, heads=small.heads, kv_heads=small.kv_heads, reach=small.reach)
    if not small.detail_width:  # convolutions, as they are made, add nothing
        same = replace(same, detail_width=0, detail_blocks=small.detail_blocks)
    return (
        same == small
        and large.head_width == small.head_width
        and large.heads * small.kv_heads == small.heads * large.kv_heads
        and large.width >= small.width
        and large.reach >= small.reach
    )


def started(source: Path, config: TransformerConfig, other_worlds: bool = False) -> Transformer:
    """The transformer of the model in folder `source`, grown to the shape `config`; for other worlds it knows
    nothing of its own any more, and nothing of their actions."""
    theirs = as_config(TransformerConfig, read_json(source / CONFIG)["transformer"], source / CONFIG)
    small = Transformer(theirs)
    load_weights(source / WEIGHTS, small)
    if other_worlds:
        fresh = Transformer(for_worlds_of(theirs, config))
        kept = {name: part for name, part in small.state_dict().items() if not name.startswith(OF_WORLDS)}
        fresh.load_state_dict(kept, strict=False)
        small = fresh
    return grown(small, config)


def for_worlds_of(shape: TransformerConfig, other: TransformerConfig) -> TransformerConfig:
    """The shape with room for another's worlds and actions."""
    return replace(shape, worlds=other.worlds, action_width=other.action_width)


@torch.no_grad()
def grown(small: Transformer, config: TransformerConfig) -> Transformer:
    """A transformer of shape `config` that predicts what `small` does. Its new weights come from torch's
    global generator. Raises ValueError if the one shape does not grow into the other."""
    if not grows_into(small.config, config):
        raise ValueError(
            f"{small.config} does not grow into {config}: it takes more heads, a longer reach or convolutions"
        )
    large, old = Transformer(config), small.state_dict()
    # a norm over more channels of which the new ones are zero
    stretch = (config.width / small.config.width) ** 0.5
    for name, new in large.state_dict().items():
        if name not in old:
            continue
        value = old[name]
        if name == "previous_in.weight":
            value = _centred(value, small.config, config.reach)
        if reads := any(part in name for part in READERS):
            value = value / stretch
        parts = next((count for part, count in PARTS.items() if part in name), 1)
        new, value = (tensor.view(parts, -1, *tensor.shape[1:]) for tensor in (new, value))
        if parts == 6:
            value = value.clone()
            value[list(SHIFTS)] *= stretch
        _place(new, value, heard=reads, silent=any(part in name for part in WRITERS))
    return large


def _place(new: Tensor, old: Tensor, *, heard: bool, silent: bool) -> None:
    """Put old weights, of axes (part, row) or (part, row, ..., column), in the corner of new ones. Columns
    beside it stay only if `heard`, rows below it unless `silent`."""
    if silent:
        new[:, old.shape[1] :] = 0
    if old.ndim > 2 and not heard:
        new[..., old.shape[-1] :] = 0
    new[tuple(slice(size) for size in old.shape)] = old


def _centred(weight: Tensor, small: TransformerConfig, reach: int) -> Tensor:
    """The weights of patches of the frame before, those of farther patches zero."""
    side, more = small.patch * (2 * small.reach + 1), small.patch * (reach - small.reach)
    return pad(weight.unflatten(1, (-1, side, side)), (more,) * 4).flatten(1)
