"""Options of the training commands, each with its help: those that several share, and the long ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

Data = Annotated[Path, arg(help="folder of recorded episodes (searched with its sub-folders)")]
Out = Annotated[Path, arg(help="run folder to write")]
Minutes = Annotated[
    float | None, arg(help="training time, instead of the preset's minutes and steps; with --steps, at most")
]
Steps = Annotated[
    int | None, arg(help="training steps, instead of the preset's minutes and steps; with --minutes, at most")
]
SaveMinutes = Annotated[float | None, arg(help="between checkpoints, instead of the preset's")]
BatchScale = Annotated[
    float, arg(help="windows or clips in a batch, times the preset's; 8 keeps a large GPU busy")
]
RateScale = Annotated[
    float, arg(help="learning rates, times the preset's; .25 goes on gently from weights that are good")
]
WorldWeights = Annotated[tuple[float, ...], arg(help="how often to draw each world, by name's order")]
SweepWeights = Annotated[tuple[float, ...], arg(help="the same for camera sweeps")]
PictureWeights = Annotated[tuple[float, ...], arg(help="the same for pictures from words")]
PictureShare = Annotated[float | None, arg(help="of the batches, instead of the preset's")]
OtherSizes = Annotated[
    float | None, arg(help="share of the batches in less frequent picture sizes, instead of the preset's")
]
MicroBatches = Annotated[
    int | None, arg(help="batches in a step, over all processes (default: one for each)")
]
CheckpointActivations = Annotated[bool, arg(help="less memory for about a third more arithmetic")]
StartFrom = Annotated[
    Path | None,
    arg(
        help="world model to train further ('default': the shipped one), of this tokenizer; a larger preset "
        "grows it"
    ),
]
StartFromTokenizer = Annotated[
    Path | None, arg(help="train this tokenizer further ('default': the shipped one); its latents change")
]
StartFromCaptioner = Annotated[
    Path | None, arg(help="train this captioner further ('default': the shipped one); its size stays")
]
Against = Annotated[
    float,
    arg(
        help="length, at most, of changes of a picture's latents that are made against it, to learn to read "
        "through; 20 for a captioner that leads pictures well, at thrice the time"
    ),
]
OnlyPart = Annotated[
    Literal["decoder", "carry"] | None,
    arg(
        help="with --start-from: train its decoder with what frames carry over from those before, or this "
        "alone; its latents stay as they are"
    ),
]
PredictedBy = Annotated[
    Path | None,
    arg(
        help="with --only: world model of these latents ('default': the shipped one), whose predictions are "
        "learned to be made the truth of, in half of the batches"
    ),
]
OtherWorlds = Annotated[
    bool, arg(help="--start-from knows other worlds: keep all but what it knows of those")
]
OtherLatents = Annotated[
    bool, arg(help="--start-from read another tokenizer, such as --tokenizer before its last training")
]
Follow = Annotated[bool, arg(help="episodes recorded meanwhile join; what is drawn then depends on when")]
Resume = Annotated[bool, arg(help="go on with the run in --out")]
Compile = Annotated[bool, arg(help="torch.compile: faster after minutes, needs a C++ compiler")]
Track = Annotated[bool, arg(help="log to MLflow")]


def bounds(minutes: float | None, steps: int | None) -> dict[str, Any]:
    """What ends a run instead of the preset's minutes and steps: what is given, and that alone (0: no bound).

    Raises:
        ValueError: one of them is not a positive number.
    """
    for name, value in (("minutes", minutes), ("steps", steps)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} must be above 0, got {value}; leave it out for the preset's")
    return {} if minutes is None and steps is None else {"minutes": minutes or 0.0, "steps": steps or 0}
