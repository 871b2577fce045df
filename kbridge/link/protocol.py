"""The server's side of RFC 6455: Tornado's handshakes, our own reading.

Frames are read by the chunk (`kbridge.link.stream`) and taken apart by `kbridge.wire.reader`:
Tornado awaits four times a frame, which a round trip feels. It also drops the connection on what is
not RFC 6455 or not UTF-8, and resets it right after the close frame on a message that is too big,
so that most clients see neither code nor reason. Here each fault is closed with its code, and the
peer is given the time to read why. Messages that come after a close of ours are not handed on:
whoever was refused is not half obeyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any, Final

from tornado.util import _websocket_mask as unmask
from tornado.websocket import WebSocketProtocol13

from kbridge.errors import FrameTooBig, ProtocolViolation
from kbridge.link.reading import Source, TornadoReader
from kbridge.link.stream import SocketStream
from kbridge.wire.frames import CLOSE, TEXT
from kbridge.wire.reader import PARTIAL, FrameReader

__all__ = ["BridgeWebSocketProtocol"]

_NEVER_SENT: Final = frozenset({1004, 1005, 1006, 1015})  # section 7.4.1
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 64 << 20
# Limits of one turn, so that other tasks get to run: ten thousand empty frames fit into a chunk.
# The time limit applies if frames take longer than usual.
_TURN: Final = 200  # frames, fragments included
_TURN_SECONDS: Final = 0.002


class BridgeWebSocketProtocol(WebSocketProtocol13):
    """The server's side of one websocket.

    Parameters
    ----------
    too_big : str
        The reason for closing with code 1009; it names the setting. At most 123 bytes.
    """

    def __init__(self, handler: Any, mask_outgoing: bool, params: Any, too_big: str) -> None:
        super().__init__(handler, mask_outgoing, params)
        self._too_big = too_big
        self._lingers = False
        self._source: Source | None = None
        self._frames = FrameReader(params.max_message_size, unmask)

    @classmethod
    def in_place_of(cls, usual: Any, handler: Any) -> BridgeWebSocketProtocol:
        """What a handler is to speak instead of the protocol that Tornado has made for it."""
        limit = f"websocket_max_message_size ({handler.max_message_size} bytes)"
        return cls(handler, False, usual.params, too_big=f"over {limit}")

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake."""
        if code == 1009 and not self.client_terminated:  # else it is the peer's own, echoed
            self._lingers = not self.server_terminated
            reason = self._too_big
        super().close(code, reason)

    def _take_event(self, opcode: int, data: bytes | str) -> asyncio.Future[None] | None:
        """Handle a message or a control frame."""
        if self.server_terminated and opcode != CLOSE:
            return None  # sent before the peer had read our close: nothing may come of it
        if opcode == TEXT:
            if isinstance(data, str):
                return self._run_callback(self.handler.on_message, data)
            self.close(1007, "text that is not UTF-8")
            return None
        assert isinstance(data, bytes)
        if opcode == CLOSE:
            _check_close(data)
        return self._handle_message(opcode, data)

    def start_pinging(self) -> None:
        """Take the connection over: the handshake is written, and nobody has its stream yet."""
        stream = SocketStream.take_over(self.stream)
        if stream is None:
            self._source = TornadoReader(self.stream)
        else:
            self._source = stream
            self.stream = stream  # type: ignore[assignment]  # which has what is called of it
        super().start_pinging()

    def _abort(self) -> None:
        if self._lingers:
            # The stream is closed when the peer has had its time.
            self.client_terminated = True
            return
        super()._abort()

    async def _receive_frame_loop(self) -> None:
        assert self._source is not None
        try:
            await self._source.run(self._on_data)
            if self.stream.closed():
                self._abort()
        finally:
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)
        if self._lingers:
            await self._linger(self._source)

    def _on_data(self, data: bytes) -> None:
        self._frames.feed(data)
        self._take()

    def _take(self) -> None:
        """Take what has come, up to what others may be asked to wait for."""
        source, frames = self._source, self._frames
        assert source is not None
        end = time.monotonic() + _TURN_SECONDS
        try:
            for _ in range(_TURN):
                event = None if self.client_terminated else frames.next()
                if event is None:
                    break
                if event is PARTIAL:
                    continue
                handled = self._take_event(*event)
                if handled is not None:
                    source.pause()
                    handled.add_done_callback(self._on_handled)
                    return
                if time.monotonic() >= end:
                    self._break()
                    return
            else:
                self._break()
                return
        except FrameTooBig:
            self.close(1009)
            self._abort()
        except ProtocolViolation as error:
            self._lingers = not self.server_terminated
            self.close(error.close_code, error.reason)
            source.stop()  # what follows cannot be told apart; the close frame is on its way
        if self.client_terminated:
            source.stop()

    def _break(self) -> None:
        """Go on in the loop's next turn, with nothing read meanwhile."""
        assert self._source is not None
        self._source.pause()
        self.stream.io_loop.add_callback(self._go_on)

    def _on_handled(self, handled: asyncio.Future[None]) -> None:
        if handled.cancelled() or handled.exception() is not None:  # logged by who made it
            self._abort()
        self._go_on()

    def _go_on(self) -> None:
        source = self._source
        assert source is not None
        source.resume()
        self._take()

    async def _linger(self, source: Source) -> None:
        """Read on, and throw away, until the peer hangs up.

        Closing a socket that has unread input resets it, and a reset discards what the peer has
        not read yet: the close frame. So only our own side is closed; the peer then closes its.
        """
        read = 0

        def throw_away(data: bytes) -> None:
            nonlocal read
            read += len(data)
            if read > _LINGER_BYTES:
                source.stop()

        if self.stream.socket is not None and not self.stream.writing():
            with contextlib.suppress(OSError):  # it was cut meanwhile; reading will tell
                self.stream.socket.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await source.run(throw_away)
        except TimeoutError:
            pass
        finally:
            self._lingers = False
            self._abort()


def _check_close(data: bytes) -> None:
    """Judge a peer's close frame, before its code is echoed (RFC 6455, sections 5.5.1 and 7.4)."""
    if not data:
        return
    code = int.from_bytes(data[:2], "big")
    if len(data) < 2 or not 1000 <= code < 5000 or code in _NEVER_SENT:
        raise ProtocolViolation("a close frame without a code that may be sent")
    try:
        data[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolViolation("a close frame whose reason is not UTF-8") from None
