"""MuJoCo's compiled names carry no types that pyright can read: each of them may be anything."""

from typing import Any

def __getattr__(name: str) -> Any: ...
