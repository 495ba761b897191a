"""A canvas is the only request that the simulator takes: latent steps, each unknown, known and held, or known
and free to move from a noise level, with their conditions. A task is a way to fill one in; generating takes
every level to zero."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import TypedDict, Unpack

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from recon3d.cameras import Cameras
from simulator.video import Frames, resize

HELD, FREE = 0.0, 1.0
DRAFTED_FROM = 2.0  # times the pixels of the training, above which a canvas is drafted smaller first
DRAFT_LEVEL = 0.7  # noise from which a draft keeps its composition and gets details of its own
BESIDE_LEVEL = 0.5  # the same beside frames that are held, which show the details; half way to the draft
Actions = Float[np.ndarray, "steps a"]


@dataclass(frozen=True)
class Canvas:
    """One clip to be made, of 1 + k * time_factor frames (k + 1 latent steps).

    Attributes:
        prompt: what is to be seen, or one prompt for each shot; None means without words.
        frames: pixels where known; anything where not.
        start_level: noise level that each latent step starts from: 1 unknown; 0 known and held; between,
            known, re-noised to that level and free to move (where it is walked: made from noise alone, and
            what it shows coarsely then follows what is known by 1 minus that).
        world: name of the world whose actions and habits apply, or None.
        actions: in [-1, 1], the one that leads from each latent step to the next, or None.
        cameras: one for each latent step (only their poses relative to the first count), or None.
        guidance: how strongly the prompt pulls (classifier-free guidance, Ho & Salimans 2022) on what is made
            at once, first frames among it (half as strongly on these, and on edits, where the captioner
            leads them, see `choosing`); 1 is not at all, nor are they led. What is walked follows the frames
            before.
        shot: the shot that each latent step belongs to, from 0 up; None: all to one.
        closed: the last latent step is the first, so that the clip plays in a loop.
    """

    prompt: str | tuple[str, ...] | None
    frames: Frames
    start_level: Float[np.ndarray, " n"]
    world: str | None = None
    actions: Actions | None = None
    cameras: Cameras | None = None
    guidance: float = 3.0
    shot: Int[np.ndarray, " n"] | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        n = len(self.start_level)
        if not n or not len(self.frames):
            raise ValueError("canvas has no frame; ask for at least 1")
        self._check_frames(n)
        if not np.isfinite(self.guidance):
            raise ValueError(f"guidance must be a number, got {self.guidance}; 1 is no pull, 3 is usual")
        if not np.all((self.start_level >= 0) & (self.start_level <= 1)):
            raise ValueError(f"start_level must lie in [0, 1], got {self.start_level.tolist()}")
        if not np.any(self.start_level > 0):
            raise ValueError("canvas has no unknown frame: every start_level is 0; free at least one")
        if self.actions is not None:
            self._check_actions(n, self.actions)
        if self.cameras is not None and len(self.cameras) != n:
            raise ValueError(f"canvas of {n} latent steps needs {n} cameras, got {len(self.cameras)}")
        self._check_shots(n)
        if self.closed and (n < 3 or self.start_level[0] != self.start_level[-1]):
            raise ValueError(
                f"a loop needs at least 3 latent steps whose first and last start alike, got {n} from "
                f"{self.start_level[0]:g} to {self.start_level[-1]:g}"
            )

    def _check_frames(self, n: int) -> None:
        shape, kind = self.frames.shape, self.frames.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(
                f"frames must be uint8 of shape (t, h, w, 3), got {kind} of shape {shape}; convert them"
            )
        if (shape[0] == 1) != (n == 1) or (shape[0] - 1) % max(1, n - 1):
            raise ValueError(
                f"canvas of {shape[0]} frames cannot have {n} latent steps: the first is one frame, and the "
                "others are equally many"
            )

    @staticmethod
    def _check_actions(n: int, actions: Actions) -> None:
        if actions.ndim != 2 or len(actions) != n - 1:
            raise ValueError(
                f"canvas of {n} latent steps needs {n - 1} actions, got {len(actions)} ({actions.shape})"
            )
        if not (np.abs(actions) <= 1).all():
            raise ValueError("actions must lie in [-1, 1], and some do not, or are no numbers; clip them")

    def _check_shots(self, n: int) -> None:
        if self.shot is None:
            if len(self.prompts) > 1:
                raise ValueError(f"{len(self.prompts)} prompts need `shot`, which says whose each step is")
            return
        if len(self.shot) != n:
            raise ValueError(f"canvas of {n} latent steps needs {n} entries in shot, got {len(self.shot)}")
        if self.shot.min() < 0 or self.shot.max() >= max(1, len(self.prompts)):
            raise ValueError(
                f"shot must number the {len(self.prompts)} prompts from 0, got {self.shot.tolist()}"
            )

    @property
    def prompts(self) -> tuple[str, ...]:
        """One for each shot; none without words."""
        if self.prompt is None:
            return ()
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def first_prompt(self) -> str:
        """Of the shot that the first frame belongs to. Raises IndexError where there are no words."""
        return self.prompts[0 if self.shot is None else int(self.shot[0])]

    @property
    def determined(self) -> bool:
        """Whether frames are known and actions or cameras lead on from them, which leaves little open."""
        return bool(self.held.any()) and (self.actions is not None or self.cameras is not None)

    @property
    def held(self) -> Bool[np.ndarray, " n"]:
        return self.start_level == HELD

    @property
    def held_frames(self) -> Bool[np.ndarray, " t"]:
        """Those of the held latent steps."""
        first, later = self.held[:1], self.held[1:]
        return np.append(first, np.repeat(later, (len(self.frames) - 1) // max(1, len(later))))


class Given(TypedDict, total=False):
    """What any task may be told beside pictures and words (see `Canvas`)."""

    world: str | None
    actions: Actions | None
    cameras: Cameras | None
    guidance: float


def latent_steps(frames: int, time_factor: int) -> int:
    """Latent steps of a clip. Raises ValueError if the tokenizer cannot divide it."""
    if frames < 1 or (frames - 1) % time_factor:
        near = max(0, round((frames - 1) / time_factor)) * time_factor + 1
        raise ValueError(f"--frames must be 1 + a multiple of {time_factor}, got {frames}; use {near}")
    return (frames - 1) // time_factor + 1


def _fill(
    prompt: str | None,
    frames: Frames,
    known: Bool[np.ndarray, " t"],
    time_factor: int,
    **given: Unpack[Given],
) -> Canvas:
    """Hold the known frames, free the rest. Raises ValueError if a latent step is known in part."""
    n = latent_steps(len(frames), time_factor)
    inside = known[1:].reshape(n - 1, time_factor)
    if (inside.any(axis=1) != inside.all(axis=1)).any():
        raise ValueError(
            f"known frames must fill whole latent steps of {time_factor} frames (the first step is one "
            "frame); give more or fewer"
        )
    held = np.append(known[:1], inside.all(axis=1))
    return Canvas(prompt, frames, np.where(held, HELD, FREE).astype(np.float32), **given)


def text_to_video(
    prompt: str | None,
    frames: int,
    *,
    height: int = 64,
    width: int = 64,
    time_factor: int = 1,
    **given: Unpack[Given],
) -> Canvas:
    """A video from words alone (one frame: a picture; with cameras: a sweep)."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    return _fill(prompt, pixels, np.zeros(frames, bool), time_factor, **given)


