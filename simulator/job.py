"""What `orrery train world` and `orrery train detail` share before their loops: what is to be trained, its
episodes, its first weights, and what cannot go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from simulator.batches import WorldTraining, check_weights, fitting
from simulator.checkpoint import CONFIG, as_config, fingerprint, read_json
from simulator.clips import training_episodes
from simulator.distributed import Processes, build, economise
from simulator.grow import for_worlds_of, grows_into, started
from simulator.latents import LatentEpisodes, Library, encode_episode
from simulator.optim import Clock, Learner, ema_update, make_optimizers
from simulator.tokenizer import WEIGHTS as TOKENIZER_WEIGHTS
from simulator.tokenizer import Tokenizer, load_tokenizer
from simulator.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what, and where it goes."""

    data: Path
    tokenizer: Path
    out: Path
    config: TransformerConfig
    training: WorldTraining
    seed: int
    resume: bool
    compiled: bool
    recomputed: bool  # activations, in the backward pass
    start_from: Path | None = None  # a world model whose weights are the first ones
    other_worlds: bool = False  # than that model's
    other_latents: bool = False  # than those that it learnt on
    follow: bool = False  # what is recorded meanwhile

    @property
    def goes_on(self) -> bool:
        """Whether the first weights already dream of these worlds, in these latents."""
        return self.start_from is not None and not (self.other_worlds or self.other_latents)


def fitted(job: Job, data: LatentEpisodes) -> Job:
    """The job with room for the data's worlds and actions, and without batches that the data cannot fill.
    Raises ValueError if its weights are not those of the data's worlds."""
    check_weights(job.training, data.worlds)
    room, worlds = data.actions.shape[1], max(job.config.worlds, 1 + len(data.worlds))
    config = replace(job.config, action_width=room, worlds=worlds)
    return replace(job, config=config, training=fitting(job.training, data))


def check_same_kind(job: Job, data: LatentEpisodes) -> None:
    """Raises ValueError if `start_from` is not a world model of the data's worlds, of this tokenizer's
    latents and of a shape that grows into the preset's: its weights would mean something else here."""
    assert job.start_from is not None
    source, values = job.start_from / CONFIG, read_json(job.start_from / CONFIG)
    if "world_model" not in values:
        raise ValueError(
            f"--start-from: {source} is not a world model's; give a folder of `orrery train world`"
        )
    theirs, ours = values["world_model"], {"worlds": list(data.worlds), "action_sizes": data.action_sizes}
    for name, mine in ours.items():
        if theirs[name] != mine and not job.other_worlds:
            raise ValueError(
                f"--start-from: {job.start_from} has {name} {theirs[name]}, the data {mine}; record episodes "
                "of just those worlds, or add --other-worlds to keep all but what it knows of its own"
            )
    config = as_config(TransformerConfig, values["transformer"], source)
    config = for_worlds_of(config, job.config) if job.other_worlds else config
    if not grows_into(config, job.config):
        raise ValueError(
            f"--start-from: {job.start_from} is of another shape ({config}) than --preset's ({job.config}), "
            "and only more heads, a longer reach and first convolutions can be grown"
        )
    theirs, ours = (
        load_tokenizer(folder).encoder.bfloat16().state_dict() for folder in (job.start_from, job.tokenizer)
    )
    same = theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    if not (same or job.other_latents):
        raise ValueError(
            f"--start-from: {job.start_from} was trained on another tokenizer's latents than "
            f"{job.tokenizer}'s; give --tokenizer {job.start_from}, or add --other-latents to learn the new"
        )


def load_together(job: Job, encoder: Tokenizer, processes: Processes) -> Library:
    """The episodes, of which each process has encoded its share."""
    version = fingerprint(job.tokenizer / TOKENIZER_WEIGHTS)
    if processes.count > 1:
        for path in training_episodes(job.data)[processes.rank :: processes.count]:
            encode_episode(path, encoder, version)
        processes.wait()
    library = Library(encoder, version, job.config.action_width)
    library.add(training_episodes(job.data))
    return library


def start(job: Job, where: torch.device, processes: Processes) -> Learner[Transformer]:
    """The first weights, their moving average, and optimizers."""
    source = job.start_from
    first = partial(started, source, job.config, job.other_worlds) if source else None
    model = build(job.config, where, processes, first=first)
    average = build(job.config, where, processes, trained=False)
    ema_update(average, model, 0.0)
    economise(model, recomputed=job.recomputed, compiled=job.compiled and processes.count > 1)
    optimizers = make_optimizers(model, job.training.matrix_rate, job.training.other_rate)
    return Learner(model, average, optimizers, Clock(job.training.steps, job.training.minutes))


def grown(library: Library, data: Path) -> tuple[LatentEpisodes, ...] | None:
    """The library with the episodes that have come under `data`; None if there are none."""
    return library.buckets(progress=False) if library.add(training_episodes(data), progress=False) else None
