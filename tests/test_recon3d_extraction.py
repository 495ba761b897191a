"""From a scene to one thing that falls: extraction, textures, MuJoCo bodies, and back into a world."""

import pickle
from dataclasses import replace

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
import trimesh

import envs  # noqa: F401
from envs.renderer import cast_rays
from recon3d import assets, form, sweeps
from recon3d.cameras import Cameras, concatenate
from recon3d.convex import convex_parts
from recon3d.extraction import NothingExtracted, extract, level_turn, support_plane
from recon3d.form import Form, checked
from recon3d.mesh import Mesh, cleaned, decimated, fuse, keep_inside
from recon3d.mjcf import write_mjcf
from recon3d.texture import Shots, painted, rendered, seen_psnr, textured

SIDE, VOXEL_M, FOCUS = 96, 0.015, torch.tensor([0.0, 0.0, 0.15])
SCENE = {"things": [{"shape": "L block", "colour": "red", "size": "large"}], "floor": "wooden"}


def ring() -> Cameras:
    low, high = (
        sweeps.orbit(count, height=SIDE, width=SIDE, elevation_deg=angle)
        for count, angle in ((12, 28.0), (6, 55.0))
    )
    return concatenate([low, high])


@pytest.fixture(scope="module")
def world():
    with gymnasium.make("envs:orrery/Orbit-v0", disable_env_checker=True) as env:
        env.reset(seed=3, options={"scene": SCENE})
        yield env.unwrapped


@pytest.fixture(scope="module")
def seen(world) -> tuple[Mesh, Shots]:
    """The fused exact depth of the world, and what it was fused from."""
    rgb, depth = (torch.from_numpy(x) for x in world.render_at(ring()))
    scene = cleaned(fuse(rgb, keep_inside(ring(), depth, FOCUS, 0.9), ring(), VOXEL_M))
    return scene, Shots(rgb, depth, ring(), 2 * VOXEL_M)


@pytest.fixture(scope="module")
def thing(seen) -> Mesh:
    scene, shots = seen
    found = extract(scene, shots.depth, shots.cameras, FOCUS, VOXEL_M, cells=64)
    assert torch.allclose(found.plane, torch.tensor([0.0, 0.0, 1.0, 0.0]), atol=2e-3)
    return painted(decimated(found.mesh, 3000), shots)


@pytest.fixture(scope="module")
def body(thing, seen, tmp_path_factory):
    path = tmp_path_factory.mktemp("body") / "red_block.xml"
    return path, write_mjcf(thing, textured(thing, 256, seen[1]), path, density=700.0, parts=8)


def silhouettes(world, cameras: Cameras) -> np.ndarray:
    """Which pixels show the world's first thing."""
    model, data, owner = world._model, world._data, world._thing_of_geom
    K, c2w = cameras.K.double().numpy(), cameras.c2w.double().numpy()
    return np.stack(
        [owner[cast_rays(model, data, k, c, SIDE, SIDE)[1]] == 0 for k, c in zip(K, c2w, strict=True)]
    )


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def true_thing(world) -> trimesh.Trimesh:
    vertices, faces, owners = world.mesh()
    return trimesh.Trimesh(vertices, faces[owners == 0])


def test_the_thing_is_closed_without_its_table_and_as_large_as_the_truth(world, thing):
    solid = trimesh.Trimesh(thing.vertices.numpy(), thing.faces.numpy(), process=False)
    assert solid.is_watertight and solid.is_volume
    assert np.allclose(solid.bounds, true_thing(world).bounds, atol=0.015)
    r = world.scene()["things"][0]["radius_m"]
    truth = 8 * r**3 * (0.95 * 0.4 * 0.32 + 0.32 * 0.4 * 0.63)
    assert solid.volume == pytest.approx(truth, rel=0.1)


