"""A scene as a MuJoCo model: surroundings, lights, things, and the spots that touches leave."""

import numpy as np
from mujoco import MjModel, MjsBody, MjSpec, mjtGeom, mjtIntegrator, mjtTexture, mjtTextureRole

from envs.asset_things import add_asset
from envs.scenes import ROOM_HALF_M, STAGE_BACK_M, STAGE_FRONT_M, STAGE_HALF_X_M, TABLE_HALF_M
from envs.shapes import parts
from envs.textures import SIDE_PX, texture
from envs.vocabulary import COLOURS, LIGHTS, WALLS, Scene

TIME_STEP_S = 0.002
SPOTS = 6
SPOT_GROUP, HIDDEN_GROUP = 1, 3

FORMS = {
    "box": mjtGeom.mjGEOM_BOX,
    "sphere": mjtGeom.mjGEOM_SPHERE,
    "cylinder": mjtGeom.mjGEOM_CYLINDER,
    "capsule": mjtGeom.mjGEOM_CAPSULE,
    "ellipsoid": mjtGeom.mjGEOM_ELLIPSOID,
}

BOUNCY = {"solref": [-5.0e4, -50.0], "solimp": [0.99, 0.99, 0.001, 0.5, 2.0]}
"""Direct stiffness and damping per unit of effective mass: things rebound with about .7 of their speed.
A contact lasts about seven time steps; harder ones are not resolved and gain energy."""

DULL = {"solref": [0.01, 1.0]}
"""Critically damped contacts, for a room's things, which are only pushed about."""

DENSITY = 400.0
SLIDING = {"Room": 0.6, "Orbit": 0.6, "Lab": 0.2}
TEXTURE_SIZE_M = 1.2
LAMP_CUTOFF_DEG = 85.0
SHADOW_DEG = {"Room": 40.0, "Orbit": 24.0, "Lab": 36.0}
"""Half angle of the cone in which the lamp casts shadows: as narrow as the things allow, for sharp
shadows.
"""


def _surface(spec: MjSpec, name: str, material: str) -> str:
    """A material of `envs.textures` for planes, repeated at a fixed size in metres."""
    picture = texture(material)
    made = spec.add_texture(name=f"{name}_picture", type=mjtTexture.mjTEXTURE_2D)
    made.width, made.height, made.nchannel = picture.shape[1], picture.shape[0], 3
    made.data = picture.tobytes()
    size_m = TEXTURE_SIZE_M * (1.0 if picture.shape[0] <= SIDE_PX else 1.5)
    # With texuniform MuJoCo counts repetitions per two metres of a plane's half size.
    made = spec.add_material(
        name=name, texuniform=True, texrepeat=[1 / size_m] * 2, specular=0.1, shininess=0.2
    )
    roles = ["" for _ in range(mjtTextureRole.mjNTEXROLE)]
    roles[mjtTextureRole.mjTEXROLE_RGB] = f"{name}_picture"
    made.textures = roles
    return name


def _lights(spec: MjSpec, scene: Scene) -> None:
    """Soft light from everywhere, one lamp that casts shadows, and one weak lamp against it."""
    head = spec.visual.headlight
    head.active, head.ambient, head.diffuse, head.specular = 1, [0.58] * 3, [0.0] * 3, [0.0] * 3
    key = np.array(LIGHTS[scene.light])
    lamps = [(key, 0.42, True), (np.array([-key[0], -key[1], 3.0]), 0.16, False)]
    for index, (place, strength, shadow) in enumerate(lamps):
        aim = np.array([0.0, 0.0, 0.2]) - place
        spec.worldbody.add_light(
            name=f"lamp{index}",
            pos=place.tolist(),
            dir=(aim / np.linalg.norm(aim)).tolist(),
            castshadow=shadow,
            cutoff=LAMP_CUTOFF_DEG,
            exponent=1.0,
            diffuse=[strength] * 3,
            ambient=[0.0] * 3,
            specular=[0.12] * 3,
            attenuation=[1.0, 0.0, 0.0],
        )


