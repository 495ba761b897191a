"""What a probe can be pointed at, asked three things: a rollout, a sweep, a continuation.

A reference world, a dream and a plain video file answer those that they can with a `Clip`, and refuse the
others with `CannotAnswer`, which a probe reports as "cannot judge". With `probe.py`, `demo.py` and `bench.py`
beside it, this is where probes meet envs and models.
"""

import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from envs import lab_camera
from envs.captions import random_prompt, random_things
from probes.arrangement import Ask, Side
from probes.checker import UNKNOWN, LabelledFrames
from probes.prompt_following import Swap
from recon3d.cameras import Cameras, from_transforms, intrinsics, look_at
from simulator.canvas import extend, text_to_video
from simulator.captions import parse, styles, swap
from simulator.checkpoint import CONFIG
from simulator.clips import HELD_OUT_SEED, list_episodes, read_episode
from simulator.video import VIDEO_SUFFIXES, read_image, read_video
from simulator.words import COLOURS, FLOORS, SHAPES
from simulator.world_model import WorldModel

MOST_ASKED = 4
LOOKED_AT = 16  # of given frames, at most, when a dream continues them

Frames = UInt8[np.ndarray, "t h w 3"]
Actions = Float[np.ndarray, "steps a"]


class CannotAnswer(ValueError):
    """A subject was asked for something that it cannot do; the message says what and why."""


@dataclass(frozen=True)
class Clip:
    """What a subject answers: a video with its clock, and what is known besides.

    cameras: one per frame, or None where nobody knows them. truth: what only a reference world can know
    (`depth` in metres, `states` of the things). fps_known: False where a file's container is the only source.
    """

    video: Frames
    fps: float
    cameras: Cameras | None = None
    truth: dict[str, Any] | None = None
    prompt: str = ""
    fps_known: bool = True


class Subject(Protocol):
    """Anything that a probe can question."""

    name: str

    def rollout(self, prompt: str | None, actions: Actions, seed: int) -> Clip:
        """Frames 0..T of one run under T actions; without a prompt the seed draws one."""
        ...

    def sweep(self, prompt: str | None, cameras: Cameras, seed: int) -> Clip:
        """One still scene as the cameras see it, one frame each."""
        ...

    def continuation(self, frames: Frames, length: int, seed: int) -> Clip:
        """`length` frames that go on after the given ones."""
        ...


@dataclass(frozen=True)
class ReferenceSubject:
    """A reference world: exact physics, exact cameras."""

    env_id: str
    height: int = 64
    width: int = 64
    scene: dict[str, Any] | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        known = [name for name in env_ids() if name != "orrery/Dream-v0"]
        if self.env_id.removeprefix("envs:") not in known:
            raise ValueError(f"a reference world must be one of {', '.join(known)}, got {self.env_id!r}")
        object.__setattr__(self, "name", self.env_id.removeprefix("envs:"))

    def _started(self, prompt: str | None, seed: int) -> tuple[gymnasium.Env, np.ndarray, dict[str, Any]]:
        env = gymnasium.make(self.name, height=self.height, width=self.width, disable_env_checker=True)
        asked = {"prompt": prompt} if prompt else {"scene": self.scene} if self.scene else {}
        frame, info = env.reset(seed=seed, options=asked)
        return env, frame, info

    def rollout(self, prompt: str | None, actions: Actions, seed: int) -> Clip:
        """Run the world; the clip ends early where the world does."""
        env, frame, info = self._started(prompt, seed)
        world: Any = env.unwrapped
        with env:
            frames, infos, states = [frame], [info], [world.state_vector()]
            for action in actions:
                frame, _, terminated, truncated, info = env.step(action)
                frames.append(frame)
                infos.append(info)
                states.append(world.state_vector())
                if terminated or truncated:
                    break
            fps = float(env.metadata["render_fps"])
        K, c2w = (torch.from_numpy(np.stack([info[key] for info in infos])) for key in ("K", "c2w"))
        cameras = Cameras(K, c2w, self.height, self.width)
        return Clip(np.stack(frames), fps, cameras, {"states": np.stack(states)}, infos[0]["prompt"])

    def asks(self, count: int, seed: int) -> tuple[list[Ask], UInt8[np.ndarray, "n h w 3"]]:
        """Pictures of one to four things with what the world's own captions say of them, so that a checker's
        reading can be judged where the truth is known."""
        asks, pictures = [], []
        with gymnasium.make(self.name, height=self.height, width=self.width, disable_env_checker=True) as env:
            world: Any = env.unwrapped
            for index in range(count):
                scene = {"things": [{} for _ in range(1 + index % MOST_ASKED)]}
                picture, _ = env.reset(seed=HELD_OUT_SEED + seed + index, options={"scene": scene})
                told = [ask_of(caption, HELD_OUT_SEED + seed + index) for caption in world.captions()[:2]]
                asks.append(told[-1])
                pictures.append(picture)
        return asks, np.stack(pictures)

    def sweep(self, prompt: str | None, cameras: Cameras, seed: int) -> Clip:
        """The first state of a scene, rendered from every camera, with exact depth."""
        env, _, info = self._started(prompt, seed)
        world: Any = env.unwrapped
        with env:
            frames, depth = world.render_at(cameras)
            fps = float(env.metadata["render_fps"])
        return Clip(frames, fps, cameras, {"depth": depth}, info["prompt"])

    def continuation(self, frames: Frames, length: int, seed: int) -> Clip:
        raise CannotAnswer(
            f"{self.name} cannot continue frames: a reference world starts from a scene or a prompt"
        )


