"""What is given to Jupyter Server's websocket handler: our reader, and backpressure."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.websocket import WebSocketProtocol13, _WebSocketParams

from kbridge.errors import HubClosed
from kbridge.jupyter import handler as module
from kbridge.jupyter.handler import equip
from kbridge.link.protocol import BridgeWebSocketProtocol
from tests.jupyter.rig import until
from tests.support.waiting import TIMEOUT

MAX = 12_345


class Handler:
    """As much of Jupyter Server's handler as there is to equip."""

    max_message_size = MAX
    ping_timeout = 90_000.0

    def __init__(self, protocol: Any = None) -> None:
        self.heard: list[Any] = []
        self.pongs: list[bytes] = []
        self.pings = 0
        self.closes: list[tuple[int, str]] = []
        self.last_pong = 0.0
        self._protocol = protocol

    def get_websocket_protocol(self) -> Any:
        return self._protocol

    def on_message(self, message: Any) -> None:
        self.heard.append(message)

    def send_ping(self) -> None:
        self.pings += 1

    def on_pong(self, data: bytes) -> None:
        self.pongs.append(data)

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))


class Connection:
    def __init__(self) -> None:
        self.rooms: list[asyncio.Future[None]] = []
        self.blocked = False
        self.pongs: list[bytes] = []

    def room(self) -> Any:
        return self.rooms.pop(0) if self.rooms else None

    def on_pong(self, data: bytes) -> None:
        self.pongs.append(data)


def equipped(protocol: Any = None) -> tuple[Any, Connection]:
    handler, connection = Handler(protocol), Connection()
    equip(handler, connection)  # type: ignore[arg-type]
    return handler, connection


def tornados(compression: Any = None, cls: type = WebSocketProtocol13) -> Any:
    params = _WebSocketParams(max_message_size=MAX, compression_options=compression)
    return cls(SimpleNamespace(), False, params)


def test_frames_are_read_by_our_reader_with_the_handlers_parameters() -> None:
    usual = tornados()
    handler, _ = equipped(usual)
    protocol = handler.get_websocket_protocol()
    assert type(protocol) is BridgeWebSocketProtocol
    assert protocol.params is usual.params
    assert protocol.handler is handler
    assert str(MAX) in protocol._too_big
    assert "websocket_max_message_size" in protocol._too_big
    assert len(protocol._too_big.encode()) <= 123, "RFC 6455, section 5.5.1"


class Another(WebSocketProtocol13):
    pass


@pytest.mark.parametrize("usual", [None, tornados(compression={}), tornados(cls=Another)])
def test_what_our_reader_cannot_do_is_left_to_tornado(usual) -> None:
    handler, _ = equipped(usual)
    assert handler.get_websocket_protocol() is usual


async def test_a_message_that_there_is_room_for_is_waited_for_by_nobody() -> None:
    handler, _ = equipped()
    assert handler.on_message("one") is None
    assert handler.heard == ["one"]


async def test_nothing_more_is_read_until_there_is_room() -> None:
    handler, connection = equipped()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await asyncio.sleep(0)
    assert handler.heard == ["one"], "it was taken, and is not asked for again"
    assert not waiting.done()
    room.set_result(None)
    await waiting
    assert handler.on_message("two") is None
    assert handler.closes == []


async def test_a_peer_whose_pongs_are_not_read_is_not_taken_for_dead(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PONG_INTERVAL", 0.001)
    handler, connection = equipped()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await until(lambda: handler.last_pong)
    # The clock that Jupyter Server's pings go by.
    assert abs(handler.last_pong - time.time()) < TIMEOUT
    first = handler.last_pong
    await until(lambda: handler.last_pong > first)
    room.set_result(None)
    await waiting


async def test_a_short_ping_timeout_is_kept_to(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PONG_INTERVAL", 3600.0)
    handler, connection = equipped()
    handler.ping_timeout = 3  # milliseconds
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await until(lambda: handler.last_pong)
    room.set_result(None)
    await waiting


async def test_a_kernel_that_goes_meanwhile_closes_the_websocket() -> None:
    handler, connection = equipped()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await asyncio.sleep(0)
    gone = HubClosed("the kernel is gone")
    room.set_exception(gone)
    await waiting
    assert handler.closes == [(gone.close_code, gone.reason)]


async def test_who_waits_no_more_leaves_nothing_behind() -> None:
    handler, connection = equipped()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert room.cancelled()


async def test_what_the_handler_itself_raises_is_not_hidden() -> None:
    handler = Handler()
    handler.on_message = lambda _: 1 / 0  # type: ignore[method-assign]
    equip(handler, Connection())  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        handler.on_message("one")


@pytest.mark.parametrize("payload", [b"", b"17", b"\xff" * 125])
def test_a_pong_is_told_to_jupyter_server_and_to_the_bridge(payload) -> None:
    handler, connection = equipped()
    handler.on_pong(payload)
    assert handler.pongs == connection.pongs == [payload]


def test_what_jupyter_servers_pong_raises_is_not_hidden() -> None:
    handler = Handler()
    handler.on_pong = lambda data: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    equip(handler, Connection())  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        handler.on_pong(b"")


def test_who_has_yet_to_read_what_is_before_a_ping_is_not_taken_for_dead() -> None:
    handler, connection = equipped()
    handler.send_ping()
    assert (handler.pings, handler.last_pong) == (1, 0.0)
    connection.blocked = True
    handler.send_ping()
    assert handler.pings == 2
    assert handler.last_pong == pytest.approx(time.time(), abs=TIMEOUT)
