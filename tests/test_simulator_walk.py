"""Sweeps on foot: the actions from view to view, checked in the true world, and what is made of them."""

import gymnasium
import numpy as np
import pytest
import torch

from recon3d.cameras import Cameras, concatenate
from recon3d.sweeps import arc, dolly, orbit, revisit
from simulator.canvas import Canvas, image_to_video, loop, text_to_video
from simulator.walk import first_view, walk_of
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
    walk = walk_of(model, words(cameras))
    assert walk is not None and np.abs(walk.actions).max() <= 1
    env = gymnasium.make("envs:orrery/Orbit-v0", disable_env_checker=True)
    world = env.unwrapped
    wanted = (cameras.w2c[:1] @ cameras.c2w).numpy()
    eye = cameras.centres[0].double().numpy() - (0, 0, 0.15)
    distance = np.linalg.norm(eye)
    first = [np.arctan2(eye[1], eye[0]), np.arcsin(eye[2] / distance), distance]
    reached = {0}
    for actions, views in zip(walk.actions, walk.views, strict=True):
        env.reset(seed=0)
        world._pose = np.array(first)
        begun = world._camera()
        for action, view in zip(actions, views, strict=True):
            info = env.step(action)[4]
            if view >= 0:
                reached.add(int(view))
                assert np.allclose(np.linalg.inv(begun) @ info["c2w"], wanted[view], atol=2e-3)
    assert reached == set(range(len(cameras)))


def test_a_turn_is_walked_both_ways_and_another_path_one_way(model: WorldModel):
    turn, part = walk_of(model, words(orbit(40))), walk_of(model, words(orbit(20, degrees=180.0)))
    assert turn is not None and part is not None
    assert turn.views.shape == (2, 20) and part.views.shape == (1, 19)
    assert turn.views[1].tolist() == [*range(39, 20, -1), -1]
    assert np.allclose(turn.actions[0, :, 0], 1, atol=1e-4)
    assert np.allclose(turn.actions[1, :-1, 0], -1, atol=1e-4) and not turn.actions[1, -1].any()


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
    assert walk_of(model, request_of()) is None


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
