"""A real ipykernel behind a real OpenSSH server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.tunnel.tunnel import SshOptions, Tunnel
from tests.support.require import require
from tests.support.sshd import Sshd
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel


@pytest.fixture(params=["tcp", "ipc"])
def connection_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The connection file of an ipykernel that kbridge has not started."""
    require("ipykernel")
    ip = str(tmp_path / "ipc") if request.param == "ipc" else "127.0.0.1"
    name, _ = write_connection_file(
        str(tmp_path / "kernel-1.json"), transport=request.param, ip=ip, key=b"a-kernel's-key"
    )
    with (tmp_path / "kernel.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ipykernel_launcher", "-f", name],
            env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        # A client of jupyter_client takes a kernel that does not listen yet for one that has died.
        eventually(lambda: _listens(json.loads(Path(name).read_text())), "the kernel listens")
        yield name
    finally:
        process.kill()
        process.wait(TIMEOUT)


def _listens(info: dict[str, Any]) -> bool:
    """Return True if all sockets of a kernel accept connections."""
    for port in (value for name, value in info.items() if name.endswith("_port")):
        ipc = info["transport"] == "ipc"
        with socket.socket(socket.AF_UNIX if ipc else socket.AF_INET) as probe:
            address = f"{info['ip']}-{port}" if ipc else (info["ip"], port)
            if probe.connect_ex(address) != 0:
                return False
    return True


@pytest.fixture
async def tunnel(connection_file: str, tmp_path: Path) -> AsyncIterator[Tunnel]:
    (tmp_path / "sshd").mkdir()
    server = Sshd(tmp_path / "sshd").start()
    try:
        async with Tunnel(connection_file, "box", options=SshOptions(server.options)) as opened:
            yield opened
    finally:
        server.stop()


async def cut(tunnel: Tunnel) -> None:
    """Kill ssh, and wait until the tunnel is open again."""
    assert tunnel.pid is not None
    os.kill(tunnel.pid, signal.SIGKILL)
    assert await asyncio.to_thread(tunnel.wait, tunnel.openings + 1, TIMEOUT)


def peers() -> set[int]:
    """Return the ports that this process is connected to."""
    return {c.raddr.port for c in psutil.Process().net_connections() if c.raddr}


def behind(connection_file: str) -> set[int]:
    """Return the ports of the kernel."""
    info = json.loads(Path(connection_file).read_text())
    return {port for name, port in info.items() if name.endswith("_port")}


@asynccontextmanager
async def hub_of(tunnel: Tunnel) -> AsyncIterator[Hub]:
    hub = Hub("remote", tunnel.connection_info, HubSettings())
    try:
        yield hub
    finally:
        await hub.aclose()


async def test_a_hub_works_through_a_tunnel(tunnel: Tunnel, connection_file: str) -> None:
    async def value(hub: Hub, expression: str) -> str:
        content: dict[str, Any] = {"code": "", "user_expressions": {"it": expression}}
        assert await hub.wait_ready(TIMEOUT)
        reply = await hub.request("execute_request", content, timeout=TIMEOUT)
        return str(json.loads(reply.content)["user_expressions"]["it"]["data"]["text/plain"])

    async with hub_of(tunnel) as hub:
        assert await value(hub, "6 * 7") == "42"
        local = set(tunnel.ports.values())
        assert local & peers()
        assert not behind(connection_file) & peers()
        await cut(tunnel)
        assert await value(hub, "7 * 7") == "49"
        assert set(tunnel.ports.values()) == local


async def test_a_jupyter_client_works_through_a_tunnel(tunnel: Tunnel) -> None:
    client = AsyncKernelClient()
    client.load_connection_info(tunnel.connection_info)
    client.start_channels()
    try:
        await client.wait_for_ready(TIMEOUT)
        for product in ("6 * 7", "7 * 7"):
            said: list[str] = []

            def hear(message: dict[str, Any], said: list[str] = said) -> None:
                said.append(message["content"].get("text", ""))

            reply = await client.execute_interactive(
                f"print({product})", timeout=TIMEOUT, output_hook=hear
            )
            assert reply["content"]["status"] == "ok"
            assert "".join(said) == f"{eval(product)}\n"
            await cut(tunnel)
            await client.wait_for_ready(TIMEOUT)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)  # not at a later garbage collection, during another test
