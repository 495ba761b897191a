"""Laws that every reference world keeps."""

import multiprocessing
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401
from envs import lab_camera
from envs.renderer import look_along
from envs.scenes import ROOM_HALF_M
from envs.vocabulary import COLOURS
from recon3d import sweeps
from recon3d.cameras import Cameras
from simulator.words import KINDS, SHAPES

WORLDS = ("Room", "Orbit", "Lab")


def make(world: str, **keywords) -> gymnasium.Env:
    return gymnasium.make(f"envs:orrery/{world}-v0", disable_env_checker=True, **keywords)


def actions_of(env: gymnasium.Env, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def play(world: str, seed: int, steps: int) -> np.ndarray:
    with make(world) as env:
        frames = [env.reset(seed=seed)[0]]
        frames += [env.step(action)[0] for action in actions_of(env, steps)]
    return np.stack(frames)


def unproject(depth: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(depth.shape) + 0.5
    depth = np.where(np.isfinite(depth), depth, 1e6)
    seen = np.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], np.ones(depth.shape)], -1)
    return (seen * depth[..., None]) @ c2w[:3, :3].T + c2w[:3, 3]


@pytest.mark.parametrize("world", WORLDS)
def test_env_passes_gymnasiums_own_check(world):
    with gymnasium.make(f"envs:orrery/{world}-v0", height=32, width=48) as env:
        check_env(env.unwrapped, skip_render_check=True)


def test_same_seed_gives_the_same_frames_in_another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        others = pool.starmap(play, [(world, 5, 4) for world in WORLDS])
    for world, other in zip(WORLDS, others, strict=True):
        assert np.array_equal(play(world, 5, 4), other)


@pytest.mark.parametrize("world", WORLDS)
def test_restored_world_replays_the_same_frames(world):
    with make(world) as env, make(world) as other:
        env.reset(seed=3)
        actions = actions_of(env, 12)
        for action in actions[:6]:
            env.step(action)
        state = pickle.loads(pickle.dumps(env.unwrapped.save_state()))
        first = [env.step(action) for action in actions[6:]]
        other.reset(seed=99)
        other.unwrapped.load_state(state)
        second = [other.step(action) for action in actions[6:]]
    for (frame, reward, *_), (frame2, reward2, *_) in zip(first, second, strict=True):
        assert np.array_equal(frame, frame2)
        assert reward == pytest.approx(reward2, abs=1e-9)


def test_forks_go_their_own_ways_from_one_state():
    with make("Room") as env:
        env.reset(seed=1)
        forks = env.unwrapped.fork(2)
        ends = []
        for state, turn in zip(forks, (1.0, -1.0), strict=True):
            env.unwrapped.load_state(state)
            ends.append(env.step(np.array([0, 0, turn, 0, 0], np.float32))[0])
        env.unwrapped.load_state(forks[0])
        again = env.step(np.array([0, 0, 1, 0, 0], np.float32))[0]
    assert not np.array_equal(*ends) and np.array_equal(ends[0], again)


def test_step_limit_is_saved_with_the_state():
    with make("Lab") as env:
        env.reset(seed=0)
        still = np.zeros(4, np.float32)
        for _ in range(47):
            assert not env.step(still)[3]
        state = env.unwrapped.save_state()
        assert env.step(still)[3]
        env.unwrapped.load_state(state)
        assert env.step(still)[3]


def test_a_mark_stays_and_moves_with_its_thing_and_is_saved():
    with make("Lab") as env:
        scene = {"kind": "mark", "things": [{"shape": "box", "colour": "yellow", "size": "large"}]}
        before = env.reset(seed=0, options={"scene": scene})[0]
        env.step(np.array([0, 0, 0, 1], np.float32))
        for _ in range(5):
            after = env.step(np.array([0, 0, 0, -1], np.float32))[0]
        state = env.unwrapped.save_state()
        env.reset(seed=1)
        env.unwrapped.load_state(state)
        restored = env.render()
    dark = (before.max(-1) > 120) & (after.max(-1) < 50)
    assert dark.sum() > 20
    assert np.array_equal(after, restored)


