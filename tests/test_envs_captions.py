"""Captions say what the camera sees, and prompts can be read back."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401
from envs import vocabulary
from envs.captions import draw_count, draw_kind, random_prompt, random_things
from simulator.captions import STYLES, Seen, captions, parse, relation, styles, swap
from simulator.words import COLOURS, KINDS, SIZES, WALLS, WORLDS


@pytest.mark.parametrize("world", WORLDS)
def test_captions_agree_with_the_segmentation(world):
    told = 0
    with gymnasium.make(f"envs:orrery/{world}-v0", disable_env_checker=True) as env:
        for seed in range(12):
            _, info = env.reset(seed=seed)
            truth, ids = env.unwrapped.scene(), env.unwrapped.segmentation()
            assert info["prompt"] in env.unwrapped.captions()
            for caption in env.unwrapped.captions():
                said = parse(caption).things
                names = [thing["name"] for thing in truth["things"]]
                indices = [names.index(f"{thing['colour']} {thing['shape']}") for thing in said]
                assert indices[0] == 0
                assert all((ids == i).any() for i in indices[1:])
                for first, word, other in parse(caption).relations:
                    if word in ("left of", "right of"):
                        places = [np.nonzero(ids == indices[i])[1].mean() for i in (first, other)]
                        assert np.sign(places[0] - places[1]) == (-1 if word == "left of" else 1)
                        told += 1
    assert told or world == "Lab"


def test_a_prompt_makes_the_scene_that_it_names():
    prompt = "a large red ball left of a blue L block on a wooden table"
    with gymnasium.make("envs:orrery/Orbit-v0", disable_env_checker=True) as env:
        _, info = env.reset(seed=0, options={"prompt": prompt})
        scene = env.unwrapped.scene()
    assert info["prompt"] == prompt and scene["floor"] == "wooden"
    assert [t["name"] for t in scene["things"]] == ["red ball", "blue L block"]
    assert scene["things"][0]["size"] == "large"


def test_behind_means_further_away():
    far, near = Seen("box", "red", "medium", 0.0, 2.0), Seen("ball", "blue", "medium", 0.05, 1.0)
    assert relation(far, near) == "behind" and relation(near, far) == "in front of"
    assert relation(far, far) is None


@pytest.mark.parametrize("world", WORLDS)
def test_random_prompts_parse_and_build(world):
    rng = np.random.default_rng(0)
    prompts = [random_prompt(rng, world) for _ in range(60)]
    assert len(set(prompts)) > 40
    assert all(parse(prompt).things for prompt in prompts)
    with gymnasium.make(f"envs:orrery/{world}-v0", disable_env_checker=True, height=16, width=16) as env:
        for seed, prompt in enumerate(prompts[:15]):
            env.reset(seed=seed, options={"prompt": prompt})


def test_two_colours_may_share_a_shape():
    shared, apart = parse("a red and a small blue ball"), parse("a red ball and a small blue ball")
    assert shared == apart and len(shared.things) == 2
    assert parse("a large red and the blue L block on a wooden table").floor == "wooden"
    assert [t["size"] for t in parse("a large red and the blue L block").things] == ["large", "medium"]


@pytest.mark.parametrize("kind", KINDS["Lab"])
def test_lab_captions_name_their_experiment(kind):
    things = [Seen("ball", "red", "large"), Seen("box", "blue", "small")]
    for caption in captions("Lab", things, floor="tiled", kind=kind):
        assert parse(caption).kind == kind


@pytest.mark.parametrize("world", WORLDS)
def test_every_style_says_the_same_and_reads_back(world):
    """Things, in order; how many; how they stand; and never more than 150 words."""
    rng = np.random.default_rng(2)
    told = {style: 0 for style in STYLES}
    for _ in range(60):
        kind = draw_kind(rng, world)
        things = random_things(rng, draw_count(rng, world, kind))
        wanted = [(thing.colour, thing.shape) for thing in things]
        found = styles(world, things, floor="marble", wall="mint", kind=kind)
        assert tuple(found) == STYLES
        for style, texts in found.items():
            for text in texts:
                said = parse(text)
                names = [(thing["colour"], thing["shape"]) for thing in said.things]
                assert names == wanted or "behind a screen" in text or "rolls into" in text
                assert said.count in (None, len(things)) and len(text.split()) <= 150
                for i, word, j in said.relations:
                    assert relation(*(things[wanted.index(names[k])] for k in (i, j))) == word
                told[style] += 1
        assert parse(found["counting"][0]).count == len(things) == parse(found["descriptive"][0]).count
    assert all(told.values())


def test_what_words_look_like_covers_the_words():
    assert tuple(vocabulary.COLOURS) == COLOURS and tuple(vocabulary.SIZES) == SIZES
    assert tuple(vocabulary.WALLS) == WALLS


def test_a_swap_reaches_later_mentions():
    prompt = "Two things can be seen: a red ball and a blue box. The red ball is left of the blue box."
    changed, *_ = swap(prompt, "shape", np.random.default_rng(0))
    assert "ball" not in changed and changed.count("blue box") == 2 and len(parse(changed).things) == 2


def test_swapping_changes_one_word_and_its_article():
    rng = np.random.default_rng(1)
    prompt = "a red ball left of a blue box on a wooden table"
    for _ in range(20):
        changed, old, new = swap(prompt, "colour", rng)
        assert old == "red" and new not in ("red", "blue")
        assert (
            changed == f"{'an' if new == 'orange' else 'a'} {new} ball left of a blue box on a wooden table"
        )
        changed, old, new = swap(prompt, "shape", rng)
        assert old == "ball" and changed == prompt.replace("ball", new)


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="names no thing"):
        swap("a sunset", "colour", np.random.default_rng(0))
    with pytest.raises(ValueError, match="attribute"):
        swap("a red ball", "size", np.random.default_rng(0))
    with pytest.raises(ValueError, match="world must be"):
        random_prompt(np.random.default_rng(0), "Sea")


def test_captions_and_lab_camera_need_no_mujoco():
    code = "import sys, envs.captions, envs.lab_camera, simulator.captions; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
