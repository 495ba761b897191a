"""The world model: tokenizer, transformer and prompt encoder put together.

Two ways in: `generate` makes a whole canvas at once (bidirectional), `start` and `step` roll out one control
step at a time (causal, cached). The state of a rollout is a value: keeping it is a fork, pickling it is
saving it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from simulator import doubt
from simulator.at_once import DETERMINED_POWER, frames_at_once
from simulator.cache import extended
from simulator.canvas import (
    DRAFT_LEVEL,
    FREE,
    Canvas,
    check_size,
    drafted,
    from_draft,
    smaller,
    text_to_video,
)
from simulator.captioner import Captioner, captioner_for
from simulator.carry import begun
from simulator.checkpoint import CONFIG, as_config, load_weights, read_world_model
from simulator.choosing import TRIES, best_latents, can_judge, led_edit, starting_with
from simulator.compiled import networks
from simulator.conditions import Conditioner, in_turn
from simulator.devices import device_named
from simulator.flow import Levels, add_noise
from simulator.guidance import pull_of
from simulator.memory import check_attention
from simulator.next_step import next_step
from simulator.origin import Origin, reward_scales
from simulator.precision import inference, rounded
from simulator.sampling import denoise, row_noise
from simulator.state import State, Steps, rows, stacked
from simulator.tokenizer import Latents, Shown, Tokenizer, load_tokenizer
from simulator.transformer import Conditions, Prediction, Transformer, TransformerConfig
from simulator.video import Frames, to_uint8, to_unit
from simulator.walk import first_view, legs_of, walked

WEIGHTS = "world_model.safetensors"


@dataclass(frozen=True)
class WorldModelConfig:
    worlds: tuple[str, ...]
    action_sizes: dict[str, int]
    height: int  # of the pictures it was trained on
    width: int
    time_step_s: float = 0.1  # one control step
    sampler_steps: int = 1  # network calls for one latent step of a rollout
    clip_steps: int = 16  # network calls for a whole canvas (see `WorldModel.steps_for`)
    schedule_power: float = 1.0  # of a rollout's noise levels; above 1: denser near 0
    context_noise: float = 0.05  # noise level at which the past is kept
    large_steps: bool = False  # whether the network is told how far the sampler steps
    commit: bool = True  # a latent step is kept as it came out, or else as the sampler's last call had it
    # how strongly words, or actions in the end, pull on a rollout's steps, by world; 1, or none: not at all
    word_guidance: dict[str, float] = field(default_factory=dict)
    action_guidance: dict[str, float] = field(default_factory=dict)


class VideoModel(Protocol):
    """What anything that makes video from a canvas offers; pretrained models meet it too."""

    def generate(self, canvas: Canvas, *, seed: int = 0, steps: int | None = None) -> Frames: ...


class WorldModel:
    takes_share_calls = True  # two takes of a frame whose words are the same

    def __init__(
        self,
        config: WorldModelConfig,
        tokenizer: Tokenizer,
        transformer: Transformer,
        origins: dict[str, Origin] | None = None,
        in_bf16: bool = False,
        captioner: Captioner | None = None,
        tries: int = TRIES,
        in_compiled_code: bool = False,
    ):
        self.config, self.in_bf16, self.in_compiled_code = config, in_bf16, in_compiled_code
        self.captioner, self.tries = captioner, tries  # which leads first pictures and judges tries
        self.origins = origins or {}  # of the worlds that were recorded from other envs
        self.tokenizer, self.transformer = tokenizer.eval(), transformer.eval()
        self._networks = networks(transformer, tokenizer, in_compiled_code)  # of control steps
        self.worlds, self.time_step_s = config.worlds, config.time_step_s
        self.height, self.width = config.height, config.width

    @staticmethod
    def load(name_or_path: str | Path = "default", device: str | torch.device = "cpu") -> WorldModel:
        """The shipped model ("default") or one that `orrery train world` wrote.

        Raises ValueError if the folder, its config or its weights are missing, damaged or not safetensors.
        """
        where = device_named(device)
        folder, values = read_world_model(name_or_path)
        config = as_config(WorldModelConfig, values["world_model"], folder / CONFIG)
        transformer = Transformer(as_config(TransformerConfig, values["transformer"], folder / CONFIG))
        load_weights(folder / WEIGHTS, transformer)
        transformer.to(where).requires_grad_(False)
        known = values.get("origins", {}).items()
        origins = {name: as_config(Origin, value, folder / CONFIG) for name, value in known}
        tokenizer = load_tokenizer(folder, where)
        return WorldModel(config, tokenizer, transformer, origins, False, captioner_for(folder, tokenizer))

    @property
    def device(self) -> torch.device:
        return self.transformer.patch_in.weight.device

    @property
    def conditioner(self) -> Conditioner:
        own = frozenset(self.worlds) - frozenset(self.origins)
        return Conditioner(self.transformer.config, self.config.action_sizes, self.worlds, own, self.device)

    @property
    def frames_per_step(self) -> int:
        return self.tokenizer.config.time_factor

    def steps_for(self, canvas: Canvas) -> int:
        """Sampler steps of a canvas where none are asked for: half where the network is told how far they go,
        else few where little is open."""
        little = canvas.determined or canvas.start_level.max() <= DRAFT_LEVEL
        return max(1, self.config.clip_steps // (2 if self._tells(canvas) else 4 if little else 1))

    def _tells(self, canvas: Canvas) -> bool:
        """Whether it is: where much is open, or words pull; else the mean of what may come is nearer."""
        much = bool((canvas.start_level == FREE).any()) or (bool(canvas.prompts) and canvas.guidance != 1)
        return self.config.large_steps and not canvas.determined and much

    def tries_for(self, canvas: Canvas) -> int:
        """First pictures that are made of a canvas, of which the one that shows best what it says is kept."""
        return self.tries if self.captioner is not None and can_judge(canvas) else 1

    def draft_of(self, canvas: Canvas) -> Canvas | None:
        """The same request, smaller, if its pictures are much larger than the training's (else None)."""
        return smaller(canvas, (self.height, self.width), self.size_unit)

    def action_size(self, world: str) -> int:
        """Width of a world's actions. Raises ValueError if this model does not know the world."""
        return self.conditioner.action_size(world)

    def averaging(self) -> WorldModel:
        """The same weights, going to the mean of what may come: nearer to any truth, and the further on the
        more blurred."""
        plain = {"large_steps": False, "sampler_steps": 1, "schedule_power": 1.0, "commit": True}
        return self.with_config(**plain, word_guidance={}, action_guidance={})

    def with_config(self, **changes: Any) -> WorldModel:
        """The same weights under other settings (sampler_steps, context_noise)."""
        return self._with(config=dataclasses.replace(self.config, **changes))

    def trying(self, tries: int) -> WorldModel:
        """The same weights, which lead so many first pictures from words and keep the best (`choosing`)."""
        if tries < 1:
            raise ValueError(f"tries must be at least 1, got {tries}")
        return self._with(tries=tries)

    def _with(self, **changes: Any) -> WorldModel:
        names = inspect.signature(WorldModel).parameters
        return WorldModel(**{name: getattr(self, name) for name in names} | changes)

    def faster(self) -> WorldModel:
        """The same with products in bf16 where the processor multiplies that faster: for many rows at once.
        What one row dreams then depends a little on the rows beside it, as sums are rounded."""
        tokenizer, transformer = rounded(self.tokenizer, self.device), rounded(self.transformer, self.device)
        return self._with(tokenizer=tokenizer, transformer=transformer, in_bf16=True)

    def compiled(self) -> WorldModel:
        """The same with control steps in compiled code, for one or a few rows: a minute to make when it is
        first needed. Raises ValueError if there is no C++ compiler."""
        return self._with(in_compiled_code=True)

    @property
    def size_unit(self) -> int:
        """Heights and widths are multiples of so many pixels."""
        return self.tokenizer.config.space_factor * self.transformer.config.patch

    # --- whole canvases

    @inference
    def rebuilt(self, frames: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Frames as they come back from latents, in sight of the first frame as it was."""
        video = to_unit(frames, self.device)
        return to_uint8(self.tokenizer.decode(self.tokenizer.encode(video), Shown.first(video)))

    @inference
    def generate(
        self, canvas: Canvas, *, seed: int = 0, steps: int | None = None, progress: bool = False
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Make every frame of a canvas. The same canvas, seed and steps give the same frames.

        Pictures much larger than the training's are made smaller first, enlarged, re-noised and made again
        where they were not held (as SDEdit does, Meng et al. 2022). From words alone several first frames
        are made, led to what they say, and the one is kept that shows it best (`choosing`). What follows on
        known frames, and sweeps that a world's actions lead through, are dreamt step by step (`walk`).

        Raises ValueError, before any work, for a canvas that cannot be made (`check`).
        """
        self.check(canvas, steps)
        if (draft := self.draft_of(canvas)) is not None:
            small = self.generate(draft, seed=seed, steps=steps, progress=progress)
            return self.generate(from_draft(canvas, small), seed=seed, steps=steps, progress=progress)
        if legs := legs_of(self, canvas):
            return walked(self, canvas, legs, seed, steps, progress)
        if self.captioner is None or not can_judge(canvas):
            return self._at_once(canvas, canvas, seed, steps, progress)
        first = first_view(canvas)
        y, x = (side // self.tokenizer.config.space_factor for side in canvas.frames.shape[1:3])
        latents, _ = self._first_latents([first], self.conditioner.of_canvas(first, y, x), [seed], steps)
        picture = to_uint8(self.tokenizer.decode(latents))[0]
        if len(canvas.frames) == 1:
            return picture
        return self._at_once(starting_with(canvas, picture[0]), canvas, seed, steps, progress)

    def _at_once(
        self, canvas: Canvas, asked: Canvas, seed: int, steps: int | None, progress: bool
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """A canvas made at once, in the way of the one that was asked for."""
        steps, parts = steps or self.steps_for(asked), (self.tokenizer, self.transformer, self.conditioner)
        how = (seed, steps, DETERMINED_POWER if asked.determined else 1.0, self._tells(asked))
        said, lead = f"generating {'x'.join(map(str, canvas.frames.shape[1:3]))}", None
        if self.captioner is not None:
            canvas, lead = led_edit(self.captioner, self.tokenizer, canvas, seed)
        with tqdm(total=steps, desc=said, disable=not progress, mininterval=1) as bar:
            return frames_at_once(*parts, canvas, *how, bar.update, lead)

    def _first_latents(
        self, asked: Sequence[Canvas], conditions: Conditions, seeds: Sequence[int], steps: int | None
    ) -> tuple[Latents, Float[np.ndarray, " b"]]:
        """A picture from words a row, led, of several the best, and the mean squared error expected of it."""
        parts, tries = (self.captioner, self.tokenizer, self.transformer), [*map(self.tries_for, asked)]
        how = (tries, steps or self.steps_for(asked[0]), self._tells(asked[0]))
        return best_latents(*parts, asked, conditions, seeds, *how)

    def check(self, canvas: Canvas, steps: int | None = None) -> None:
        """Raises ValueError if `generate` cannot make this canvas: its size, length, conditions or memory."""
        height, width = canvas.frames.shape[1:3]
        check_size(height, width, self.size_unit)
        self.conditioner.check(canvas)
        n, factor = len(canvas.start_level), self.frames_per_step
        if len(canvas.frames) != 1 + (n - 1) * factor:
            raise ValueError(f"latent steps of this model are {factor} frames each, after the first of 1")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}; leave it out for the model's own")
        large, legs = drafted(canvas, (self.height, self.width)), legs_of(self, canvas)
        if large or not legs:
            walks = bool(legs) and bool(canvas.held.any())  # else what it begins with is made at once
            check_attention(canvas, walks, self.size_unit, self.transformer.config, self.device)

    # --- rollouts

    @inference
    def start(
        self,
        prompts: Sequence[str | None],
        world: str | None,
        seeds: Sequence[int],
        *,
        height: int | None = None,
        width: int | None = None,
        images: UInt8[np.ndarray, "b h w 3"] | None = None,
        guidance: float = 3.0,
    ) -> tuple[State, UInt8[np.ndarray, "b 1 h w 3"], Float[np.ndarray, " b"]]:
        """Begin one dream a row: from its prompt alone, or from a picture. Returns state, first frame and
        uncertainty (0 of a picture that was given, or drafted smaller as `generate` does)."""
        own = height or self.height, width or self.width
        y, x = own if images is None else images.shape[1:3]
        check_size(y, x, self.size_unit)
        ids = self.conditioner.world_ids([world] * len(prompts))
        return self._begin(prompts, ids, seeds, y, x, images, guidance)

    @inference
    def restart(
        self,
        state: State,
        which: Sequence[int],
        prompts: Sequence[str | None],
        seeds: Sequence[int],
        *,
        images: UInt8[np.ndarray, "k h w 3"] | None = None,
        guidance: float = 3.0,
    ) -> tuple[State, UInt8[np.ndarray, "k 1 h w 3"], Float[np.ndarray, " k"]]:
        """Begin the dreams of some rows anew, in their worlds, while the others stay where they are. Returns
        state, and the new rows' first frames and uncertainty. A fresh row is the dream that `start` begins
        with its prompt and seed."""
        ids, size = state.world[list(which)], (state.height, state.width)
        fresh, frames, uncertainty = self._begin(prompts, ids, seeds, *size, images, guidance)
        new = dict(zip(which, rows(fresh), strict=True))
        together = stacked([new.get(index, old) for index, old in enumerate(rows(state))])
        return together, frames, uncertainty

    def _begin(
        self,
        prompts: Sequence[str | None],
        worlds: Int[Tensor, " b"],
        seeds: Sequence[int],
        height: int,
        width: int,
        images: UInt8[np.ndarray, "b h w 3"] | None,
        guidance: float,
    ) -> tuple[State, UInt8[np.ndarray, "b 1 h w 3"], Float[np.ndarray, " b"]]:
        how, names = {"height": height, "width": width, "guidance": guidance}, (None, *self.worlds)
        asked = zip(prompts, worlds.tolist(), strict=True)
        first = [text_to_video(prompt, 1, world=names[world], **how) for prompt, world in asked]
        if images is None and self.draft_of(first[0]) is not None:
            made = zip(first, seeds, strict=True)
            images = np.concatenate([self.generate(canvas, seed=seed) for canvas, seed in made])
        b, (text, known) = len(prompts), self.conditioner.text(list(prompts))
        y, x = (size // self.tokenizer.config.space_factor for size in (height, width))
        blank = torch.zeros(b, 1, self.tokenizer.config.channels, y, x, device=self.device)
        memory = self.transformer.nothing_yet(blank)
        new = (tuple(seeds), (0,) * b, (0.0,) * b, 0, 0, height, width)
        state = State(memory, None, None, text, known, worlds, *new)
        conditions = self._step_conditions(state, None)
        shown = None if images is None else Shown.first(to_unit(images[:, None], self.device))
        if shown is not None:
            latents = self.tokenizer.encode(shown.video)
            uncertainty = np.zeros(b, np.float32)
        else:
            latents, errors = self._first_latents(first, conditions, seeds, None)
            uncertainty = doubt.expected_error(errors)
        state = self._made(state, conditions, latents)
        state = state if self.config.commit else self._settled(state)
        video, decoder = self.tokenizer.decode_stream(latents, None)
        decoder = decoder._replace(before=begun((shown.video if shown else video)[:, -1].clamp(-1, 1)))
        frames = images[:, None].copy() if images is not None else to_uint8(video)
        return dataclasses.replace(state, decoder=decoder), frames, uncertainty

    @inference
    def step(
        self, state: State, actions: Float[np.ndarray, "b a"] | None
    ) -> tuple[
        State,
        UInt8[np.ndarray, "b f h w 3"],
        Float[np.ndarray, " b"],
        Bool[np.ndarray, " b"],
        Float[np.ndarray, " b"],
    ]:
        """One control step of every row, under actions or (None) whatever may happen: new state, its frames,
        reward, terminated, and uncertainty (the error that is expected of its last frame, root mean square in
        grey levels: `doubt.py`)."""
        conditions = self._step_conditions(state, actions)
        settled, latents, first, last = self._new_latents(state, conditions)
        state = self._made(settled, conditions, latents) if self.config.commit else self._kept(settled, last)
        doubts = doubt.KEPT * np.array(state.doubts) + first.expected_error.numpy()
        video, decoder = self._networks.decode_stream(latents, state.decoder)
        state = dataclasses.replace(state, doubts=tuple(doubts.tolist()), decoder=decoder)
        reward = last.reward[:, 0].cpu().numpy() * reward_scales(self.origins, self.worlds, state.world)
        terminated = (last.terminated[:, 0] > 0).cpu().numpy()
        uncertainty = doubt.expected_error(doubts, video, decoder)
        return state, to_uint8(video), reward, terminated, uncertainty

    @inference
    def observe(
        self, state: State, frames: UInt8[np.ndarray, "b f h w 3"], actions: Float[np.ndarray, "b a"] | None
    ) -> State:
        """One control step that is not dreamt but seen: the frames that the actions truly led to. What comes
        next is dreamt from there, and nothing of it is in doubt yet.

        Raises ValueError if the frames are not one control step of every row, of the state's picture size.
        """
        asked = (len(state.seeds), self.frames_per_step, state.height, state.width, 3)
        if frames.shape != asked or frames.dtype != np.uint8:
            got = f"{frames.shape} of {frames.dtype}"
            raise ValueError(f"frames of one observed step must be of shape {asked} and uint8, got {got}")
        conditions = self._step_conditions(state, actions)
        shown = Shown.first(to_unit(frames, self.device))
        latents = self.tokenizer.encode_stream(shown.video, start=False)
        state = self._made(self._settled(state), conditions, latents)
        state = state if self.config.commit else self._settled(state)
        _, decoder = self.tokenizer.decode_stream(latents, state.decoder, shown)
        return dataclasses.replace(state, decoder=decoder, doubts=(0.0,) * len(state.seeds))

    def _step_conditions(
        self, state: State, actions: Float[np.ndarray, "b a"] | Float[Tensor, "b 1 wide"] | None
    ) -> Conditions:
        """Those of a control step; actions are as a world takes them, as the network does, or unknown."""
        y, x = (size // self.tokenizer.config.space_factor for size in (state.height, state.width))
        if isinstance(actions, np.ndarray):
            actions = self.conditioner.actions(actions[:, None], state.world)
        return self.conditioner.of_step(state, actions, y, x)

    def _predict(
        self,
        state: State,
        conditions: Conditions,
        noisy: Tensor,
        level: Levels,
        next_level: Levels | None,
    ) -> tuple[State, Prediction]:
        """See `next_step`."""
        how = (noisy, level, next_level, self.config.large_steps)
        return next_step(self._networks.forward, self.transformer.config.window, state, conditions, *how)

    def _both(
        self, state: State, one: Conditions, other: Conditions, noisy: Tensor, level: Levels, goal: Levels
    ) -> tuple[State, Prediction, Prediction]:
        """What the network says under these and under other conditions."""
        if not (self.takes_share_calls and torch.equal(one.text_known, other.text_known)):
            settled, found = self._predict(state, one, noisy, level, goal)
            return settled, found, self._predict(settled, other, noisy, level, goal)[1]
        twice = (torch.cat([part, part], dim=1) for part in (noisy, level, goal))
        settled, found = self._predict(state, in_turn(one, other), *twice)
        return settled, found.of_first(), found.of_last(1)

    def _noise(self, state: State, draw: int, shape: tuple[int, ...]) -> Float[Tensor, "b ..."]:
        """The first (0) or second (1) noise of each row's next latent step, by its own seed and age."""
        positions = zip(state.seeds, state.ages, strict=True)
        return torch.cat([row_noise([seed], 2 * age + draw, shape, self.device) for seed, age in positions])

    def _new_latents(
        self, state: State, conditions: Conditions
    ) -> tuple[State, Latents, Prediction, Prediction]:
        """The next latent step, the sampler's first and last predictions, and the state in which the step
        before is remembered."""
        y, x = conditions.rays.shape[-2:]
        noise = self._noise(state, 0, (1, self.tokenizer.config.channels, y, x))
        settled, config = state, self.config
        settings = ("", *self.worlds), config.word_guidance, config.action_guidance
        pull = pull_of(conditions, *settings, state.doubts)
        pulled = bool((pull.strength != 1).any())

        def predict(noisy: Tensor, level: Levels, next_level: Levels) -> Prediction:
            nonlocal settled
            goal = pull.goal(level, next_level)
            if not pulled:
                settled, found = self._predict(settled, conditions, noisy, level, goal)
                return found
            settled, found, without = self._both(settled, conditions, pull.without, noisy, level, goal)
            return pull.on(found, without)

        start = torch.full((len(state.seeds), 1), FREE, device=self.device)
        latents, first, last = denoise(predict, noise, start, config.sampler_steps, config.schedule_power)
        return settled, latents, first, last

    def _made(self, state: State, conditions: Conditions, latents: Latents) -> State:
        """The state one latent step later, at the context noise level; nothing is remembered of it yet."""
        noise = self._noise(state, 1, latents.shape[1:])
        level = torch.full((len(latents), 1), self.config.context_noise, device=self.device)
        fresh = Steps(add_noise(latents, noise, level), level, conditions.actions, conditions.actions_known)
        ages = tuple(age + 1 for age in state.ages)
        return dataclasses.replace(state, fresh=fresh, ages=ages, frame=state.frame + 1)

    def _settled(self, state: State) -> State:
        """The state in which the fresh step, if there is one, is remembered, by a call of its own."""
        fresh = state.fresh
        if fresh is None:
            return state
        ages = tuple(age - 1 for age in state.ages)
        before = dataclasses.replace(state, fresh=None, ages=ages, frame=state.frame - 1)
        conditions = self._step_conditions(state, fresh.actions)._replace(actions_known=fresh.actions_known)
        _, seen = self._predict(before, conditions, fresh.latents, fresh.noise_level, None)
        return self._kept(before, seen)

    def _kept(self, state: State, seen: Prediction) -> State:
        """The state one latent step later, with what that prediction remembers of it."""
        window = self.transformer.config.window
        memory = extended(state.memory, seen.memory, window)
        ages, kept = tuple(age + 1 for age in state.ages), min(state.kept + 1, window - 1)
        return dataclasses.replace(state, memory=memory, ages=ages, frame=state.frame + 1, kept=kept)