def test_masks_find_the_same_thing_as_its_plane(world, seen, thing):
    scene, shots = seen
    masks = torch.from_numpy(silhouettes(world, shots.cameras))
    found = extract(scene, shots.depth, shots.cameras, FOCUS, VOXEL_M, masks=masks, cells=64)
    both = [trimesh.Trimesh(m.vertices.numpy(), m.faces.numpy(), process=False) for m in (found.mesh, thing)]
    assert both[0].is_watertight
    assert both[0].volume == pytest.approx(both[1].volume, rel=0.06)


def test_extraction_says_why_it_finds_nothing(seen):
    scene, shots = seen
    corners = scene.vertices[scene.faces]
    table = Mesh(scene.vertices, scene.faces[(corners[..., 2].amax(-1) < 0.01)], scene.colours)
    with pytest.raises(NothingExtracted, match="nothing stands on"):
        extract(table, shots.depth, shots.cameras, FOCUS, VOXEL_M)
    ball = trimesh.creation.icosphere(4, 0.3)
    grey = torch.zeros(len(ball.vertices), 3, dtype=torch.uint8)
    bare = Mesh(torch.tensor(ball.vertices).float(), torch.tensor(np.array(ball.faces)), grey)
    with pytest.raises(NothingExtracted, match="no flat support"):
        extract(bare, shots.depth, shots.cameras, FOCUS, 0.005)
    with pytest.raises(NothingExtracted, match="masks lie on no surface"):
        nothing = torch.zeros_like(shots.depth, dtype=torch.bool)
        extract(scene, shots.depth, shots.cameras, FOCUS, VOXEL_M, masks=nothing)


def test_the_plane_is_found_whichever_way_the_world_is_turned(seen):
    scene, shots = seen
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn * turn.det()
    motion = torch.eye(4)
    motion[:3, :3] = turn
    moved = replace(scene, vertices=scene.vertices @ turn.T)
    plane = support_plane(moved, shots.cameras.moved(motion), VOXEL_M)
    assert torch.allclose(plane[:3], turn[:, 2], atol=0.01)
    assert torch.allclose(level_turn(plane).float() @ plane[:3], torch.tensor([0.0, 0.0, 1.0]), atol=1e-5)


def test_a_texture_shows_held_out_views_better_than_colours_of_the_same_vertices(world, seen):
    shots = seen[1]
    scene = decimated(seen[0], 2000)
    other = sweeps.orbit(4, height=SIDE, width=SIDE, start_deg=17.0, elevation_deg=35.0)
    truth = torch.from_numpy(world.render_at(other)[0])
    baked = textured(scene, 512, shots)
    assert seen_psnr(baked, truth, other) > seen_psnr(scene, truth, other) + 1.0
    pictures, cover = rendered(textured(scene, 512), other)
    whole = cover > 0.999
    gap = pictures[whole].float() - rendered(scene, other)[0][whole].float()
    assert gap.abs().mean() < 3.0  # without shots it is the vertex colours that are baked


def test_textured_files_show_the_same_to_another_reader(thing, seen, tmp_path):
    baked = textured(thing, 128, seen[1])
    for name, files in (("a.glb", ["a.glb"]), ("b.obj", ["b.mtl", "b.obj", "b.png"])):
        path = assets.write(baked, tmp_path / name[0] / name)
        assert sorted(p.name for p in path.parent.iterdir()) == files
        back = assets.read(path)
        assert torch.allclose(back.vertices.amin(0), thing.vertices.amin(0), atol=1e-4)
        loaded = trimesh.load(path, force="mesh", process=False)
        colours = torch.from_numpy(np.array(loaded.visual.to_color().vertex_colors[:, :3])).float()
        assert (colours - back.colours.float()).abs().mean() < 6.0
        assert colours[:, 0].mean() > 2 * colours[:, 1].mean()  # a red block
    with pytest.raises(ValueError, match="PLY holds no texture"):
        assets.write(baked, tmp_path / "c.ply")


