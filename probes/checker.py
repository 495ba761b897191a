"""The checker: a small conv net that reads which things a 64x64 picture of the Orbit world shows.

For each colour of the vocabulary it says whether a thing of that colour is there and of which shape (no two
things of a scene share a colour). Every place of a 16x16 map votes, and the votes are pooled by log-sum-exp
(multiple-instance learning, as in Ilse et al. 2018, arXiv:1802.04712, without attention). It is trained on
reference frames only, never on generated ones; `config.json` beside the weights tells how well it reads
held-out ones.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int, UInt8
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
class CheckerTraining:
    """How the checker is trained; it takes about three minutes on one thread."""

    steps: int = 1400
    batch: int = 32
    learning_rate: float = 2e-3
    absent_weight: float = 0.25  # eight of nine colours are absent in a picture
    seed: int = 0


class Checker(nn.Module):
    """Pictures -> for each colour, logits of (absent, shape 1, shape 2, ...)."""

    def __init__(self, colours: tuple[str, ...], shapes: tuple[str, ...], width: int = 64) -> None:
        super().__init__()
        self.colours, self.shapes = colours, shapes
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.GELU(), nn.Conv2d(32, width, 3, stride=2, padding=1)
        )
        self.blocks = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=rate, dilation=rate) for rate in (1, 1, 2, 2)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in self.blocks)
        self.votes = nn.Conv2d(width, len(colours) * len(shapes), 1)
        self.absence = nn.Parameter(torch.zeros(len(colours)))

    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b colours classes"]:
        x = self.stem(pictures)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(functional.gelu(norm(x)))
        votes = rearrange(self.votes(functional.gelu(x)), "b (c s) h w -> b c s (h w)", c=len(self.colours))
        present = votes.logsumexp(dim=-1) - 4.0
        absent = self.absence[None, :, None].expand(len(x), -1, 1)
        return torch.cat([absent, present], dim=-1)

    @torch.inference_mode()
    def read(self, pictures: Pictures, batch: int = 64) -> Int[np.ndarray, "n colours"]:
        """For each picture and colour 0 (absent) or 1 + the index of the shape.

        Larger pictures are averaged down. Raises ValueError for pictures whose sides are no multiple of 64.
        """
        parts = [
            self(prepared(pictures[i : i + batch])).argmax(dim=-1) for i in range(0, len(pictures), batch)
        ]
        return torch.cat(parts).numpy() if parts else np.zeros((0, len(self.colours)), np.int64)

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
    """Mirrored, noisy, brighter or darker, and for half of the batch softer, as generated pictures are."""
    b = len(pictures)
    mirror = torch.rand(b, 1, 1, 1, generator=generator) < 0.5
    pictures = torch.where(mirror, pictures.flip(-1), pictures)
    soft = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(b, 1, 1, 1, generator=generator) * (torch.rand(b, 1, 1, 1, generator=generator) < 0.5)
    pictures = torch.lerp(pictures, soft, share)
    gain = 1 + 0.1 * (torch.rand(b, 1, 1, 1, generator=generator) - 0.5)
    noise = 0.04 * torch.randn(pictures.shape, generator=generator)
    return (pictures * gain + noise).clamp(-1, 1)


def fit_checker(
    pictures: Pictures,
    labels: Labels,
    colours: tuple[str, ...],
    shapes: tuple[str, ...],
    training: CheckerTraining,
) -> Checker:
    """Train a checker on labelled reference frames (AdamW, one cycle); deterministic under its seed."""
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        checker = Checker(colours, shapes)
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.AdamW(checker.parameters(), lr=training.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, training.steps, pct_start=0.1
    )
    weights = torch.ones(1 + len(shapes))
    weights[ABSENT] = training.absent_weight
    truth = torch.from_numpy(labels).long()
    bar = tqdm(range(training.steps), desc="training the checker")
    for step in bar:
        pick = torch.randint(len(pictures), (training.batch,), generator=generator)
        seen = _disturbed(prepared(pictures[pick.numpy()]), generator)
        logits = rearrange(checker(seen), "b c k -> (b c) k")
        loss = functional.cross_entropy(logits, truth[pick].flatten(), weights, ignore_index=UNKNOWN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return checker.eval()


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
        "width": checker.votes.in_channels,
        "made": made,
    }
    partial.write_text(json.dumps(config, indent=1) + "\n")
    os.replace(partial, out / "config.json")
