"""Action spaces of other envs as the simulator's action vectors, and as plain values to keep beside a world.

The simulator takes vectors in [-1, 1]. Choices (Discrete, MultiDiscrete) become one-hot vectors, switches
(MultiBinary) zeros and ones, and bounded boxes are scaled from their bounds.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float

REPEAT = 0.3
"""How often a random choice repeats the last one (sticky actions, Machado et al. 2018)."""


def check_space(space: spaces.Space, env_id: str) -> None:
    """Raises ValueError if actions of this space cannot become vectors in [-1, 1]."""
    known = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box)
    if not known:
        raise ValueError(
            f"actions must be Box, Discrete, MultiDiscrete or MultiBinary, {env_id} has {space}; wrap the env"
        )
    if isinstance(space, spaces.Box) and not space.is_bounded():
        raise ValueError(
            f"actions must be bounded, {env_id} has {space}; wrap it in RescaleAction or clip it"
        )


def _choices(space: spaces.Discrete | spaces.MultiDiscrete) -> tuple[np.ndarray, np.ndarray]:
    """How many choices each part has, and the number of its first."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    return np.asarray(space.nvec).flatten(), np.asarray(space.start).flatten()


def vector_width(space: spaces.Space) -> int:
    """How many numbers an action takes."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return int(_choices(space)[0].sum())
    return int(np.prod(space.shape or ()))


def to_vector(space: spaces.Space, action: Any) -> Float[np.ndarray, " a"]:
    """An action as a vector in [-1, 1]. Raises ValueError unless the action is in the space."""
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        given = np.asarray(action)
        if not (np.issubdtype(given.dtype, np.floating) or np.issubdtype(given.dtype, np.integer)):
            raise ValueError(f"action must be numbers of shape {space.shape}, got {action!r}")
        given = given.astype(np.float64)
        if given.shape != space.shape:
            raise ValueError(f"action must have shape {space.shape}, got {given.shape}")
        if not (np.isfinite(given).all() and (given >= low).all() and (given <= high).all()):
            bounds = f"[{low.min():g}, {high.max():g}]"
            raise ValueError(
                f"action must be finite and in {bounds}, got {given.tolist()}; clip it before step"
            )
        half = np.where(high > low, (high - low) / 2, 1.0)
        return ((given - (low + high) / 2) / half).flatten().astype(np.float32)
    given = np.asarray(action)
    if given.shape != (space.shape or ()) or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"action must be whole numbers as in {space}, got {action!r}")
    if isinstance(space, spaces.MultiBinary):
        if not np.isin(given, (0, 1)).all():
            raise ValueError(f"action must be zeros and ones as in {space}, got {action!r}")
        return given.flatten().astype(np.float32)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)  # check_space lets in no other
    counts, starts = _choices(space)
    places = given.flatten() - starts
    if not ((places >= 0) & (places < counts)).all():
        raise ValueError(f"action must be in {space}, got {action!r}")
    vector = np.zeros(counts.sum(), np.float32)
    vector[np.cumsum(counts) - counts + places] = 1.0
    return vector


def from_unit(space: spaces.Box, values: Float[np.ndarray, " a"]) -> np.ndarray:
    """Numbers in [-1, 1] as an action of a bounded box."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    action = (low + high) / 2 + (high - low) / 2 * values.reshape(space.shape)
    if np.issubdtype(space.dtype, np.integer):
        action = action.round()
    return np.clip(action, low, high).astype(space.dtype)


def draw_choice(space: spaces.Space, rng: np.random.Generator) -> Any:
    """A random action of a space of choices or switches."""
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=space.shape).astype(space.dtype)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)  # check_space lets in no other
    counts, starts = _choices(space)
    drawn = starts + rng.integers(counts)
    return int(drawn[0]) if isinstance(space, spaces.Discrete) else drawn.reshape(space.shape)


def as_values(space: spaces.Space) -> dict[str, Any]:
    """The space as plain values, for JSON."""
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    assert isinstance(space, spaces.Box)  # check_space lets in no other
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return {"kind": "Box", **bounds, "dtype": str(space.dtype)}


def from_values(values: dict[str, Any]) -> spaces.Space:
    """The space that `as_values` wrote. Raises ValueError on another kind."""
    kind = values.get("kind")
    if kind == "Discrete":
        return spaces.Discrete(values["n"], start=values["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(values["nvec"]), start=np.array(values["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(values["n"])
    if kind == "Box":
        dtype = np.dtype(values["dtype"])
        low, high = np.array(values["low"], dtype), np.array(values["high"], dtype)
        return spaces.Box(low, high, dtype=dtype.type)
    raise ValueError(f"action space must be Box, Discrete, MultiDiscrete or MultiBinary, got {kind!r}")
