"""Methods of Jupyter Server's websocket handler that `adapt_handler` replaces."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.websocket import WebSocketProtocol13, _WebSocketParams

from kbridge.errors import HubClosed
from kbridge.jupyter import handler as module
from kbridge.jupyter.handler import adapt_handler
from kbridge.link.websocket import Websocket
from tests.jupyter.rig import until
from tests.support.waiting import TIMEOUT

MAX = 12_345


class Handler:
    """The methods of Jupyter Server's handler that are replaced."""

    max_message_size = MAX
    ping_timeout = 90_000.0

    def __init__(self, protocol: Any = None, compression: Any = None) -> None:
        self.compression = compression
        self.heard: list[Any] = []
        self.pings = 0
        self.closes: list[tuple[int, str]] = []
        self.last_pong = 0.0
        self._protocol = protocol

    def get_websocket_protocol(self) -> Any:
        return self._protocol

    def get_compression_options(self) -> Any:
        return self.compression

    def on_message(self, message: Any) -> None:
        self.heard.append(message)

    def send_ping(self) -> None:
        self.pings += 1

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))


class Connection:
    def __init__(self) -> None:
        self.rooms: list[asyncio.Future[None]] = []
        self.blocked = False

    @property
    def pending(self) -> Any:
        return self.rooms.pop(0) if self.rooms else None


def adapted(protocol: Any = None, compression: Any = None) -> tuple[Any, Connection]:
    handler, connection = Handler(protocol, compression), Connection()
    adapt_handler(handler, connection)  # type: ignore[arg-type]
    return handler, connection


def tornados(compression: Any = None, cls: type = WebSocketProtocol13) -> Any:
    params = _WebSocketParams(max_message_size=MAX, compression_options=compression)
    return cls(SimpleNamespace(), False, params)


def test_frames_are_read_by_kbridges_reader() -> None:
    handler, _ = adapted(tornados())
    assert type(handler.get_websocket_protocol()) is Websocket


class Another(WebSocketProtocol13):
    pass


@pytest.mark.parametrize(
    ("usual", "compression"), [(None, None), (tornados({}), {}), (tornados(cls=Another), None)]
)
def test_tornados_protocol_stays_if_compression_is_on(usual, compression) -> None:
    handler, _ = adapted(usual, compression)
    assert handler.get_websocket_protocol() is usual


async def test_a_message_that_is_sent_at_once_returns_nothing_to_await() -> None:
    handler, _ = adapted()
    assert handler.on_message("one") is None
    assert handler.heard == ["one"]


async def test_reading_pauses_until_the_kernel_accepts_the_message() -> None:
    handler, connection = adapted()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await asyncio.sleep(0)
    assert handler.heard == ["one"], "the message was handed over once"
    assert not waiting.done()
    room.set_result(None)
    await waiting
    assert handler.on_message("two") is None
    assert handler.closes == []


async def test_a_client_counts_as_alive_while_reading_is_paused(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PONG_INTERVAL", 0.001)
    handler, connection = adapted()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await until(lambda: handler.last_pong)
    # The clock that Jupyter Server compares with.
    assert abs(handler.last_pong - time.time()) < TIMEOUT
    first = handler.last_pong
    await until(lambda: handler.last_pong > first)
    room.set_result(None)
    await waiting


async def test_last_pong_is_updated_within_a_short_ping_timeout(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PONG_INTERVAL", 3600.0)
    handler, connection = adapted()
    handler.ping_timeout = 3  # milliseconds
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await until(lambda: handler.last_pong)
    room.set_result(None)
    await waiting


async def test_a_kernel_that_ends_while_reading_is_paused_closes_the_websocket() -> None:
    handler, connection = adapted()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await asyncio.sleep(0)
    gone = HubClosed("the kernel is gone")
    room.set_exception(gone)
    await waiting
    assert handler.closes == [(gone.close_code, gone.reason)]


async def test_cancelling_the_wait_cancels_the_inner_future() -> None:
    handler, connection = adapted()
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.rooms.append(room)
    waiting = asyncio.ensure_future(handler.on_message("one"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert room.cancelled()


async def test_an_error_of_the_handler_propagates() -> None:
    handler = Handler()
    handler.on_message = lambda _: 1 / 0  # type: ignore[method-assign]
    adapt_handler(handler, Connection())  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        handler.on_message("one")


def test_a_client_that_has_not_read_up_to_the_ping_counts_as_alive() -> None:
    handler, connection = adapted()
    handler.send_ping()
    assert (handler.pings, handler.last_pong) == (1, 0.0)
    connection.blocked = True
    handler.send_ping()
    assert handler.pings == 2
    assert handler.last_pong == pytest.approx(time.time(), abs=TIMEOUT)
