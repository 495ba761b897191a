"""Canvases on foot: what follows on known frames, under told actions or none, and sweeps, whose actions from
view to view are checked in the true world."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from recon3d.cameras import Cameras, concatenate
from recon3d.sweeps import arc, dolly, orbit, revisit
from simulator.canvas import Canvas, extend, extend_back, image_to_video, infill, loop, text_to_video
from simulator.metrics import psnr
from simulator.timing import estimate
from simulator.video import resize
from simulator.walk import first_view, legs_of, meetings, met
from simulator.world_model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.load("default")


def words(cameras: Cameras, **more) -> Canvas:
    return text_to_video("a red ball", len(cameras), world="Orbit", cameras=cameras, **more)


def spiral(views: int) -> Cameras:
    """Around, up and away at once."""
    how = [(7.0 * k, 20.0 + k, 1.3 + 0.02 * k) for k in range(views)]
    return concatenate([orbit(1, start_deg=a, elevation_deg=e, radius_m=d) for a, e, d in how])


@pytest.mark.parametrize(
    "cameras",
    [orbit(40), orbit(20, elevation_deg=45.0, start_deg=100.0), arc(12), dolly(15, end_m=1.2), spiral(9)],
    ids=["turn", "coarse turn", "arc", "dolly", "spiral"],
)
def test_in_the_true_world_the_walk_leads_to_the_cameras(model: WorldModel, cameras: Cameras):
    legs = legs_of(model, words(cameras))
    assert legs and max(np.abs(leg.actions).max() for leg in legs) <= 1
    env = gymnasium.make("envs:orrery/Orbit-v0", disable_env_checker=True)
    world: Any = env.unwrapped
    wanted = (cameras.w2c[:1] @ cameras.c2w).numpy()
    eye = cameras.centres[0].double().numpy() - (0, 0, 0.15)
    distance = np.linalg.norm(eye)
    first = [np.arctan2(eye[1], eye[0]), np.arcsin(eye[2] / distance), distance]
    reached = {0}
    for leg in legs:
        env.reset(seed=0)
        world._pose = np.array(first)
        begun = world._camera()
        for action, view in zip(leg.actions, leg.views, strict=True):
            info = env.step(action)[4]
            if view >= 0:
                reached.add(int(view))
                assert np.allclose(np.linalg.inv(begun) @ info["c2w"], wanted[view], atol=2e-3)
    missing = set(range(len(cameras))) - reached
    assert reached and len(missing) <= 4  # where two ways meet


def test_a_turn_is_walked_both_ways_and_another_path_one_way(model: WorldModel):
    left, right = legs_of(model, words(orbit(40)))
    (part,) = legs_of(model, words(orbit(20, degrees=180.0)))
    assert left.views.tolist() == [*range(1, 19)] and right.views.tolist() == [*range(39, 22, -1)]
    ((where, middle),) = meetings(words(orbit(40)), [left, right])
    assert (where.start + np.flatnonzero(~middle.held)).tolist() == [19, 20, 21, 22]
    assert middle.cameras is not None and torch.equal(middle.cameras.c2w, orbit(40).c2w[where])
    assert part.views.tolist() == [*range(1, 20)]
    assert np.allclose(left.actions[:, 0], 1, atol=1e-4) and np.allclose(right.actions[:, 0], -1, atol=1e-4)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: words(revisit(20)),
        lambda: words(orbit(20, target=(0.0, 0.0, 0.0))),
        lambda: words(orbit(4)),
        lambda: text_to_video("a red ball", 20, world="Room", cameras=orbit(20)),
        lambda: text_to_video("a red ball", 20, cameras=orbit(20)),
        lambda: Canvas(
            None, np.zeros((20, 64, 64, 3), np.uint8), np.full(20, 0.5), "Orbit", cameras=orbit(20)
        ),
        lambda: words(orbit(1)),
    ],
    ids=["comes back", "looks elsewhere", "far apart", "other world", "no world", "drafts", "one view"],
)
def test_what_cannot_be_walked_is_made_at_once(model: WorldModel, request_of):
    assert legs_of(model, request_of()) == []


def test_a_walked_sweep_is_the_rollout_of_its_actions(model: WorldModel):
    cameras = orbit(5, degrees=36.0)
    request = words(cameras)
    video = model.generate(request, seed=3)
    picture = model.generate(first_view(request), seed=3)
    assert np.array_equal(video[:1], picture)
    state, *_ = model.start(["a red ball"], "Orbit", [3], images=picture)
    right = np.array([[36 / 5 / 9, 0, 0]], np.float32)
    for frame in video[1:]:
        state, made, *_ = model.step(state, right)
        assert np.abs(made[0, -1].astype(int) - frame).max() <= 2


def test_a_turn_that_closes_ends_with_the_view_that_it_began_with(model: WorldModel):
    cameras, ring = orbit(12), torch.arange(13) % 12
    picture = np.full((64, 64, 3), 120, np.uint8)
    request = loop(None, 13, image=picture, world="Orbit", cameras=cameras[ring])
    video = model.generate(request, seed=1)
    assert np.array_equal(video[0], picture) and np.array_equal(video[-1], picture)
    assert len(np.unique(video.reshape(13, -1), axis=0)) == 12
    again = image_to_video(picture, None, 12, world="Orbit", cameras=cameras)
    assert np.array_equal(model.generate(again, seed=1), video[:-1])


def told(steps: int, known: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Recorded frames of the Room, so many, and the actions of its script for so many steps."""
    env = gymnasium.make("envs:orrery/Room-v0", disable_env_checker=True)
    frames, rng = [env.reset(seed=900_000_123)[0]], np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (steps, 5)).astype(np.float32)
    frames += [env.step(action)[0] for action in actions[: known - 1]]
    return np.stack(frames), actions


