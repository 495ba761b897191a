"""The captioner: a clip's latents -> which things it shows, where, and in what surroundings; and from that
its captions.

A small set predictor on the frozen tokenizer's latents of a few frames: a convolutional trunk reads each
frame, then one query per colour, and one for the surroundings, looks at all of them (cross-attention as in
DETR, Carion et al. 2020; no two things of a scene share a colour, so colours are the slots and nothing has to
be matched). Grammar makes sentences of what the queries found: a caption can be wrong, but never
ungrammatical or unreadable."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from simulator.captions import STYLES, Seen, phrase, styles
from simulator.checkpoint import PRETRAINED, as_config, load_weights, read_json, save_weights, write_json
from simulator.conv import Block, Conv
from simulator.sightings import ALL_KINDS, encode_resized
from simulator.tokenizer import Latents, Tokenizer, load_tokenizer
from simulator.video import IMAGE_SUFFIXES, Frames, read_image, read_video, resize, to_unit
from simulator.words import COLOURS, FLOORS, KINDS, SHAPES, SIZES, WALLS, WORLDS

WEIGHTS, CONFIG = "captioner.safetensors", "captioner.json"
CANNOT_JUDGE = 3


@dataclass(frozen=True)
class CaptionerConfig:
    channels: int = 16  # of the latents
    grid: int = 8  # rows and columns of a frame's latents
    frames: int = 4  # of a clip, at most
    width: int = 96
    blocks: int = 3  # of the trunk
    rounds: int = 2  # of looking
    heads: int = 4

    def of(self, channels: int) -> CaptionerConfig:
        """The same for latents of so many channels."""
        return replace(self, channels=channels)


PRESETS = {
    "tiny": CaptionerConfig(width=32, blocks=1, rounds=1),
    "small": CaptionerConfig(),
    "base": CaptionerConfig(width=256, blocks=6, rounds=4, heads=8),
}


class Found(NamedTuple):
    """What the queries found: logits, and per colour x (-1 to 1) and log depth (metres) at the first
    frame."""

    at_first: Float[Tensor, "b colours"]  # seen in the first frame
    at_all: Float[Tensor, "b colours"]  # seen in some frame
    shape: Float[Tensor, "b colours shapes"]
    size: Float[Tensor, "b colours sizes"]
    place: Float[Tensor, "b colours 2"]
    world: Float[Tensor, "b worlds"]
    kind: Float[Tensor, "b kinds"]
    floor: Float[Tensor, "b floors"]
    wall: Float[Tensor, "b walls"]

    def of_row(self, row: int) -> Found:
        """What was found in one picture."""
        return Found(*(part[row : row + 1] for part in self))


class Look(nn.Module):
    """One round: queries attend to all tokens of all frames, then think."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_token, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(
        self, queries: Float[Tensor, "b q d"], tokens: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b q d"]:
        seen = self.norm_token(tokens)
        parts = (self.query(self.norm_query(queries)), self.key(seen), self.value(seen))
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        looked = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        queries = queries + self.out(looked)
        return queries + self.mlp(self.norm_mlp(queries))


class Captioner(nn.Module):
    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.config, width = config, config.width
        self.trunk = nn.Sequential(
            Conv(config.channels, width), *(Block(width) for _ in range(config.blocks))
        )
        self.cell = nn.Parameter(0.02 * torch.randn(config.grid**2, width))
        self.order = nn.Parameter(0.02 * torch.randn(config.frames, width))
        self.queries = nn.Parameter(torch.randn(len(COLOURS) + 1, width))
        self.looks = nn.ModuleList(Look(width, config.heads) for _ in range(config.rounds))
        self.norm = nn.LayerNorm(width)
        self.thing = nn.Linear(width, 4 + len(SHAPES) + len(SIZES))
        self.scene = nn.Linear(width, len(WORLDS) + len(ALL_KINDS) + len(FLOORS) + len(WALLS))
        self.not_for_muon = {"cell", "order", "queries", "thing.weight", "scene.weight"}

    def forward(self, latents: Latents) -> Found:
        b, frames = latents.shape[:2]
        seen = self.trunk(rearrange(latents, "b f c y x -> (b f) c y x"))
        tokens = rearrange(seen, "(b f) d y x -> b f (y x) d", b=b) + self.cell + self.order[:frames, None]
        queries = self.queries.expand(b, -1, -1)
        for look in self.looks:
            queries = look(queries, rearrange(tokens, "b f n d -> b (f n) d"))
        queries = self.norm(queries).float()
        each = self.thing(queries[:, :-1]).float()
        first, some, place, shape, size = each.split([1, 1, 2, len(SHAPES), len(SIZES)], dim=-1)
        sizes = [len(WORLDS), len(ALL_KINDS), len(FLOORS), len(WALLS)]
        around = self.scene(queries[:, -1]).float().split(sizes, dim=-1)
        return Found(first[..., 0], some[..., 0], shape, size, place, *around)


