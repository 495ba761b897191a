"""Many dreams in one forward: each row is the dream that it would be alone. On a tiny real model with random
weights, and once on the shipped one."""

import copy
import pickle
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import envs  # noqa: F401
from envs.dream import Dream
from envs.vector_dream import VectorDream
from simulator import tokenizer as tokenizer_module
from simulator import transformer as transformer_module
from simulator.cache import shifted
from simulator.state import FARTHEST, row, rows, stacked
from simulator.tokenizer import Tokenizer
from simulator.transformer import Transformer
from simulator.world_model import WorldModel, WorldModelConfig

WORLDS = {"Room": 5, "Orbit": 3, "Lab": 4}
ROUNDING = 1  # grey levels: matrix products of another batch size round differently


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = Tokenizer(tokenizer_module.PRESETS["tiny"])
    transformer = Transformer(transformer_module.PRESETS["tiny"])
    for network in (tokenizer, transformer):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    config = WorldModelConfig(tuple(WORLDS), dict(WORLDS), 32, 32, sampler_steps=1)
    return WorldModel(config, tokenizer, transformer)


@pytest.fixture(scope="module")
def lasting(model):
    """The same model, whose dreams never end."""
    transformer = copy.deepcopy(model.transformer)
    with torch.no_grad():
        transformer.heads_out[2].bias[1] -= 1000
    return WorldModel(model.config, model.tokenizer, transformer)


def apart(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second).max())


def make(num_envs: int, **keywords) -> VectorDream:
    return gymnasium.make_vec(
        "envs:orrery/Dream-v0", num_envs=num_envs, vectorization_mode="vector_entry_point", **keywords
    )


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_env_of_n_equals_n_single_envs(model, mode):
    """Every output of 14 steps, in which rows end at different steps."""
    ours = make(3, model=model, world="Orbit", step_limit=5, autoreset_mode=mode)
    theirs = SyncVectorEnv([partial(Dream, "Orbit", model=model, step_limit=5)] * 3, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    (mine, mine_info), (other, other_info) = ours.reset(seed=4), theirs.reset(seed=4)
    assert ours.metadata["autoreset_mode"] == mode and ours.num_envs == 3
    assert ours.action_space == theirs.action_space and ours.observation_space == theirs.observation_space
    ends = np.zeros(3, int)
    for step in range(14):
        assert apart(mine, other) <= ROUNDING and set(mine_info) == set(other_info)
        for key in mine_info:
            same_kind = np.asarray(mine_info[key]).dtype == np.asarray(other_info[key]).dtype
            assert same_kind and data_equivalence(
                mine_info[f"_{key.strip('_')}"], other_info[f"_{key.strip('_')}"]
            )
        assert list(mine_info.get("prompt", [])) == list(other_info.get("prompt", []))
        actions = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        if step == 2 and mode == AutoresetMode.DISABLED:  # part the rows' ages
            for env in (ours, theirs):
                env.reset(seed=[None, 9, None], options={"reset_mask": np.array([False, True, False])})
        mine, rewards, ended, cut, mine_info = ours.step(actions)
        other, other_rewards, other_ended, other_cut, other_info = theirs.step(actions)
        assert np.allclose(rewards, other_rewards, atol=1e-3) and rewards.dtype == other_rewards.dtype
        assert np.array_equal(ended, other_ended) and np.array_equal(cut, other_cut)
        if "final_obs" in mine_info:
            for a, b in zip(mine_info["final_obs"], other_info["final_obs"], strict=True):
                assert (a is None) == (b is None) and (a is None or apart(a, b) <= ROUNDING)
        over, ends = ended | cut, ends + (ended | cut)
        if over.any() and mode == AutoresetMode.DISABLED:
            mine, mine_info = ours.reset(options={"reset_mask": over})
            other, other_info = theirs.reset(options={"reset_mask": over.copy()})
    assert ends.min() >= 2


def test_a_row_that_restarts_dreams_as_if_alone_and_leaves_the_others_alone(model):
    """Past the window, at every age of the fresh row; a position far along changes nothing either."""
    window = model.transformer.config.window
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (3 * window, 3, 4)).astype(np.float32)
    prompts = ["a red ball", "two blue boxes on a grey floor", "a cone"]
    state, *_ = model.start(prompts, "Lab", [1, 2, 3])
    undisturbed, *_ = model.start(prompts, "Lab", [1, 2, 3])
    for action in actions[: window + 3]:
        state, *_ = model.step(state, action)
        undisturbed, *_ = model.step(undisturbed, action)
    value, copy = state, pickle.loads(pickle.dumps(state))
    state, first, _ = model.restart(value, [1], ["a green mug"], [77])
    assert value.seeds == copy.seeds and torch.equal(value.memory.latents, copy.memory.latents)
    assert torch.equal(value.memory.layers[0].keys, copy.memory.layers[0].keys), "the old value stays"
    alone, alone_first, _ = model.start(["a green mug"], "Lab", [77])
    assert apart(first, alone_first) == 0 and state.ages == (window + 4, 1, window + 4)
    for action in actions[window + 3 :]:
        state, frames, rewards, *_ = model.step(state, action)
        alone, alone_frames, alone_rewards, *_ = model.step(alone, action[[1]])
        undisturbed, others, *_ = model.step(undisturbed, action)
        assert apart(frames[1], alone_frames[0]) <= ROUNDING
        assert np.allclose(rewards[1], alone_rewards[0], atol=1e-3)
        assert apart(frames[[0, 2]], others[[0, 2]]) <= ROUNDING


