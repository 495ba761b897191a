"""The checker: a small conv net that reads which things a 64x64 picture of the Orbit world shows.

For each colour of the vocabulary it says whether a thing of that colour is there and of which shape (no two
things of a scene share a colour). It is trained on reference frames only, never on generated ones;
`config.json` beside the weights tells how well it reads held-out frames.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

PRETRAINED = Path(__file__).parent / "pretrained"
SIZE_PX = 64
ABSENT = 0
UNKNOWN = -1
"""Label of a colour whose thing is half hidden or half outside: neither trained on nor judged."""

Pictures = UInt8[np.ndarray, "n h w 3"]
Labels = Int[np.ndarray, "n colours"]


@dataclass(frozen=True)
class LabelledFrames:
    """Reference frames and what can be seen in them.

    labels: per colour `ABSENT`, 1 + its thing's shape, or `UNKNOWN`. places: on a map of half the picture's
    size 0 (background), 1 + a colour where a thing of it surely is, or `UNKNOWN` around things.
    """

    pictures: Pictures
    labels: Labels
    places: Int[np.ndarray, "n rows columns"]


@dataclass(frozen=True)
class CheckerTraining:
    """How the checker is trained; it takes about four minutes of one free core."""

    paint_steps: int = 150
    steps: int = 2500
    batch: int = 32
    learning_rate: float = 6e-3
    absent_weight: float = 0.25  # eight of nine colours are absent in a picture
    seed: int = 0


class Checker(nn.Module):
    """Pictures -> for each colour, logits of (absent, shape 1, shape 2, ...).

    One branch, the painter, gives every place of a 32x32 map a colour, or none; how much a colour covers says
    to one classifier of shapes, the same for all colours.
    """

    def __init__(self, colours: tuple[str, ...], shapes: tuple[str, ...], width: int = 64) -> None:
        super().__init__()
        self.colours, self.shapes, self.width = colours, shapes, width
        self.painter = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(24, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 1 + len(colours), 1),
        )
        self.presence = nn.Parameter(torch.tensor([2.0, 4.0]))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.GELU(), nn.Conv2d(32, width, 3, stride=2, padding=1)
        )
        self.blocks = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=rate, dilation=rate) for rate in (1, 1, 2)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in self.blocks)
        self.classifier = nn.Sequential(
            nn.Linear(2 * width + 4, width), nn.GELU(), nn.Linear(width, len(shapes))
        )

    def forward(
        self, pictures: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b colours classes"], Float[Tensor, "b paints h2 w2"]]:
        """Logits per colour, and log-probabilities of (no colour, colour 1, ...) per place."""
        paints = self.painter(pictures).float().log_softmax(dim=1)
        paint = paints[:, 1:].exp()
        amount = reduce(paint, "b c h w -> b c", "sum")
        x = self.stem(pictures)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(functional.gelu(norm(x)))
        x = functional.gelu(x).float()
        where = functional.avg_pool2d(paint, 2)
        where = where / where.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        mean = einsum(where, x, "b c h w, b k h w -> b c k")
        square = einsum(where, x.square(), "b c h w, b k h w -> b c k")
        spread = (square - mean.square()).clamp(min=1e-6).sqrt()
        shape = self.classifier(torch.cat([mean, spread, _outline(paint)], dim=-1)).float()
        there = self.presence[0] * torch.log(amount + 1e-3) - self.presence[1]
        present = shape.log_softmax(dim=-1) + functional.logsigmoid(there)[..., None]
        return torch.cat([functional.logsigmoid(-there)[..., None], present], dim=-1), paints

    @torch.inference_mode()
    def read(self, pictures: Pictures, batch: int = 64) -> Int[np.ndarray, "n colours"]:
        """For each picture and colour 0 (absent) or 1 + the index of the shape.

        Larger pictures are averaged down. Raises ValueError for pictures whose sides are no multiple of 64.
        """
        parts = [
            self(prepared(pictures[i : i + batch]))[0].argmax(dim=-1) for i in range(0, len(pictures), batch)
        ]
        return torch.cat(parts).numpy() if parts else np.zeros((0, len(self.colours)), np.int64)

    @torch.inference_mode()
    def paint(self, pictures: Pictures, batch: int = 64) -> Bool[np.ndarray, "n colours rows columns"]:
        """Where each colour's things are, on a map of half the size of pictures 64 px high, of even width.

        Raises ValueError for pictures of another height.
        """
        if pictures.shape[1] != SIZE_PX or pictures.shape[2] % 2:
            raise ValueError(
                f"paint is read from pictures {SIZE_PX} px high and of even width, got "
                f"{pictures.shape[1]}x{pictures.shape[2]}; resize them"
            )
        values = rearrange(torch.from_numpy(pictures).float() / 127.5 - 1, "n h w c -> n c h w")
        parts = [self.painter(part).softmax(dim=1)[:, 1:] > 0.5 for part in values.split(batch)]
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def places(self, pictures: Pictures, batch: int = 64) -> Float[np.ndarray, "n colours"]:
        """Where across each picture each colour's paint lies, from -1 (left edge) to 1; no meaning where
        absent."""
        parts = []
        for start in range(0, len(pictures), batch):
            paint = self.painter(prepared(pictures[start : start + batch])).float().softmax(dim=1)[:, 1:]
            paint = paint * (paint > 0.5)
            columns = torch.linspace(-1, 1, 2 * paint.shape[-1] + 1)[1::2]
            parts.append(einsum(paint, columns, "b c h w, w -> b c") / paint.sum(dim=(2, 3)).clamp(min=1e-6))
        return torch.cat(parts).numpy() if parts else np.zeros((0, len(self.colours)), np.float32)

    @staticmethod
    def load(folder: Path | str = PRETRAINED) -> "Checker":
        """The shipped checker or one that `train_checker` wrote.

        Raises ValueError if it is missing or damaged.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            checker = Checker(tuple(config["colours"]), tuple(config["shapes"]), config["width"])
            weights = load_file(folder / "checker.safetensors")
            checker.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{folder} holds no whole checker ({error}); write one with train_checker"
            ) from error
        return checker.eval()


