"""Meshes on disk: GLB, PLY, OBJ, with colours per vertex or (not PLY) a texture. Lengths are metres.

PLY and OBJ keep the world's axes (+Z up). glTF demands +Y up, so a GLB holds (x, z, -y): the world turned
by -90 degrees about x, undone by `read`. Its vertex colours are linear, as glTF 2.0 (3.7.2.1) says, its
textures are sRGB, and its material is unlit (KHR_materials_unlit): the colours already hold the light of the
scene that they were seen in.
"""

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from recon3d.mesh import Mesh
from recon3d.texture import Textured

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


def write(mesh: Mesh | Textured, path: Path) -> Path:
    """Writes a mesh in the format that the suffix names; a textured OBJ has its .mtl and .png beside it.

    Raises:
        ValueError: unknown suffix, a mesh without faces, or a texture where the format holds none.
    """
    suffix = checked_suffix(path)
    if not len(mesh.faces):
        raise ValueError(
            f"a mesh needs faces, got none for {path.name}; reconstruct from more or sharper views"
        )
    if isinstance(mesh, Mesh):
        writer = {".glb": glb_bytes, ".ply": _ply_bytes, ".obj": _obj_bytes}[suffix]
        return write_files({path: writer(mesh)})
    if suffix == ".ply":
        raise ValueError(f"a PLY holds no texture, got {path.name}; name it .glb or .obj")
    if suffix == ".glb":
        return write_files({path: glb_bytes(mesh)})
    paint = f"newmtl paint\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {path.stem}.png\n"
    files = {path.with_suffix(".png"): png_bytes(mesh), path.with_suffix(".mtl"): paint.encode()}
    return write_files({**files, path: textured_obj(mesh, f"{path.stem}.mtl").encode()})


def write_files(files: Mapping[Path, bytes]) -> Path:
    """Writes files that belong together beside their names first and renames them when all are whole.

    Returns:
        the last of them, which is renamed last.
    """
    parts = {path: path.with_name(f".{path.name}.part") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path].write_bytes(content)
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return list(files)[-1]


def png_bytes(mesh: Textured) -> bytes:
    """The texture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(mesh.texture.cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def textured_obj(mesh: Textured, material_file: str | None = None) -> str:
    """A Wavefront OBJ with texture coordinates, whose v counts from the picture's lower edge. A vertex on a
    seam stands there once, so that the surface is as closed as it was."""
    places, place = mesh.vertices.cpu().unique(dim=0, return_inverse=True)
    corners = torch.stack([place[mesh.faces.cpu()], mesh.faces.cpu()], dim=-1) + 1
    lines = [] if material_file is None else [f"mtllib {material_file}", "usemtl paint"]
    lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in places.tolist()]
    lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in mesh.uv.cpu().tolist()]
    lines += ["f " + " ".join(f"{v}/{vt}" for v, vt in face) for face in corners.tolist()]
    return "\n".join(lines) + "\n"


def read(path: Path) -> Mesh:
    """Reads a mesh back into the world's axes (+Z up, metres); a texture becomes vertex colours."""
    suffix = checked_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mesh at {path}; write one first")
    if suffix == ".glb":
        return _mesh_from_glb(path)
    loaded = trimesh.load(path, force="mesh", process=False)
    if isinstance(loaded.visual, trimesh.visual.TextureVisuals):  # pyright: ignore[reportAttributeAccessIssue]
        loaded.visual = loaded.visual.to_color()  # pyright: ignore[reportAttributeAccessIssue]
    return Mesh(
        torch.from_numpy(np.array(loaded.vertices, dtype=np.float32)),  # pyright: ignore[reportAttributeAccessIssue]
        torch.from_numpy(np.array(loaded.faces, dtype=np.int64)),  # pyright: ignore[reportAttributeAccessIssue]
        torch.from_numpy(np.array(loaded.visual.vertex_colors[:, :3])),  # pyright: ignore[reportAttributeAccessIssue]
    )


def glb_bytes(mesh: Mesh | Textured) -> bytes:
    """A binary glTF 2.0 file: triangles with linear vertex colours (16 bit), or under a PNG."""
    positions = (mesh.vertices.cpu() @ GLTF_FROM_WORLD.T).numpy().astype("<f4")
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    point = {"componentType": _FLOAT, "count": len(positions), "type": "VEC3", **bounds}
    material = {
        "doubleSided": True,
        "extensions": {"KHR_materials_unlit": {}},
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
    }
    picture = {}
    if isinstance(mesh, Mesh):
        linear = _linear_from_srgb(mesh.colours.cpu())
        opaque = torch.cat([linear, torch.ones_like(linear[:, :1])], dim=1)
        looks = (opaque * 65535).round().numpy().astype("<u2").tobytes()
        name = "COLOR_0"
        look = {"componentType": _UNSIGNED_SHORT, "type": "VEC4", "normalized": True}
    else:
        looks, name = mesh.uv.cpu().numpy().astype("<f4").tobytes(), "TEXCOORD_0"
        look = {"componentType": _FLOAT, "type": "VEC2"}
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        picture = {
            "textures": [{"source": 0, "sampler": 0}],
            "images": [{"bufferView": 3, "mimeType": "image/png"}],
            "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
        }
    faces = mesh.faces.cpu().numpy().astype("<u4")
    corner = {"componentType": _UNSIGNED_INT, "count": faces.size, "type": "SCALAR"}
    accessors = [point, {**look, "count": len(positions)}, corner]
    parts = [positions.tobytes(), looks, faces.tobytes()]
    parts += [png_bytes(mesh)] if isinstance(mesh, Textured) else []
    document = {
        "asset": {"version": "2.0", "generator": "orrery"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, name: 1}, "indices": 2, "material": 0}]}],
        "materials": [material],
        "accessors": [{"bufferView": k, **accessor} for k, accessor in enumerate(accessors)],
        **picture,
    }
    return _glb(document, parts)


def _glb(document: dict, parts: list[bytes]) -> bytes:
    """The container: one JSON chunk, and one binary chunk that holds the parts, one buffer view each."""
    offsets = np.cumsum([0] + [len(part) for part in parts])
    views = [
        {"buffer": 0, "byteOffset": int(start), "byteLength": len(part)}
        for start, part in zip(offsets, parts, strict=False)
    ]
    for view, target in zip(views, (34962, 34962, 34963), strict=False):
        view["target"] = target
    document = {**document, "bufferViews": views, "buffers": [{"byteLength": int(offsets[-1])}]}
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
    raw = [body[v["byteOffset"] : v["byteOffset"] + v["byteLength"]] for v in document["bufferViews"]]
    positions = np.frombuffer(raw[0], dtype="<f4").reshape(-1, 3)
    if "images" in document:
        with Image.open(io.BytesIO(raw[3])) as picture:
            texture = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
        place = torch.from_numpy(np.frombuffer(raw[1], dtype="<f4").reshape(-1, 2).copy())
        column, row = (place * len(texture)).long().clamp(0, len(texture) - 1).unbind(-1)
        colours = texture[row, column]
    else:
        linear = np.frombuffer(raw[1], dtype="<u2").reshape(-1, 4)[:, :3].astype(np.float64)
        colours = _srgb_from_linear(torch.from_numpy(linear) / 65535)
    return Mesh(
        torch.from_numpy(positions.copy()) @ GLTF_FROM_WORLD,
        torch.from_numpy(np.frombuffer(raw[2], dtype="<u4").reshape(-1, 3).astype(np.int64)),
        colours,
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
