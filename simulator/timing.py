"""How long a generation will take: the network's and the decoder's time for one canvas, measured on this
machine before it starts, times the calls that will be made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from simulator.canvas import FREE, Canvas, from_draft
from simulator.choosing import can_judge, can_lead
from simulator.precision import fast_precision
from simulator.video import to_unit
from simulator.walk import Leg, first_view, legs_of, meetings, stepped
from simulator.world_model import WorldModel

TOLD_FROM_S = 5.0
CALIBRATED_FROM_S = 2.0


@dataclass(frozen=True)
class Estimate:
    """Seconds that a generation will take, and what they come from."""

    steps: int
    call_s: float  # the network, once, on the whole canvas (with and without the prompt where guided)
    rest_s: float  # encoding what is known, decoding what is made; of a walk, what is made where ways meet
    before: Estimate | None = None  # of what is made first
    first: str = "a smaller draft"  # which is this

    @property
    def seconds(self) -> float:
        before = self.before.seconds if self.before else 0.0
        return before + self.steps * self.call_s + self.rest_s

    @property
    def words(self) -> str:
        """One line for whoever waits."""
        took = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        parts = f"{self.steps} steps of {self.call_s:.2g} s, {self.rest_s:.2g} s for the rest"
        before = f"{self.before.seconds:.2g} s for {self.first}, " if self.before else ""
        return f"this will take about {took} ({before}{parts})"


def estimate(
    model: WorldModel,
    canvas: Canvas,
    steps: int | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    always: bool = True,
) -> Estimate:
    """Measure one network call and the decoding of this very canvas, after a warm-up on its first frame.

    clock: what seconds are (a test counts CPU time). always: calibrate even where the warm-up says that the
    generation itself will be short; else that bound is the estimate.

    Raises ValueError as `generate` does, for a canvas that cannot be made.
    """
    model.check(canvas, steps)
    small = model.draft_of(canvas)
    if small is not None:
        own = estimate(model, from_draft(canvas, small.frames), steps, clock=clock, always=always)
        return replace(own, before=estimate(model, small, steps, clock=clock, always=always))
    if legs := legs_of(model, canvas):
        return _of_walk(model, canvas, legs, steps, clock, always)
    if model.captioner is not None and (can_judge(canvas) or can_lead(canvas)):
        return _of_led(model, canvas, steps, clock, always)
    steps = steps or model.steps_for(canvas)
    n, model = len(canvas.start_level), _alone(model)
    first = _first_frame(canvas)
    for _ in range(2):  # the first call also reads the prompt encoder and warms the caches
        one_s = _seconds(lambda: model.generate(first, steps=1), clock)
    if not always and one_s * n * steps < CALIBRATED_FROM_S:
        return Estimate(steps, one_s * n, 0.0)
    whole_s = _seconds(lambda: model.generate(canvas, steps=1), clock)
    rest_s = _seconds(lambda: _encode_and_decode(model, canvas), clock)
    return Estimate(steps, max(0.0, whole_s - rest_s), rest_s)


def _of_led(
    model: WorldModel,
    canvas: Canvas,
    steps: int | None,
    clock: Callable[[], float],
    always: bool,
) -> Estimate:
    """The time of the first pictures, which are made together, and of what follows the best of them; or of an
    edit. Some of their steps are made twice: of five steps as large a share as of more, nearly."""
    view = canvas if can_lead(canvas) else first_view(canvas)
    for _ in range(2):  # the first one warms up
        once_s = _seconds(lambda: model.generate(view, steps=1), clock)
    calls, call_s, rest_s = steps or model.steps_for(view), once_s, 0.0
    if always or once_s * calls >= CALIBRATED_FROM_S:
        call_s = max(0.0, _seconds(lambda: model.generate(view, steps=5), clock) - once_s) / 4
        rest_s = max(0.0, once_s - call_s)
    first = Estimate(calls, call_s, rest_s)
    if view is canvas or len(canvas.frames) == 1:
        return first
    own, tries = estimate(_alone(model), canvas, steps, clock=clock, always=always), model.tries_for(canvas)
    return replace(own, before=first, first=f"{tries} first pictures" if tries > 1 else "the first picture")


def _alone(model: WorldModel) -> WorldModel:
    """The same weights without a captioner, to measure what it has no part in."""
    return WorldModel(model.config, model.tokenizer, model.transformer, model.origins, model.in_bf16)


def _of_walk(
    model: WorldModel,
    canvas: Canvas,
    legs: list[Leg],
    steps: int | None,
    clock: Callable[[], float],
    always: bool,
) -> Estimate:
    """The first picture's time where it is to be made, that of a control step (the third, as the first two
    remember less; beside a draft where there is one), and of what is made at once where ways meet."""
    before = None
    if not canvas.held.any():
        before = estimate(model, first_view(canvas), steps, clock=clock, always=always)
    meet = [estimate(model, part, steps, clock=clock, always=always) for _, part in meetings(canvas, legs)]
    model = model.with_config(sampler_steps=steps) if steps else model
    prompt = canvas.prompts[0] if canvas.prompts else None
    state, *_ = model.start([prompt], canvas.world, [0], images=canvas.frames[:1])
    taken, action = [], None if legs[0].actions is None else legs[0].actions[:1]
    level = float(canvas.start_level.max())
    draft = canvas.frames[: model.frames_per_step] if level < FREE else None
    for _ in range(3):
        begun = clock()
        state, _ = stepped(model, state, action, draft, level)
        taken.append(clock() - begun)
    steps, meeting_s = sum(len(leg.views) for leg in legs), sum((part.seconds for part in meet), 0.0)
    return Estimate(steps, taken[-1], meeting_s, before, "the first view")


def _first_frame(canvas: Canvas) -> Canvas:
    """A canvas of one frame of the same size and words, as free as the freest."""
    return Canvas(
        canvas.prompts[0] if canvas.prompts else None,
        canvas.frames[:1],
        canvas.start_level.max(keepdims=True),
        canvas.world,
        guidance=canvas.guidance,
    )


@torch.inference_mode()
def _encode_and_decode(model: WorldModel, canvas: Canvas) -> None:
    height, width = (size // model.tokenizer.config.space_factor for size in canvas.frames.shape[1:3])
    latents = torch.zeros(1, len(canvas.start_level), model.tokenizer.config.channels, height, width)
    with fast_precision(model.device, model.in_bf16):
        if (canvas.start_level < 1).any():
            latents = model.tokenizer.encode(to_unit(canvas.frames[None], model.device))
        model.tokenizer.decode(latents.to(model.device)).sum().item()


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start
