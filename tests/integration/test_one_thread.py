"""Kernels with a single thread, whose bridge is killed during a cell.

Such a kernel does not use its sockets while it computes. It therefore still knows the killed bridge
as a peer when the next one connects, and permanently ignores a peer with the same identity.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.support.client import KernelClient, attach
from tests.support.restartable_server import RestartableServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel

KERNEL = Path(__file__).parents[1] / "support" / "one_thread.py"
TICKS = """
import os, time
while not os.path.exists({go!r}):
    print("tick")
    time.sleep(0.05)
"""
SILENCE = """
import os, time
print("tick")
while not os.path.exists({go!r}):
    time.sleep(0.01)
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableServer]:
    made = RestartableServer(tmp_path_factory.mktemp("home"))
    made.install("one-thread", KERNEL)
    yield made
    made.assert_clean_log()
    made.kill()


class Cut:
    """A running cell whose bridge was killed."""

    def __init__(self, server: RestartableServer, code: str, then: str = "") -> None:
        self.server = server
        self.go = server.home / "go"
        self.code = code.format(go=str(self.go)) + then
        self.msg_id = ""
        server.start()
        self.kernel_id = server.start_kernel("one-thread")

    async def __aenter__(self) -> Self:
        async with self.attach() as ws:
            assert (await ws.execute("print(1)", store_history=True)).text() == "1\n"
            self.msg_id = await ws.start(self.code, store_history=True, allow_stdin=True)
            await ticks(ws)
            self.server.crash()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave nothing behind."""

    def attach(self) -> Any:
        return attach(self.server, self.kernel_id, session="mine")

    @property
    def pid(self) -> int:
        return self.server.kernels()[self.kernel_id]

    def linked(self) -> bool:
        """Return True if all four sockets of the new bridge are connected to the kernel."""
        ours = psutil.Process(self.server.process.pid).net_connections("tcp")
        ports = {c.laddr.port for c in psutil.Process(self.pid).net_connections("tcp")}
        there = {c.raddr.port for c in ours if c.raddr and c.status == "ESTABLISHED"}
        return len(there & ports) >= 4


def state(server: RestartableServer, kernel_id: str) -> str:
    model = server.request("GET", f"/api/kernels/{kernel_id}").json()
    return str(model["execution_state"])


async def ticks(ws: KernelClient) -> None:
    await ws.until(lambda m: "tick" in m["content"].get("text", ""))


def replies(ws: KernelClient) -> dict[str, str]:
    """Return the status of each reply by request; fail if one is duplicate."""
    came = [m for m in ws.seen if m["header"]["msg_type"] == "execute_reply"]
    found = {m["parent_header"]["msg_id"]: m["content"]["status"] for m in came}
    assert len(found) == len(came), ws.story()
    return found


async def still_works(ws: KernelClient) -> None:
    done = await ws.execute("print('next')", store_history=True)
    assert done.text() == "next\n"
    assert done.reply["status"] == "ok"
    asked = await ws.start("print(input('?'))", allow_stdin=True)
    [*_, question] = await ws.until(lambda m: m["header"]["msg_type"] == "input_request")
    reply = {"value": "yes"}
    await ws.send("input_reply", reply, channel="stdin", parent=question["header"])
    assert (await ws.finish(asked)).text() == "yes\n"


async def test_a_cell_that_ends_after_the_takeover_is_answered(server: RestartableServer) -> None:
    async with Cut(server, TICKS) as cut:
        server.start()
        async with cut.attach() as ws:
            await ticks(ws)
            cut.go.touch()
            done = await ws.finish(cut.msg_id)
            assert done.reply["status"] == "ok"
            await still_works(ws)
            assert set(replies(ws).values()) == {"ok"}


async def test_a_cell_that_fails_after_the_takeover_shows_its_error(
    server: RestartableServer,
) -> None:
    async with Cut(server, TICKS, "raise ValueError('bad')") as cut:
        server.start()
        async with cut.attach() as ws:
            await ticks(ws)
            cut.go.touch()
            reply = (await ws.finish(cut.msg_id)).reply
            assert (reply["status"], reply["ename"], reply["evalue"]) == (
                *("error", "ValueError"),
                "bad",
            )
            assert "ValueError: bad" in "\n".join(reply["traceback"])
            await still_works(ws)


async def test_a_cell_without_output_is_answered_after_the_takeover(
    server: RestartableServer,
) -> None:
    async with Cut(server, SILENCE) as cut:
        server.start()
        async with cut.attach() as ws:
            await asyncio.to_thread(eventually, cut.linked, "the new bridge is connected")
            assert state(server, cut.kernel_id) == "busy", "otherwise the kernel would be culled"
            cut.go.touch()
            assert (await ws.finish(cut.msg_id)).reply["status"] == "ok"
            await still_works(ws)
            assert state(server, cut.kernel_id) == "idle"


async def test_a_kernel_that_omits_an_idle_becomes_idle(
    server: RestartableServer,
) -> None:
    server.start()
    kernel_id = server.start_kernel("one-thread")
    async with attach(server, kernel_id) as ws:
        await ws.start("kernel.leaves_out_idle = True\n1 / 0")
        await ws.until(lambda m: m["header"]["msg_type"] == "execute_reply")
        assert state(server, kernel_id) == "idle"


async def test_a_cell_that_ends_while_no_bridge_runs_is_answered(server: RestartableServer) -> None:
    async with Cut(server, TICKS, "open({done!r}, 'w').close()".format(done="done")) as cut:
        cut.go.touch()
        await asyncio.to_thread(eventually, (server.home / "done").exists, "the cell has ended")
        server.start()
        async with cut.attach() as ws:
            await still_works(ws)


async def test_cells_queued_during_the_takeover_are_answered(server: RestartableServer) -> None:
    async with Cut(server, TICKS) as cut:
        server.start()
        async with cut.attach() as ws:
            await ticks(ws)
            asked = [cut.msg_id]
            asked += [await ws.start(f"print({n})", store_history=True) for n in range(3)]
            cut.go.touch()
            await ws.until(lambda _: set(replies(ws)) >= set(asked))
            assert [replies(ws)[msg_id] for msg_id in asked] == ["ok"] * 4
            await still_works(ws)


async def test_an_input_request_after_the_takeover_ends_with_an_interrupt(
    server: RestartableServer,
) -> None:
    """The kernel sends it to the dead bridge, which is not visible from outside."""
    async with Cut(server, TICKS, "print('asking')\ninput('?')") as cut:
        server.start()
        async with cut.attach() as ws:
            await ticks(ws)
            cut.go.touch()
            await ws.until(lambda m: "asking" in m["content"].get("text", ""))
            os.kill(cut.pid, signal.SIGINT)
            reply = (await ws.finish(cut.msg_id)).reply
            assert reply["ename"] == "KeyboardInterrupt"
            await still_works(ws)


async def test_a_cell_is_answered_after_two_crashes_of_the_server(
    server: RestartableServer,
) -> None:
    async with Cut(server, TICKS) as cut:
        server.start()
        async with cut.attach() as ws:
            await ticks(ws)
            server.crash()
        server.start()
        async with cut.attach() as ws:
            await ticks(ws)
            cut.go.touch()
            assert (await ws.finish(cut.msg_id)).reply["status"] == "ok"
            await still_works(ws)
