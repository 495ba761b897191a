"""`orrery expand`: a short prompt -> a fuller one that keeps all it said, by templates, or by a language
model.

Without more said, templates of the captions' own grammar fill in what the prompt leaves open: offline, and
the same under a seed. Only where ORRERY_LLM_URL names an OpenAI-compatible endpoint (its base, such as
http://localhost:8000/v1; ORRERY_LLM_MODEL and, where it asks for one, ORRERY_LLM_KEY beside it) is that asked
instead; if it fails the command fails, and no template takes its place in silence."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from typing import Annotated, Any

import numpy as np
import tyro

from simulator.captions import STYLES, Parsed, Seen, parse, relation, styles
from simulator.text import check_prompt
from simulator.words import COLOURS, FLOORS, KINDS, NUMBERS, SHAPES, SIZES, TEST_FLOORS, WALLS, WORLDS

URL, MODEL, KEY = "ORRERY_LLM_URL", "ORRERY_LLM_MODEL", "ORRERY_LLM_KEY"
MOST_WORDS = 150
TIMEOUT_S = 60.0
PLACE_TRIES = 2000

OTHER_NAMES = {
    "cube": "box", "crate": "box", "sphere": "ball", "globe": "ball", "tube": "cylinder", "can": "cylinder",
    "pill": "capsule", "cup": "mug",
}  # fmt: skip
GRAMMAR_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "a an the and with of in on at to is are it they there by its room table things floor wall walls "
        "left right behind front falls fall falling drop drops dropped onto thrown throw flies fly flying "
        "over rolls roll rolling into screen collide collides colliding hits stand stands standing still "
        "touched marked lies block",
    )
)
"""What `parse` reads, besides the names of things, colours, sizes, floors and walls."""

WORLD_WORDS = {"Room": r"\brooms?\b", "Orbit": r"\btable\b", "Lab": r"\b(?:stage|lab)\b"}
_ANY_SHAPE = "|".join([*SHAPES, *OTHER_NAMES])
_NAME = rf"((?:(?:{'|'.join(SIZES)}) )?)((?:(?:{'|'.join(COLOURS)}) )?)({_ANY_SHAPE})"
_SEVERAL = re.compile(rf"\b({'|'.join(NUMBERS[2:6])}) {_NAME}(?:e?s)\b", re.IGNORECASE)
_ONE = re.compile(rf"\b((?:(?:an?|the|one) )?){_NAME}\b", re.IGNORECASE)
INSTRUCTIONS = f"""You rewrite short prompts for a small video model that knows simple scenes. Keep everything
that the prompt says. Things are coloured shapes ({", ".join(SHAPES)}; {", ".join(COLOURS)}; small, medium or
large) in a room, on a table, or in a lab where they fall, are thrown, collide, roll behind a screen or stand
still. Floors and tables are {", ".join(FLOORS)}; walls are {", ".join(WALLS)}. Name things as in 'a large red
ball left of a blue box'. Answer with the rewritten prompt alone: one paragraph of at most 120 words."""


def spelled_out(prompt: str, rng: np.random.Generator) -> str:
    """The prompt in the grammar's words: other names replaced, `two balls` told one by one, and a colour
    given to what has none (one that no other thing has)."""
    free = [str(c) for c in rng.permutation(COLOURS) if not re.search(rf"\b{c}\b", prompt, re.IGNORECASE)]

    def shape_of(name: str) -> str:
        return OTHER_NAMES.get(name.lower(), name)

    def colour_or_free(colour: str) -> str:
        if not colour and not free:
            raise ValueError(f"prompt has more things than there are colours, {len(COLOURS)}; name fewer")
        return colour or f"{free.pop()} "

    def each(match: re.Match) -> str:
        number, size, colour, shape = match.groups()
        names = [
            f"a {size}{colour_or_free(colour)}{shape_of(shape)}" for _ in range(NUMBERS.index(number.lower()))
        ]
        return f"{', '.join(names[:-1])} and {names[-1]}"

    def one(match: re.Match) -> str:
        article, size, colour, shape = match.groups()
        return f"{article}{size}{colour_or_free(colour)}{shape_of(shape)}"

    return _ONE.sub(one, _SEVERAL.sub(each, prompt))


def world_of(prompt: str, said: Parsed) -> str:
    """The world that a prompt's words belong to; Orbit where they do not say."""
    for world, words in WORLD_WORDS.items():
        if re.search(words, prompt, re.IGNORECASE):
            return world
    return "Lab" if said.kind else "Orbit"


def placed(said: Parsed, rng: np.random.Generator) -> list[Seen]:
    """The prompt's things at random places where every relation that it states holds.

    Raises ValueError if the relations contradict each other.
    """
    count = len(said.things)
    for _ in range(PLACE_TRIES):
        x, depth = rng.uniform(-0.8, 0.8, count), rng.uniform(1, 3, count)
        things = [
            Seen(thing["shape"], thing["colour"], thing["size"], float(x[k]), float(depth[k]))
            for k, thing in enumerate(said.things)
        ]
        if all(relation(things[i], things[j]) == word for i, word, j in said.relations):
            return things
    raise ValueError(
        f"prompt states {len(said.relations)} relations that cannot hold together; take one back"
    )


def _unknown_words(prompt: str) -> list[str]:
    """Words of the prompt that the grammar cannot carry over."""
    names = {word for name in (*SHAPES, *OTHER_NAMES) for word in (name.lower(), f"{name}s", f"{name}es")}
    known = GRAMMAR_WORDS | names | {*NUMBERS, *COLOURS, *SIZES, *FLOORS, *TEST_FLOORS, *WALLS, "l"}
    return [word for word in re.findall(r"[a-z]+", prompt.lower()) if word not in known]


