"""How much memory is free: this process's share is asked for before long work, not after."""

import os
from pathlib import Path

import torch


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


def check_attention(tokens: int, frames: int, heads: int, where: torch.device) -> None:
    """Raises ValueError if attention over all tokens of so many latent steps does not fit into memory."""
    needed, free = 3 * 4 * heads * tokens**2, free_bytes(where)  # scores, their mask and their softmax
    if needed > free:
        fits = int(frames * (free / needed) ** 0.5)
        cure = f"make at most {fits} at this size, or a smaller picture, and extend it"
        raise ValueError(
            f"canvas of {frames} latent steps needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            f"free; {cure if fits else 'make a smaller picture'}"
        )