def _outline(paint: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 4"]:
    """Log area, and the second moments of where a colour is (down, across, both) over those of a disc.

    A disc of area A has a variance of A / (4 pi) in any direction.
    """
    rows = torch.arange(paint.shape[2], dtype=paint.dtype)
    columns = torch.arange(paint.shape[3], dtype=paint.dtype)
    area = paint.sum(dim=(2, 3)).clamp(min=1e-3)
    down, across = paint.sum(dim=3) / area[..., None], paint.sum(dim=2) / area[..., None]
    row, column = down @ rows, across @ columns
    both = einsum(paint, rows, columns, "b c h w, h, w -> b c") / area - row * column
    moments = torch.stack([down @ rows**2 - row**2, across @ columns**2 - column**2, both], dim=-1)
    disc = (area / (4 * torch.pi)).clamp(min=0.5)[..., None]
    return torch.cat([torch.log(area + 1)[..., None], (moments / disc).clamp(-4, 4)], dim=-1)


def prepared(pictures: Pictures) -> Float[Tensor, "n 3 64 64"]:
    """uint8 pictures -> floats in [-1, 1] at 64x64 (box average)."""
    _, height, width, _ = pictures.shape
    if height % SIZE_PX or width % SIZE_PX:
        raise ValueError(
            f"the checker reads pictures with sides a multiple of {SIZE_PX}, got {height}x{width}"
        )
    values = torch.from_numpy(np.ascontiguousarray(pictures)).float() / 127.5 - 1
    return reduce(values, "n (h a) (w b) c -> n c h w", "mean", h=SIZE_PX, w=SIZE_PX)


def _disturbed(
    pictures: Float[Tensor, "b 3 64 64"], generator: torch.Generator
) -> Float[Tensor, "b 3 64 64"]:
    """Noisy, brighter or darker, and half of them softer, as generated pictures are."""
    b = len(pictures)
    soft = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(b, 1, 1, 1, generator=generator) * (torch.rand(b, 1, 1, 1, generator=generator) < 0.5)
    pictures = torch.lerp(pictures, soft, share)
    gain = 1 + 0.1 * (torch.rand(b, 1, 1, 1, generator=generator) - 0.5)
    noise = 0.04 * torch.randn(pictures.shape, generator=generator)
    return (pictures * gain + noise).clamp(-1, 1)


def fit_checker(
    frames: LabelledFrames, colours: tuple[str, ...], shapes: tuple[str, ...], training: CheckerTraining
) -> Checker:
    """Train a checker on labelled reference frames, first the painter on places, then all of it.

    Deterministic under the training's seed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        checker = Checker(colours, shapes)
    generator = torch.Generator().manual_seed(training.seed)
    weights = torch.ones(1 + len(shapes))
    weights[ABSENT] = training.absent_weight

    def loss_of(seen: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        logits, paints = checker(seen)
        things = rearrange(logits, "b c k -> (b c) k")
        found = functional.cross_entropy(things, labels.flatten(), weights, ignore_index=UNKNOWN)
        return found + _place_loss(paints, places)

    def paint_loss_of(seen: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        return _place_loss(checker.painter(seen).float().log_softmax(dim=1), places)

    _train(checker.painter, paint_loss_of, frames, training.paint_steps, 1e-2, training.batch // 2, generator)
    _train(checker, loss_of, frames, training.steps, training.learning_rate, training.batch, generator)
    return checker.eval()


def _place_loss(paints: Float[Tensor, "b paints h w"], places: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Cross-entropy over places; the background, which is nearly everywhere, counts little."""
    weights = torch.ones(paints.shape[1])
    weights[0] = 0.05
    return functional.nll_loss(paints, places, weights, ignore_index=UNKNOWN)


def _train(
    part: nn.Module,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    frames: LabelledFrames,
    steps: int,
    learning_rate: float,
    batch: int,
    generator: torch.Generator,
) -> None:
    """AdamW with one cycle of the learning rate over disturbed, sometimes mirrored frames."""
    labels, places = torch.from_numpy(frames.labels), torch.from_numpy(frames.places)
    optimizer = torch.optim.AdamW(part.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    bar = tqdm(range(steps), desc="training the checker")
    for step in bar:
        pick = torch.randint(len(labels), (batch,), generator=generator)
        seen = _disturbed(prepared(frames.pictures[pick.numpy()]), generator)
        where = places[pick]
        if torch.rand((), generator=generator) < 0.5:
            seen, where = seen.flip(-1), where.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor has it
            loss = loss_of(seen, labels[pick], where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def accuracy(checker: Checker, pictures: Pictures, labels: Labels) -> dict[str, float]:
    """On labelled frames: share of things whose colour is found and whose shape is read right, and of absent
    colours that are called absent."""
    found = checker.read(pictures)
    there, absent = labels > ABSENT, labels == ABSENT
    return {
        "colour": float((found[there] > ABSENT).mean()),
        "shape": float((found[there] == labels[there]).mean()),
        "absence": float((found[absent] == ABSENT).mean()),
    }


def save_checker(checker: Checker, out: Path, made: dict[str, object]) -> None:
    """Write half-precision weights and a readable config.json, each whole."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().half().contiguous() for name, value in checker.state_dict().items()}
    partial = out / f".checker.{os.getpid()}.partial"
    save_file(weights, partial)
    os.replace(partial, out / "checker.safetensors")
    config = {
        "colours": checker.colours,
        "shapes": checker.shapes,
        "width": checker.width,
        "made": made,
    }
    partial.write_text(json.dumps(config, indent=1) + "\n")
    os.replace(partial, out / "config.json")