def test_one_call_remembers_a_step_and_predicts_the_next_as_two_calls_do(model):
    """Past the window, for rows of different ages, told or not how far the sampler steps."""
    window = model.transformer.config.window
    actions = np.random.default_rng(0).uniform(-1, 1, (2 * window, 2, 4)).astype(np.float32)
    for kind in (model, model.with_config(large_steps=True), model.with_config(sampler_steps=3)):
        at_once, *_ = kind.start(["a red ball", "a cone"], "Lab", [1, 2])
        apart_, *_ = kind.start(["a red ball", "a cone"], "Lab", [1, 2])
        for step, action in enumerate(actions):
            if step == window + 2:
                at_once, apart_ = (kind.restart(state, [0], ["a mug"], [5])[0] for state in (at_once, apart_))
            with torch.inference_mode():
                settled = kind._settled(apart_)
            assert settled.fresh is None and settled.kept == min(step + 1, window - 1)
            at_once, frames, rewards, *_ = kind.step(at_once, action)
            apart_, others, other_rewards, *_ = kind.step(settled, action)
            assert apart(frames, others) <= ROUNDING and np.allclose(rewards, other_rewards, atol=1e-3)
        assert torch.allclose(at_once.memory.layers[-1].keys, apart_.memory.layers[-1].keys, atol=1e-3)


def test_rows_taken_out_and_put_together_are_what_they_were(model):
    state, *_ = model.start(["a red ball", "two blue boxes on a grey floor"], "Lab", [1, 2])
    for _ in range(3):
        state, *_ = model.step(state, np.zeros((2, 4), np.float32))
    again = stacked(rows(state))
    assert torch.equal(state.memory.layers[0].keys, again.memory.layers[0].keys)
    assert torch.equal(state.text[state.text_known], again.text[again.text_known])
    assert (again.ages, again.frame, again.kept) == (state.ages, state.frame, state.kept)


def test_memories_keep_their_meaning_when_their_positions_start_over(model):
    state, *_ = model.start(["a red ball"], "Lab", [1])
    for _ in range(4):
        state, *_ = model.step(state, np.ones((1, 4), np.float32))
    aged = pickle.loads(pickle.dumps(state))
    far = type(state)(**{**vars(aged), "memory": shifted(aged.memory, FARTHEST), "frame": 5 + FARTHEST})
    back = stacked([far])
    assert back.frame == back.kept + 1 < FARTHEST
    assert torch.allclose(back.memory.layers[0].keys, state.memory.layers[0].keys, atol=1e-3)
    near, there = (model.step(each, np.ones((1, 4), np.float32))[1] for each in (state, far))
    assert apart(near, there) <= ROUNDING


def test_states_move_between_rows_and_single_dreams(lasting):
    vector, single = make(2, model=lasting, world="Room"), Dream("Room", model=lasting)
    vector.reset(seed=0)
    actions = np.random.default_rng(2).uniform(-1, 1, (12, 2, 5)).astype(np.float32)
    for action in actions[:3]:
        vector.step(action)
    vector.reset(seed=[None, 40], options={"reset_mask": np.array([False, True])})
    vector.step(actions[3])
    saved = [pickle.loads(pickle.dumps(state)) for state in vector.save_state()]
    first = [vector.step(action) for action in actions[4:]]
    vector.load_state(saved)
    second = [vector.step(action) for action in actions[4:]]
    single.load_state(saved[1])
    assert apart(single.step(actions[4, 1])[0], first[0][0][1]) <= ROUNDING
    lone = make(1, model=lasting, world="Room")
    lone.load_state(saved[1:])
    alone = [lone.step(action[1:]) for action in actions[4:]]
    swapped = make(2, model=lasting, world="Room")
    swapped.load_state(saved[::-1])
    third = [swapped.step(action[::-1]) for action in actions[4:]]
    for a, b, c, d in zip(first, second, alone, third, strict=True):
        assert apart(a[0], b[0]) <= ROUNDING and apart(a[0][1], c[0][0]) <= ROUNDING
        assert apart(a[0], d[0][::-1]) <= ROUNDING
    vector.load_state(single.fork(2))
    frames, *_ = vector.step(np.zeros((2, 5), np.float32))
    assert apart(frames[0], frames[1]) <= ROUNDING


