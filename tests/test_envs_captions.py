"""Captions say what the camera sees, and prompts can be read back."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401
from envs.captions import Seen, captions, parse, random_prompt, relation, swap
from envs.vocabulary import KINDS, WORLDS


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
                for word, sign in ((" left of ", -1), (" right of ", 1)):
                    if word in caption:
                        first, second = (np.nonzero(ids == i)[1].mean() for i in indices[:2])
                        assert np.sign(first - second) == sign
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


@pytest.mark.parametrize("kind", KINDS["Lab"])
def test_lab_captions_name_their_experiment(kind):
    things = [Seen("ball", "red", "large"), Seen("box", "blue", "small")]
    for caption in captions("Lab", things, floor="tiled", kind=kind):
        assert parse(caption).kind == kind


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
    code = (
        "import sys, envs, envs.captions, envs.lab_camera, envs.vocabulary; sys.exit('mujoco' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
