"""Work that goes on beside a training loop, such as reading what is recorded meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Made = TypeVar("Made")


def beside(make: Callable[[], Made | None], every_s: float) -> Callable[[], Made | None]:
    """Call `make` again and again, `every_s` seconds apart, in a thread that ends with the program. What is
    returned gives the newest thing made since it was last called, or None, and raises what `make` raised."""
    made: list[Made | Exception] = []

    def work() -> None:
        while True:
            time.sleep(every_s)
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

    threading.Thread(target=work, daemon=True).start()
    return newest
