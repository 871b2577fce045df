"""Check on the network that CurveZMQ encrypts the traffic with kernels."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support.client import attach
from tests.support.server import Server
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    servers = []

    def start(policy: str) -> Server:
        home = tmp_path / policy
        home.mkdir()
        servers.append(Server(home, f"--transport-encryption={policy}", "--debug"))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


def info_of(server: Server, kernel_id: str) -> dict[str, Any]:
    path = server.home / "runtime" / f"kernel-{kernel_id}.json"
    return dict(json.loads(path.read_text()))


def speaks(info: dict[str, Any], channel: str, mechanism: bytes) -> bool:
    """Return True if a ZeroMQ socket continues after a greeting with this mechanism (ZMTP 3.1)."""
    with socket.create_connection((info["ip"], info[f"{channel}_port"]), timeout=TIMEOUT) as sock:
        # The greeting of the client: signature, version 3.1, mechanism, a client, filler.
        sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32))
        greeting = b""
        while len(greeting) < 32 and (data := sock.recv(64 - len(greeting))):
            greeting += data
    return greeting[12:32].rstrip(b"\0") == mechanism


def new_kernel(server: Server, name: str = "python3") -> str:
    reply = server.request("POST", "/api/kernels", {"name": name})
    assert reply.status == 201, reply
    return str(reply.json()["id"])


async def output(server: Server, kernel_id: str, code: str, dialect: str = "v1") -> str:
    async with attach(server, kernel_id, dialect) as ws:
        return (await ws.execute(code)).text()


async def test_all_traffic_is_encrypted_and_restarts_work(start, dialect):
    server = start("required")
    kernel_id = new_kernel(server)
    assert await output(server, kernel_id, "print('in cipher')", dialect) == "in cipher\n"
    for _ in range(2):
        info = info_of(server, kernel_id)
        assert all(speaks(info, channel, b"CURVE") for channel in CHANNELS)
        assert not any(speaks(info, channel, b"NULL") for channel in CHANNELS)
        assert server.request("POST", f"/api/kernels/{kernel_id}/restart").status == 200
        assert await output(server, kernel_id, "print('again')", dialect) == "again\n"


async def test_a_client_without_the_keys_receives_nothing(start):
    server = start("preferred")
    kernel_id = new_kernel(server)
    info = info_of(server, kernel_id)
    context = zmq.Context()
    probe = context.socket(zmq.SUB)
    probe.linger = 0
    probe.subscribe(b"")
    refused = probe.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_DISCONNECTED
    )
    probe.connect(f"tcp://{info['ip']}:{info['iopub_port']}")
    assert refused.poll(int(TIMEOUT * 1000)), (
        "the kernel neither refused the probe nor closed the connection"
    )
    assert await output(server, kernel_id, "print('secret')") == "secret\n"
    assert not probe.poll(100)
    refused.close(linger=0)
    probe.disable_monitor()
    context.destroy(linger=0)


async def test_encryption_can_be_turned_off(start):
    server = start("off")
    kernel_id = new_kernel(server)
    assert "curve_publickey" not in info_of(server, kernel_id)
    assert speaks(info_of(server, kernel_id), "shell", b"NULL")
    assert await output(server, kernel_id, "print(1)") == "1\n"


def test_a_kernelspec_without_encryption_is_refused_if_required(start):
    server = start("required")
    reply = server.request("POST", "/api/kernels", {"name": "mute"})
    assert reply.status == 500
    assert "supported_encryption" in reply.json()["message"]
    assert server.request("GET", "/api/kernels").json() == []


def test_no_key_is_in_the_log(start):
    server = start("required")
    info = info_of(server, new_kernel(server))
    server.stop()
    log = server.log.read_text()
    assert info["key"] not in log
    assert info["curve_secretkey"] not in log