def image_to_video(
    image: UInt8[np.ndarray, "h w 3"],
    prompt: str | None,
    frames: int,
    *,
    time_factor: int = 1,
    **given: Unpack[Given],
) -> Canvas:
    """A video that starts with a given picture."""
    return extend(image[None], prompt, frames - 1, time_factor=time_factor, **given)


def extend(
    video: Frames, prompt: str | None, frames: int, *, time_factor: int = 1, **given: Unpack[Given]
) -> Canvas:
    """A video and so many frames after it."""
    return infill(video, video[:0], prompt, frames, time_factor=time_factor, **given)


def extend_back(
    video: Frames, prompt: str | None, frames: int, *, time_factor: int = 1, **given: Unpack[Given]
) -> Canvas:
    """So many frames before a video, and the video."""
    return infill(video[:0], video, prompt, frames, time_factor=time_factor, **given)


def infill(
    before: Frames,
    after: UInt8[np.ndarray, "t2 h2 w2 3"],
    prompt: str | None,
    frames: int,
    *,
    time_factor: int = 1,
    **given: Unpack[Given],
) -> Canvas:
    """So many frames between two clips, which are held."""
    _check_alike(before, after)
    pixels = np.concatenate([before, np.zeros((frames, *before.shape[1:]), np.uint8), after])
    known = np.ones(len(pixels), bool)
    known[len(before) : len(before) + frames] = False
    return _fill(prompt, pixels, known, time_factor, **given)