@pytest.mark.parametrize("known", [1, 3])
def test_what_actions_lead_to_is_the_rollout_from_all_that_is_known(model: WorldModel, known: int):
    frames, actions = told(6, known)
    request = extend(frames, "a room", 7 - known, world="Room", actions=actions)
    video = model.generate(request, seed=4)
    assert np.array_equal(video[:known], frames)
    state, *_ = model.start(["a room"], "Room", [4], images=frames[:1])
    for seen, action in zip(frames[1:, None], actions, strict=False):
        state = model.observe(state, seen[None], action[None])
    for made, action in zip(video[known:], actions[known - 1 :], strict=True):
        state, dreamt, *_ = model.step(state, action[None])
        assert np.array_equal(dreamt[0, -1], made)


@pytest.mark.parametrize("world", ["Lab", None])
def test_without_actions_what_follows_is_left_to_the_model(model: WorldModel, world: str | None):
    """Walked as under told ones: the same from known frames as from the state that saw them, and no action at
    all is another thing than an action of zeros."""
    frames = told(5, 3)[0]
    video = model.generate(extend(frames, "a red ball", 3, world=world), seed=5)
    state, *_ = model.start(["a red ball"], world, [5], images=frames[:1])
    for frame in frames[1:]:
        state = model.observe(state, frame[None, None], None)
    for frame in video[3:]:
        state, made, *_ = model.step(state, None)
        assert np.abs(made[0, -1].astype(int) - frame).max() <= 2
    if world is not None:
        still = np.zeros((5, 4), np.float32)
        other = model.generate(extend(frames, "a red ball", 3, world=world, actions=still), seed=5)
        assert np.abs(video[3:].astype(int) - other[3:]).mean() > 0.5


def test_a_longer_walk_without_actions_begins_as_a_shorter_one(model: WorldModel):
    short, longer = (model.generate(text_to_video("a red ball", n, world="Orbit"), seed=1) for n in (3, 6))
    assert np.array_equal(short, longer[:3])


def test_asked_for_sampler_steps_are_taken_for_each_frame(model: WorldModel):
    frames, actions = told(3)
    request = image_to_video(frames[0], None, 4, world="Room", actions=actions)
    made = [model.generate(request, seed=4, steps=steps) for steps in (1, 3)]
    more = model.with_config(sampler_steps=3).generate(request, seed=4)
    assert np.array_equal(made[1], more) and not np.array_equal(made[0], made[1])