def test_what_was_handed_out_is_not_written_into(model):
    env = make(2, model=model, world="Lab", step_limit=2)
    first, info = env.reset(seed=0)
    kept, frames = first.copy(), info["frames"].copy()
    for _ in range(4):
        env.step(np.zeros((2, 4), np.float32))
    assert np.array_equal(first, kept) and np.array_equal(info["frames"], frames)
    assert len(env.render()) == 2 and env.observation_space.contains(first)


def test_rows_take_prompts_and_pictures_of_their_own(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    env = make(2, model=model)
    frames, info = env.reset(seed=0, options={"prompt": ["a red ball", "a cone"], "image": images})
    assert np.array_equal(frames, images) and list(info["prompt"]) == ["a red ball", "a cone"]
    frames, _ = env.reset(seed=0, options={"image": images[0]})
    assert np.array_equal(frames[1], images[0])


def test_gymnasiums_vector_wrappers_count_returns_and_lengths(model):
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(make(2, model=model, world="Lab", step_limit=3))
    env.reset(seed=0)
    lengths = []
    for _ in range(8):
        *_, info = env.step(env.action_space.sample())
        lengths += [
            int(info["episode"]["l"][i]) for i in range(2) if "episode" in info and info["_episode"][i]
        ]
    assert len(lengths) >= 2 and max(lengths) <= 3


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda env: env.step(np.zeros((2, 5))), "call reset first"),
        (lambda env: env.reset(options={"reset_mask": np.array([True, False])}), "without it first"),
        (lambda env: env.reset(options={"reset_mask": [True, True]}), "boolean array"),
        (lambda env: env.reset(options={"reset_mask": np.zeros(2, bool)}), "at least one row"),
        (lambda env: env.reset(seed=[1, 2, 3]), "one number or one a row"),
        (lambda env: env.reset(options={"prompt": ["a"]}), "one text or one a row"),
        (lambda env: env.reset(options={"prompt": ["a", " "]}), "must be text that says something"),
        (lambda env: env.reset(options={"image": np.zeros((3, 32, 32, 3), np.uint8)}), "one picture or one"),
        (
            lambda env: (env.reset(seed=0), env.step(np.eye(2, 5, -1) * 2)),
            "row 1: action must be finite and in",
        ),
        (lambda env: (env.reset(seed=0), env.step(np.zeros((3, 5)))), "one a row"),
        (lambda env: (env.reset(seed=0), env.load_state(env.save_state()[:1])), "one a row"),
        (lambda env: env.load_state([1, 2]), "save_state of a dream"),
        (lambda env: make(1, model=env.model, autoreset_mode="never"), "autoreset_mode must be one of"),
        (lambda env: make(0, model=env.model), "num_envs must be a whole number of at least 1"),
        (
            lambda env: make(1, model=env.model, step_limit=0),
            "step_limit must be a whole number of at least 1",
        ),
        (lambda env: env.observe(np.zeros((1, 5)), env.reset(seed=0)[0]), "actions must be one a row"),
        (lambda env: (env.reset(seed=0), env.step(None)), "actions must be one a row"),
        (lambda env: env.reset(options={"prompt": 5}), "must be text that says something"),
    ],
)
def test_bad_calls_are_named_in_one_line(model, act, words):
    with pytest.raises(ValueError, match=words) as caught:
        act(make(2, model=model))
    assert "\n" not in str(caught.value)


def test_a_row_that_has_ended_must_be_reset_where_nothing_else_does(model):
    env = make(2, model=model, world="Lab", step_limit=1, autoreset_mode="DISABLED")
    env.reset(seed=0)
    env.step(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="row 0 has ended"):
        env.step(np.zeros((2, 4), np.float32))


def test_the_shipped_dream_restarts_rows_as_it_starts_them():
    shipped = WorldModel.load()
    state, *_ = shipped.start(["a red ball", "a blue box"], "Room", [1, 2])
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, 5)).astype(np.float32)
    for action in actions[:2]:
        state, *_ = shipped.step(state, action)
    state, first, _ = shipped.restart(state, [0], ["a green cone"], [9])
    alone, alone_first, _ = shipped.start(["a green cone"], "Room", [9])
    assert apart(first, alone_first) == 0
    for action in actions[2:]:
        state, frames, *_ = shipped.step(state, action)
        alone, own, *_ = shipped.step(alone, action[:1])
        assert apart(frames[0], own[0]) <= 2
    assert row(state, 0).ages == alone.ages


def test_rows_that_observe_are_the_single_dreams_that_observed_the_same(lasting):
    frames = np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    actions = np.random.default_rng(2).uniform(-1, 1, (3, 5)).astype(np.float32)
    together = VectorDream(3, model=lasting)
    together.reset(seed=4)
    together.observe(actions, frames)
    found = together.step(actions)[0]
    for row_index in range(3):
        alone = Dream(model=lasting)
        alone.reset(seed=4 + row_index)
        alone.observe(actions[row_index], frames[row_index])
        assert apart(alone.step(actions[row_index])[0], found[row_index]) <= ROUNDING
