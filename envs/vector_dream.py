"""Many dreams as one `gymnasium.vector.VectorEnv`: one batched forward steps them all.

Row i dreams what `orrery/Dream-v0` dreams alone from the same seed, whatever its mates do, up to the rounding
of matrix products of another batch size (about one grey level while a rollout is short, and more in places of
a picture that was led to its words). Rows begin and end on their own; a fresh row joins the others' forward
at once.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, UInt8

from envs.dream import Dream, DreamState, checked_count, checked_image, checked_options, drawn_start
from simulator.state import State, row, stacked
from simulator.world_model import WorldModel


class VectorDream(gymnasium.vector.VectorEnv):
    """`num_envs` dreams of one model and world, stepped together.

    Args:
        num_envs: how many.
        autoreset_mode: when a row that has ended begins anew: at the next step (Gymnasium's default), in the
            same one, or when `reset(options={"reset_mask": ...})` says so.
        world, checkpoint, height, width, device, render_mode, model, step_limit, tries: as for one `Dream`.
            Where prompts are given to some rows, all that begin with them are tried as often.
    """

    def __init__(
        self,
        num_envs: int = 1,
        world: str | None = None,
        checkpoint: str | Path = "default",
        height: int | None = None,
        width: int | None = None,
        device: str = "cpu",
        render_mode: str | None = "rgb_array",
        model: WorldModel | None = None,
        step_limit: int | None = None,
        tries: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        checked_count("num_envs", num_envs)
        modes = {name: mode for mode in AutoresetMode for name in (mode, mode.name, mode.value)}
        if autoreset_mode not in modes:
            raise ValueError(
                f"autoreset_mode must be one of {', '.join(mode.name for mode in AutoresetMode)}, "
                f"got {autoreset_mode!r}"
            )
        self.single = Dream(world, checkpoint, height, width, device, render_mode, model, step_limit, tries)
        self.model, self.world, self.render_mode = self.single.model, self.single.world, render_mode
        self.num_envs, self.autoreset_mode = num_envs, modes[autoreset_mode]
        self.metadata = {**self.single.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.single.observation_space
        self.single_action_space = self.single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._prompts: list[str | None] = [None] * num_envs
        self._frames = np.zeros(self.observation_space.shape or (), np.uint8)
        self._step_counts = np.zeros(num_envs, int)
        self._over = np.zeros(num_envs, bool)
        self._dreams: State | None = None

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], dict[str, Any]]:
        """Start every dream, or those of `reset_mask` alone.

        Options: `prompt` (for all, or one a row), `image` (for all, or one a row), `reset_mask` (booleans).
        An int seeds row i with `seed + i`, as Gymnasium's own vector envs do; a list seeds each row.

        Raises:
            ValueError: an option is unknown or does not fit the rows, or a mask comes before the first reset.
        """
        if not isinstance(options, dict | None):
            raise ValueError(f"reset options must be a dict, got {options!r}")
        options = dict(options or {})
        mask = self._checked_mask(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number or one a row ({self.num_envs}), got {len(seeds)}")
        prompts, images = self._checked_options(options)
        for index, own in enumerate(seeds or ()):
            if own is not None and mask[index]:
                self._generators[index] = seeding.np_random(own)[0]
        infos = self._begin(np.flatnonzero(mask), prompts, images, {})
        return self._frames.copy(), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step of every row, then a fresh start for the rows whose turn it is.

        Raises:
            ValueError: reset was not called, an action is not in the action space, or (autoreset disabled) a
                row has ended and was not reset.
        """
        if self._dreams is None:
            raise ValueError("orrery/Dream-v0 has no dream yet; call reset first")
        checked = self._checked_actions(actions)
        resets = self._over.copy()
        if resets.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ValueError(
                f"row {int(np.argmax(resets))} has ended; call reset with options={{'reset_mask': ...}}"
            )
        zeros = np.zeros(self.num_envs)
        if resets.all():
            infos = self._begin(np.arange(self.num_envs), [None] * self.num_envs, None, {})
            return self._frames.copy(), zeros, zeros.astype(bool), zeros.astype(bool), infos
        self._dreams, frames, rewards, ended, uncertainty = self.model.step(self._dreams, checked)
        self._frames[:] = frames[:, -1]
        self._step_counts += 1
        terminations = ended & ~resets
        truncations = (self._step_counts >= self.single.step_limit) & ~resets
        self._over = terminations | truncations
        same = self._over & (self.autoreset_mode == AutoresetMode.SAME_STEP)
        infos: dict[str, Any] = {}
        for index in np.flatnonzero(~resets):
            info = self.single.info(self._prompts[index], frames[index], float(uncertainty[index]))
            if same[index]:
                info = {"final_obs": self._frames[index].copy(), "final_info": info}
            infos = self._add_info(infos, info, int(index))
        if (resets | same).any():
            infos = self._begin(np.flatnonzero(resets | same), [None] * self.num_envs, None, infos)
        rewards = np.where(resets, zeros, rewards)
        return self._frames.copy(), rewards, terminations, truncations, infos

    def render(self) -> tuple[UInt8[np.ndarray, "h w 3"], ...] | None:
        """The current pictures."""
        return None if self.render_mode is None or self._dreams is None else tuple(self._frames.copy())

    def observe(self, actions: Any, frames: UInt8[np.ndarray, "n *f h w 3"]) -> None:
        """One control step of every row that is seen and not dreamt (see `Dream.observe`).

        Raises:
            ValueError: the actions or the frames do not fit the rows, or reset was not called.
        """
        if self._dreams is None:
            raise ValueError("orrery/Dream-v0 has no dream yet; call reset first")
        frames = np.asarray(frames)
        seen = frames[:, None] if frames.ndim == 4 else frames
        self._dreams = self.model.observe(self._dreams, seen, self._checked_actions(actions))
        self._frames[:] = seen[:, -1]
        self._step_counts += 1

    def save_state(self) -> list[DreamState]:
        """Every row's whole state; each may go on in any row, or alone in `orrery/Dream-v0`."""
        if self._dreams is None:
            raise ValueError("orrery/Dream-v0 has no dream yet; call reset first")
        return [
            DreamState(
                self.world,
                row(self._dreams, index),
                self._prompts[index],
                self._frames[index].copy(),
                int(self._step_counts[index]),
                dict(self._generators[index].bit_generator.state),
                bool(self._over[index]),
            )
            for index in range(self.num_envs)
        ]

    def load_state(self, states: Sequence[Any]) -> None:
        """Put saved states, of this env or of single dreams, into the rows: one for each."""
        if not isinstance(states, Sequence) or len(states) != self.num_envs:
            raise ValueError(f"states must be a list of one a row ({self.num_envs}), as save_state gives")
        states = [self.single.checked_state(state) for state in states]
        self._dreams = stacked([state.dream for state in states])
        for index, state in enumerate(states):
            self._prompts[index], self._frames[index] = state.prompt, state.frame
            self._step_counts[index], self._over[index] = state.step_count, state.over
            self._generators[index].bit_generator.state = state.generator

    def _begin(
        self,
        which: np.ndarray,
        prompts: Sequence[str | None],
        images: UInt8[np.ndarray, "n h w 3"] | None,
        infos: dict[str, Any],
    ) -> dict[str, Any]:
        """Begin the rows anew and add their info to that of the others."""
        starts = [drawn_start(self._generators[i], self.world, prompts[i]) for i in which]
        words, seeds = [prompt for prompt, _ in starts], [seed for _, seed in starts]
        own = None if images is None else images[which]
        starter = self.single.starter([prompts[i] for i in which])
        if len(which) == self.num_envs:
            size = {"height": self.single.height, "width": self.single.width}
            self._dreams, frames, uncertainty = starter.start(words, self.world, seeds, images=own, **size)
        else:
            assert self._dreams is not None  # a mask needs a first reset
            self._dreams, frames, uncertainty = starter.restart(
                self._dreams, which.tolist(), words, seeds, images=own
            )
        for place, index in enumerate(which.tolist()):
            self._prompts[index], self._frames[index] = words[place], frames[place, -1]
            info = self.single.info(words[place], frames[place], float(uncertainty[place]))
            infos = self._add_info(infos, info, index)
        self._step_counts[which], self._over[which] = 0, False
        return infos

    def _checked_actions(self, actions: Any) -> Float[np.ndarray, "n a"]:
        """Every row's action as the model takes it. Raises ValueError unless there is one a row, each in the
        action space."""
        if not isinstance(actions, Collection | np.ndarray) or len(actions) != self.num_envs:
            got = len(actions) if isinstance(actions, Collection | np.ndarray) else repr(actions)
            raise ValueError(f"actions must be one a row ({self.num_envs}), got {got}")
        checked = []
        for index, action in enumerate(actions):
            try:
                checked.append(self.single.checked_actions([action]))
            except ValueError as error:
                raise ValueError(f"row {index}: {error}") from error
        return np.concatenate(checked)

    def _checked_mask(self, mask: Any) -> Bool[np.ndarray, " n"]:
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must be a boolean array of shape ({self.num_envs},), got {mask!r}")
        if not mask.any():
            raise ValueError("reset_mask must name at least one row, got none; leave it out to reset all")
        if self._dreams is None and not mask.all():
            raise ValueError("reset_mask is for dreams that have begun; call reset without it first")
        return mask

    def _checked_options(
        self, options: dict[str, Any]
    ) -> tuple[list[str | None], UInt8[np.ndarray, "n h w 3"] | None]:
        """One prompt and one picture a row."""
        prompt, image = options.get("prompt"), options.get("image")
        prompts = list(prompt) if isinstance(prompt, list | tuple | np.ndarray) else [prompt] * self.num_envs
        if len(prompts) != self.num_envs:
            raise ValueError(f"prompt must be one text or one a row ({self.num_envs}), got {len(prompts)}")
        for own in prompts:
            checked_options({**options, "prompt": own})
            self.single.check_prompt(own)
        if image is None:
            return prompts, None
        each = image if isinstance(image, np.ndarray) and image.ndim == 4 else [image] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"image must be one picture or one a row ({self.num_envs}), got {len(each)}")
        return prompts, np.stack([checked_image(own, self.single.height, self.single.width) for own in each])
