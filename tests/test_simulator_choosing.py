"""First pictures: what the captioner holds of them, that it leads them, and that the best of several is what
comes out."""

import gymnasium
import numpy as np
import pytest
import torch

from probes.checker import Checker
from probes.prompt_following import prompt_following
from probes.subjects import held_out_swaps
from recon3d.sweeps import orbit, revisit
from simulator import canvas as tasks
from simulator.captioner import seen_in
from simulator.captions import parse, swap
from simulator.choosing import agreement, can_judge, can_lead, led, led_edit, starting_with, tried_seeds
from simulator.video import resize
from simulator.world_model import WorldModel

PROMPT = "a red ball left of a blue box on a wooden table"
SAID = parse(PROMPT)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load()


@pytest.fixture(scope="module")
def scenes() -> list[tuple[str, np.ndarray]]:
    """Pictures of the reference world, each with its caption that says most of where things are."""
    found = []
    with gymnasium.make("envs:orrery/Orbit-v0", disable_env_checker=True) as env:
        for seed in range(900_002_000, 900_002_024):
            picture, _ = env.reset(seed=seed, options={"scene": {"things": [{}, {}]}})
            world = env.unwrapped
            told = [caption for caption in world.captions() if parse(caption).relations]
            if told:
                found.append((told[0], picture))
    return found


@pytest.mark.parametrize(("change", "share"), [("colour", 0.9), ("shape", 0.75), ("side", 0.9)])
def test_a_picture_agrees_with_its_own_caption_rather_than_with_a_changed_one(model, scenes, change, share):
    rng, right = np.random.default_rng(0), []
    assert len(scenes) > 15
    for caption, picture in scenes:
        found = seen_in(picture[None], model.captioner, model.tokenizer)
        if change == "side":
            sides = {"left of": "right of", "right of": "left of"}
            word = parse(caption).relations[0][1]
            if word not in sides:
                continue
            other = caption.replace(word, sides[word], 1)
        else:
            other = swap(caption, change, rng)[0]
        right.append(float(agreement(parse(caption), found)) > float(agreement(parse(other), found)))
    assert len(right) > 8 and np.mean(right) >= share


@pytest.mark.parametrize(("width", "more"), [(64, 0.3), (96, 0.15)])
def test_led_pictures_show_the_named_shapes_more_often_to_a_checker_that_did_not_lead_them(
    model, width, more
):
    """Wide ones are squeezed for it."""
    swaps, checker = held_out_swaps(16, 31), Checker.load()
    alone = WorldModel(model.config, model.tokenizer, model.transformer)
    read = []
    for each in (alone, model.trying(1)):
        prompts = ([getattr(swap, name) for swap in swaps] for name in ("prompt", "changed_prompt"))
        seeds = [swap.seed for swap in swaps]
        made = [each.start(said, "Orbit", seeds, width=width)[1][:, 0] for said in prompts]
        pictures = [resize(frames, 64, 64) for frames in made]
        found = {m.name: m.value for m in prompt_following(swaps, *pictures, checker)}
        read.append(found)
    assert read[1]["prompt_shape_read"] > read[0]["prompt_shape_read"] + more
    assert read[1]["prompt_colour_read"] > read[0]["prompt_colour_read"] - 0.05