def test_a_closed_thing_stays_closed_in_a_textured_obj(thing, seen, tmp_path):
    lines = assets.write(textured(thing, 128, seen[1]), tmp_path / "b.obj").read_text().splitlines()
    vertices = [line.split()[1:] for line in lines if line.startswith("v ")]
    faces = [
        [int(corner.split("/")[0]) - 1 for corner in line.split()[1:]] for line in lines if line[0] == "f"
    ]
    assert trimesh.Trimesh(np.array(vertices, float), faces, process=False).is_watertight


def test_files_that_belong_together_are_written_together_or_not_at_all(tmp_path):
    (tmp_path / "b").mkdir()  # a folder stands where the second file should go
    with pytest.raises(IsADirectoryError):
        assets.write_files({tmp_path / "b": b"1", tmp_path / "a": b"2"})
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def dropped(path, height_m: float = 0.1) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """A world with a floor, over which the body hangs in the air, a little tilted."""
    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[2, 2, 0.1])
    frame = spec.worldbody.add_frame(pos=[0, 0, height_m], quat=[0.995, 0.1, 0, 0])
    frame.attach_body(mujoco.MjSpec.from_file(str(path)).worldbody.first_body(), "thing_", "")
    model = spec.compile()
    return model, mujoco.MjData(model)


def test_the_body_has_the_mass_of_its_volume_falls_and_comes_to_rest(thing, body):
    path, solid = body
    closed = trimesh.Trimesh(thing.vertices.numpy(), thing.faces.numpy(), process=False)
    model, data = dropped(path)
    assert solid.watertight and solid.parts >= 2
    assert model.body_mass[1] == pytest.approx(700 * closed.volume, rel=1e-3)
    assert model.body_ipos[1, 2] == pytest.approx(closed.center_mass[2] - closed.bounds[0, 2], abs=1e-3)
    start = data.qpos[2]
    mujoco.mj_step(model, data, 20)
    assert data.qvel[2] == pytest.approx(-9.81 * 20 * model.opt.timestep, rel=0.01)
    mujoco.mj_step(model, data, 1500)
    assert np.linalg.norm(data.qvel) < 0.01
    assert data.qpos[2] < start - 0.05 and abs(data.qpos[2]) < 0.02  # its base is on the floor again


def test_parts_are_the_same_under_a_seed_and_one_part_is_the_hull(thing):
    coarse = decimated(thing, 400)
    v, f = coarse.vertices.numpy(), coarse.faces.numpy()
    first, again = (convex_parts(v, f, 4, seed=1) for _ in range(2))
    assert len(first) == len(again) and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    hull = trimesh.PointCloud(convex_parts(v, f, 1)[0]).convex_hull
    assert hull.volume == pytest.approx(trimesh.Trimesh(v, f).convex_hull.volume, rel=1e-6)
    with pytest.raises(ValueError, match="from 1 to 128"):
        convex_parts(v, f, 0)
    with pytest.raises(ValueError, match="longer than 0 s"):
        convex_parts(v, f, 4, seconds=0.01)
    with pytest.raises(ValueError, match="encloses no volume"):
        convex_parts(np.eye(3), np.array([[0, 1, 2]]), 1)


def with_body(world, path, thing: Mesh):
    """The world's state with the body where the true thing stood."""
    low, high = thing.vertices.amin(0), thing.vertices.amax(0)
    place = (*((low + high) / 2).tolist()[:2], low[2].item())
    state = world.save_state()
    file = replace(state.scene.things[0], asset=str(path), position=place, quaternion=(1.0, 0.0, 0.0, 0.0))
    return replace(state, scene=replace(state.scene, things=(file,)))


def test_back_in_the_world_the_body_covers_what_the_true_thing_covered(world, thing, body):
    views = sweeps.orbit(6, height=SIDE, width=SIDE, start_deg=10.0, elevation_deg=40.0)
    truth = silhouettes(world, views)
    with gymnasium.make("envs:orrery/Orbit-v0", disable_env_checker=True) as env:
        env.reset(seed=3)
        env.unwrapped.load_state(with_body(world, body[0], thing))
        agreement = iou(silhouettes(env.unwrapped, views), truth)
        picture = env.unwrapped.render_at(views)[0]
    assert agreement.min() > 0.9
    red = picture[truth].astype(int)
    assert (red[:, 0] > 2 * red[:, 1]).mean() > 0.9


