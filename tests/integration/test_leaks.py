"""A thousand connects and disconnects leak no descriptor, task, object or memory."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import random
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from kbridge.flow.journal import Journal
from kbridge.hub.broadcast.broadcaster import Broadcaster
from kbridge.hub.broadcast.cursor import ClientSession, Cursor
from kbridge.hub.hub import Hub
from kbridge.hub.kernel.connection import KernelConnection
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel
from tests.hub.rig import INFO
from tests.soak import resource_usage
from tests.soak.fleet import STUB
from tests.soak.raw_websocket import RawWebsocket
from tests.soak.resource_usage import observed_command
from tests.support.disconnect_scenarios import SCENARIOS, command, is_blocked, path_of
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.server import Server
from tests.support.waiting import TIMEOUT

CYCLES = int(os.environ.get("KBRIDGE_CYCLES", "1000"))
AT_ONCE = 8
MIB = 1 << 20


def stub_spec(home: Path) -> None:
    spec = home / "data" / "kernels" / "stub" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, str(STUB), "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Stub", "language": "json"}))


@pytest.fixture(params=["kbridge", "jupyter_server"])
def observed(request: pytest.FixtureRequest, tmp_path: Path):
    """A server whose objects can be counted: kbridge, and Jupyter Server with the extension."""
    require("ipykernel")
    stub_spec(tmp_path)
    if request.param == "kbridge":
        server = Server(tmp_path, command=observed_command(tmp_path))
    else:
        # Jupyter Server keeps the objects of a websocket until its next ping.
        pings = {"ws_ping_interval": 1000, "ws_ping_timeout": 60_000}
        server = jupyter_server(tmp_path, f"--ServerApp.tornado_settings={pings}")
        server.command = observed_command(tmp_path, "jupyter_server")
    try:
        yield server.start()
        assert server.stop() == 0
        if request.param == "kbridge":  # the log of Jupyter Server also has the output of kernels
            server.assert_clean_log()
    finally:
        server.kill()


async def come_and_go(server: Server, kernel_id: str, cycles: int, dice: random.Random) -> Counter:
    """Run all scenarios on a kernel, several at a time; restart it occasionally."""
    todo = list(itertools.islice(itertools.cycle(SCENARIOS), cycles))
    dice.shuffle(todo)
    done: Counter[str] = Counter()

    async def visit() -> None:
        while todo:
            scenario = todo.pop()
            async with asyncio.timeout(TIMEOUT):
                await SCENARIOS[scenario](server, kernel_id)
            done[scenario] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(visit())
    return done


async def lives(server: Server, mute: str) -> None:
    """Start, restart and shut down kernels with open websockets."""
    reply = await server.call("POST", "/api/kernels", {"name": "stub"})
    assert reply.status == 201, reply
    kernel_id = reply.json()["id"]
    wires = [
        await RawWebsocket.open(server.port, path_of(kernel_id, session), server.token, dialect)
        for session, dialect in (("", "v1"), ("kept", "legacy"), ("gone", "v1"))
    ]
    wires.pop().reset()
    for _ in range(5):
        await is_blocked(server, kernel_id)
    reply = await server.call("POST", f"/api/kernels/{kernel_id}/restart")
    assert reply.status == 200, reply
    wires[0].send(command(flood=200, size=100))
    assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
    for wire in wires:
        wire.reset()
    # A kernel that never answers: requests wait, and their clients disconnect.
    for _ in range(3):
        wire = await RawWebsocket.open(server.port, path_of(mute), server.token)
        wire.send(command(echo="?"))
        await wire.writer.drain()
        wire.reset()


async def all_of_it(server: Server, cycles: int, rounds: int) -> None:
    dice = random.Random(cycles)
    kernel_id, mute = [
        await asyncio.to_thread(server.start_kernel, name) for name in ("stub", "mute")
    ]
    for _ in range(rounds):
        done = await come_and_go(server, kernel_id, cycles // rounds, dice)
        assert done.total() == cycles // rounds
        assert set(done) == set(SCENARIOS), "not every scenario was seen"
        reply = await server.call("POST", f"/api/kernels/{kernel_id}/restart")
        assert reply.status == 200, reply
        await lives(server, mute)
    for one in (kernel_id, mute):
        await asyncio.to_thread(server.stop_kernel, one)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(600 + CYCLES // 2)
async def test_a_server_leaks_nothing_in_a_thousand_cycles(
    observed: Server, request: pytest.FixtureRequest
) -> None:
    await all_of_it(observed, 100, 2)  # until all permanent objects exist
    before = await resource_usage.at_rest(observed)
    ours = request.node.callspec.params["observed"] == "kbridge"
    await all_of_it(observed, CYCLES if ours else CYCLES // 3, 5)
    after = await resource_usage.settled(observed, before, TIMEOUT)
    assert after.above(before) == []


# -- as a library ---------------------------------------------------------------------------


def in_memory() -> HubTable:
    return HubTable(HubSettings(limit_rate=False), link=MemoryKernel)


async def embedded(hubs: HubTable, cycles: int) -> None:
    """Use a hub in memory as an embedding program: connect, stall, disconnect, restart, close."""
    for i in range(cycles):
        kernel_id = f"kernel-{i % 3}"
        hub = hubs.open(kernel_id, INFO)
        links = [MemoryClient() for _ in range(3)]
        attached = [hub.attach(link, V1, f"session-{i % 2}") for link in links]
        links[0].stalled = True
        hub.say(hub.notices.stderr("something"))
        hub.submit(attached[1], hub.notices.request(Channel.SHELL, "execute_request", {"code": ""}))
        hub.detach(attached[0])
        hub.detach(attached[0])
        if i % 5 == 0:
            assert isinstance(hub._kernel._link.link, MemoryKernel)
            hub._kernel._link.link.disconnect()
            await hub.restarting()
            hub.reconnect(INFO)
        if i % 7 == 0:
            await hubs.close(kernel_id)
        elif i % 11 == 0:
            hub.dead()
            await hubs.close(kernel_id)
        for one in attached:
            hub.detach(one)


def kept() -> Counter[str]:
    """Count the objects of kbridge, tasks and futures."""
    gc.collect()
    return Counter(
        type(thing).__name__
        for thing in gc.get_objects()
        if issubclass(type(thing), asyncio.Future)
        or str(type(thing).__module__).startswith("kbridge")
    )


async def test_hubs_of_an_embedder_leak_nothing_in_a_thousand_cycles() -> None:
    others = kept()  # objects of other tests in this process
    hubs = in_memory()
    await embedded(hubs, 100)
    before, open_before = kept(), len(hubs)
    tracemalloc.start()
    try:
        await embedded(hubs, CYCLES)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    more = {name: n - before[name] for name, n in (kept() - before).items()}
    assert len(hubs) <= max(open_before, 3)
    assert not {name: n for name, n in more.items() if n > 10}, more
    assert grown < MIB, f"{grown / CYCLES:.0f} bytes a cycle"
    await hubs.aclose()
    left = kept()
    parts = (Hub, KernelConnection, Broadcaster, Journal, ClientSession, Cursor, MemoryKernel)
    assert not {part for part in parts if left[part.__name__] > others[part.__name__]}