def encoder_version(tokenizer: Tokenizer) -> str:
    """Names an encoder by its weights, rounded to bf16, so that a run's tokenizer and its export agree."""
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.encoder.state_dict().items()):
        digest.update(name.encode() + value.bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def words() -> dict[str, list[str]]:
    """The words that a captioner knows, in the order of its outputs."""
    lists = {"colours": COLOURS, "shapes": SHAPES, "sizes": SIZES, "worlds": WORLDS, "kinds": ALL_KINDS}
    return {name: list(found) for name, found in (lists | {"floors": FLOORS, "walls": WALLS}).items()}


def save_captioner(folder: Path, captioner: Captioner, tokenizer: Tokenizer, made: dict) -> None:
    """Write bf16 weights, and a config that says which encoder they read."""
    save_weights(folder / WEIGHTS, captioner, torch.bfloat16)
    values = {"captioner": asdict(captioner.config), "encoder": encoder_version(tokenizer), "words": words()}
    write_json(folder / CONFIG, {**values, "made": made})


@torch.inference_mode(False)  # it may lead, which takes gradients
def load_captioner(folder: Path, tokenizer: Tokenizer) -> Captioner:
    """The captioner of a folder, for this tokenizer.

    Raises ValueError if it is missing or damaged, or was trained on another encoder or other words.
    """
    values = read_json(folder / CONFIG)
    if values.get("encoder") != encoder_version(tokenizer):
        raise ValueError(
            f"{folder / CONFIG} reads another tokenizer (encoder {values.get('encoder')}, this one is "
            f"{encoder_version(tokenizer)}); train one for it with `orrery train captioner`"
        )
    if values.get("words") != words():
        raise ValueError(f"{folder / CONFIG} knows other words than simulator/words.py; train it again")
    captioner = Captioner(as_config(CaptionerConfig, values["captioner"], folder / CONFIG))
    load_weights(folder / WEIGHTS, captioner)
    return captioner.to(next(tokenizer.parameters()).device).eval().requires_grad_(False)


def captioner_for(folder: Path, tokenizer: Tokenizer) -> Captioner | None:
    """The captioner of a model's folder, or else the shipped one, if it reads this tokenizer's latents."""
    for place in (folder, PRETRAINED):
        if (place / CONFIG).exists():
            made_for = read_json(place / CONFIG)
            if (made_for.get("encoder"), made_for.get("words")) == (encoder_version(tokenizer), words()):
                return load_captioner(place, tokenizer)
    return None


@dataclass(frozen=True)
class Description:
    """What a clip shows: things of the first frame (nearest first), things that come into view later, and
    around them."""

    world: str
    things: tuple[Seen, ...]
    later: tuple[Seen, ...]
    kind: str
    floor: str
    wall: str

    def caption(self, style: str = "descriptive") -> str:
        """The fullest caption of a style (`simulator.captions.STYLES`).

        Raises ValueError for another style, or if the clip shows nothing that has a name.
        """
        if style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
        if not self.things:
            raise ValueError("the first frame shows nothing that the captioner can name; give another clip")
        told = styles(self.world, list(self.things), floor=self.floor, wall=self.wall, kind=self.kind)
        text = (told[style] or told["plain"])[-1]
        if style == "descriptive" and self.later:
            names = " and ".join(phrase(thing) for thing in self.later)
            text += f" Later {names} come{'s' * (len(self.later) == 1)} into view."
        return text


@torch.inference_mode()
def describe(frames: Frames, captioner: Captioner, tokenizer: Tokenizer) -> Description:
    """What a clip shows, read in a few frames from its first to its last; a picture is a clip of one
    frame."""
    count = min(len(frames), captioner.config.frames)
    picked = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    side = captioner.config.grid * tokenizer.config.space_factor
    each = np.concatenate([encode_resized(frame[None], tokenizer, side) for frame in picked])
    latents = torch.from_numpy(each)[None].float().to(next(captioner.parameters()).device)
    first = captioner(latents[:, :1])
    return described(first if count == 1 else combined(first, captioner(latents)))[0]


@torch.inference_mode()
def seen_in(pictures: Frames, captioner: Captioner, tokenizer: Tokenizer) -> Found:
    """What the captioner finds in pictures, each by itself."""
    side = captioner.config.grid * tokenizer.config.space_factor
    device = next(captioner.parameters()).device
    squares = pictures if pictures.shape[1:3] == (side, side) else resize(pictures, side, side)
    return captioner(tokenizer.encode(to_unit(squares[:, None], device)).float())


def combined(first: Found, clip: Found) -> Found:
    """What is there at the first frame, and where, from that frame alone (in a clip the queries mix frames
    up); what it is and what happens from all frames."""
    return clip._replace(at_first=first.at_first, place=first.place, wall=first.wall)


def described(found: Found) -> list[Description]:
    """The likeliest reading of each clip."""
    told = []
    for row in zip(*(part.cpu() for part in found), strict=True):
        first, some, shape, size, place, world, kind, floor, wall = row
        seen = [
            Seen(SHAPES[int(shape[c].argmax())], colour, SIZES[int(size[c].argmax())], float(x), float(depth))
            for c, colour in enumerate(COLOURS)
            for x, depth in [(place[c, 0], place[c, 1].exp())]
        ]
        things = sorted((seen[c] for c in torch.nonzero(first > 0)[:, 0]), key=lambda thing: thing.depth_m)
        later = [seen[c] for c in torch.nonzero((some > 0) & (first <= 0))[:, 0]]
        name = WORLDS[int(world.argmax())]
        likely = max(KINDS[name], key=lambda k: float(kind[ALL_KINDS.index(k)]))
        around = FLOORS[int(floor.argmax())], WALLS[int(wall.argmax())]
        told.append(Description(name, tuple(things), tuple(later), likely, *around))
    return told


def caption(
    video: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="a video or a picture")],
    style: Annotated[str, tyro.conf.arg(help=f"{', '.join(STYLES)}, or all")] = "descriptive",
    captioner: Annotated[
        Path | None, tyro.conf.arg(help="folder of `orrery train captioner`; the shipped one by default")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        tyro.conf.arg(help="folder of the tokenizer it was trained on; the shipped one by default"),
    ] = None,
    device: str = "cpu",
) -> int:
    """Say what a clip shows. Exit code 3 where it shows nothing that has a name."""
    if style not in (*STYLES, "all"):
        raise ValueError(f"--style must be one of {', '.join(STYLES)}, all; got {style!r}")
    picture = video.suffix.lower() in IMAGE_SUFFIXES
    frames = read_image(video)[None] if picture else read_video(video)[0]
    encoder = load_tokenizer(tokenizer or PRETRAINED, device)
    found = describe(frames, load_captioner(captioner or PRETRAINED, encoder), encoder)
    if not found.things:
        print(f"cannot judge: {video} shows nothing in its first frame that the captioner can name")
        return CANNOT_JUDGE
    for name in STYLES if style == "all" else (style,):
        print(f"{name}: {found.caption(name)}" if style == "all" else found.caption(name))
    return 0
