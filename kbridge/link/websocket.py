"""The server's side of one websocket (RFC 6455), from Tornado's handshake to the end.

`Websocket` takes the place of Tornado's protocol object in a `WebSocketHandler`: it has the
methods that handlers call of `ws_connection`. It is also the `ClientLink` through which a hub
writes. It uses public names of Tornado only; tests/link/test_websocket.py fails if Tornado lacks
one of them, or calls a method that is missing here.

docs/adr/0006-websocket-io.md has the reasons not to use Tornado's protocol or the `websockets`
library.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from tornado.escape import json_encode, utf8
from tornado.iostream import IOStream
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from kbridge.errors import FrameTooBig, ProtocolViolation
from kbridge.link import handshake
from kbridge.link.interfaces import noop
from kbridge.link.linger import Linger
from kbridge.link.timer import PeriodicTimer
from kbridge.link.transport import SocketTransport
from kbridge.wire import frames
from kbridge.wire.frames import BINARY, CLOSE, PING, TEXT
from kbridge.wire.reader import PARTIAL, Event, FrameReader, parse_close

try:
    from tornado.speedups import websocket_mask as unmask
except ImportError:  # Tornado was installed without its C extension
    from kbridge.wire.reader import unmask

__all__ = ["Websocket"]

_CLOSING_SECONDS: Final = 5.0  # for the peer's answer to a close frame
# Limits of one turn, so that other tasks get to run: ten thousand empty frames fit into one read.
# The time limit applies if frames take longer than usual.
_TURN: Final = 200  # frames, fragments included
_TURN_SECONDS: Final = 0.002
_NO_CONNECTION: Final = SocketTransport()  # before the handshake and after the end


class Websocket:
    """The server's side of one websocket: a handler's `ws_connection`, and a `ClientLink`.

    Parameters
    ----------
    handler : WebSocketHandler
        The handler to notify. If it has a method `on_progress`, that is called each time that a
        write which had to wait was completed: the peer reads, however slowly.

    Attributes
    ----------
    on_writable : callable
        Called when a `write` that returned False was completed; set by the owner of the link.
    selected_subprotocol : str or None
        The subprotocol that the handler has selected.
    client_terminated, server_terminated : bool
        True if the client, or the server, has sent its close frame; both, once the connection has
        ended.
    close_code : int or None
        The code in the client's close frame.
    close_reason : str or None
        The reason in the client's close frame.
    """

    __slots__ = (
        "_blocked",
        "_closing",
        "_end",
        "_events",
        "_frames",
        "_handler",
        "_pinger",
        "_pong",
        "_ponged",
        "_transport",
        "_writes",
        "client_terminated",
        "close_code",
        "close_reason",
        "on_writable",
        "selected_subprotocol",
        "server_terminated",
    )

    _end: asyncio.Future[None]  # done when the connection has ended; exists after the handshake

    def __init__(self, handler: WebSocketHandler) -> None:
        self._handler = handler
        self._frames = FrameReader(handler.max_message_size, unmask)
        self._events: Iterator[Event] = iter(())  # of the last read, not all handled yet
        self._transport = _NO_CONNECTION
        self.on_writable: Callable[[], None] = noop
        self.selected_subprotocol: str | None = None
        self.client_terminated = False
        self.server_terminated = False
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._blocked = False  # True if `write` has returned False
        self._pong: bytes | None = None  # the payload of a pong that waits for room
        self._ponged = True  # since the last ping of `_pinger`
        self._pinger: PeriodicTimer | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._writes: list[asyncio.Future[None]] = []  # of `write_message`, while it waits

    # -- the beginning, called by Tornado's handler ------------------------------------------

    async def accept_connection(self, handler: WebSocketHandler) -> None:
        """Answer the handshake, open the handler, and read until the connection has ended.

        Tornado's Task of the request waits here. Its cancellation drops the connection.
        """
        answered = handshake.answer(handler)
        if answered is None:
            return
        stream, self.selected_subprotocol = answered
        try:
            await handshake.flush(stream)
            self.take_over(stream)
            opened = handler.open(*handler.open_args, **handler.open_kwargs)
            if opened is not None:
                await opened
            if handler.ping_interval and not self.is_closing():
                self._pinger = PeriodicTimer(self._ping, handler.ping_interval)
                self._pinger.start()
            self._transport.resume()
            await self._end
        except asyncio.CancelledError:
            self._abort()
        except Exception:  # noqa: BLE001  # the handler's, logged
            handler.log_exception(*sys.exc_info())
            stream.close()
            self._abort()

    def take_over(self, stream: IOStream) -> None:
        """Continue on a stream's socket."""
        self._end = asyncio.get_running_loop().create_future()
        self._transport = SocketTransport.take_over(stream)
        self._transport.attach(self)
        # Nagle's algorithm with delayed acknowledgements adds 40 ms to every cell.
        self._transport.set_nodelay(True)

    # -- writing ----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True if no more data can be written."""
        # No data may follow a close frame (RFC 6455, section 5.5.1); Chrome fails the connection.
        return self.server_terminated or self._transport.closed

    def is_closing(self) -> bool:
        """Return True if one side has begun to close, or the connection has ended."""
        return self.client_terminated or self.closed

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the peer to read."""
        return self._transport.unsent_bytes

    def write(self, data: bytes | memoryview) -> bool:
        """Write whole frames.

        Returns
        -------
        bool
            True if all was written at once. If False, the link is blocked until `on_writable` is
            called, or closed.
        """
        if self.server_terminated:
            return False
        if self._transport.write(data):
            return True
        self._blocked = True
        return False

    def write_message(
        self, message: str | bytes | dict[str, Any], binary: bool = False
    ) -> asyncio.Future[None]:
        """Write one message.

        Returns
        -------
        asyncio.Future
            Done when the operating system has the message, or failed with `WebSocketClosedError`.

        Raises
        ------
        WebSocketClosedError
            If the connection has ended, or is being closed.
        """
        data = utf8(json_encode(message) if isinstance(message, dict) else message)
        self._send(frames.frame(data, BINARY if binary else TEXT))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._transport.writing or self._transport.closed:  # closed: `on_closed` follows
            self._writes.append(written)
        else:
            written.set_result(None)
        return written

    def write_ping(self, data: bytes) -> None:
        """Send a ping; raise `WebSocketClosedError` as `write_message` does."""
        self._send(frames.ping(data))

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off or on."""
        self._transport.set_nodelay(value)

    def _send(self, frame: bytes) -> None:
        if self.server_terminated or self._transport.closed:
            raise WebSocketClosedError
        self._transport.write(frame)

    def on_room(self) -> None:
        """Continue to write (`TransportEvents`)."""
        if not self._transport.flush():
            return
        writes, self._writes = self._writes, []
        for written in writes:
            if not written.done():
                written.set_result(None)
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self._send_pong(payload)
        if self.closed:
            return
        getattr(self._handler, "on_progress", noop)()
        if self._blocked and not self._transport.writing:
            self._blocked = False
            self.on_writable()

    # -- the end ----------------------------------------------------------------------------

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin or complete the closing handshake; may be called twice.

        The connection is closed when both sides have sent a close frame. The peer has 5 s for its
        answer.
        """
        if self._pinger is not None:
            self._pinger.stop()
        if not self.server_terminated:
            if not self.closed:
                self._send(frames.close(code, reason))
            self.server_terminated = True
        if self.client_terminated:
            self._drop()
        elif self._closing is None and not self._transport.closed:
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(_CLOSING_SECONDS, self._abort)

    def on_closed(self) -> None:
        """Tell the handler that the connection has ended (`TransportEvents`)."""
        self._abort()
        self._tell_handler()
        if not self._end.done():
            self._end.set_result(None)

    def _tell_handler(self) -> None:
        writes, self._writes = self._writes, []
        for written in writes:
            if not written.done():
                written.set_exception(WebSocketClosedError())
                written.exception()  # no warning if the caller does not await it
        self._handler.ws_connection = None  # else it would drop a connection that lingers
        try:
            self._handler.on_ws_connection_close(self.close_code, self.close_reason)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  # the handler's, logged
            self._handler.log_exception(*sys.exc_info())

    def _abort(self) -> None:
        """Close the connection without a handshake."""
        self.client_terminated = self.server_terminated = True
        if self._pinger is not None:
            self._pinger.stop()
        self._drop()

    on_connection_close = _abort  # the name that Tornado calls

    def _drop(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self._transport.close()

    def _fail(self, code: int, reason: str) -> None:
        """Close because of invalid input, after which frames cannot be separated."""
        lingers = not self.server_terminated
        self.close(code, reason)
        if not lingers or self._transport.closed:
            self._abort()
            return
        self.client_terminated = True
        if self._closing is not None:
            self._closing.cancel()
        Linger(self._transport, self._end)
        asyncio.get_running_loop().call_soon(self._tell_handler)

    # -- reading ----------------------------------------------------------------------------

    def on_input(self) -> None:
        """Read (`TransportEvents`)."""
        data = self._transport.read()
        if data:
            self._events = self._frames.read(data)
            self._read_frames()

    def _read_frames(self) -> None:
        """Handle the frames that have arrived, up to the limits of one turn."""
        end = time.monotonic() + _TURN_SECONDS
        try:
            for count, event in enumerate(self._events, 1):
                handled = self._handle(*event) if event is not PARTIAL else None
                if handled is not None:
                    self._transport.pause()
                    asyncio.ensure_future(handled).add_done_callback(self._on_handled)
                    return
                if self.client_terminated:
                    return
                if (count >= _TURN or time.monotonic() >= end) and self._frames.unread:
                    break
            else:
                return
        except FrameTooBig:
            limit = f"websocket_max_message_size ({self._handler.max_message_size} bytes)"
            self._fail(1009, f"over {limit}")
        except ProtocolViolation as error:
            self._fail(error.close_code, error.reason)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  # the handler's, logged
            self._handler.log_exception(*sys.exc_info())
            self._abort()
        else:
            self._transport.pause()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _handle(self, opcode: int, data: bytes | str) -> Awaitable[None] | None:
        """Handle a message or a control frame; return what to await before the next one."""
        if self.server_terminated and opcode != CLOSE:
            return None  # sent before the peer had read our close frame
        if opcode == BINARY:
            return self._handler.on_message(data)
        if opcode == TEXT:
            if isinstance(data, str):
                return self._handler.on_message(data)
            self.close(1007, "text that is not UTF-8")
            return None
        assert isinstance(data, bytes)
        if opcode == CLOSE:
            self.close_code, self.close_reason = parse_close(data)
            self.client_terminated = True
            self.close(self.close_code)  # the code is echoed, the reason is not
            return None
        if opcode == PING:
            self._send_pong(data)
            self._handler.on_ping(data)
            return None
        self._ponged = True
        # Tornado's stub says None, but Jupyter Server's handlers may return an awaitable.
        return self._handler.on_pong(data)  # type: ignore[func-returns-value]

    def _send_pong(self, payload: bytes) -> None:
        """Answer a ping; only the latest one if the peer does not read (section 5.5.3)."""
        if self._transport.writing:
            self._pong = payload
        elif not self.closed:
            self._send(frames.pong(payload))

    def _ping(self) -> None:
        """Send a ping for `websocket_ping_interval`, Tornado's setting.

        A peer that has not answered by the next ping is disconnected. Of `ping_timeout`, Tornado's
        other setting, only the value 0 has a meaning here: such a peer stays connected.
        """
        timeout = self._handler.ping_timeout
        if not self._ponged and timeout != 0 and not self._blocked:
            self.close(reason="ping timed out")
            return
        self._ponged = False
        if not self.is_closing():
            self.write_ping(b"")

    def _go_on(self) -> None:
        self._transport.resume()
        if not self.client_terminated:
            self._read_frames()

    def _on_handled(self, handled: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if handled.cancelled() else handled.exception()
        if error is None:
            self._go_on()
            return
        self._handler.log_exception(type(error), error, error.__traceback__)
        self._abort()
