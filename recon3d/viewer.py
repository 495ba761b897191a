"""A reconstruction in the browser: its surface, the cameras with their frames, its points, and the radiance
field itself, rendered from where the visitor looks (viser; its cameras are OpenCV's, as ours are)."""

import contextlib
import io
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
import viser
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor

from recon3d.cameras import Cameras, intrinsics
from recon3d.mesh import Mesh, PointCloud
from recon3d.views import View
from recon3d.viser_page import serve_untracked_pages

MOST_POINTS = 200_000  # more make browsers slow
FIELD_PX = 128  # height of the radiance field's picture: a second or so on a laptop
FRUSTUM = 0.05  # size of a drawn camera, of the cameras' mean distance from their middle
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Scene:
    """What is shown. `render` draws the radiance field as cameras see it."""

    mesh: Mesh
    cameras: Cameras
    frames: UInt8[Tensor, "n h w 3"]
    points: PointCloud | None = None
    render: Callable[[Cameras], View] | None = None


def serve(scene: Scene, port: int = 8080, host: str = LOOPBACK) -> viser.ViserServer:
    """Starts a server in background threads; `.stop()` ends it. Only this machine reaches the default host.

    Raises:
        ValueError: the port is taken.
    """
    check_port(port, host)
    serve_untracked_pages()
    with contextlib.redirect_stdout(io.StringIO()):  # a panel that says less than we do
        server = viser.ViserServer(host=host, port=port, label="Orrery", verbose=False)
    server.scene.set_up_direction("+z")
    parts = {
        "surface": _add_surface(server, scene.mesh),
        "cameras": _add_cameras(server, scene.cameras, scene.frames),
    }
    if scene.points is not None:
        parts["points"] = [_add_points(server, scene.points)]
    for name, handles in parts.items():
        _add_switch(server, name, handles, shown=name != "points")
    eye, target = _first_look(scene.cameras)

    @server.on_client_connect
    def look(client: viser.ClientHandle) -> None:
        client.camera.position, client.camera.look_at = eye, target
        if scene.render is not None:
            _add_field(client, scene.render)

    return server


def until_interrupted(server: viser.ViserServer) -> None:
    """Serves until Ctrl-C."""
    try:
        while True:
            time.sleep(1.0)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


def check_port(port: int, host: str = LOOPBACK) -> None:
    """Raises ValueError if nothing can be served there: before any long work, not after it."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must lie between 1 and 65535, got {port}; 8080 is usual")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"--port {port} cannot be used ({error.strerror}); choose another") from error


def _add_surface(server: viser.ViserServer, mesh: Mesh) -> list:
    surface = trimesh.Trimesh(
        mesh.vertices.cpu().numpy(),
        mesh.faces.cpu().numpy(),
        vertex_colors=mesh.colours.cpu().numpy(),
        process=False,
    )
    return [server.scene.add_mesh_trimesh("/surface", surface)]


def _add_cameras(server: viser.ViserServer, cameras: Cameras, frames: UInt8[Tensor, "n h w 3"]) -> list:
    centres = cameras.centres
    size = FRUSTUM * max((centres - centres.mean(0)).norm(dim=-1).mean().item(), 1e-3)
    turns = Rotation.from_matrix(cameras.c2w[:, :3, :3].cpu().double().numpy()).as_quat(scalar_first=True)
    return [
        server.scene.add_camera_frustum(
            f"/cameras/{k}",
            fov=2 * math.atan(cameras.height / 2 / cameras.K[k, 1, 1].item()),
            aspect=cameras.width / cameras.height,
            scale=size,
            image=frames[k].cpu().numpy(),
            wxyz=turns[k],
            position=centres[k].cpu().numpy(),
        )
        for k in range(len(cameras))
    ]


def _add_points(server: viser.ViserServer, cloud: PointCloud):
    stride = max(1, -(-len(cloud.points) // MOST_POINTS))
    points = cloud.points[::stride].cpu().numpy()
    spread = float(np.linalg.norm(points - points.mean(0), axis=1).mean())
    colours = cloud.colours[::stride].cpu().numpy()
    return server.scene.add_point_cloud("/points", points, colours, point_size=0.004 * spread)


def _add_switch(server: viser.ViserServer, name: str, handles: list, shown: bool) -> None:
    switch = server.gui.add_checkbox(name, shown)

    def show(_=None) -> None:
        for handle in handles:
            handle.visible = switch.value

    switch.on_update(show)
    show()


def _add_field(client: viser.ClientHandle, render: Callable[[Cameras], View]) -> None:
    """A button that draws the radiance field from where its visitor looks, behind all else; and one that
    takes it away."""
    draw = client.gui.add_button("render the field from here")
    clear = client.gui.add_button("clear")

    @draw.on_click
    def _(_) -> None:
        draw.disabled = True
        camera = visitor_camera(
            np.asarray(client.camera.wxyz),
            np.asarray(client.camera.position),
            client.camera.fov,
            client.camera.aspect,
        )
        client.scene.set_background_image(render(camera).rgb[0].cpu().numpy())
        draw.disabled = False

    @clear.on_click
    def _(_) -> None:
        client.scene.set_background_image(np.full((1, 1, 3), 255, np.uint8))


def visitor_camera(
    wxyz: Float[np.ndarray, "4"], position: Float[np.ndarray, "3"], fovy_rad: float, aspect: float
) -> Cameras:
    """The camera of a browser, at the height that the field is drawn in."""
    c2w = torch.eye(4)
    c2w[:3, :3] = torch.from_numpy(Rotation.from_quat(wxyz, scalar_first=True).as_matrix())
    c2w[:3, 3] = torch.from_numpy(position)
    width = max(1, round(FIELD_PX * aspect))
    return Cameras(intrinsics(math.degrees(fovy_rad), FIELD_PX, width)[None], c2w[None], FIELD_PX, width)


def _first_look(cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """From behind and above the first camera, along its axis."""
    eye, axis = cameras.centres[0].cpu(), cameras.c2w[0, :3, 2].cpu()
    away = float((cameras.centres - cameras.centres.mean(0)).norm(dim=-1).mean())
    above = eye - 0.6 * away * axis + torch.tensor([0.0, 0.0, 0.6 * away])
    return above.numpy(), (eye + away * axis).numpy()
