"""Two replicas behind the real nginx and HAProxy, with the files of examples/deploy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.integration.test_proxies import (
    BASE,
    Certificate,
    Proxy,
    certificate,
    changed,
    haproxy,
    launched,
    nginx,
    options,
)
from tests.support.client import KernelClient
from tests.support.postgresql import postgresql
from tests.support.replicas import replicas
from tests.support.require import require
from tests.support.server import TOKEN, Server, free_port
from tests.support.waiting import eventually, until

__all__ = ["certificate"]

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

AUTH = {"Authorization": f"token {TOKEN}"}
HASH, ROUND_ROBIN = "hash", "round robin"
# The lines of the files that choose the replica, and those of round robin.
_BALANCE = {
    "nginx": ("    hash $kbridge_key consistent;\n", ""),
    "haproxy": (
        "    balance hash path,field(5,/)\n    hash-type consistent\n",
        "    balance roundrobin\n",
    ),
}
LINES = 4000
PRINT = f"""
import time
begin = time.monotonic()
for i in range({LINES}):
    print(i, flush=i % 20 == 0)
    if i % 20 == 0:
        time.sleep(max(0, begin + i / 2000 - time.monotonic()))
"""


def command(
    name: str, home: Path, port: int, upstreams: list[str], cert: Certificate, balance: str
) -> list[str]:
    """Return the command of a proxy in front of two replicas."""
    changes = [("10.0.0.1:8888", upstreams[0]), ("10.0.0.2:8888", upstreams[1])]
    if balance == ROUND_ROBIN:
        changes.append(_BALANCE[name])
    if name == "nginx":
        made = nginx(home, port, "kbridge", cert, "1h")
        config = home / "nginx.conf"
        upstream = changed("nginx-replicas.conf", *changes)
        text = config.read_text().replace("http {", f"http {{\n{upstream}", 1)
        config.write_text(text.replace("$status", "$upstream_addr $status"))  # for `chosen`
        return made
    made = haproxy(home, port, "127.0.0.1:8888", cert, "1h")
    text = changed(
        "haproxy-replicas.cfg",
        *changes,
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("/etc/haproxy/kernels.example.org.pem", str(cert.both)),
        ("log /dev/log local0", "log stderr format raw local0"),
        ("    user haproxy\n    group haproxy\n", ""),
    )
    (home / "haproxy.cfg").write_text(text)
    return made


@contextmanager
def in_front(
    name: str, home: Path, servers: list[Server], cert: Certificate, balance: str
) -> Iterator[Proxy]:
    """Run a proxy in front of two replicas."""
    home.mkdir()
    port = free_port()
    upstreams = [f"127.0.0.1:{server.port}" for server in servers]
    words = command(name, home, port, upstreams, cert, balance)
    with launched(name, words, home, port, cert) as proxy:
        yield proxy


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def name(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    require("sqlalchemy", "ipykernel")
    with replicas(tmp_path_factory.mktemp("replicas"), *options()) as made:
        yield made


@pytest.fixture
def servers(cluster: list[Server]) -> list[Server]:
    """Two replicas; one that was killed is started again."""
    for server in cluster:
        if server.process.poll() is not None:
            server.start()
    return cluster


async def ask(front: Proxy, method: str, path: str) -> Any:
    """Send a request through the proxy; return the status and the JSON."""
    reply = await asyncio.to_thread(front.request, method, path, None, AUTH)
    return reply.status, reply.json() if reply.body else None


async def start_kernel(front: Proxy) -> str:
    status, model = await ask(front, "POST", "/api/kernels")
    assert status == 201, model
    return str(model["id"])


class Viewer:
    """A client that connects again, through the proxy, each time that its websocket is closed."""

    def __init__(self, front: Proxy, kernel_id: str, session: str) -> None:
        self.front = front
        self.kernel_id = kernel_id
        self.session = session
        self.messages: list[dict[str, Any]] = []
        self.ws: KernelClient | None = None
        self.connected = 0
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            place = {"session_id": self.session}
            if self.messages:
                place["since"] = self.messages[-1]["header"]["msg_id"]
            try:
                async with self.front.attach(self.kernel_id, query=place) as self.ws:
                    self.connected += 1
                    while True:
                        self.messages.append(self.ws.codec.decode(await self.ws.ws.recv()))
            except (ConnectionClosed, InvalidHandshake, OSError):
                self.ws = None

    async def send(self, code: str) -> str:
        assert self.ws is not None
        return await self.ws.send("execute_request", {"code": code})

    def of(self, msg_type: str, parent: str) -> list[dict[str, Any]]:
        return [
            m
            for m in self.messages
            if (m["header"]["msg_type"], m["parent_header"].get("msg_id")) == (msg_type, parent)
        ]

    def text(self, parent: str) -> str:
        return "".join(m["content"]["text"] for m in self.of("stream", parent))

    def is_complete(self, parent: str) -> bool:
        """True once the cell has ended, as all viewers see it."""
        return "idle" in [m["content"]["execution_state"] for m in self.of("status", parent)]


def owner_of(kernel_id: str, servers: list[Server]) -> tuple[Server, int]:
    """Return the replica that has started a kernel, and the kernel's port of iopub."""
    files = [(s, file) for s in servers for _, file in s.started() if kernel_id in file]
    [(owner, file)] = files
    return owner, int(json.loads(Path(file).read_text())["iopub_port"])


def is_connected(server: Server, port: int) -> bool:
    """True if a server has a connection to a port."""
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return any(c.raddr and c.raddr.port == port and c.status == "ESTABLISHED" for c in found)