def _keeps(text: str, said: Parsed) -> bool:
    """Whether a text still says everything but the relations."""
    told = parse(text)
    if len(told.things) != len(said.things):
        return False
    same = all(
        thing["size"] in ("medium", full["size"])
        for thing, full in zip(said.things, told.things, strict=True)
    )
    return same and all(
        getattr(said, name) in (None, getattr(told, name)) for name in ("floor", "wall", "kind")
    )


def by_template(prompt: str, world: str | None, style: str, rng: np.random.Generator) -> str:
    """Fill in sizes, places, floor and walls with the captions' own grammar, in the fullest caption of the
    style, or of a fuller style where that would drop something that was said.

    What the grammar has no words for stays: the prompt then stands in front as it is.

    Raises ValueError if the prompt names nothing that the grammar knows.
    """
    plain_words = spelled_out(prompt, rng)
    said = parse(plain_words)
    if not said.things:
        raise ValueError(
            f"templates expand prompts that name a {', '.join(SHAPES)}, got {prompt!r}; name one, or set "
            f"{URL} to a language model's address"
        )
    world = world or world_of(prompt, said)
    things = placed(said, rng)
    things = [
        thing
        if re.search(rf"\b(?:{'|'.join(SIZES)}) {thing.colour} {thing.shape}\b", plain_words, re.IGNORECASE)
        else Seen(thing.shape, thing.colour, str(rng.choice(SIZES)), thing.x, thing.depth_m)
        for thing in things
    ]
    kind = said.kind if said.kind in KINDS[world] else str(rng.choice(KINDS[world]))
    floor, wall = said.floor or str(rng.choice(FLOORS)), said.wall or str(rng.choice(WALLS))
    told = styles(world, things, floor=floor, wall=wall, kind=kind)
    fullest = [told[name][-1] for name in (style, "plain", "descriptive") if told[name]]
    text = next((text for text in fullest if _keeps(text, said)), fullest[-1])
    end, joint = (".", ". The") if text.endswith(".") else ("", ", the")
    kept = named_relations(parse(text))
    for first, word, other in named_relations(said):
        if (first, word, other) not in kept:
            text = f"{text.rstrip('.')}{joint} {first} is {word} the {other}{end}"
    return f"{prompt.rstrip('. ')}. {text}" if _unknown_words(prompt) else text


def named_relations(said: Parsed) -> list[tuple[str, str, str]]:
    """The relations of a prompt with names for numbers: (`red ball`, `left of`, `blue box`)."""
    names = [f"{thing['colour']} {thing['shape']}" for thing in said.things]
    return [(names[i], word, names[j]) for i, word, j in said.relations]


def by_endpoint(prompt: str, seed: int) -> str:
    """Ask the OpenAI-compatible endpoint that the environment names.

    Raises ValueError if it cannot be reached, refuses, answers something else than text, or drops a thing.
    """
    base, model = os.environ[URL].rstrip("/"), os.environ.get(MODEL)
    cure = f"check {URL}, {MODEL} and {KEY}, or unset {URL} to expand by templates"
    if not base.startswith(("http://", "https://")):
        raise ValueError(f"{URL} must start with http:// or https://, got {base!r}; {cure}")
    if not model:
        raise ValueError(f"{URL} is set, so {MODEL} must name a model, got nothing; {cure}")
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": prompt}]
    body = {"model": model, "messages": messages, "seed": seed, "max_tokens": 400}
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {os.environ[KEY]}"
    request = urllib.request.Request(f"{base}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            text = _content(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        said = error.read(200).decode(errors="replace")
        raise ValueError(f"prompt expansion: {base} answered {error.code} {said!r}; {cure}") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt expansion: {base} gave no answer ({error}); {cure}") from error
    asked, told = parse(prompt), parse(text)
    for thing in asked.things:
        if (thing["colour"], thing["shape"]) not in {(t["colour"], t["shape"]) for t in told.things}:
            name = f"{thing['colour']} {thing['shape']}"
            raise ValueError(f"prompt expansion: {model} dropped the {name}: {text!r}; {cure}")
    return text


def _content(answer: Any) -> str:
    """The text of a chat completion. Raises ValueError for any other answer."""
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"prompt expansion needs a chat completion with choices, got {str(answer)[:200]!r}; check {URL}"
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"prompt expansion got no text from the language model; check {MODEL} or unset {URL}"
        )
    return " ".join(text.split())


def expanded(prompt: str, world: str | None = None, style: str = "plain", seed: int = 0) -> str:
    """A fuller prompt of at most 150 words that keeps everything that a short one says.

    Raises ValueError if the prompt is too long or cannot be expanded, or the configured endpoint fails.
    """
    prompt = check_prompt(prompt)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    if world is not None and world not in WORLDS:
        raise ValueError(f"world must be one of {', '.join(WORLDS)}, got {world!r}")
    rng = np.random.default_rng(seed)
    text = by_endpoint(prompt, seed) if os.environ.get(URL) else by_template(prompt, world, style, rng)
    if len(text.split()) > MOST_WORDS:
        raise ValueError(
            f"expanded prompt has {len(text.split())} words, more than {MOST_WORDS}; expand a shorter one"
        )
    return check_prompt(text)


def expand(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="a few words")],
    world: Annotated[str | None, tyro.conf.arg(help="Room, Orbit or Lab; by its words otherwise")] = None,
    style: Annotated[str, tyro.conf.arg(help=f"of the templates: {', '.join(STYLES)}")] = "plain",
    seed: Annotated[int, tyro.conf.arg(help="of what the prompt leaves open")] = 0,
) -> int:
    """Print a fuller prompt: by templates, or by the language model that ORRERY_LLM_URL names."""
    print(expanded(prompt, world, style, seed))
    return 0
