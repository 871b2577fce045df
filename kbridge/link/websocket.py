"""The server's side of one websocket (RFC 6455), from Tornado's handshake to the end.

`Websocket` takes the place of Tornado's protocol object in a `WebSocketHandler`: it has the
methods that handlers call of `ws_connection`. It is also the `ClientLink` through which a hub
writes. It uses public names of Tornado only; tests/link/test_websocket.py fails if Tornado lacks
one of them, or calls a method that is missing here.

Reasons not to use Tornado's protocol:

- It awaits four times for each frame, and a round trip feels that.
- On input that is not RFC 6455 or not UTF-8 it drops the connection. On a message that is too big
  it sends a close frame and resets the connection right behind it, so that most clients see
  neither code nor reason. Here each fault has its close code, and the peer gets time to read it.
- It passes on messages that arrive after the server has sent its close frame. Here they are
  dropped, so that a refused client is not obeyed in part.
- Its `write_message` creates a Task for each message, which costs ten times as much as a batch of
  frames that is written at once.

The decision record docs/adr/0006-websocket-io.md compares this with the `websockets` library.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tornado.escape import json_encode, utf8
from tornado.iostream import IOStream
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol13

from kbridge.errors import FrameTooBig, ProtocolViolation
from kbridge.link.interfaces import noop
from kbridge.link.timer import PeriodicTimer
from kbridge.link.transport import SocketTransport
from kbridge.wire import frames
from kbridge.wire.frames import BINARY, CLOSE, PING, TEXT
from kbridge.wire.reader import PARTIAL, FrameReader, parse_close

try:
    from tornado.speedups import websocket_mask as unmask
except ImportError:  # Tornado was installed without its C extension
    from kbridge.wire.reader import unmask

__all__ = ["Websocket"]

_CLOSING_SECONDS: Final = 5.0  # for the peer's answer to a close frame
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 64 << 20
# Limits of one turn, so that other tasks get to run: ten thousand empty frames fit into one read.
# The time limit applies if frames take longer than usual.
_TURN: Final = 200  # frames, fragments included
_TURN_SECONDS: Final = 0.002


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
        "_discarded",
        "_end",
        "_frames",
        "_handler",
        "_lingering",
        "_on_progress",
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

    def __init__(self, handler: WebSocketHandler) -> None:
        self._handler = handler
        self._frames = FrameReader(handler.max_message_size, unmask)
        self._transport: SocketTransport | None = None
        self._on_progress: Callable[[], object] = getattr(handler, "on_progress", noop)
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
        self._lingering = False
        self._discarded = 0  # bytes, while lingering
        self._end: asyncio.Future[None] | None = None  # done when the connection has ended
        self._writes: list[
            asyncio.Future[None]
        ] = []  # futures of `write_message` that wait for room

    # -- the beginning, called by Tornado's handler ------------------------------------------

    async def accept_connection(self, handler: WebSocketHandler) -> None:
        """Answer the handshake, open the handler, and read until the connection has ended.

        Tornado's Task of the request waits here. Its cancellation drops the connection.
        """
        headers = handler.request.headers
        key = headers.get("Sec-WebSocket-Key")
        if not key or not headers.get("Host"):
            handler.set_status(400)
            handler.finish("Missing/Invalid WebSocket headers")
            return
        header = headers.get("Sec-WebSocket-Protocol", "")
        offered = [name.strip() for name in header.split(",")] if header else []
        self.selected_subprotocol = handler.select_subprotocol(offered)
        if self.selected_subprotocol:
            assert self.selected_subprotocol in offered, "a subprotocol that was not offered"
            handler.set_header("Sec-WebSocket-Protocol", self.selected_subprotocol)
        handler.clear_header("Content-Type")
        handler.set_status(101)
        handler.set_header("Upgrade", "websocket")
        handler.set_header("Connection", "Upgrade")
        handler.set_header("Sec-WebSocket-Accept", WebSocketProtocol13.compute_accept_value(key))
        handler.finish()
        stream = handler.detach()
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                while stream.writing():  # the peer has yet to read the answer
                    await stream.write(b"")
            self.take_over(stream)
            opened = handler.open(*handler.open_args, **handler.open_kwargs)
            if opened is not None:
                await opened
            if handler.ping_interval and not self.is_closing():
                self._pinger = PeriodicTimer(self._ping, handler.ping_interval)
                self._pinger.start()
            self._resume()
            assert self._end is not None
            await self._end
        except asyncio.CancelledError:
            self._abort()
        except Exception:  # noqa: BLE001  # the handler's, logged
            handler.log_exception(*sys.exc_info())
            stream.close()
            self._abort()

    def take_over(self, stream: IOStream) -> None:
        """Continue on a stream's socket."""
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        self._transport = transport = SocketTransport.take_over(stream, self)
        if transport is None:
            loop.call_soon(self.on_closed)
        else:
            # Nagle's algorithm with delayed acknowledgements adds 40 ms to every cell.
            transport.set_nodelay(True)

    # -- writing ----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True if no more data can be written."""
        # No data may follow a close frame (RFC 6455, section 5.5.1); Chrome fails the connection.
        return self.server_terminated or self._transport is None or self._transport.closed

    def is_closing(self) -> bool:
        """Return True if one side has begun to close, or the connection has ended."""
        return self.client_terminated or self.closed

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the peer to read."""
        return self._transport.unsent_bytes if self._transport is not None else 0

    def write(self, data: bytes | memoryview) -> bool:
        """Write whole frames.

        Returns
        -------
        bool
            True if all was written at once. If False, the link is blocked until `on_writable` is
            called, or closed.
        """
        if self.closed:
            return False
        assert self._transport is not None
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
        assert self._transport is not None
        if self._transport.writing or self._transport.closed:  # closed: `on_closed` follows
            self._writes.append(written)
        else:
            written.set_result(None)
        return written

    def write_ping(self, data: bytes) -> None:
        """Send a ping.

        Raises
        ------
        WebSocketClosedError
            If the connection has ended, or is being closed.
        """
        self._send(frames.ping(data))

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off or on."""
        if self._transport is not None:
            self._transport.set_nodelay(value)

    def _send(self, frame: bytes) -> None:
        if self.closed:
            raise WebSocketClosedError
        assert self._transport is not None
        self._transport.write(frame)

    def on_drained(self) -> None:
        """Continue after a write that had to wait."""
        writes, self._writes = self._writes, []
        for written in writes:
            if not written.done():
                written.set_result(None)
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self._send_pong(payload)
        if self._lingering:
            self._write_eof()
        if self.closed:
            return
        self._on_progress()
        if self._blocked and self._transport is not None and not self._transport.writing:
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
        elif self._closing is None and self._transport is not None:
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(_CLOSING_SECONDS, self._abort)

    def on_connection_close(self) -> None:
        """Drop the connection."""
        self._abort()

    def on_closed(self) -> None:
        """Tell the handler that the connection has ended."""
        self._abort()
        writes, self._writes = self._writes, []
        for written in writes:
            if not written.done():
                written.set_exception(WebSocketClosedError())
                written.exception()  # no warning if the caller does not await it
        if not self._lingering:  # else it was told before
            self._tell_handler()
        if self._end is not None and not self._end.done():
            self._end.set_result(None)
        # Break the reference cycle: it would keep the handler and an unfinished message in memory
        # until the garbage collector finds them.
        self._transport = None

    def _tell_handler(self) -> None:
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

    def _drop(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        if self._transport is not None:
            self._transport.close()

    def _fail(self, code: int, reason: str) -> None:
        """Close because of input behind which no frame can be told apart.

        The peer may still be sending. Closing a socket that has unread input resets the connection,
        and a reset discards what the peer has not read yet: the close frame. So only the writing
        side is closed, and input is discarded until the peer closes its side, 2 s at most.
        """
        lingers = not self.server_terminated
        self.close(code, reason)
        self.client_terminated = True
        if not lingers:
            self._drop()
            return
        self._lingering = True
        if self._closing is not None:
            self._closing.cancel()
        loop = asyncio.get_running_loop()
        self._closing = loop.call_later(_LINGER_SECONDS, self._abort)
        self._write_eof()
        loop.call_soon(self._tell_handler)

    def _write_eof(self) -> None:
        if self._transport is not None and not self._transport.writing:
            self._transport.write_eof()

    # -- reading ----------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        """Take bytes that were read."""
        if self._lingering:
            self._discarded += len(data)
            if self._discarded > _LINGER_BYTES:
                self._abort()
            return
        self._frames.feed(data)
        self._read_frames()

    def _read_frames(self) -> None:
        """Handle the frames that have arrived, up to the limits of one turn."""
        next_event = self._frames.next
        end = time.monotonic() + _TURN_SECONDS
        try:
            for _ in range(_TURN):
                event = None if self.client_terminated else next_event()
                if event is None:
                    return
                if event is PARTIAL:
                    continue
                handled = self._handle(*event)
                if handled is not None:
                    self._pause()
                    asyncio.ensure_future(handled).add_done_callback(self._on_handled)
                    return
                if time.monotonic() >= end:
                    break
        except FrameTooBig:
            limit = f"websocket_max_message_size ({self._handler.max_message_size} bytes)"
            self._fail(1009, f"over {limit}")
        except ProtocolViolation as error:
            self._fail(error.close_code, error.reason)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  # the handler's, logged
            self._handler.log_exception(*sys.exc_info())
            self._abort()
        else:
            self._pause()
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
        if self._transport is not None and self._transport.writing:
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

    def _pause(self) -> None:
        if self._transport is not None:
            self._transport.pause()

    def _resume(self) -> None:
        if self._transport is not None:
            self._transport.resume()

    def _go_on(self) -> None:
        self._resume()
        self._read_frames()

    def _on_handled(self, handled: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if handled.cancelled() else handled.exception()
        if error is None:
            self._go_on()
            return
        self._handler.log_exception(type(error), error, error.__traceback__)
        self._abort()
