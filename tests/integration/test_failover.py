"""Two servers of a cluster, of which one is killed, with real kernels and one database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.client import KernelClient, attach
from tests.support.require import require
from tests.support.server import Server, kill_all
from tests.support.waiting import until

LINES = 20_000
PRINT = f"""
import time
begin = time.monotonic()
for i in range({LINES}):
    print(i, flush=i % 20 == 0)
    if i % 20 == 0:
        time.sleep(max(0, begin + i / 2000 - time.monotonic()))
"""


@pytest.fixture
def servers(tmp_path: Path, database_url: str) -> Iterator[list[Server]]:
    require("ipykernel", "sqlalchemy")
    made = []
    try:
        for name in ("a", "b"):
            home = tmp_path / name
            home.mkdir()
            made.append(Server(home, "--cluster=lab", f"--registry-url={database_url}"))
            made[-1].start()
        yield made
    finally:
        kill_all(*made)


class Reader:
    """A client that comes back at another server when its server is gone."""

    def __init__(self, servers: list[Server], kernel_id: str, session: str) -> None:
        self.servers = servers
        self.kernel_id = kernel_id
        self.session = session
        self.messages: list[dict[str, Any]] = []
        self.ws: KernelClient | None = None
        self.here = asyncio.Event()
        self.exact = True
        self.back: list[float] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        for server in self.servers:
            while True:
                last = self.messages[-1]["header"]["msg_id"] if self.messages else ""
                since = last if self.exact else ""
                try:
                    async with attach(
                        server, self.kernel_id, session=self.session, since=since
                    ) as ws:
                        self.ws = ws
                        self.back.append(time.monotonic())
                        self.here.set()
                        while True:
                            self.messages.append(ws.codec.decode(await ws.ws.recv()))
                except InvalidStatus:
                    await asyncio.sleep(0)  # not taken over yet
                except (ConnectionClosed, OSError):
                    if not self.here.is_set():
                        continue
                    self.here.clear()
                    break

    async def next_server(self) -> None:
        await until(self.here.is_set, "the client is connected")

    def of(self, msg_type: str, parent: str) -> list[dict[str, Any]]:
        return [
            m
            for m in self.messages
            if m["header"]["msg_type"] == msg_type and m["parent_header"].get("msg_id") == parent
        ]

    def text(self, name: str = "stdout") -> str:
        return "".join(
            m["content"]["text"]
            for m in self.messages
            if m["header"]["msg_type"] == "stream" and m["content"]["name"] == name
        )

    def is_complete(self, request: str) -> bool:
        states = [m["content"]["execution_state"] for m in self.of("status", request)]
        return "idle" in states and bool(self.of("execute_reply", request))


async def followed(server: Server, kernel_id: str) -> None:
    """Wait until a server follows a kernel."""
    await until(lambda: f"Following kernel {kernel_id}" in server.log.read_text(), "it follows")


async def test_a_killed_owner_loses_nothing(servers: list[Server]) -> None:
    a, b = servers
    kernel_id = await asyncio.to_thread(a.start_kernel)
    await followed(b, kernel_id)
    reader = Reader(servers, kernel_id, "s")
    await reader.next_server()
    assert reader.ws is not None
    first, second = [
        await reader.ws.send("execute_request", {"code": code, "allow_stdin": True})
        for code in (PRINT, "print('queued'); answer = input('?'); print(answer)")
    ]
    await until(lambda: len(reader.text()) > 20_000, "there is output")
    killed = time.monotonic()
    a.process.kill()
    await until(lambda: len(reader.back) == 2, "the client is back")
    print(f"back after {reader.back[-1] - killed:.2f} s")
    await until(lambda: reader.is_complete(first), "the first cell is complete")
    await until(lambda: reader.of("input_request", second), "the second cell asks")
    [question] = reader.of("input_request", second)
    await reader.ws.send(
        "input_reply", {"value": "yes"}, channel="stdin", parent=question["header"]
    )
    await until(lambda: reader.is_complete(second), "the second cell is complete")
    numbered, _, rest = reader.text().partition("queued\n")
    assert [int(line) for line in numbered.split()] == list(range(LINES))
    assert rest.endswith("yes\n")
    assert "[kbridge" not in reader.text("stderr")
    reader.task.cancel()
