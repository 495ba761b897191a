"""Meshes on disk: GLB, PLY, OBJ. Lengths are metres in every format.

PLY and OBJ keep the world's axes (+Z up). glTF demands +Y up, so a GLB holds (x, z, -y): the world turned
by -90 degrees about x, undone by `read`. Its vertex colours are linear, as glTF 2.0 (3.7.2.1) says, and its
material is unlit (KHR_materials_unlit): the colours already hold the light of the scene they were seen in.
"""

import json
import struct
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float, UInt8
from torch import Tensor

from recon3d.mesh import Mesh

SUFFIXES = (".glb", ".ply", ".obj")
GLTF_FROM_WORLD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
_FLOAT, _UNSIGNED_INT, _UNSIGNED_SHORT = 5126, 5125, 5123


def checked_suffix(path: Path) -> str:
    """The suffix of a mesh file.

    Raises:
        ValueError: it is none that can be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a mesh file ends in {', '.join(SUFFIXES)}, got {path.name}; rename the output")
    return path.suffix.lower()


def write(mesh: Mesh, path: Path) -> Path:
    """Writes a mesh in the format that the suffix names, beside its name first and renamed when whole.

    Raises:
        ValueError: unknown suffix, or a mesh without faces.
    """
    suffix = checked_suffix(path)
    if not len(mesh.faces):
        raise ValueError(
            f"a mesh needs faces, got none for {path.name}; reconstruct from more or sharper views"
        )
    writer = {".glb": glb_bytes, ".ply": _ply_bytes, ".obj": _obj_bytes}[suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(writer(mesh))
    part.replace(path)
    return path


def read(path: Path) -> Mesh:
    """Reads a mesh with vertex colours back into the world's axes (+Z up, metres)."""
    suffix = checked_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mesh at {path}; write one first")
    if suffix == ".glb":
        return _mesh_from_glb(path)
    loaded = trimesh.load(path, force="mesh", process=False)
    return Mesh(
        torch.from_numpy(np.array(loaded.vertices, dtype=np.float32)),  # pyright: ignore[reportAttributeAccessIssue]
        torch.from_numpy(np.array(loaded.faces, dtype=np.int64)),  # pyright: ignore[reportAttributeAccessIssue]
        torch.from_numpy(np.array(loaded.visual.vertex_colors[:, :3])),  # pyright: ignore[reportAttributeAccessIssue]
    )


def glb_bytes(mesh: Mesh) -> bytes:
    """A binary glTF 2.0 file with positions, linear vertex colours (16 bit) and triangles."""
    positions = (mesh.vertices.cpu() @ GLTF_FROM_WORLD.T).numpy().astype("<f4")
    linear = _linear_from_srgb(mesh.colours.cpu())
    opaque = torch.cat([linear, torch.ones_like(linear[:, :1])], dim=1)
    colours = (opaque * 65535).round().numpy().astype("<u2")
    faces = mesh.faces.cpu().numpy().astype("<u4")
    parts = [positions.tobytes(), colours.tobytes(), faces.tobytes()]
    offsets = np.cumsum([0] + [len(part) for part in parts])
    views = [
        {"buffer": 0, "byteOffset": int(start), "byteLength": len(part), "target": target}
        for start, part, target in zip(offsets, parts, (34962, 34962, 34963), strict=False)
    ]
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    accessors = [
        {"bufferView": 0, "componentType": _FLOAT, "count": len(positions), "type": "VEC3"} | bounds,
        {
            "bufferView": 1,
            "componentType": _UNSIGNED_SHORT,
            "count": len(colours),
            "type": "VEC4",
            "normalized": True,
        },
        {"bufferView": 2, "componentType": _UNSIGNED_INT, "count": faces.size, "type": "SCALAR"},
    ]
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
    material = {
        "doubleSided": True,
        "extensions": {"KHR_materials_unlit": {}},
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
    }
    document = {
        "asset": {"version": "2.0", "generator": "orrery"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [material],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": int(offsets[-1])}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)
    body += b"\0" * (-len(body) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(body))
    first = struct.pack("<II", len(text), _JSON_CHUNK) + text
    return header + first + struct.pack("<II", len(body), _BINARY_CHUNK) + body


def _mesh_from_glb(path: Path) -> Mesh:
    """Reads what `glb_bytes` wrote: one primitive whose accessors are packed."""
    data = path.read_bytes()
    if data[:4] != b"glTF":
        raise ValueError(f"{path.name} is not a binary glTF file; write it again")
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    if document["asset"].get("generator") != "orrery":
        raise ValueError(
            f"{path.name} was written by another program; only meshes of this project are read back"
        )
    body = data[28 + length :]
    columns = {_FLOAT: ("<f4", 3), _UNSIGNED_SHORT: ("<u2", 4), _UNSIGNED_INT: ("<u4", 3)}
    arrays = []
    for accessor in document["accessors"]:
        view = document["bufferViews"][accessor["bufferView"]]
        raw = body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        kind, width = columns[accessor["componentType"]]
        arrays.append(np.frombuffer(raw, dtype=kind).reshape(-1, width))
    positions, colours, faces = arrays
    return Mesh(
        torch.from_numpy(positions.copy()) @ GLTF_FROM_WORLD,
        torch.from_numpy(faces.astype(np.int64)),
        _srgb_from_linear(torch.from_numpy(colours[:, :3].astype(np.float64)) / 65535),
    )


def _ply_bytes(mesh: Mesh) -> bytes:
    return _as_trimesh(mesh).export(file_type="ply")  # pyright: ignore[reportReturnType]


def _obj_bytes(mesh: Mesh) -> bytes:
    return _as_trimesh(mesh).export(file_type="obj", include_color=True, digits=6).encode()  # pyright: ignore[reportAttributeAccessIssue]


def _as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        mesh.vertices.cpu().numpy(),
        mesh.faces.cpu().numpy(),
        vertex_colors=mesh.colours.cpu().numpy(),
        process=False,
    )


def _linear_from_srgb(colours: UInt8[Tensor, "v 3"]) -> Float[Tensor, "v 3"]:
    """The sRGB transfer function, undone (IEC 61966-2-1)."""
    x = colours.double() / 255
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _srgb_from_linear(linear: Float[Tensor, "v 3"]) -> UInt8[Tensor, "v 3"]:
    x = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-9) ** (1 / 2.4) - 0.055)
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
