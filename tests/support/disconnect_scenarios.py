"""The ways in which a websocket connects and disconnects: coroutines that leave nothing behind."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from tests.soak.raw_websocket import Closed, RawWebsocket, upgrade
from tests.support.server import Server
from tests.support.waiting import TIMEOUT

__all__ = ["SCENARIOS", "Scenario", "is_blocked"]

Scenario = Callable[[Server, str], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}
"""The scenarios by name. Each takes a server and the id of a kernel (of benchmarks/kernel.py)."""

# The sessions of reconnecting clients; only a few, so that the journal is soon full.
_SESSIONS = [uuid.uuid4().hex for _ in range(3)]


def _scenario(visit: Scenario) -> Scenario:
    SCENARIOS[visit.__name__.strip("_").replace("_", " ")] = visit
    return visit


def path_of(kernel_id: str, session: str = "") -> str:
    query = f"?session_id={session}" if session else ""
    return f"/api/kernels/{kernel_id}/channels{query}"


def request(msg_type: str, **content: Any) -> dict[str, Any]:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": msg_type,
        "session": "s",
        "username": "",
        "date": "2026-01-01T00:00:00.000000Z",
        "version": "5.3",
    }
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}}
    return {**message, "content": content, "buffers": []}


def command(**what: Any) -> dict[str, Any]:
    """Send a command to the stub kernel."""
    return request("execute_request", code=json.dumps(what), silent=False)


async def _open(
    server: Server, kernel_id: str, session: str = "", dialect: str = "v1"
) -> RawWebsocket:
    return await RawWebsocket.open(server.port, path_of(kernel_id, session), server.token, dialect)


async def _answered(websocket: RawWebsocket, message: dict[str, Any]) -> None:
    """Send a request, and read until its idle."""
    websocket.send(message)
    msg_id = message["header"]["msg_id"]
    while True:
        got = await websocket.receive(TIMEOUT)
        assert got is not None, f"no answer to {message} for {TIMEOUT:.0f} s"
        opcode, payload = got
        if opcode > 2:  # a ping
            continue
        came = websocket.codec.decode(payload.decode() if opcode == 1 else payload)
        if came["parent_header"].get("msg_id") != msg_id:
            continue
        if came["content"].get("execution_state") == "idle":
            return


async def _closed(websocket: RawWebsocket) -> None:
    """Close with a handshake (RFC 6455), and wait for the answer."""
    websocket.begin_close()
    with suppress(Closed):
        await websocket.drain()
    websocket.hang_up()


@_scenario
async def _closes(server: Server, kernel_id: str) -> None:
    await _closed(await _open(server, kernel_id))


@_scenario
async def _asks_and_closes(server: Server, kernel_id: str) -> None:
    for dialect in ("v1", "legacy"):
        websocket = await _open(server, kernel_id, _SESSIONS[0], dialect)
        await _answered(websocket, command(echo="hello"))
        await _closed(websocket)


@_scenario
async def _asks_and_resets(server: Server, kernel_id: str) -> None:
    websocket = await _open(server, kernel_id, _SESSIONS[1])
    await _answered(websocket, command(echo="hello"))
    websocket.reset()


@_scenario
async def _resets_before_the_answer(server: Server, kernel_id: str) -> None:
    websocket = await _open(server, kernel_id, _SESSIONS[2])
    websocket.send(command(flood=20, size=100))
    await websocket.writer.drain()
    websocket.reset()


@_scenario
async def _hangs_up(server: Server, kernel_id: str) -> None:
    (await _open(server, kernel_id)).hang_up()


@_scenario
async def _resets_in_mid_frame(server: Server, kernel_id: str) -> None:
    websocket = await _open(server, kernel_id)
    websocket.half_frame()
    await websocket.writer.drain()
    websocket.reset()


@_scenario
async def _sends_half_of_a_handshake(server: Server, kernel_id: str) -> None:
    whole = upgrade(server.port, path_of(kernel_id), server.token)
    websocket = await RawWebsocket.dial(server.port)
    websocket.writer.write(whole[: len(whole) // 2])
    await websocket.writer.drain()
    websocket.reset()


@_scenario
async def _does_not_wait_for_the_handshake(server: Server, kernel_id: str) -> None:
    websocket = await RawWebsocket.dial(server.port)
    websocket.writer.write(upgrade(server.port, path_of(kernel_id, _SESSIONS[0]), server.token))
    await websocket.writer.drain()
    websocket.reset()


@_scenario
async def _is_sent_away(server: Server, kernel_id: str) -> None:
    websocket = await RawWebsocket.dial(server.port)
    websocket.writer.write(upgrade(server.port, path_of(kernel_id), "wrong"))
    await websocket.reader.readuntil(b"\r\n\r\n")
    websocket.reset()


@_scenario
async def _talks_nonsense(server: Server, kernel_id: str) -> None:
    websocket = await _open(server, kernel_id)
    websocket.writer.write(b"\xf2\xff" + bytes(100))
    with suppress(Closed):
        await websocket.drain()
    websocket.hang_up()


async def is_blocked(server: Server, kernel_id: str) -> None:
    """Disconnect while more data is in transit than fits into the sockets.

    Not in the table, because clients that reconnect read the frames that it leaves in the journal.
    """
    websocket = await RawWebsocket.open(server.port, path_of(kernel_id), server.token, window=4096)
    websocket.send(command(blob=2 << 20, count=1))
    await websocket.receive(TIMEOUT)
    websocket.reset()