def test_words_and_actions_begin_with_the_picture_that_the_words_make(model: WorldModel):
    request = text_to_video("a red ball", 4, world="Room", actions=told(3)[1])
    video = model.generate(request, seed=2)
    assert np.array_equal(video[:1], model.generate(text_to_video("a red ball", 1, world="Room"), seed=2))


def test_from_what_is_known_later_the_way_leads_back(model: WorldModel):
    """Backwards in time is forwards under undone actions; of what was walked, nothing depends on the rest."""
    frames, actions = told(6, 3)
    video = model.generate(extend_back(frames, None, 4, world="Room", actions=actions), seed=4)
    undone = (actions * (-1, -1, -1, -1, 0))[::-1].astype(np.float32)
    turned = extend(frames[::-1].copy(), None, 4, world="Room", actions=undone)
    assert np.array_equal(video[::-1], model.generate(turned, seed=4))
    assert np.array_equal(video[4:], frames)


def test_between_two_clips_both_ways_are_walked_and_meet(model: WorldModel):
    frames, actions = told(11, 12)
    request = infill(frames[:3], frames[-2:], None, 7, world="Room", actions=actions)
    ahead, back = legs_of(model, request)
    assert (ahead.begins, ahead.views.tolist()) == (0, [1, 2, 3, 4])
    assert (back.begins, back.views.tolist()) == (11, [10, 9, 8, 7])
    ((part, middle),) = meetings(request, [ahead, back])
    assert (part.start, part.stop) == (0, 12) and np.flatnonzero(~middle.held).tolist() == [5, 6]
    assert legs_of(model, middle) == []
    video = model.generate(request, seed=4)
    assert np.array_equal(video[request.held], frames[request.held])
    alone = model.generate(extend(frames[:3], None, 9, world="Room", actions=actions), seed=4)
    assert np.array_equal(video[:5], alone[:5])
    assert len(np.unique(video.reshape(12, -1), axis=0)) == 12


def test_a_way_begins_with_no_more_than_it_can_see(model: WorldModel):
    pixels, actions = np.zeros((60, 64, 64, 3), np.uint8), np.zeros((59, 3), np.float32)
    level = np.zeros(60, np.float32)
    level[[25, 26, 27, 28, 29, 50]] = 1
    ahead, back = legs_of(model, Canvas(None, pixels, level, "Orbit", actions=actions))
    assert (ahead.begins, ahead.views[-1], back.begins, back.views[-1]) == (9, 25, 45, 28)
    parts = meetings(Canvas(None, pixels, level, "Orbit", actions=actions), [ahead, back])
    assert [(part.start, part.stop) for part, _ in parts] == [(18, 36), (42, 59)]


def test_each_meeting_is_made_alone_and_once(model: WorldModel):
    """Key frames nine apart: what one meeting looks at reaches into the next."""
    pixels, actions = np.zeros((19, 64, 64, 3), np.uint8), np.zeros((18, 5), np.float32)
    level = np.ones(19, np.float32)
    level[[0, 9, 18]] = 0
    request = Canvas(None, pixels, level, "Room", actions=actions)
    parts = meetings(request, legs_of(model, request))
    free = [part.start + np.flatnonzero(~middle.held) for part, middle in parts]
    assert [f.tolist() for f in free] == [[4, 5], [13, 14]]
    assert all(legs_of(model, middle) == [] for _, middle in parts)


def test_three_frames_between_are_walked_and_timed(model: WorldModel):
    frames, actions = told(4, 5)
    request = infill(frames[:1], frames[4:], None, 3, world="Room", actions=actions)
    (back,) = legs_of(model, request)
    assert back.views.tolist() == [3] and estimate(model, request).seconds > 0


