"""Pictures that show what the words say: led there, and of several first ones the best kept.

The captioner reads pictures, and what counts is the probability that it gives to what the prompt says. While
a picture is made, each prediction of it but the last is moved up the gradient of that (classifier guidance,
Dhariwal & Nichol 2021; of predicted data, Bansal et al. 2023, Universal guidance), and the network makes a
picture again of what became of it. Then the best of n is kept, as DALL-E's pictures were chosen with CLIP
(Ramesh et al. 2021, section 2.6). An edit, a clip made again under other words, is led likewise, frame by
frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from simulator.at_once import Lead, pictures_at_once
from simulator.canvas import DRAFT_LEVEL, FREE, HELD, Canvas
from simulator.captioner import Captioner, Found, seen_in
from simulator.captions import DEPTH_GAP_M, SIDE_GAP, Parsed, parse
from simulator.flow import Levels
from simulator.sampling import Noisy, row_noise
from simulator.tokenizer import Latents, Tokenizer
from simulator.transformer import Conditions, Transformer
from simulator.video import to_uint8
from simulator.words import COLOURS, FLOORS, SHAPES, SIZES, WALLS

TRIES = 4
CLIMBS = 3  # up the gradient for a prediction
STRIDE = 20.0  # how far each goes, at pure noise, for 1 of pull beyond 1
STEEPEST = 2.0  # norm of a gradient beyond which more does not count, or rounding grows into other pictures
EASED = 0.5  # of the words' own pull beyond 1, where the captioner leads
UNSURE, UNSURE_M = 0.1, 0.3  # of places: across, in half widths of the picture, and in depth


def can_judge(canvas: Canvas) -> bool:
    """Whether a canvas knows nothing yet but words of its first frame, and they name what the captioner
    knows."""
    return bool((canvas.start_level == FREE).all()) and names_things(canvas)


def can_lead(canvas: Canvas) -> bool:
    """Whether a canvas is a clip to be made again, re-noised further than a draft, under words that pull and
    name what the captioner knows."""
    level = canvas.start_level
    again = bool(((level > DRAFT_LEVEL) & (level < FREE)).all()) and len(canvas.prompts) == 1
    return again and canvas.guidance > 1 and names_things(canvas)


def names_things(canvas: Canvas) -> bool:
    """Whether the words of a canvas' first frame name things that the captioner knows."""
    return bool(canvas.prompts) and bool(parse(canvas.first_prompt).things)


def tried_seeds(seed: int, tries: int) -> list[int]:
    """The seed itself, and others that follow from it."""
    others = np.random.SeedSequence(seed).generate_state(tries - 1)
    return [seed, *others.tolist()]


def agreement(said: Parsed, found: Found) -> Float[Tensor, " b"]:
    """Log-probability that each picture shows the named things and no others, of the sizes, in the places and
    on the floor and before the wall that the prompt says."""
    colours = list(COLOURS)
    named = [colours.index(thing["colour"]) for thing in said.things]
    there = found.at_first.new_tensor([1.0 if c in named else -1.0 for c in range(len(colours))])
    total = F.logsigmoid(there * found.at_first).sum(dim=-1)
    for column, thing in zip(named, said.things, strict=True):
        total = total + _class(found.shape[:, column], SHAPES.index(thing["shape"]))
        if thing["size"] != "medium":  # which goes without saying
            total = total + _class(found.size[:, column], SIZES.index(thing["size"]))

    def places(column: int) -> tuple[Tensor, Tensor]:
        return found.place[:, column, 0], found.place[:, column, 1].exp()

    for i, word, j in said.relations:
        x, depth_m = (first - other for first, other in zip(places(named[i]), places(named[j]), strict=True))
        beyond = {
            "left of": (-x - SIDE_GAP) / UNSURE,
            "right of": (x - SIDE_GAP) / UNSURE,
            "behind": (depth_m - DEPTH_GAP_M) / UNSURE_M,
            "in front of": (-depth_m - DEPTH_GAP_M) / UNSURE_M,
        }[word]
        total = total + F.logsigmoid(beyond)
    for words, word, logits in ((FLOORS, said.floor, found.floor), (WALLS, said.wall, found.wall)):
        if word in words:
            total = total + _class(logits, words.index(word))
    return total


def _class(logits: Float[Tensor, "b k"], index: int) -> Float[Tensor, " b"]:
    return F.log_softmax(logits, dim=-1)[:, index]