@pytest.mark.parametrize("shape", SHAPES)
def test_depth_and_ids_lie_on_the_thing_and_the_picture_shows_its_colour(shape):
    with make("Orbit", height=96, width=96) as env:
        options = {"scene": {"things": [{"shape": shape, "colour": "red", "size": "large"}], "floor": "grey"}}
        frame, info = env.reset(seed=2, options=options)
        world = env.unwrapped
        thing, ids = world.scene()["things"][0], world.segmentation()
        points = unproject(world.depth(), info["K"].astype(float), info["c2w"].astype(float))
    inside = ids == 0
    assert 0.02 < inside.mean() < 0.4
    assert np.linalg.norm(points[inside] - thing["position"], axis=-1).max() < 1.5 * thing["radius_m"]
    reddish = (frame[..., 0].astype(int) - frame[..., 1:].max(-1)) > 40
    assert (reddish & inside).sum() / (reddish | inside).sum() > 0.85
    if shape == "ball":
        off = np.linalg.norm(points[inside] - thing["position"], axis=-1) - thing["radius_m"]
        assert abs(off).max() < 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_depth_meets_the_floor(world):
    with make(world) as env:
        _, info = env.reset(seed=4)
        points = unproject(env.unwrapped.depth(), info["K"].astype(float), info["c2w"].astype(float))
        free = env.unwrapped.segmentation() < 0
    near = free & (abs(points[..., 2]) < 1e-4)
    assert near.mean() > 0.02
    if world == "Room":
        finite = abs(points).max(-1) < 1e3
        assert abs(points[finite][:, :2]).max() < ROOM_HALF_M + 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_mesh_projects_onto_the_segmentation(world):
    options = {
        "scene": {"things": [{"shape": "egg"}, {"shape": "mug"}] if world != "Lab" else [{"shape": "egg"}]}
    }
    with make(world, height=128, width=128) as env:
        _, info = env.reset(seed=6, options=options)
        vertices, faces, owners = env.unwrapped.mesh()
        ids = env.unwrapped.segmentation()
    assert set(np.unique(owners)) == {-1, *range(len(options["scene"]["things"]))} and faces.max() < len(
        vertices
    )
    points = vertices[np.unique(faces[owners == 0])]
    seen = (points - info["c2w"][:3, 3]) @ info["c2w"][:3, :3]
    pixels = seen[:, :2] / seen[:, 2:] * info["K"][0, 0] + 64
    rows, columns = np.nonzero(ids == 0)
    assert columns.min() == pytest.approx(max(pixels[:, 0].min(), 0), abs=2.5)
    assert rows.min() == pytest.approx(max(pixels[:, 1].min(), 0), abs=2.5)


def test_render_at_agrees_with_the_worlds_own_camera_and_honours_other_intrinsics():
    with make("Orbit") as env:
        frame, info = env.reset(seed=7)
        world = env.unwrapped
        frames, depths = world.render_at(world.cameras())
        assert abs(frames[0].astype(int) - frame).mean() < 0.2
        assert np.allclose(depths[0], world.depth(), atol=1e-4)
        K = torch.tensor([[90.0, 0, 20], [0, 70.0, 40], [0, 0, 1]])[None]
        odd = Cameras(K, torch.from_numpy(info["c2w"])[None], 64, 64)
        frames, depths = world.render_at(odd)
        points = unproject(depths[0], K[0].numpy().astype(float), info["c2w"].astype(float))
        thing = world.scene()["things"][0]
        near = np.linalg.norm(points - thing["position"], axis=-1) < 1.2 * thing["radius_m"]
        # A thing's pixels in this picture differ from the table's: the picture and the rays use one camera.
        assert near.sum() > 30
        rgb = np.array(COLOURS[thing["colour"]])
        hue = frames[0] / np.maximum(frames[0].max(-1, keepdims=True), 1)
        assert abs(hue[near] - rgb / rgb.max()).mean() < 0.3
        sweep, _ = world.render_at(sweeps.orbit(4))
        assert sweep.shape == (4, 64, 64, 3)


def test_orbit_follows_the_sweeps_camera_model():
    with make("Orbit") as env:
        env.reset(seed=8)
        azimuth, elevation, radius = env.unwrapped.pose
        expected = sweeps.orbit(
            40,
            radius_m=float(radius),
            elevation_deg=float(np.degrees(elevation)),
            start_deg=float(np.degrees(azimuth)),
        )
        poses = [env.unwrapped.c2w] + [env.step(np.array([1, 0, 0], np.float32))[4]["c2w"] for _ in range(39)]
    assert np.allclose(np.stack(poses), expected.c2w.numpy(), atol=1e-4)
    assert np.allclose(env.unwrapped.K, expected.K[0].numpy(), atol=1e-3)


def test_look_along_is_a_right_handed_opencv_camera():
    c2w = look_along(np.zeros(3), np.array([0.0, 1.0, 0.0]))
    assert np.allclose(c2w[:3, :3], [[1, 0, 0], [0, 0, 1], [0, -1, 0]])


@pytest.mark.parametrize("kind", KINDS["Lab"])
def test_energy_is_never_gained_without_forces(kind):
    with make("Lab", height=16, width=16) as env:
        for seed in (5, 11):
            env.reset(seed=seed, options={"scene": {"kind": kind}})
            energies = [env.unwrapped.energy()]
            for _ in range(30):
                env.step(np.zeros(4, np.float32))
                energies.append(env.unwrapped.energy())
            # A contact stores energy and gives it back: a step may gain over the last, never over the first.
            assert max(energies) < 1.001 * energies[0]