def blend(
    before: Frames,
    after: UInt8[np.ndarray, "t2 h2 w2 3"],
    prompt: str | None,
    frames: int,
    *,
    level: float = 0.9,
    time_factor: int = 1,
    **given: Unpack[Given],
) -> Canvas:
    """So many frames that turn one clip into another, made from their cross-fade, re-noised to `level`."""
    canvas = infill(before, after, prompt, frames, time_factor=time_factor, **given)
    pixels = canvas.frames.copy()
    pixels[len(before) : len(before) + frames] = cross_fade(before[-1], after[0], frames)
    return replace(canvas, frames=pixels, start_level=np.where(canvas.held, HELD, level).astype(np.float32))


def cross_fade(first: UInt8[np.ndarray, "h w 3"], last: UInt8[np.ndarray, "h w 3"], frames: int) -> Frames:
    """The frames strictly between two pictures, fading linearly from one to the other."""
    share = (np.arange(1, frames + 1) / (frames + 1))[:, None, None, None]
    return np.rint((1 - share) * first + share * last).astype(np.uint8)


def loop(
    prompt: str | None,
    frames: int,
    *,
    image: UInt8[np.ndarray, "h w 3"] | None = None,
    height: int = 64,
    width: int = 64,
    time_factor: int = 1,
    **given: Unpack[Given],
) -> Canvas:
    """A video whose last frame is its first, from words or from a picture that it starts and ends with.

    To close a clip that is there already, `infill` between its end and its start.
    """
    if image is None:
        empty = text_to_video(prompt, frames, height=height, width=width, time_factor=time_factor, **given)
        return replace(empty, closed=True)
    pixels = np.repeat(image[None], frames, axis=0)
    level = np.full(latent_steps(frames, time_factor), FREE, np.float32)
    level[[0, -1]] = HELD
    return Canvas(prompt, pixels, level, closed=True, **given)


def edit(
    video: Frames, prompt: str | None, *, level: float = 0.8, time_factor: int = 1, **given: Unpack[Given]
) -> Canvas:
    """A video again under another prompt: every frame re-noised to `level` (SDEdit, Meng et al. 2022); the
    higher, the less of it stays. From more than a draft's on, the captioner leads it (`choosing`)."""
    if not 0 < level <= 1:
        raise ValueError(f"level must lie in (0, 1], got {level}; 0.6 keeps colours, 0.8 what stands where")
    steps = latent_steps(len(video), time_factor)
    return Canvas(prompt, video, np.full(steps, level, np.float32), **given)


def upscale(
    video: Frames,
    prompt: str | None,
    height: int,
    width: int,
    *,
    level: float = DRAFT_LEVEL,
    time_factor: int = 1,
    **given: Unpack[Given],
) -> Canvas:
    """A draft made again at another size: resized, re-noised to `level`, and made new where it moved."""
    if height < video.shape[1] or width < video.shape[2]:
        raise ValueError(
            f"upscale needs a size of at least {video.shape[1]}x{video.shape[2]}, got {height}x{width}"
        )
    return edit(resize(video, height, width), prompt, level=level, time_factor=time_factor, **given)


