"""The websocket of a session, against a scripted server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from kbridge.client.address import Address
from kbridge.client.channel import Channel
from kbridge.client.rest import Rest
from kbridge.client.session import Failed, Finished, KernelSession
from kbridge.errors import (
    ClientError,
    KernelDied,
    KernelMessageError,
    KernelNotFound,
    NetworkError,
    NotFound,
)
from kbridge.wire import V1, v1
from kbridge.wire.build import build
from kbridge.wire.message import Channel as Name
from kbridge.wire.message import Message
from tests.support.waiting import TIMEOUT

REFUSAL = '{"reason": "as HTTP says it", "message": "not here"}'
Script = Callable[[ServerConnection], Awaitable[None]]


class Scripted:
    """A server that runs one script for each websocket, in order, and notes their URLs."""

    def __init__(self, *scripts: Script | int) -> None:
        self.scripts = list(scripts)
        self.queries: list[dict[str, str]] = []
        self.port = 0

    async def run(self, ws: ServerConnection) -> None:
        script = self.scripts.pop(0)
        assert not isinstance(script, int)
        await script(ws)

    def request(self, ws: ServerConnection, request: Request) -> Response | None:
        if "/executions" in request.path:
            return ws.respond(HTTPStatus.OK, "[]")
        query = parse_qs(urlsplit(request.path).query)
        self.queries.append({name: value for name, [value] in query.items()})
        if isinstance(self.scripts[0], int):
            return ws.respond(HTTPStatus(self.scripts.pop(0)), REFUSAL)  # type: ignore[arg-type]
        return None


@asynccontextmanager
async def scripted(
    *scripts: Script | int, patience: float = TIMEOUT, ping_interval: float = TIMEOUT, **more: Any
) -> AsyncIterator[tuple[Scripted, Channel, KernelSession]]:
    server = Scripted(*scripts)
    options: dict[str, Any] = {"subprotocols": [v1.SUBPROTOCOL], "max_size": None, **more}
    async with serve(
        server.run, "127.0.0.1", 0, process_request=server.request, **options
    ) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        rest = Rest(Address.parse(f"http://127.0.0.1:{port}", "t"))
        session = KernelSession("a-session")
        channel = Channel(rest, "a-kernel", session, patience, ping_interval)
        try:
            async with asyncio.timeout(TIMEOUT):
                yield server, channel, session
        finally:
            await channel.aclose()
            rest.close()


def idle(number: int) -> Message:
    content = {"execution_state": "idle"}
    return build(Name.IOPUB, "status", content, session="k", date="", msg_id=f"m{number}")


async def sends(ws: ServerConnection, *numbers: int) -> None:
    for number in numbers:
        await ws.send(V1.payload(idle(number))[1])


def sending(*numbers: int, code: int = 0, reason: str = "", abort: bool = False) -> Script:
    async def script(ws: ServerConnection) -> None:
        await sends(ws, *numbers)
        if abort:
            ws.transport.abort()
        elif code:
            await ws.close(code, reason)
        else:
            await ws.wait_closed()

    return script


async def answers(ws: ServerConnection) -> None:
    """Answer each execute request with a reply and idle."""
    async for frame in ws:
        assert isinstance(frame, bytes)
        request = v1.split(frame)
        header = request.header
        for channel, kind, content in (
            (Name.IOPUB, "status", {"execution_state": "idle"}),
            (Name.SHELL, "execute_reply", {"status": "ok"}),
        ):
            reply = build(channel, kind, content, session="k", date="", parent_header=header)
            await ws.send(V1.payload(reply)[1])


async def takes_one(ws: ServerConnection) -> None:
    """Receive one message, and break the connection."""
    await ws.recv()
    ws.transport.abort()


async def until(channel: Channel, session: KernelSession, last: str) -> None:
    while session.last != last:
        await channel.events()


async def test_it_offers_v1_and_says_which_session() -> None:
    async with scripted(sending(1)) as (server, channel, session):
        await channel.open()
        await until(channel, session, "m1")
        assert server.queries == [{"session_id": "a-session"}]


@pytest.mark.parametrize(
    "end",
    [
        {"abort": True},
        {"code": 1001},
        {"code": 1011},
        {"code": 1012, "reason": "the server is restarting"},
    ],
)
async def test_it_connects_again_after_the_last_message(end: dict[str, Any]) -> None:
    async with scripted(sending(1, 2, **end), 503, sending(3)) as (server, channel, session):
        await channel.open()
        await until(channel, session, "m3")
        again = {"session_id": "a-session", "since": "m2"}
        assert server.queries in (
            [{"session_id": "a-session"}, again, again],
            # A reset may take messages away that were not read yet.
            *([{"session_id": "a-session"}, other, other] for other in other_places(end)),
        )


def other_places(end: dict[str, Any]) -> list[dict[str, str]]:
    if "abort" not in end:
        return []
    return [{"session_id": "a-session"}, {"session_id": "a-session", "since": "m1"}]


async def test_a_lost_execution_is_sent_again_and_runs_once() -> None:
    async with scripted(takes_one, answers) as (_, channel, session):
        await channel.open()
        request = session.request("execute_request", {"code": "1"}, "")
        await channel.send(request)
        events = []
        while not events:
            events = await channel.events()
        [finished] = events
        assert isinstance(finished, Finished)
        assert finished.msg_id == request.msg_id


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [(1012, "the kernel was shut down", KernelDied), (1008, "a reason", ClientError)],
)
async def test_some_close_codes_are_final(code: int, reason: str, error: type[Exception]) -> None:
    async with scripted(sending(code=code, reason=reason)) as (_, channel, _session):
        await channel.open()
        with pytest.raises(error, match=reason):
            await channel.events()
        with pytest.raises(error, match=reason):
            await channel.send(idle(1))


async def test_a_refusal_of_the_second_connection_is_final() -> None:
    async with scripted(sending(code=1001), 404) as (_, channel, _session):
        await channel.open()
        with pytest.raises(KernelNotFound):
            await channel.events()


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (403, ClientError)])
async def test_a_refusal_of_the_first_connection_is_final(
    status: int, error: type[Exception]
) -> None:
    async with scripted(status) as (_, channel, _session):
        with pytest.raises(error, match=r"^not here$"):
            await channel.open()


async def test_a_server_without_the_dialect_is_refused() -> None:
    async with scripted(sending(), subprotocols=None) as (_, channel, _session):
        with pytest.raises(NetworkError, match=r"v1\.kernel"):
            await channel.open()


async def test_nobody_listens() -> None:
    rest = Rest(Address.parse("http://127.0.0.1:1"))
    channel = Channel(rest, "a-kernel", KernelSession("s"), 1.0, 1.0)
    with pytest.raises(NetworkError, match="cannot reach"):
        await channel.open()
    await channel.aclose()


async def test_it_gives_up_when_its_patience_ends() -> None:
    refusals = [503] * 1000
    async with scripted(sending(code=1001), *refusals, patience=0.05) as (_, channel, _session):
        await channel.open()
        with pytest.raises(NetworkError, match="no connection"):
            await channel.events()


@pytest.mark.parametrize("frame", ["text", b"not offsets"])
async def test_frames_that_are_no_messages_are_refused(frame: str | bytes) -> None:
    async def script(ws: ServerConnection) -> None:
        await ws.send(frame)
        await ws.wait_closed()

    async with scripted(script) as (_, channel, _session):
        await channel.open()
        with pytest.raises(KernelMessageError, match="the server sent"):
            await channel.events()


async def test_a_client_that_does_not_read_stops_the_server() -> None:
    sent = 0

    async def floods(ws: ServerConnection) -> None:
        nonlocal sent
        big = V1.payload(idle(1)._replace(content=b" " * (1 << 20)))[1]
        while sent < 256:
            await ws.send(big)
            sent += 1

    async with scripted(floods, write_limit=1 << 16) as (_, channel, _session):
        await channel.open()
        await channel.events()
        # Both ends are on this loop, and the system has no other delay between them.
        turns = before = 0
        while turns < 1000:
            await asyncio.sleep(0)
            turns = turns + 1 if before == sent else 0
            before = sent
        assert sent < 64


async def test_a_connection_without_an_answer_to_a_ping_is_replaced() -> None:
    again = asyncio.Event()

    async def is_mute(ws: ServerConnection) -> None:
        await sends(ws, 1)
        ws.transport.pause_reading()  # as behind a network that swallows everything
        await again.wait()
        ws.transport.abort()

    async def is_asked(ws: ServerConnection) -> None:
        again.set()
        await sends(ws, 2)
        await ws.wait_closed()

    # A machine that stands still for a second may cost the next connection, too.
    scripts = [is_mute, *[is_asked] * 50]
    async with scripted(*scripts, ping_interval=1.0) as (server, channel, session):
        await channel.open()
        await until(channel, session, "m2")
        assert server.queries[1]["since"] == "m1"


async def test_closing_fails_the_senders() -> None:
    async with scripted(sending(1)) as (_, channel, _session):
        await channel.open()
        await channel.aclose()
        await channel.aclose()
        with pytest.raises(NetworkError, match="closed"):
            await channel.send(idle(1))


async def test_a_dead_kernel_fails_its_requests() -> None:
    async def dies(ws: ServerConnection) -> None:
        await ws.recv()
        content = {"execution_state": "dead"}
        await ws.send(V1.payload(build(Name.IOPUB, "status", content, session="k", date=""))[1])
        await ws.wait_closed()

    async with scripted(dies) as (_, channel, session):
        await channel.open()
        request = session.request("kernel_info_request", {}, "")
        await channel.send(request)
        [failed] = await channel.events()
        assert isinstance(failed, Failed)
        assert failed.msg_id == request.msg_id