def _wall(
    spec: MjSpec, name: str, centre: tuple, half: tuple, paint: str, contact: dict, skirting: bool
) -> None:
    rgba = [*WALLS[paint], 1.0]
    solid = {"friction": [0.4, 0.005, 0.001], **contact}
    spec.worldbody.add_geom(
        name=name, type=FORMS["box"], pos=list(centre), size=list(half), rgba=rgba, **solid
    )
    if skirting:
        spec.worldbody.add_geom(
            name=f"{name}_skirting",
            type=FORMS["box"],
            pos=[centre[0], centre[1], centre[2] - half[2] + 0.05],
            size=[half[0] + 0.012, half[1] + 0.012, 0.05],
            rgba=[0.93, 0.92, 0.90, 1.0],
            contype=0,
            conaffinity=0,
        )


def _plane(scene: Scene, contact: dict) -> dict:
    """What all planes that things can lie on have in common."""
    friction = [SLIDING[scene.world], 0.005, 0.003]
    return {"type": mjtGeom.mjGEOM_PLANE, "condim": 6, "friction": friction, **contact}


def _box_of_walls(
    spec: MjSpec, scene: Scene, contact: dict, half: float, height: float, floor_z: float
) -> None:
    """Four walls around a square floor; `height` is half of theirs."""
    z, t = floor_z + height, 0.05
    long = half + 2 * t
    sides = (
        ((half + t, 0), (t, long)),
        ((0, half + t), (half, t)),
        ((-half - t, 0), (t, long)),
        ((0, -half - t), (half, t)),
    )
    for index, (centre, thickness) in enumerate(sides):
        place, size = (*centre, z), (*thickness, height)
        _wall(spec, f"wall{index}", place, size, scene.walls[index], contact, scene.world == "Room")


def _room(spec: MjSpec, scene: Scene, contact: dict) -> None:
    material = _surface(spec, "floor", scene.floor)
    size = [ROOM_HALF_M, ROOM_HALF_M, 0.1]
    spec.worldbody.add_geom(name="floor", material=material, size=size, **_plane(scene, contact))
    _box_of_walls(spec, scene, contact, ROOM_HALF_M, 0.9, 0.0)


def _table(spec: MjSpec, scene: Scene, contact: dict) -> None:
    """A square table top at z = 0 over a dark floor, in a larger room of one paint."""
    world, half, floor_z = spec.worldbody, 2.6, -0.7
    material = _surface(spec, "floor", scene.floor)
    size = [TABLE_HALF_M, TABLE_HALF_M, 0.1]
    world.add_geom(name="table", material=material, size=size, **_plane(scene, contact))
    world.add_geom(
        name="table_edge",
        type=FORMS["box"],
        size=[TABLE_HALF_M, TABLE_HALF_M, 0.03],
        pos=[0.0, 0.0, -0.034],
        rgba=[0.30, 0.25, 0.22, 1.0],
    )
    world.add_geom(
        name="ground",
        type=mjtGeom.mjGEOM_PLANE,
        pos=[0, 0, floor_z],
        size=[half, half, 0.1],
        rgba=[0.24, 0.23, 0.25, 1],
    )
    _box_of_walls(spec, scene, contact, half, 1.7, floor_z)


def _stage(spec: MjSpec, scene: Scene, contact: dict) -> None:
    """Lab's floor and back wall, panes of glass on the other sides, and the screen where there is one."""
    world, plane, t, height = spec.worldbody, _plane(scene, contact), 0.05, 1.7
    material = _surface(spec, "floor", scene.floor)
    world.add_geom(name="floor", material=material, size=[4.0, 4.0, 0.1], **plane)
    centre = (0, STAGE_BACK_M + t, height)
    _wall(spec, "wall0", centre, (4.0, t, height), scene.walls[0], contact, True)
    glass = {**plane, "friction": [0.05, 0.001, 0.0001], "rgba": [0, 0, 0, 0], "group": HIDDEN_GROUP}
    for name, place, turn in (
        ("left_glass", [-STAGE_HALF_X_M, 0, 0], [1, 0, 1, 0]),
        ("right_glass", [STAGE_HALF_X_M, 0, 0], [1, 0, -1, 0]),
        ("front_glass", [0, STAGE_FRONT_M, 0], [1, -1, 0, 0]),
    ):
        world.add_geom(name=name, pos=place, quat=turn, size=[4, 4, 0.1], **glass)
    if scene.screen:
        world.add_geom(
            name="screen",
            type=FORMS["box"],
            pos=[0, -0.42, 0.42],
            size=[0.42, 0.03, 0.42],
            rgba=[0.22, 0.24, 0.28, 1.0],
        )


