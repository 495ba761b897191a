"""How much memory is free: this process's share is asked for before long work, not after."""

import os
from pathlib import Path

import torch

from simulator.canvas import Canvas
from simulator.transformer import TransformerConfig


def free_bytes(where: torch.device) -> int:
    """What may still be used of this machine's memory (within its container's limit), or of its GPU's."""
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    else:  # macOS says only how much there is
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":
        free = min(free, int(allowed) - int(limit.with_name("memory.current").read_text()))
    return free


def check_frames_fit(frames: int, height: int, width: int) -> None:
    """Raises ValueError if so many frames of this size (pixels) do not fit into memory as they are."""
    needed, free = 3 * frames * height * width, free_bytes(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{frames} frames of {height}x{width} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "make fewer or smaller ones"
        )


def check_attention(
    canvas: Canvas, walks: bool, size_unit: int, config: TransformerConfig, where: torch.device
) -> None:
    """Raises ValueError if attention does not fit into memory: over all tokens of a canvas, or where it is
    walked, of the steps in sight of one. size_unit: side of a token, in pixels."""
    steps, free = len(canvas.start_level), free_bytes(where)
    height, width = canvas.frames.shape[1:3]
    both = 2 if canvas.prompts and canvas.guidance != 1 and not walks else 1
    seen = min(steps, config.window) if walks else steps
    tokens = both * seen * height * width // size_unit**2
    needed = 3 * 4 * config.heads * tokens**2  # scores, their mask and their softmax
    if needed > free:
        fits = 0 if walks else int(steps * (free / needed) ** 0.5)
        cure = f"make at most {fits} at this size, or a smaller picture, and extend it"
        raise ValueError(
            f"canvas of {steps} latent steps needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            f"free; {cure if fits else 'make a smaller picture'}"
        )