def smaller(canvas: Canvas, trained: tuple[int, int], unit: int) -> Canvas | None:
    """The same request for a draft of a quarter of the pixels, or more, in multiples of `unit` pixels. None
    where pictures are not much larger than the trained height and width, or nothing is freer than a draft
    leaves it."""
    if not drafted(canvas, trained):
        return None
    size = canvas.frames.shape[1:3]
    height, width = _near(size, max(0.25, trained[0] * trained[1] / (size[0] * size[1])), unit)
    cameras = None if canvas.cameras is None else canvas.cameras.resized(height, width)
    return replace(canvas, frames=resize(canvas.frames, height, width), cameras=cameras)


def drafted(canvas: Canvas, trained: tuple[int, int]) -> bool:
    """Whether pictures are much larger than the trained height and width, and not what a draft leaves."""
    height, width = canvas.frames.shape[1:3]
    large = height * width > DRAFTED_FROM * trained[0] * trained[1]
    return large and bool((canvas.start_level > DRAFT_LEVEL).any())


def check_size(height: int, width: int, unit: int) -> None:
    """Raises ValueError, with sizes that would do, unless both are multiples of so many pixels."""
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % unit:
            near = [low for low in (size - size % unit, size - size % unit + unit) if low > 0]
            raise ValueError(
                f"{name} must be a multiple of {unit}, got {size}; use {' or '.join(map(str, near)) or unit}"
            )


def _near(size: tuple[int, int], area: float, unit: int) -> tuple[int, int]:
    """Multiples of `unit`, of nearly the same shape and nearly so many times the area, but less than it:
    shape matters more."""
    (height, width), found = size, []
    for high, wide in product(range(unit, height + 1, unit), range(unit, width + 1, unit)):
        smaller_by, stretched = high * wide / (height * width), abs(np.log(high * width / (wide * height)))
        if smaller_by < 0.9:
            found.append((3 * stretched + abs(np.log(smaller_by / area)), high, wide))
    return min(found)[1:]


def from_draft(canvas: Canvas, draft: Frames) -> Canvas:
    """The same request where a draft of it is there: what is held stays, the rest starts from the draft."""
    frames, known = resize(draft, *canvas.frames.shape[1:3]), canvas.held_frames
    frames[known] = canvas.frames[known]
    level = BESIDE_LEVEL if known.any() else DRAFT_LEVEL
    return replace(canvas, frames=frames, start_level=np.minimum(canvas.start_level, level))


SHOT_MARK = re.compile(r"\bshot\s+\d+\s*:", re.IGNORECASE)


def shots_of(prompt: str) -> tuple[str, ...]:
    """`shot 1: a room. shot 2: the same` -> its prompts; one prompt where no shot is marked."""
    if not SHOT_MARK.search(prompt):
        return (prompt,)
    head, *shots = SHOT_MARK.split(prompt)
    numbers = [int(number) for number in re.findall(r"\bshot\s+(\d+)\s*:", prompt, re.IGNORECASE)]
    if numbers != list(range(1, len(shots) + 1)):
        raise ValueError(f"shots must be numbered 1, 2, ... in their order, got {numbers}")
    if head.strip() or not all(shot.strip() for shot in shots):
        raise ValueError(f"prompt must read 'shot 1: ... shot 2: ...' with words for each, got {prompt!r}")
    return tuple(shot.strip() for shot in shots)


def multi_shot(
    prompts: tuple[str, ...],
    frames: int,
    *,
    height: int = 64,
    width: int = 64,
    time_factor: int = 1,
    **given: Unpack[Given],
) -> Canvas:
    """One clip of several shots of the same things, each of about as many frames, cut from one to the
    next."""
    canvas = text_to_video(None, frames, height=height, width=width, time_factor=time_factor, **given)
    n = len(canvas.start_level)
    if n < 2 * len(prompts):
        raise ValueError(f"{len(prompts)} shots need at least {2 * len(prompts)} latent steps, got {n}")
    return replace(canvas, prompt=prompts, shot=np.arange(n) * len(prompts) // n)


def _check_alike(before: Frames, after: UInt8[np.ndarray, "t2 h2 w2 3"]) -> None:
    if before.shape[1:] != after.shape[1:]:
        raise ValueError(
            f"both clips need one size, got {before.shape[1]}x{before.shape[2]} and "
            f"{after.shape[1]}x{after.shape[2]}; resize one"
        )