def test_what_is_led_agrees_more_and_all_else_stays_as_it_is(model):
    """Rows without words, and those whose next picture is the last."""
    data = torch.randn(3, 1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    lead = led(model.captioner, [[SAID], [], [SAID]], torch.full((3,), 6.0), [0, 1, 2])
    moved = lead.moved(data, torch.tensor([[1.0], [1.0], [0.0]]))
    before, after = (agreement(SAID, model.captioner(each)) for each in (data, moved))
    assert after[0] > before[0] + 1 and torch.equal(moved[1:], data[1:])
    assert led(model.captioner, [[]], torch.ones(1), [0]) is None


def test_led_edits_change_what_the_words_change_and_keep_more_of_the_rest(model, scenes):
    """To a checker that did not lead them; beside edits that start from more noise and are not led."""
    alone, checker = WorldModel(model.config, model.tokenizer, model.transformer), Checker.load()
    rng, changed, kept = np.random.default_rng(0), [], []
    for caption, picture in scenes[:8]:
        prompt, _, shape = swap(caption, "shape", rng)
        column = checker.colours.index(parse(prompt).things[0]["colour"])
        request = tasks.edit(picture[None], prompt, world="Orbit")
        further = tasks.edit(picture[None], prompt, level=0.9, world="Orbit")
        made = np.stack([model.generate(request)[0], alone.generate(request)[0], alone.generate(further)[0]])
        changed.append(checker.read(made)[:, column] == 1 + checker.shapes.index(shape))
        kept.append([np.corrcoef(picture.ravel(), each.ravel())[0, 1] for each in made])
    led_share, same_start, more_noise = np.mean(changed, axis=0)
    assert led_share > max(same_start, more_noise) + 0.2
    assert np.mean(kept, axis=0)[0] > np.mean(kept, axis=0)[2] + 0.05


def test_only_clips_made_again_under_telling_words_are_led_and_blank_frames_stay(model, scenes):
    picture = scenes[0][1]
    source = np.stack([picture, picture, np.full_like(picture, 127)])
    request = tasks.edit(source, scenes[0][0])
    less, lead = led_edit(model.captioner, model.tokenizer, request, 0)
    assert lead is not None and 1 < less.guidance < request.guidance
    data = torch.randn(1, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = lead.moved(data, torch.full((1, 3), 0.5))
    same = [torch.equal(one, other) for one, other in zip(moved[0], data[0], strict=True)]
    assert same == [False, False, True]
    for other in (
        tasks.edit(source, scenes[0][0], guidance=1.0),
        tasks.edit(source, "a tree in the rain"),
        tasks.edit(source, None),
        tasks.edit(source, scenes[0][0], level=1.0),
        tasks.upscale(source, scenes[0][0], 128, 128),
        tasks.blend(source, source, scenes[0][0], 3),
        tasks.text_to_video(scenes[0][0], 3),
    ):
        assert not can_lead(other)
        assert led_edit(model.captioner, model.tokenizer, other, 0) == (other, None)


@pytest.mark.parametrize(
    ("guidance", "width", "leads"), [(1.0, 64, False), (0.0, 64, False), (3.0, 64, True), (3.0, 96, True)]
)
def test_words_lead_where_they_pull(model, guidance, width, leads):
    one, alone = model.trying(1), WorldModel(model.config, model.tokenizer, model.transformer)
    how = {"guidance": guidance, "width": width}
    frames = [each.start([PROMPT], "Orbit", [0], **how)[1] for each in (one, alone)]
    assert np.array_equal(frames[0], frames[1]) != leads


def test_a_model_that_is_loaded_without_gradients_leads_too():
    with torch.inference_mode():
        model = WorldModel.load().trying(1)
    assert model.generate(tasks.text_to_video(PROMPT, 1, world="Orbit"), steps=2).shape == (1, 64, 64, 3)


def test_the_best_of_several_is_one_of_them_and_agrees_most(model):
    request = tasks.text_to_video(PROMPT, 1, world="Orbit")
    one = model.trying(1)
    each = np.concatenate([one.generate(request, seed=seed, steps=4) for seed in tried_seeds(5, 4)])
    scores = agreement(SAID, seen_in(each, model.captioner, model.tokenizer))
    for tries in (1, 2, 4):
        kept = model.trying(tries).generate(request, seed=5, steps=4)[0].astype(int)
        assert np.abs(kept - each[int(scores[:tries].argmax())]).max() <= 2


def test_more_tries_begin_with_those_of_fewer():
    assert tried_seeds(7, 1) == [7]
    assert tried_seeds(7, 8)[:3] == tried_seeds(7, 3)
    assert len({*tried_seeds(7, 8), *tried_seeds(8, 8)}) == 16


@pytest.mark.parametrize("frames", [1, 5])
def test_what_the_prompt_does_not_tell_is_not_tried_again(model, frames):
    """Nothing known and words that name a thing: tried; all else made once."""
    assert model.tries_for(tasks.text_to_video(PROMPT, frames)) == model.tries > 1
    picture = np.zeros((64, 64, 3), np.uint8)
    for request in (
        tasks.text_to_video(None, frames),
        tasks.text_to_video("a tree in the rain", frames),
        tasks.image_to_video(picture, PROMPT, frames + 1),
        tasks.edit(np.repeat(picture[None], frames, axis=0), PROMPT),
    ):
        assert not can_judge(request) and model.tries_for(request) == 1


@pytest.mark.parametrize("tries", [1, 4])
def test_a_clip_from_words_starts_with_the_picture_of_its_words(model, tries):
    model = model.trying(tries)
    picture = model.generate(tasks.text_to_video(PROMPT, 1, world="Orbit"), seed=3, steps=2)[0]
    for request in (
        tasks.text_to_video(PROMPT, 3, world="Orbit"),
        tasks.text_to_video(PROMPT, 3, world="Orbit", cameras=orbit(3, height=64, width=64)),
        tasks.loop(PROMPT, 4, world="Orbit"),
        tasks.multi_shot((PROMPT, "a white egg"), 4, world="Orbit"),
    ):
        video = model.generate(request, seed=3, steps=2)
        assert np.array_equal(video[0], picture)
        assert not request.closed or np.array_equal(video[-1], picture)


def test_a_known_start_changes_nothing_else_of_a_request():
    request = tasks.text_to_video(PROMPT, 4)
    begun = starting_with(request, np.full((64, 64, 3), 9, np.uint8))
    assert begun.held.tolist() == [True, False, False, False] and (begun.frames[0] == 9).all()
    assert begun.prompt == request.prompt and not request.held.any() and not request.frames.any()


def test_a_dream_starts_from_the_picture_that_generate_makes_of_asked_words(model):
    """Words that are drawn are made once, as they cost no one's patience."""
    with gymnasium.make("envs:orrery/Dream-v0", world="Orbit", model=model, tries=3) as env:
        dream = env.unwrapped
        frame, _ = env.reset(seed=1, options={"prompt": PROMPT})
        request = tasks.text_to_video(PROMPT, 1, world="Orbit")
        seed = dream._dream.seeds[0]
        assert np.array_equal(frame, model.trying(3).generate(request, seed=seed)[0])
        drawn, info = env.reset(seed=1)
        _, once, _ = model.trying(1).start([info["prompt"]], "Orbit", [seed])
        assert np.array_equal(drawn, once[0, 0])


def test_a_row_begins_the_same_whatever_the_rows_beside_it_ask_for(model):
    """Tried or not: words that nobody can judge, none, and those of a known thing."""
    prompts, seeds = [PROMPT, "a tree in the rain", None], [3, 4, 5]
    _, frames, doubts = model.start(prompts, "Orbit", seeds)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        _, frame, doubt = model.start([prompt], "Orbit", [seed])
        assert np.abs(frame[0].astype(int) - frames[row]).max() <= 2
        assert doubt[0] == pytest.approx(doubts[row], rel=1e-2) and doubt[0] > 0


def test_sweeps_that_are_made_at_once_stay_as_sharp_as_without_a_captioner(model):
    request = tasks.text_to_video(PROMPT, 8, world="Orbit", cameras=revisit(8))
    alone = WorldModel(model.config, model.tokenizer, model.transformer)
    videos = [each.generate(request, seed=2).astype(float) for each in (alone, model)]
    once, best = (np.abs(np.diff(video[4:], axis=2)).mean() for video in videos)
    assert best > 0.85 * once


def test_a_led_row_is_the_same_alone_and_beside_others(model):
    """Of twenty different prompts, in batches of sixteen: rounding does not grow into other pictures."""
    swaps = held_out_swaps(20, 31)
    prompts, seeds = [swap.prompt for swap in swaps], [swap.seed for swap in swaps]
    _, together, _ = model.trying(1).start(prompts, "Orbit", seeds)
    for row in range(0, 20, 3):
        _, alone, _ = model.trying(1).start([prompts[row]], "Orbit", [seeds[row]])
        assert np.abs(alone[0].astype(int) - together[row]).mean() < 3


def test_a_loop_of_longer_latent_steps_ends_with_its_picture_alone():
    frames = np.zeros((7, 16, 16, 3), np.uint8)
    request = tasks.Canvas(PROMPT, frames, np.ones(4, np.float32), closed=True)
    begun = starting_with(request, np.full((16, 16, 3), 9, np.uint8))
    assert begun.held_frames.tolist() == [True, *[False] * 4, True, True]
    assert (begun.frames[begun.held_frames] == 9).all()


def test_no_tries_are_refused(model):
    with pytest.raises(ValueError, match="tries must be at least 1, got 0"):
        model.trying(0)


def test_agreement_does_not_depend_on_the_pictures_beside(model, scenes):
    pictures = np.stack([picture for _, picture in scenes[:4]])
    together = agreement(SAID, seen_in(pictures, model.captioner, model.tokenizer))
    alone = [agreement(SAID, seen_in(one[None], model.captioner, model.tokenizer)) for one in pictures]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-3, rtol=1e-3)