@dataclass(frozen=True)
class DreamSubject:
    """The world model, dreaming one of its worlds."""

    model: WorldModel
    world: str
    checkpoint: str = "default"

    @property
    def name(self) -> str:
        return f"dream of {self.world}"

    def __post_init__(self) -> None:
        self.model.action_size(self.world)  # raises ValueError for a world that the model does not know

    @property
    def fps(self) -> float:
        return self.model.frames_per_step / self.model.time_step_s

    def rollout(self, prompt: str | None, actions: Actions, seed: int) -> Clip:
        """Dream from the prompt alone; Lab's fixed camera is known, other worlds' cameras are not."""
        prompt = prompt or random_prompt(np.random.default_rng(seed), self.world)
        state, first, _ = self.model.start([prompt], self.world, [seed])
        frames = [first[0]]
        for action in np.asarray(actions, np.float32):
            state, video, _, terminated, _ = self.model.step(state, action[None])
            frames.append(video[0])
            if terminated[0]:
                break
        video = np.concatenate(frames)
        return Clip(video, self.fps, self._cameras(video), None, prompt)

    def _cameras(self, video: Frames) -> Cameras | None:
        return lab_cameras(len(video), *video.shape[1:3]) if self.world == "Lab" else None

    def sweep(self, prompt: str | None, cameras: Cameras, seed: int) -> Clip:
        """One canvas of all cameras; what the model makes of it (`simulator.walk` says when it walks)."""
        prompt = prompt or random_prompt(np.random.default_rng(seed), self.world)
        factor = self.model.frames_per_step
        canvas = text_to_video(
            prompt,
            1 + (len(cameras) - 1) * factor,
            world=self.world,
            height=cameras.height,
            width=cameras.width,
            cameras=cameras,
            time_factor=factor,
        )
        video = self.model.generate(canvas, seed=seed)[::factor]
        return Clip(video, self.fps, cameras, None, prompt)

    def continuation(self, frames: Frames, length: int, seed: int) -> Clip:
        """What follows the last frames, as many as the model looks back at, without words; nobody knows what
        is done."""
        if length < 1:
            raise ValueError(f"length must be at least 1 frame, got {length}")
        factor = self.model.frames_per_step
        steps, known = -(-length // factor), (min(len(frames), LOOKED_AT) - 1) // factor * factor + 1
        canvas = extend(frames[-known:], None, steps * factor, world=self.world, time_factor=factor)
        video = self.model.generate(canvas, seed=seed)[known : known + length]
        return Clip(video, self.fps, self._cameras(video))


@dataclass(frozen=True)
class FileSubject:
    """A video file, or a folder of pictures with a nerfstudio `transforms.json`: it only has what it has."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def recorded(self) -> Clip:
        """The file's own clip, with cameras where `transforms.json` gives them; its frame rate is unsure."""
        described = self.path / "transforms.json" if self.path.is_dir() else None
        if described is None:
            video, fps = read_video(self.path)
            return Clip(video, fps, fps_known=False)
        cameras, files = from_transforms(json.loads(described.read_text()))
        pictures = [read_image(self.path / name) for name in files]
        if {picture.shape[:2] for picture in pictures} != {(cameras.height, cameras.width)}:
            raise ValueError(
                f"{self.path}: pictures must be {cameras.height}x{cameras.width} as transforms.json has it"
            )
        return Clip(np.stack(pictures), 10.0, cameras, fps_known=False)

    def rollout(self, prompt: str | None, actions: Actions, seed: int) -> Clip:
        raise CannotAnswer(f"{self.name} is a recording: it cannot be steered or prompted")

    def sweep(self, prompt: str | None, cameras: Cameras, seed: int) -> Clip:
        raise CannotAnswer(f"{self.name} is a recording: it cannot be seen from other cameras")

    def continuation(self, frames: Frames, length: int, seed: int) -> Clip:
        raise CannotAnswer(f"{self.name} is a recording: it cannot be continued")


def env_ids() -> list[str]:
    """Our env ids as Gymnasium knows them."""
    return sorted(key for key in gymnasium.registry if key.startswith("orrery/"))


def lab_cameras(count: int, height: int, width: int) -> Cameras:
    """Lab's fixed camera, once per frame: known in the dream as in the reference world."""
    pose = look_at(torch.tensor([lab_camera.EYE]), torch.tensor([lab_camera.TARGET]))
    K = intrinsics(lab_camera.FOVY_DEG, height, width)
    return Cameras(K.repeat(count, 1, 1), pose.repeat(count, 1, 1), height, width)


AnySubject = ReferenceSubject | DreamSubject | FileSubject


def subjects_of(target: str) -> dict[str, AnySubject]:
    """What a command line names, by world: a video or posed pictures (world ""), an env id, a checkpoint.

    Raises ValueError where it is none of them.
    """
    path, name = Path(target), target.removeprefix("envs:")
    if path.suffix.lower() in VIDEO_SUFFIXES or (path / "transforms.json").is_file():
        return {"": FileSubject(path)}
    if path.is_dir() and not (path / CONFIG).is_file():
        raise ValueError(
            f"{path} holds neither a transforms.json (pictures with cameras) nor a {CONFIG} (a checkpoint); "
            "without cameras give a video file"
        )
    if name in ("default", "orrery/Dream-v0") or path.is_dir():
        checkpoint = str(path) if path.is_dir() else "default"
        model = WorldModel.load(checkpoint)
        return {world: DreamSubject(model, world, checkpoint) for world in model.worlds}
    if name in env_ids():
        return {name.removeprefix("orrery/").removesuffix("-v0"): ReferenceSubject(name)}
    raise ValueError(
        f"target must be a video file, a folder with transforms.json, an env id or a checkpoint, got "
        f"{target!r}; known env ids: {', '.join(env_ids())}"
    )


def held_out_swaps(count: int, seed: int) -> list[Swap]:
    """Prompts from held-out seeds, each with one word of its first thing swapped.

    Colour and shape alternate.
    """
    swaps = []
    for index in range(count):
        generator = np.random.default_rng((HELD_OUT_SEED + seed, index))
        prompt = random_prompt(generator, "Orbit")
        attribute: Literal["colour", "shape"] = "shape" if index % 2 else "colour"
        changed = swap(prompt, attribute, generator)[0]
        things, after = parse(prompt).things, parse(changed).things[0]
        before = things[0]
        colours, shapes = ((before[word], after[word]) for word in ("colour", "shape"))
        swaps.append(
            Swap(prompt, changed, attribute, colours, shapes, HELD_OUT_SEED + seed + index, len(things))
        )
    return swaps


def held_out_asks(count: int, seed: int) -> list[Ask]:
    """Prompts of Orbit from held-out seeds that name one to four things, one number as often as another.

    Those of several mostly say on which side of the second the first one is.
    """
    asks = []
    for index in range(count):
        generator = np.random.default_rng((HELD_OUT_SEED + seed, index, 1))
        things = random_things(generator, 1 + index % MOST_ASKED)
        told = styles("Orbit", things, floor=str(generator.choice(FLOORS)))["plain"]
        asks.append(ask_of(told[1], HELD_OUT_SEED + seed + index))
    return asks


def ask_of(prompt: str, seed: int) -> Ask:
    """What a prompt names, and on which side of the second thing it puts the first."""
    said = parse(prompt)
    word = next((word for i, word, j in said.relations if (i, j) == (0, 1)), None)
    side: Side | None = "left of" if word == "left of" else "right of" if word == "right of" else None
    return Ask(prompt, seed, tuple((thing["colour"], thing["shape"]) for thing in said.things), side)


def drop_prompts(count: int, seed: int) -> list[str]:
    """Prompts of Lab in which one thing falls, from held-out seeds."""
    generators = (np.random.default_rng((HELD_OUT_SEED + seed, index)) for index in range(count))
    return [random_prompt(generator, "Lab", kind="drop", count=1) for generator in generators]


def labelled_frames(folder: Path, *, episodes: int, frames_per_episode: int, seed: int) -> LabelledFrames:
    """Frames of recorded Orbit episodes, whose things stand still, and what can be seen in them.

    A thing is unclear where its centre is hidden behind a nearer thing or close to the picture's edge.
    """
    generator = np.random.default_rng(seed)
    paths = list_episodes(folder)
    found: list[tuple[np.ndarray, ...]] = []
    for index in tqdm(generator.permutation(len(paths))[:episodes], desc=f"reading {folder}"):
        episode = read_episode(paths[index])
        if episode.K is None or episode.c2w is None or "scene" not in episode.metadata:
            raise ValueError(f"{paths[index]} has no cameras or scene; record it from orrery/Orbit-v0")
        picks = generator.choice(
            len(episode.frames), min(frames_per_episode, len(episode.frames)), replace=False
        )
        K = torch.from_numpy(episode.K).repeat(len(picks), 1, 1)
        cameras = Cameras(K, torch.from_numpy(episode.c2w[picks]), *episode.frames.shape[1:3])
        found.append((episode.frames[picks], *_labels(episode.metadata["scene"]["things"], cameras)))
    return LabelledFrames(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _labels(
    things: list[dict[str, Any]], cameras: Cameras
) -> tuple[Int[np.ndarray, "n colours"], Int[np.ndarray, "n rows columns"]]:
    """What each camera sees of the things: by colour, and by place on a map of half the picture's size."""
    labels = np.zeros((len(cameras), len(COLOURS)), np.int64)
    centres = torch.tensor([thing["position"] for thing in things], dtype=torch.float32)
    places, depth = (values.numpy() for values in cameras.project(centres))
    radii = cameras.K[0, 1, 1].item() * np.array([thing["radius_m"] for thing in things]) / depth
    far_edge = np.array([cameras.width, cameras.height]) - places
    edge = np.minimum(places, far_edge).min(axis=-1)
    rows, columns = (2 * grid + 1.0 for grid in np.indices((cameras.height // 2, cameras.width // 2)))
    painted = np.zeros((len(cameras), *rows.shape), np.int64)
    for index in np.argsort(-depth.mean(axis=0)):  # the nearest last
        thing = things[index]
        apart = np.linalg.norm(places - places[:, index : index + 1], axis=-1)
        hidden = ((apart < 0.9 * radii) & (depth < depth[:, index : index + 1])).any(axis=1)
        unclear = hidden | (edge[:, index] < 0.5 * radii[:, index])
        column = COLOURS.index(thing["colour"])
        labels[:, column] = np.where(unclear, UNKNOWN, 1 + SHAPES.index(thing["shape"]))
        x, y = places[:, index, 0, None, None], places[:, index, 1, None, None]
        distance = np.hypot(columns - x, rows - y) / radii[:, index, None, None]
        painted[distance < 1.7] = UNKNOWN
        if thing["shape"] != "L block":  # its centre is not always on it
            painted[(distance < 0.35) & ~hidden[:, None, None]] = 1 + column
    return labels, painted


def pictures_from_text(
    checkpoint: str, prompts: Sequence[str], seeds: Sequence[int]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Pictures of Orbit made from words alone, in a process of its own in which MuJoCo cannot be imported.

    Args:
        checkpoint: as `WorldModel.load` takes it.
        prompts: one per picture.
        seeds: one per picture; equal seeds mean equal noise.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_forbid_mujoco) as pool:
        return pool.submit(
            _draw_pictures, checkpoint, list(prompts), list(seeds), torch.get_num_threads()
        ).result()


def _forbid_mujoco() -> None:
    """From here on `import mujoco` fails in this process; it must not have been imported before."""
    if sys.modules.get("mujoco") is not None:
        raise RuntimeError(
            "mujoco is loaded already, so pictures would not be proven to come from text alone"
        )
    sys.modules["mujoco"] = None  # type: ignore[assignment]


def _draw_pictures(
    checkpoint: str, prompts: list[str], seeds: list[int], threads: int
) -> UInt8[np.ndarray, "n h w 3"]:
    if sys.modules.get("mujoco", "absent") is not None:
        raise RuntimeError("mujoco can be imported, so pictures would not be proven to come from text alone")
    torch.set_num_threads(threads)
    model = WorldModel.load(checkpoint)
    pictures = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        canvas = text_to_video(prompt, 1, world="Orbit", height=model.height, width=model.width)
        pictures.append(model.generate(canvas, seed=seed)[0])
    return np.stack(pictures)
