"""A replica that is killed during output, with a real kernel and two processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kbridge.cluster.membership import Membership
from kbridge.cluster.takeover import ReplicaHubs
from kbridge.hub import Hub, HubTable
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel, Message
from tests.cluster.rig import read_handover
from tests.hub.rig import Peer, received
from tests.support import replica
from tests.support.require import require
from tests.support.waiting import until

LOG = logging.getLogger("test")
LINES = 20_000
PRINT = f"""
import time
begin = time.monotonic()
for i in range({LINES}):
    print(i, flush=i % 20 == 0)
    if i % 20 == 0:
        time.sleep(max(0, begin + i / 2000 - time.monotonic()))
"""


class Pair:
    """The first replica in a process, and the second one in this process."""

    def __init__(self, path: Path, connection_file: Path) -> None:
        database = str(path / "registry.sqlite")
        self.second = replica.store_of(database, "b")
        self.process = subprocess.Popen(
            [sys.executable, replica.__file__, database, str(connection_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": str(Path(__file__).parents[2])} | _environment(),
        )
        self.got: list[tuple[str, str, str]] = []  # type (of streams, the name), id and text
        self.sent: list[str] = []
        self.ready = asyncio.Event()
        self.reader = asyncio.create_task(self._read())
        self.hubs = HubTable()
        self.membership = Membership(self.second, Lease(600.0), count=1, log=LOG)
        self.replica = ReplicaHubs(self.membership, self.hubs, LOG)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await asyncio.to_thread(self.process.stdout.readline):
            kind, *values = json.loads(line)
            if kind == "got":
                self.got.append((values[0], values[1], values[2]))
            elif kind == "sent":
                self.sent.append(values[0])
            else:
                self.ready.set()

    async def follow(self) -> None:
        """Let the second replica follow the kernel."""
        await self.ready.wait()
        await self.membership.join()
        await self.replica.open()
        await self.hubs.followed["k"].wait_ready()

    def run(self, code: str) -> None:
        """Send a cell through the first replica."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    async def written(self, msg_id: str) -> None:
        """Wait until the first replica has written an execution to the database."""
        await until(lambda: msg_id in read_handover(self.second, "k").executions, "it was written")

    async def kill(self) -> Hub:
        """Kill the first replica, read the rest of its messages, and take the kernel over."""
        self.process.kill()
        await self.reader
        rows = {replica.replica_id: replica for replica in self.second.view().replicas}
        kernel = self.second.take("k", "a", gone=rows["a"])
        assert kernel is not None
        await self.replica.promote(kernel)
        return self.hubs["k"]

    async def aclose(self) -> None:
        self.process.kill()
        self.process.communicate()
        await asyncio.wait({self.reader})
        await self.replica.aclose()
        await self.hubs.aclose()
        await self.membership.leave()
        self.second.registry.close()


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


@pytest.fixture
def connection_file(tmp_path: Path) -> Iterator[Path]:
    """The connection file of a kernel that runs."""
    require("ipykernel", "sqlalchemy")
    from jupyter_client.connect import write_connection_file

    file = tmp_path / "kernel.json"
    write_connection_file(str(file), ip="127.0.0.1")
    kernel = subprocess.Popen(
        [sys.executable, "-m", "ipykernel_launcher", "-f", str(file)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield file
    finally:
        kernel.kill()
        kernel.wait()


@pytest.fixture
async def pair(tmp_path: Path, connection_file: Path) -> AsyncIterator[Pair]:
    found = Pair(tmp_path, connection_file)
    try:
        yield found
    finally:
        await found.aclose()


def attach(hub: Hub, session_id: str, since: str = "") -> tuple[Peer, Any]:
    client = Peer()
    cursor = hub.attach(client, V1, session_id, since)
    client.hear = lambda payload: hub.on_pong(cursor, payload)
    client.answer()
    return client, cursor


def lines(texts: list[str]) -> list[int]:
    """Return the numbered lines of some texts; any other line fails."""
    return [int(line) for line in "".join(texts).split()]


def texts_of(client: Peer) -> list[str]:
    """Return the texts on stdout; a notice of the bridge fails."""
    found = [json.loads(m.content) for m in received(client) if m.msg_type == "stream"]
    assert [each["text"] for each in found if "[kbridge" in each["text"]] == []
    return [each["text"] for each in found if each["name"] == "stdout"]


def of(client: Peer, msg_type: str, parent: str) -> list[dict[str, Any]]:
    return [
        json.loads(m.content)
        for m in received(client)
        if m.msg_type == msg_type and m.parent_id == parent
    ]


def is_complete(client: Peer, request: str) -> bool:
    idle = {"execution_state": "idle"} in of(client, "status", request)
    return idle and bool(of(client, "execute_reply", request))


async def test_every_line_arrives_and_the_queued_cell_runs(pair: Pair) -> None:
    await pair.follow()
    pair.run(PRINT)
    pair.run("print('queued'); answer = input('?'); print(answer)")
    await until(lambda: len(pair.sent) == 2 and pair.sent[1], "both cells were sent")
    await pair.written(pair.sent[1])
    await until(lambda: len([g for g in pair.got if g[0] == "stdout"]) > 20, "there is output")
    hub = await pair.kill()
    before = [text for kind, _, text in pair.got if kind == "stdout"]
    last = pair.got[-1][1]
    exact, _ = attach(hub, "t", last)
    client, cursor = attach(hub, "s")
    first, second = pair.sent
    await until(lambda: is_complete(client, first), "the first cell is complete")
    await until(lambda: of(client, "input_request", second), "the second one asks")
    [question] = [m for m in received(client) if m.msg_type == "input_request"]
    reply = build(
        Channel.STDIN,
        "input_reply",
        {"value": "yes"},
        session="s",
        date="2026-01-01",
        parent_header=bytes(question.header),
    )
    hub.submit(cursor, reply)
    await until(lambda: is_complete(client, second), "the second cell is complete")
    assert [c["status"] for s in (first, second) for c in of(client, "execute_reply", s)] == [
        "ok",
        "ok",
    ]
    whole = "".join(before) + "".join(texts_of(exact))
    numbered, _, rest = whole.partition("queued\n")
    assert lines([numbered]) == list(range(LINES))
    assert rest == "?yes\n" or rest == "yes\n"
    again = lines(["".join(texts_of(client)).partition("queued\n")[0]])
    assert again == list(range(again[0], LINES))
    assert again[0] <= lines(before)[-1] + 1


async def test_an_input_request_that_waits_is_asked_again(pair: Pair) -> None:
    await pair.follow()
    pair.run("print(0); answer = input('?'); print(answer)")
    await until(
        lambda: any(
            "inputs" in entry for entry in read_handover(pair.second, "k").executions.values()
        ),
        "the input request was written",
    )
    hub = await pair.kill()
    client, cursor = attach(hub, "s")
    [request] = pair.sent
    questions: list[Message] = [m for m in received(client) if m.msg_type == "input_request"]
    assert [q.msg_id for q in questions] == [
        i for kind, i, _ in pair.got if kind == "input_request"
    ]
    reply = build(
        Channel.STDIN,
        "input_reply",
        {"value": "1"},
        session="s",
        date="2026-01-01",
        parent_header=bytes(questions[0].header),
    )
    hub.submit(cursor, reply)
    await until(lambda: is_complete(client, request), "the cell is complete")
    assert lines(texts_of(client)) in ([1], [0, 1])
