"""The viewer: what it serves reaches a browser, nothing is reported to anyone, cameras stay as they are."""

import asyncio
import math
import socket
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import viser
import websockets
from scipy.spatial.transform import Rotation

from recon3d import viewer
from recon3d.mesh import Mesh
from recon3d.sweeps import orbit


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def scene() -> viewer.Scene:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    mesh = Mesh(corners, faces, torch.full((4, 3), 200, dtype=torch.uint8))
    cameras = orbit(5, height=16, width=24)
    return viewer.Scene(mesh, cameras, torch.zeros(5, 16, 24, 3, dtype=torch.uint8))


@pytest.fixture
def port(scene) -> int:
    port = free_port()
    server = viewer.serve(scene, port)
    yield port
    server.stop()


def messages(port: int, until: int) -> list[dict]:
    async def receive() -> list[dict]:
        found: list[dict] = []
        async with websockets.connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:
            while sum(m["type"] == "SetPositionMessage" for m in found) < until:
                found += msgspec.msgpack.decode(await connection.recv())
        return found

    return asyncio.run(asyncio.wait_for(receive(), 20))


def test_a_browsers_socket_gets_the_surface_and_every_camera_with_its_pose(port, scene):
    found = messages(port, 1 + len(scene.cameras))
    assert any(m["type"] == "GlbMessage" and m["name"] == "/surface" for m in found)
    frustums = [m for m in found if m["type"] == "CameraFrustumMessage"]
    assert [m["name"] for m in frustums] == [f"/cameras/{k}" for k in range(5)]
    assert frustums[0]["fov"] == pytest.approx(math.radians(60)) and frustums[0]["aspect"] == 1.5
    poses = {m["name"]: m for m in found if m["type"] == "SetOrientationMessage"}
    places = {m["name"]: m for m in found if m["type"] == "SetPositionMessage"}
    for k, c2w in enumerate(scene.cameras.c2w):
        turn = Rotation.from_quat(poses[f"/cameras/{k}"]["wxyz"], scalar_first=True).as_matrix()
        np.testing.assert_allclose(turn, c2w[:3, :3], atol=1e-5)
        np.testing.assert_allclose(places[f"/cameras/{k}"]["position"], c2w[:3, 3], atol=1e-5)


def test_the_served_page_reports_to_nobody_though_visers_own_does(port):
    upstream = Path(viser.__file__).parent / "client/build/index.html"
    assert "googletagmanager" in upstream.read_text()  # else the shim has had its day
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        page = answer.read().decode()
    assert "googletagmanager" not in page and "gtag(" not in page
    script = page.split('src="/assets/')[1].split('"')[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/assets/{script}") as answer:
        assert len(answer.read()) > 100_000


def test_a_visitors_camera_is_the_one_that_looks_the_same_way():
    camera = orbit(3, height=viewer.FIELD_PX, width=2 * viewer.FIELD_PX, fovy_deg=50.0)[1]
    turn = Rotation.from_matrix(camera.c2w[0, :3, :3].double().numpy()).as_quat(scalar_first=True)
    again = viewer.visitor_camera(turn, camera.centres[0].double().numpy(), math.radians(50.0), 2.0)
    assert (again.height, again.width) == (camera.height, camera.width)
    torch.testing.assert_close(again.c2w, camera.c2w)
    torch.testing.assert_close(again.K, camera.K)


def test_a_port_that_is_taken_or_is_none_is_refused_before_any_work(port):
    with pytest.raises(ValueError, match=f"--port {port} cannot be used"):
        viewer.check_port(port)
    with pytest.raises(ValueError, match="between 1 and 65535"):
        viewer.check_port(0)