def test_a_loop_whose_ends_are_held_keeps_both(model: WorldModel):
    frames, actions = told(4, 5)
    level = np.array([0, 1, 1, 1, 0], np.float32)
    request = Canvas(None, frames, level, "Room", actions=actions, closed=True)
    assert legs_of(model, request)
    made = model.generate(request, seed=1)
    assert np.array_equal(made[[0, -1]], frames[[0, -1]])


def test_actions_of_another_width_are_refused_in_any_direction(model: WorldModel):
    frames = told(1)[0]
    with pytest.raises(ValueError, match="actions of width 4 do not fit world 'Room'"):
        model.generate(extend_back(frames, None, 3, world="Room", actions=np.zeros((3, 4), np.float32)))


def test_what_is_cut_or_moved_or_cannot_be_undone_is_made_at_once(model: WorldModel):
    frames, actions = told(6, 2)
    how = {"world": "Room", "actions": actions}
    one = np.zeros(7, int)
    still = np.repeat(frames[:1], 7, axis=0)
    requests = [
        extend_back(frames, None, 5, world="Lab", actions=actions[:, :4]),
        infill(frames[:1], frames[1:], None, 5, world="Lab", actions=actions[:, :4]),
        loop(None, 7, **how),
        Canvas(None, still, np.full(7, 0.6), **how),
        Canvas(("a", "b"), still, one + 1.0, shot=one, **how),
        infill(frames[:1], frames[1:], None, 2, world="Room", actions=actions[:3]),
        extend_back(frames, None, 5, world="Room"),
        infill(frames[:1], frames[1:], None, 5, world="Orbit"),
    ]
    assert [legs_of(model, request) for request in requests] == [[]] * len(requests)


def test_what_a_draft_shows_is_followed_the_closer_the_less_noise_it_gets(model: WorldModel):
    """The true frames are the draft: they are what the frames made are nearest to, the more so."""
    truth, actions = told(6, 7)
    request = image_to_video(truth[0], None, 7, world="Room", actions=actions)
    alone, near = model.generate(request, seed=2), []
    for level in (0.1, 0.5, 1.0):
        start = np.array([0, *[level] * 6], np.float32)
        drafted = replace(request, frames=truth.copy(), start_level=start)
        assert [leg.views.tolist() for leg in legs_of(model, drafted)] == [[*range(1, 7)]]
        video = model.generate(drafted, seed=2)
        assert np.array_equal(video[0], truth[0])
        near.append(psnr(video[1:], truth[1:]).mean())
    assert near[0] > near[1] + 1 > near[2] + 2 and near[0] > 25
    assert np.array_equal(video, alone), "noise alone says nothing of a draft"


def test_frames_meet_a_draft_in_what_is_coarse_and_keep_their_details():
    rng = np.random.default_rng(3)
    blobs = [resize(rng.integers(60, 180, (3, 4, 8, 3), dtype=np.uint8), 16, 32) for _ in range(2)]
    made, draft = (blob + rng.integers(0, 20, blob.shape, dtype=np.uint8) for blob in blobs)

    def parts(video):
        coarse = resize(resize(video, 8, 16), 16, 32).astype(float)
        return coarse, video - coarse

    assert np.array_equal(met(made, draft, 1.0), made) and np.array_equal(met(made, made, 0.0), made)
    coarse, fine = zip(*(parts(met(made, draft, level)) for level in (1.0, 0.5, 0.0)), strict=True)
    far = [np.abs(each - parts(draft)[0]).mean() for each in coarse]
    assert far[1] == pytest.approx(far[0] / 2, rel=0.1) and far[2] < 0.2 * far[0]
    assert np.corrcoef(fine[0].ravel(), fine[2].ravel())[0, 1] > 0.9


def test_a_rollout_longer_than_memory_holds_as_one_clip_is_made(model: WorldModel, monkeypatch):
    frames, actions = told(30)
    monkeypatch.setattr("simulator.memory.free_bytes", lambda device: 5e6)
    with pytest.raises(ValueError, match="at most"):
        model.generate(infill(frames[:1], frames[:1], None, 29), seed=0)
    request = image_to_video(frames[0], None, 31, world="Room", actions=actions)
    assert len(model.generate(request, seed=0)) == 31
