"""Ctrl-C during training: the step is finished and the run saved before it stops, so that `--resume` goes on
as if nothing had happened (`train detail`: on a fresh pool of frames)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simulator.optim import Clock

SAVING = b"\ninterrupted: this step is finished and saved first; once more stops at once\n"


@contextmanager
def between_steps(
    clock: Clock, alone: bool = True, then: str = "--resume goes on from there"
) -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside the block only asks: what the block gets says whether it did, and the block is to save
    and end. Then it goes on as KeyboardInterrupt. The second Ctrl-C interrupts at once.

    alone: without other processes, with which saving would have to be agreed; else nothing changes, as where
    Ctrl-C is ignored or handled by someone else. then: what whoever stopped it can do.
    """
    asked = threading.Event()

    def note(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        os.write(2, SAVING)  # a signal may come while stderr itself is being written, which print refuses

    main = threading.current_thread() is threading.main_thread()
    if not (alone and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield asked.is_set
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked.is_set() and clock.progress < 1:
        raise KeyboardInterrupt(f"interrupted at step {clock.step}; {then}")
