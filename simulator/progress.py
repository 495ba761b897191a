"""How far a run of training is, while it runs: percent, step, losses and the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from simulator.optim import Clock

SHOW_S = 2.0  # between two looks at least: the losses are read for each, and reading waits for a GPU


@contextmanager
def shown(what: str, clock: Clock, first: bool = True) -> Iterator[Callable[[str], None]]:
    """A line on stderr that what the block gets brings up to date, with the words that it is given. Only the
    first of several processes shows one."""
    form = what + " {percentage:3.0f}%{postfix}"
    start = int(100 * clock.progress)
    with tqdm(total=100, initial=start, bar_format=form, disable=not first) as bar:

        def show(told: str) -> None:
            bar.n = int(100 * clock.progress)
            bar.set_postfix_str(f"step {clock.step} {told} left {tqdm.format_interval(clock.left_s)}")

        yield show