@pytest.mark.parametrize("name", ["Orbit", "Room"])
def test_a_world_takes_the_body_as_a_thing(body, name):
    things = [{"asset": str(body[0])}] + [{"shape": "ball", "colour": "blue"}] * (name == "Room")
    with gymnasium.make(f"envs:orrery/{name}-v0", disable_env_checker=True) as env:
        _, info = env.reset(seed=1, options={"scene": {"things": things}})
        world = env.unwrapped
        first = world.scene()["things"][0]
        assert first["name"] == "red red block" and first["material"] == "texture"
        assert "red block" in info["prompt"]
        ids, depth = world.segmentation(), world.depth()
        assert (ids == 0).mean() > 0.01 and np.isfinite(depth[ids == 0]).all()
        assert set(np.unique(world.mesh()[2])) == set(range(-1, len(things)))
        action = np.zeros(world.action_size, np.float32)
        state = pickle.loads(pickle.dumps(world.save_state()))
        frame = env.step(action)[0]
        env.reset(seed=2)
        world.load_state(state)
        assert np.array_equal(env.step(action)[0], frame)
        if name == "Room":
            assert world.state_vector()[2] == pytest.approx(0.0, abs=0.02)  # it stands


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ({"asset": "nowhere.xml"}, "no asset at"),
        ({"asset": "mug.glb"}, "orrery asset SOURCE -o thing.xml"),
        ({"asset": "broken.xml"}, "cannot read asset broken.xml"),
        ({"asset": "two.xml"}, "holds one body, two.xml holds 2"),
        ({"asset": "large.xml"}, "6.00 m across"),
        ({"asset": "ball.xml", "colour": "beige"}, "colour must be one of"),
        ({"asset": "ball.xml", "size": "small"}, "may have shape and colour"),
    ],
)
def test_bad_assets_are_named_in_one_line(tmp_path, thing, words):
    ball = '<body><geom size="{}"/></body>'
    insides = {
        "broken": "<body>",
        "two": ball.format(0.1) * 2,
        "large": ball.format(3),
        "ball": ball.format(0.1),
    }
    for name, inside in insides.items():
        (tmp_path / f"{name}.xml").write_text(f"<mujoco><worldbody>{inside}</worldbody></mujoco>")
    asked = {**thing, "asset": str(tmp_path / thing["asset"])}
    failure = pytest.raises((ValueError, FileNotFoundError), match=words)
    with gymnasium.make("envs:orrery/Orbit-v0", disable_env_checker=True) as env, failure as caught:
        env.reset(seed=0, options={"scene": {"things": [asked]}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "name", "words"),
    [
        (Form(), "a.stl", r"\.glb, \.ply, \.obj, \.xml"),
        (Form(texture=512), "a.ply", "PLY holds no texture"),
        (Form(texture=5), "a.glb", "--texture must be"),
        (Form(faces=2), "a.glb", "--faces must be"),
        (Form(size_m=-1.0), "a.glb", "--size-m must be"),
        (Form(density=0.0), "a.xml", r"\(--density\) must be"),
        (Form(parts=0), "a.xml", r"\(--parts\) must be"),
    ],
)
def test_bad_forms_are_refused_before_any_training(tmp_path, wanted, name, words):
    with pytest.raises(ValueError, match=words):
        checked(wanted, tmp_path / name)


def test_a_body_is_always_extracted_and_textured(tmp_path):
    wanted = checked(Form(), tmp_path / "a.xml")
    assert wanted.extract and wanted.texture == form.BODY_TEXTURE_PX


def test_a_textured_mesh_without_faces_is_refused(seen):
    nothing = torch.zeros(0, 3)
    empty = Mesh(nothing, nothing.long(), nothing.to(torch.uint8))
    with pytest.raises(ValueError, match="needs faces"):
        textured(empty, 128, seen[1])