def test_a_dropped_ball_falls_with_earths_gravity_and_rebounds_sensibly():
    with make("Lab") as env:
        scene = {"kind": "drop", "things": [{"shape": "ball", "colour": "red", "size": "small"}]}
        env.reset(seed=1, options={"scene": scene})
        states = [env.unwrapped.state_vector()]
        for _ in range(20):
            env.step(np.zeros(4, np.float32))
            states.append(env.unwrapped.state_vector())
        radius = env.unwrapped.scene()["things"][0]["radius_m"]
    heights, speeds = np.stack(states)[:, 2], np.stack(states)[:, 9]
    assert np.allclose(heights[:4], heights[0] - 0.5 * 9.81 * (0.1 * np.arange(4)) ** 2, atol=0.01)
    # How high it would fly, just after the first bounce: its height and what its speed is worth.
    after = int(np.argmax(speeds > 0.5))
    rebound = heights[after] + speeds[after] ** 2 / (2 * 9.81) - radius
    assert 0.35 < rebound / (heights[0] - radius) < 0.65


def test_lab_pixels_convert_to_metres():
    with make("Lab") as env:
        scene = {"kind": "drop", "things": [{"shape": "ball", "colour": "red", "size": "small"}]}
        env.reset(seed=1, options={"scene": scene})
        rows, columns = np.nonzero(env.unwrapped.segmentation() == 0)
        x, y, z = env.unwrapped.state_vector()[:3]
    assert y == lab_camera.PLANE_Y_M
    assert lab_camera.to_metres(columns.mean() + 0.5, rows.mean() + 0.5, 64, 64) == pytest.approx(
        (x, z), abs=0.03
    )
    assert lab_camera.to_pixels(*lab_camera.to_metres(10.0, 20.0, 64, 64), 64, 64) == pytest.approx((10, 20))


def test_room_rewards_progress_and_ends_at_the_thing():
    with make("Room") as env:
        env.reset(seed=0, options={"scene": {"things": [{"shape": "ball"}]}})
        world, total = env.unwrapped, 0.0
        for _ in range(80):
            x, y, yaw, _ = world.pose
            towards = world.state_vector()[:2] - (x, y)
            off = (np.arctan2(towards[1], towards[0]) - yaw + np.pi) % (2 * np.pi) - np.pi
            turn = np.clip(off / np.radians(9), -1, 1)
            _, reward, over, _, _ = env.step(np.array([abs(off) < 0.3, 0, turn, 0, 0], np.float32))
            total += reward
            if over:
                break
    assert over and reward > 1.0 and 1.2 < total < 4.0


def test_orbit_rewards_the_share_of_the_named_thing():
    with make("Orbit") as env:
        env.reset(seed=0)
        _, reward, *_ = env.step(np.zeros(3, np.float32))
        assert reward == pytest.approx(np.mean(env.unwrapped.segmentation() == 0))


def test_room_push_moves_what_is_ahead():
    with make("Room") as env:
        for seed in range(20):
            env.reset(seed=seed, options={"scene": {"things": [{"shape": "ball"}]}})
            start = env.unwrapped.state_vector()[:2].copy()
            x, y, yaw, _ = env.unwrapped.pose
            if np.linalg.norm(start - (x, y)) < 1.15:
                break
        for _ in range(5):
            env.step(np.array([0, 0, 0, 0, 1], np.float32))
        moved = env.unwrapped.state_vector()[:2] - start
    assert moved @ (np.cos(yaw), np.sin(yaw)) > 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": np.zeros((64, 64, 3), np.uint8)}, "cannot start from an image"),
        ({"prompt": ""}, "prompt must be text that says something"),
        ({"prompt": "a sunset"}, "must name a thing"),
        ({"colour": "red"}, "reset options"),
        ({"scene": "drop"}, "scene must be a dict"),
        ({"scene": {"kind": "flood"}}, "kind must be one of"),
        ({"scene": {"things": [{"shape": "cow"}]}}, "shape must be one of"),
        ({"scene": {"things": ["ball"]}}, "things must be dicts"),
        ({"scene": {"kind": "occluder", "things": [{}, {}]}}, "at most 1 thing"),
        ({"scene": {"floor": "lava"}}, "floor must be one of"),
    ],
)
def test_bad_reset_options_are_named_in_one_line(options, words):
    with make("Lab") as env, pytest.raises(ValueError, match=words) as caught:
        env.reset(seed=0, options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("action", [np.full(4, np.nan), np.full(4, 2.0), np.zeros(3)])
def test_bad_actions_are_named_in_one_line(action):
    with make("Lab") as env:
        env.reset(seed=0)
        with pytest.raises(ValueError, match="action must") as caught:
            env.unwrapped.step(action.astype(np.float32))
    assert "\n" not in str(caught.value)


def test_wrong_picture_sizes_and_states_are_named():
    with pytest.raises(ValueError, match="height must be"):
        make("Lab", height=0)
    with make("Lab") as env, make("Room") as other:
        env.reset(seed=0)
        other.reset(seed=0)
        with pytest.raises(ValueError, match="save_state of Lab"):
            env.unwrapped.load_state(other.unwrapped.save_state())


@pytest.mark.parametrize(("world", "share"), [("Room", 0.10), ("Orbit", 0.10), ("Lab", 0.03)])
def test_worlds_are_not_dull_under_random_actions(world, share):
    changed = []
    for seed in range(4):
        frames = play(world, seed, 4).astype(int)
        changed.append((abs(frames[4] - frames[0]).max(-1) > 8).mean())
    assert np.mean(changed) >= share
