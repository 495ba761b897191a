"""Triangles of a MuJoCo model's visible geoms (the truth that a reconstructed mesh is compared with)."""

import mujoco
import numpy as np
from jaxtyping import Float, Int

AROUND, ALONG = 32, 16


def _sphere(caps: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere cut at its equator, its halves moved apart along z by `caps` each way: a capsule's
    surface.
    """
    polar = np.linspace(0, np.pi, ALONG + 1)
    polar = np.concatenate([polar[: ALONG // 2 + 1], polar[ALONG // 2 :]])
    shift = np.where(np.arange(len(polar)) <= ALONG // 2, caps, -caps)
    return _lathe(np.sin(polar), np.cos(polar) + shift)


def _lathe(radius: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface of revolution of a profile from top to bottom; normals point outwards."""
    turn = np.arange(AROUND) * 2 * np.pi / AROUND
    points = np.stack(
        [np.outer(radius, np.cos(turn)), np.outer(radius, np.sin(turn)), np.repeat(z[:, None], AROUND, 1)],
        axis=-1,
    )
    rows, columns = np.meshgrid(np.arange(len(z) - 1), np.arange(AROUND), indexing="ij")
    a, b = rows * AROUND + columns, rows * AROUND + (columns + 1) % AROUND
    c, d = a + AROUND, b + AROUND
    faces = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    return points.reshape(-1, 3), faces


def _box() -> tuple[np.ndarray, np.ndarray]:
    points = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return points, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])


def _surface(form: int, size: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    kinds = mujoco.mjtGeom
    if form == kinds.mjGEOM_PLANE:
        points = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * (size[0], size[1], 0)
        return points, np.array([[0, 1, 2], [0, 2, 3]])
    if form == kinds.mjGEOM_BOX:
        points, faces = _box()
        return points * size, faces
    if form == kinds.mjGEOM_SPHERE:
        points, faces = _sphere()
        return points * size[0], faces
    if form == kinds.mjGEOM_ELLIPSOID:
        points, faces = _sphere()
        return points * size, faces
    if form == kinds.mjGEOM_CAPSULE:
        points, faces = _sphere(size[1] / size[0])
        return points * size[0], faces
    if form == kinds.mjGEOM_CYLINDER:
        points, faces = _lathe(np.array([0.0, 1, 1, 0]), np.array([1.0, 1, -1, -1]))
        return points * (size[0], size[0], size[1]), faces
    return None


def _surface_of(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray] | None:
    form, mesh = int(model.geom_type[geom]), model.geom_dataid[geom]
    if form != mujoco.mjtGeom.mjGEOM_MESH:
        return _surface(form, model.geom_size[geom])
    points, faces = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
    return (
        model.mesh_vert[points : points + model.mesh_vertnum[mesh]],
        model.mesh_face[faces : faces + model.mesh_facenum[mesh]],
    )


def scene_mesh(
    model: mujoco.MjModel, data: mujoco.MjData, thing_of_geom: Int[np.ndarray, " g"]
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, " f"]]:
    """All visible geoms as one mesh in world metres; the third array says whose each triangle is."""
    points, faces, owners, offset = [], [], [], 0
    for geom in range(model.ngeom):
        painted = model.geom_matid[geom] >= 0 or model.geom_rgba[geom, 3] > 0
        made = _surface_of(model, geom) if painted else None
        if made is None or model.geom_group[geom] > 2:
            continue
        turn = data.geom_xmat[geom].reshape(3, 3)
        points.append(made[0] @ turn.T + data.geom_xpos[geom])
        faces.append(made[1] + offset)
        owners.append(np.full(len(made[1]), thing_of_geom[geom]))
        offset += len(made[0])
    return np.concatenate(points).astype(np.float32), np.concatenate(faces), np.concatenate(owners)