SURROUNDINGS = {"Room": _room, "Orbit": _table, "Lab": _stage}


def _painted(spec: MjSpec, index: int, scene: Scene, contact: dict) -> MjsBody:
    """The body of a thing of a named shape, with its parts."""
    thing = scene.things[index]
    body = spec.worldbody.add_body(
        name=f"thing{index}", pos=list(thing.position), quat=list(thing.quaternion)
    )
    if scene.world != "Orbit":
        body.add_freejoint(name=f"thing{index}_free")
    paint = f"thing{index}_paint"
    spec.add_material(name=paint, rgba=[*COLOURS[thing.colour], 1.0], specular=0.25, shininess=0.4)
    for number, part in enumerate(parts(thing.shape, thing.radius_m)):
        looks = {"material": paint} if part.visible else {"rgba": [0, 0, 0, 0], "group": HIDDEN_GROUP}
        touch = {"condim": 6, "friction": [SLIDING[scene.world], 0.005, 0.003], "density": DENSITY, **contact}
        if not part.solid:
            touch = {"contype": 0, "conaffinity": 0, "mass": 0.0}
        body.add_geom(
            name=f"thing{index}_part{number}",
            type=FORMS[part.form],
            size=[*part.size, *[0.0] * (3 - len(part.size))],
            pos=list(part.position),
            quat=list(part.quaternion),
            **looks,
            **touch,
        )
    return body


def _thing(spec: MjSpec, index: int, scene: Scene, contact: dict) -> None:
    """One thing's body with its hidden spots."""
    thing = scene.things[index]
    if thing.asset:
        body = add_asset(spec, thing, index, scene.world != "Orbit", contact, HIDDEN_GROUP)
    else:
        body = _painted(spec, index, scene, contact)
    spot = 0.40 * thing.radius_m
    for number in range(SPOTS):
        body.add_geom(
            name=f"thing{index}_spot{number}",
            type=FORMS["ellipsoid"],
            size=[spot, spot, 0.25 * spot],
            # Not the body's own frame: MuJoCo would take that as a promise and ignore a later move of the
            # spot.
            pos=[0.01, 0.02, 0.03],
            quat=[0.5, 0.5, 0.5, 0.5],
            rgba=[0.0, 0.0, 0.0, 0.0],
            group=SPOT_GROUP,
            contype=0,
            conaffinity=0,
            mass=0.0,
        )


def build(scene: Scene, height: int, width: int) -> MjModel:
    """Compile the scene; `height` and `width` size the off-screen buffer for pictures rendered at twice
    that.
    """
    spec = MjSpec()
    spec.option.timestep = TIME_STEP_S
    spec.option.integrator = mjtIntegrator.mjINT_IMPLICITFAST
    visual = spec.visual
    visual.global_.offheight, visual.global_.offwidth = 2 * height, 2 * width
    visual.quality.shadowsize, visual.quality.offsamples = 256, 0
    visual.quality.numslices, visual.quality.numstacks = 24, 16
    spec.stat.extent, spec.stat.center = 2.0, [0.0, 0.0, 0.5]
    visual.map.shadowscale = SHADOW_DEG[scene.world] / LAMP_CUTOFF_DEG
    visual.map.znear, visual.map.zfar = 0.01, 10.0
    spec.add_texture(
        name="sky",
        type=mjtTexture.mjTEXTURE_SKYBOX,
        builtin=1,
        width=16,
        height=96,
        rgb1=[0.86, 0.91, 0.97],
        rgb2=[0.86, 0.91, 0.97],
    )
    contact = BOUNCY if scene.world == "Lab" else DULL
    _lights(spec, scene)
    SURROUNDINGS[scene.world](spec, scene, contact)
    for index in range(len(scene.things)):
        _thing(spec, index, scene, contact)
    return spec.compile()
