"""Work that goes on beside a training loop, such as reading what is recorded meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Made = TypeVar("Made")


@contextmanager
def beside(make: Callable[[], Made | None], every_s: float | None) -> Iterator[Callable[[], Made | None]]:
    """Call `make` again and again in a thread, `every_s` seconds apart (None: never), until the block ends.
    What the block gets returns the newest thing made since it was last called, or None, and raises what
    `make` raised."""
    made: list[Made | Exception] = []
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_s):
            try:
                found = make()
            except Exception as error:  # raised again where it can be seen
                made[:] = [error]
                return
            if found is not None:
                made[:] = [found]

    def newest() -> Made | None:
        if not made:
            return None
        found = made.pop()
        if isinstance(found, Exception):
            raise found
        return found

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield newest
    finally:
        over.set()
        thread.join()
