"""The words that scenes are described with (leaf: standard library only).

Captions, the captioner, prompt expansion and the reference worlds share them. What each word looks like is
`envs/vocabulary.py`'s.
"""

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white")

SHAPES = ("box", "ball", "cylinder", "capsule", "egg", "L block", "mug")

SIZES = ("small", "medium", "large")

WORLDS = ("Room", "Orbit", "Lab")

KINDS = {
    "Room": ("room",),
    "Orbit": ("table",),
    "Lab": ("drop", "throw", "collide", "occluder", "mark"),
}

FLOORS = ("wooden", "tiled", "marble", "grassy", "sandy", "grey")
"""Floors and table tops that are drawn at random; `confetti` may be asked for as well."""

TEST_FLOORS = ("confetti",)
"""Rich in corners, for tests that need structure from motion; never drawn at random."""

WALLS = ("cream", "azure", "mint", "lilac", "rose", "slate")

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
