"""`orrery eval captions`: how right the captioner is about held-out episodes, world by world."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from probes.captioning import Facts, captioning
from probes.measurement import Measurement, write_measurements
from simulator.captioner import ALL_KINDS, Description, describe, load_captioner
from simulator.captions import Seen, relation
from simulator.checkpoint import PRETRAINED, check_writable
from simulator.clips import HELD_OUT_SEED, Episode, held_out, list_episodes, read_episode
from simulator.sightings import SEEN, sightings
from simulator.tokenizer import load_tokenizer
from simulator.words import COLOURS, FLOORS, SHAPES, SIZES, WALLS, WORLDS


def facts(things: tuple[Seen, ...], **around: str | None) -> Facts:
    """Things, relations of each two (by the captions' own rule), and surroundings."""
    pairs = (
        (a, b, relation(a, b))
        for a in things
        for b in things
        if COLOURS.index(a.colour) < COLOURS.index(b.colour)
    )
    return Facts(
        {thing.colour: (thing.shape, thing.size) for thing in things},
        {(a.colour, b.colour): word for a, b, word in pairs if word},
        {name: word for name, word in around.items() if word},
    )


def told_facts(found: Description) -> Facts:
    """What a caption says."""
    lab = found.kind if found.world == "Lab" else None
    return facts(found.things, floor=found.floor, wall=found.wall, world=found.world, lab_kind=lab)


def true_facts(episode: Episode) -> Facts:
    """What an episode's first frame shows; the things are those of its own caption."""
    truth = sightings(episode)
    things = tuple(
        Seen(
            SHAPES[truth.shape[c]],
            COLOURS[c],
            SIZES[truth.size[c]],
            float(truth.x[0, c]),
            float(truth.depth_m[0, c]),
        )
        for c in np.flatnonzero(truth.seen[0] == SEEN)
    )
    world = WORLDS[truth.world]
    return facts(
        things,
        floor=FLOORS[truth.floor] if truth.floor >= 0 else None,
        wall=WALLS[truth.wall] if truth.wall >= 0 else None,
        world=world,
        lab_kind=ALL_KINDS[truth.kind] if world == "Lab" else None,
    )


def eval_captions(
    data: Annotated[
        Path, tyro.conf.arg(help="folder of held-out episodes (`orrery record ENV_ID --held-out`)")
    ],
    captioner: Annotated[Path, tyro.conf.arg(help="folder of `orrery train captioner`")] = PRETRAINED,
    tokenizer: Annotated[Path, tyro.conf.arg(help="folder of the tokenizer that it reads")] = PRETRAINED,
    still: Annotated[bool, tyro.conf.arg(help="show it the first frame alone")] = False,
    out: Annotated[Path | None, tyro.conf.arg(help="also write measurements.json here")] = None,
    device: str = "cpu",
) -> int:
    """Accuracy of the captioner on held-out episodes, each number beside what blind guessing gets."""
    if out is not None:
        check_writable(out.parent)
    encoder = load_tokenizer(tokenizer, device)
    model = load_captioner(captioner, encoder)
    told, truth = defaultdict(list), defaultdict(list)
    for path in tqdm(list_episodes(data), desc="captioning", mininterval=2):
        if not held_out(path):
            raise ValueError(
                f"{path} is not held out: accuracy needs seeds of {HELD_OUT_SEED} and above; record them "
                "with `orrery record ENV_ID --held-out`"
            )
        episode = read_episode(path)
        true = true_facts(episode)
        found = told_facts(describe(episode.frames[:1] if still else episode.frames, model, encoder))
        for name in ("all", true.around["world"]):
            told[name].append(found)
            truth[name].append(true)
    found = {
        name: captioning(told[name], truth[name]) for name in sorted(told, key=lambda n: (n != "all", n))
    }
    print(table(found))
    if out is not None:
        write_measurements(out, found["all"], target=str(data), seed=0)
    return 0


def table(found: dict[str, list[Measurement]]) -> str:
    """One row a number, one column a world; chance in brackets, and the interval and support of all
    worlds."""
    by_world = {world: {m.name: m for m in measurements} for world, measurements in found.items()}
    lines = ["| | " + " | ".join(found) + " | 95 % of all | on |", "|---" * (len(found) + 3) + "|"]
    for m in found["all"]:
        cells = [_cell(names.get(m.name)) for names in by_world.values()]
        low, high = (f"{100 * bound:.0f}" for bound in m.interval)
        lines.append(f"| {m.name} | {' | '.join(cells)} | {low} to {high} | {m.support} {m.support_unit} |")
    return "\n".join([*lines, "", "percent right (percent by chance)"])


def _cell(m: Measurement | None) -> str:
    if m is None or not m.judged:
        return ""
    return f"{100 * m.value:.0f}" + ("" if m.chance is None else f" ({100 * m.chance:.0f})")