@pytest.mark.parametrize("balance", [HASH, ROUND_ROBIN])
async def test_viewers_come_back_when_the_owner_is_killed(
    name: str, balance: str, tmp_path: Path, servers: list[Server], certificate: Certificate
) -> None:
    """Two viewers see all output of a cell, whichever replicas the proxy has chosen."""
    starting = in_front(name, tmp_path / "proxy", servers, certificate, balance)
    front = await asyncio.to_thread(starting.__enter__)
    viewers: list[Viewer] = []
    try:
        kernel = await start_kernel(front)
        owner, iopub = await asyncio.to_thread(owner_of, kernel, servers)
        [other] = [server for server in servers if server is not owner]
        viewers = [Viewer(front, kernel, f"s{n}") for n in range(2)]
        await until(lambda: all(v.ws for v in viewers), "both are connected")
        for _ in range(4):  # round robin comes to each replica
            status, model = await ask(front, "GET", f"/api/kernels/{kernel}")
            assert (status, model["connections"]) == (200, 2)
        await until(lambda: is_connected(other, iopub), "the other replica follows the kernel")
        # Its subscription takes effect before these cells have ended.
        for _ in range(3):
            msg_id = await viewers[0].send("pass")
            await until(lambda m=msg_id: viewers[1].is_complete(m), "a cell has ended")

        msg_id = await viewers[0].send(PRINT)
        await until(lambda: all(v.of("stream", msg_id) for v in viewers), "both see output")
        owner.process.kill()
        await until(lambda: all(v.is_complete(msg_id) for v in viewers), "the cell is complete")
        for viewer in viewers:
            assert viewer.connected >= 2
            assert [int(line) for line in viewer.text(msg_id).split()] == list(range(LINES))
        await until(lambda: viewers[0].of("execute_reply", msg_id), "the reply is there")
        [reply] = viewers[0].of("execute_reply", msg_id)
        assert reply["content"]["status"] == "ok"

        msg_id = await viewers[1].send("print(i)")  # the kernel has kept its variables
        await until(lambda: all(v.is_complete(msg_id) for v in viewers), "another cell is complete")
        assert {viewer.text(msg_id) for viewer in viewers} == {f"{LINES - 1}\n"}
        assert kernel in [model["id"] for model in (await ask(front, "GET", "/api/kernels"))[1]]
        assert (await ask(front, "DELETE", f"/api/kernels/{kernel}"))[0] == 204
    finally:
        for viewer in viewers:
            viewer.task.cancel()
        await asyncio.gather(*(viewer.task for viewer in viewers), return_exceptions=True)
        await asyncio.to_thread(starting.__exit__, None, None, None)


def chosen(front: Proxy, path: str) -> list[str]:
    """Return the replica of each request for a path or a part of it, from the proxy's log."""
    log = front.home / ("access.log" if front.name == "nginx" else "log")
    found = []
    for line in log.read_text().splitlines():
        words = line.split()
        if any(f"{word}/".startswith(f"{BASE}{path}/") for word in words):
            if front.name == "nginx":
                found.append(words[words.index('HTTP/1.1"') + 1])
            else:
                found += [word for word in words if word.startswith(("kernels/", "kbridge/"))]
    return found


def test_the_hash_sends_a_kernel_to_one_replica(
    name: str, tmp_path: Path, servers: list[Server], certificate: Certificate
) -> None:
    """The rest of the path does not matter. Requests without an id go to both."""
    with in_front(name, tmp_path / "proxy", servers, certificate, HASH) as front:
        ids = [f"{n:08d}-of-nobody" for n in range(16)]
        for kernel in ids:
            for rest in ("", "/executions", "?since=1"):
                front.request("GET", f"/api/kernels/{kernel}{rest}", None, AUTH)
        for _ in range(16):
            front.request("GET", "/api/me", None, AUTH)
        eventually(lambda: len(chosen(front, "/api/me")) == 16, "all are in the log")
        replicas_of = [chosen(front, f"/api/kernels/{kernel}") for kernel in ids]
        assert [(len(each), len(set(each))) for each in replicas_of] == [(3, 1)] * len(ids)
        assert len({each[0] for each in replicas_of}) == 2
        assert len(set(chosen(front, "/api/me"))) == 2


async def test_haproxy_goes_on_when_no_replica_is_ready(
    tmp_path: Path, certificate: Certificate
) -> None:
    """Without the database, websockets stay open, and new ones reach both replicas."""
    require("haproxy", "sqlalchemy", "ipykernel")
    with (
        postgresql() as database,
        replicas(
            tmp_path / "replicas",
            *options(),
            "--lease-seconds=3",
            database=database.new_database(),
        ) as servers,
        in_front("haproxy", tmp_path / "proxy", servers, certificate, ROUND_ROBIN) as front,
    ):
        log = front.home / "log"

        def said(text: str) -> bool:
            return all(f"Server kernels/{n} is {text}" in log.read_text() for n in ("one", "two"))

        kernel = await start_kernel(front)
        async with front.attach(kernel) as before:
            assert (await before.execute("x = 6; print(x)")).text() == "6\n"
            await asyncio.to_thread(database.stop, crash=True)
            await until(lambda: said("DOWN"), "HAProxy finds no replica ready")
            assert (await before.execute("print(x * 7)")).text() == "42\n"
            for _ in range(2):
                async with front.attach(kernel) as new:
                    assert (await new.execute("print(x * 7)")).text() == "42\n"
                status, model = await ask(front, "GET", f"/api/kernels/{kernel}")
                assert (status, model["id"]) == (200, kernel)
            await asyncio.to_thread(database.start)
            await until(lambda: said("UP"), "HAProxy finds both replicas ready")
        assert await start_kernel(front) != kernel
