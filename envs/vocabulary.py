"""What the words of `simulator/words.py` look like, and a scene in plain numbers (leaf: standard library
only).

Colours and materials are a small fixed library, well separated, so that a small model can learn them and a
caption can name them. RGB values are in [0, 1].
"""

from dataclasses import asdict, dataclass, replace

COLOURS = {
    "red": (0.86, 0.06, 0.07),
    "orange": (1.00, 0.42, 0.00),
    "yellow": (1.00, 0.87, 0.05),
    "green": (0.05, 0.60, 0.10),
    "cyan": (0.05, 0.80, 0.85),
    "blue": (0.08, 0.18, 0.88),
    "purple": (0.48, 0.08, 0.72),
    "pink": (1.00, 0.38, 0.72),
    "white": (0.96, 0.96, 0.96),
}

SIZES = {"small": 0.8, "medium": 1.0, "large": 1.2}

STEP_LIMITS = {"Room": 200, "Orbit": 120, "Lab": 48}
"""Control steps of an episode, in the reference world and in the dream of it."""

WALLS = {
    "cream": (0.93, 0.88, 0.72),
    "azure": (0.55, 0.74, 0.92),
    "mint": (0.58, 0.84, 0.66),
    "lilac": (0.74, 0.62, 0.90),
    "rose": (0.92, 0.60, 0.60),
    "slate": (0.42, 0.47, 0.56),
}

MARK_RGB = (0.03, 0.03, 0.03)
"""What a touch leaves: a black spot."""

LIGHTS = {
    "left": (-1.3, -1.1, 4.2),
    "right": (1.3, -1.1, 4.2),
    "above": (0.2, -0.4, 4.4),
}
"""Where the light that casts shadows stands (metres)."""


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: what it is, and where and how fast it starts (metres, radians, seconds).

    With `asset`, the path of an MJCF file, it is made of that file and `shape` is only its word.
    """

    shape: str
    colour: str
    size: str
    radius_m: float
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    linear_velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    angular_velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    asset: str | None = None

    @property
    def words(self) -> str:
        """The thing as a caption calls it, without its size: `red ball`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Everything that a reference world is built from; `things[0]` is the thing that the prompt names."""

    world: str
    kind: str
    things: tuple[Thing, ...]
    floor: str
    walls: tuple[str, str, str, str]
    light: str
    screen: str | None = None

    def as_dict(self) -> dict:
        """The scene as plain values, for JSON."""
        return asdict(self)

    def with_things(self, things: tuple[Thing, ...]) -> "Scene":
        return replace(self, things=things)