def led(
    captioner: Captioner, said: Sequence[Sequence[Parsed]], strides: Float[Tensor, " k"], seeds: Sequence[int]
) -> Lead | None:
    """What moves predictions of frames, of a row for each seed, up the gradient of what the captioner thinks
    that each, by itself, shows of what is said of it (one of these; nothing: it stays, and if nothing is said
    of any, None moves them), by strides that are shorter the less noise is left."""
    told = [(row, each) for row, each in enumerate(said) if each]
    if not told:
        return None
    moves = torch.tensor([bool(each) for each in said], device=strides.device)

    def moved(data: Noisy, next_level: Levels) -> Noisy:
        with torch.inference_mode(False), torch.enable_grad():
            at = rearrange(data, "b n c y x -> (b n) 1 c y x").clone().float()
            far = strides.clone()[:, None] * next_level.clone().reshape(-1, 1)
            for _ in range(CLIMBS):
                at.requires_grad_(True)
                found = captioner(_squeezed(at, captioner.config.grid))
                each = [[agreement(one, found.of_row(row)) for one in some] for row, some in told]
                likely = torch.stack([torch.stack(some).logsumexp(dim=0) for some in each])
                (gradient,) = torch.autograd.grad(likely.sum(), at)
                steep = gradient.square().sum(dim=(1, 2, 3, 4)).sqrt()[:, None]
                share = far / (steep / STEEPEST).clamp(min=1)
                at = at.detach() + share[..., None, None, None] * gradient
        return at.reshape(data.shape)

    return Lead(moved, moves.reshape(len(seeds), -1).any(dim=1), seeds)


def led_edit(
    captioner: Captioner, tokenizer: Tokenizer, canvas: Canvas, seed: int
) -> tuple[Canvas, Lead | None]:
    """An edit (`can_lead`) with words that pull less, and what leads its frames to show what they name. Where
    fewer things are in view than at first, as many fewer are asked for. Any other canvas stays as it is, and
    is not led."""
    if not can_lead(canvas):
        return canvas, None
    said, beyond = parse(canvas.first_prompt), canvas.guidance - 1
    every = max(1, (len(canvas.frames) - 1) // max(1, len(canvas.start_level) - 1))
    shown = (seen_in(canvas.frames[::every], captioner, tokenizer).at_first > 0).sum(dim=-1).tolist()
    each = [[said]]
    for count in shown[1:]:
        left = len(said.things) - max(0, shown[0] - count)
        some = combinations(said.things, left) if left > 0 else ()
        # who stands where, and before which wall, is said of the first frame
        each.append([replace(said, things=things, relations=(), wall=None) for things in some])
    strides = torch.full((len(each),), STRIDE * beyond, device=next(captioner.parameters()).device)
    return replace(canvas, guidance=1 + EASED * beyond), led(captioner, each, strides, [seed])


def _squeezed(latents: Noisy, side: int) -> Float[Tensor, "b n c _ _"]:
    """Latents of as many rows and columns as the captioner reads, whose cells are places in the picture."""
    if latents.shape[-2:] == (side, side):
        return latents
    pictures = F.interpolate(latents.flatten(0, 1), (side, side), mode="bilinear")
    return pictures.unflatten(0, latents.shape[:2])


def best_latents(
    captioner: Captioner | None,
    tokenizer: Tokenizer,
    transformer: Transformer,
    asked: Sequence[Canvas],
    conditions: Conditions,
    seeds: Sequence[int],
    tries: Sequence[int],
    steps: int,
    told: bool,
) -> tuple[Latents, Float[np.ndarray, " b"]]:
    """The latents of one picture a row, led, of so many tries the best, and the mean squared error that the
    network expects of them. A row depends on its own request, conditions and seed alone, but for rounding,
    which leading makes more of (a grey level or two, in places tens). told: see `made_at_once`."""
    tried = [seed for row in zip(seeds, tries, strict=True) for seed in tried_seeds(*row)]
    shape = (1, tokenizer.config.channels, *conditions.rays.shape[-2:])
    noise = row_noise(tried, 0, shape, conditions.rays.device)
    counts = torch.tensor(tries, device=noise.device)
    each = Conditions(*(part.repeat_interleave(counts, dim=0) for part in conditions))
    rows = [canvas for canvas, count in zip(asked, tries, strict=True) for _ in range(count)]
    reads = captioner is not None
    leads = [reads and canvas.guidance > 1 and can_judge(canvas) for canvas in rows]
    said = [[parse(canvas.first_prompt)] if its else [] for canvas, its in zip(rows, leads, strict=True)]
    beyond = noise.new_tensor([canvas.guidance - 1 for canvas in rows])
    pull = 1 + torch.where(torch.tensor(leads, device=noise.device), EASED, 1.0) * beyond

    def lead_of(here: slice) -> Lead | None:
        how = (said[here], STRIDE * beyond[here], tried[here])
        return None if captioner is None else led(captioner, *how)

    latents, errors = pictures_at_once(transformer, noise, each, steps, pull, told, lead_of)
    kept, first = [], 0
    for canvas, count in zip(asked, tries, strict=True):
        best = 0
        if count > 1 and captioner is not None:
            pictures = to_uint8(tokenizer.decode(latents[first : first + count]))[:, 0]
            found = seen_in(pictures, captioner, tokenizer)
            best = int(agreement(parse(canvas.first_prompt), found).argmax())
        kept.append(first + best)
        first += count
    return latents[kept], errors[kept]


def starting_with(canvas: Canvas, picture: UInt8[np.ndarray, "h w 3"]) -> Canvas:
    """The same request with its first frame known (of a loop its last too, which is the first)."""
    frames, level = canvas.frames.copy(), canvas.start_level.copy()
    frames[0], level[0] = picture, HELD
    if canvas.closed:
        frames[-((len(frames) - 1) // (len(level) - 1)) :], level[-1] = picture, HELD
    return replace(canvas, frames=frames, start_level=level)
