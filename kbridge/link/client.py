"""The writing side of a websocket, as a hub sees it.

A `Websocket` is such a link itself. `StreamClient` is one for websockets that speak Tornado's own
protocol, with compression for example: it writes whole frames to Tornado's stream. A write that
the operating system did not accept whole blocks the link until it has. Until then nothing more is
written, so at most one batch waits here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from kbridge.errors import KbridgeError
from kbridge.link.interfaces import ClientLink, noop
from kbridge.link.websocket import Websocket

__all__ = ["StreamClient", "bridge_protocol", "client_link", "close_for"]

_LONGEST_REASON: Final = 123  # bytes of a close frame's reason (RFC 6455, section 5.5)


def bridge_protocol(
    usual: WebSocketProtocol | None, handler: WebSocketHandler
) -> WebSocketProtocol | None:
    """Return kbridge's protocol in place of Tornado's, if it can do what Tornado's would do.

    It cannot compress, and it does not replace a protocol class of somebody else.
    """
    if type(usual) is not WebSocketProtocol13 or handler.get_compression_options() is not None:
        return usual
    return cast("WebSocketProtocol", Websocket(handler))


def close_for(handler: WebSocketHandler, error: KbridgeError) -> None:
    """Close a websocket with the code and the reason of an error."""
    reason = error.reason.encode()[:_LONGEST_REASON].decode(errors="ignore")
    handler.close(error.close_code, reason)


def client_link(handler: WebSocketHandler) -> ClientLink:
    """Return the link to the client of an open websocket.

    Parameters
    ----------
    handler : WebSocketHandler
        If it has a method `on_progress`, that is called each time that a write which had to wait
        was completed.
    """
    protocol: Any = handler.ws_connection
    assert protocol is not None, "connect before the websocket was accepted"
    if isinstance(protocol, Websocket):
        return protocol
    assert protocol.stream is not None, "connect before the websocket was accepted"
    return StreamClient(
        protocol.stream,
        handler.close,
        lambda: bool(protocol.server_terminated),
        getattr(handler, "on_progress", noop),
    )


class StreamClient:
    """A `ClientLink` on the stream of a websocket that Tornado has accepted.

    Parameters
    ----------
    stream : IOStream
        The stream of the connection. Only whole frames are written, so that frames of Tornado
        (pongs, close) may come between them.
    on_close : callable
        Closes the websocket; takes the code and the reason.
    closing : callable
        Returns True if the close frame was sent. No data may follow it (RFC 6455, section 5.5.1);
        Chrome fails the connection over data that does.
    on_progress : callable
        Called each time that a write which had to wait was completed: the peer reads, however
        slowly, and its pongs may be as far behind.
    """

    __slots__ = ("_close", "_closing", "_on_progress", "_socket", "_stream", "on_writable")

    def __init__(
        self,
        stream: IOStream,
        on_close: Callable[[int, str], None],
        closing: Callable[[], bool] = lambda: False,
        on_progress: Callable[[], None] = noop,
    ) -> None:
        self._stream = stream
        # TLS encrypts: plaintext must go through the stream.
        self._socket = None if isinstance(stream, SSLIOStream) else stream.socket
        self._close = on_close
        self._closing = closing
        self._on_progress = on_progress
        self.on_writable: Callable[[], None] = noop
        # Nagle's algorithm and delayed acknowledgements together cost 40 ms on every cell.
        stream.set_nodelay(True)

    @property
    def closed(self) -> bool:
        """True if no more data can be written."""
        return self._stream.closed() or self._closing()

    def write(self, data: bytes | memoryview) -> bool:
        """Write whole frames; False if not all was written at once, or nothing."""
        stream = self._stream
        if self._closing():
            return False
        if self._socket is not None and not stream.writing():
            # The stream's buffer is empty, so this may bypass it.
            try:
                sent = self._socket.send(data)
            except OSError:
                sent = 0  # full, or broken: the stream will find out
            if sent == len(data):
                return True
            data = memoryview(data)[sent:]
        try:
            written = stream.write(data)
        except StreamClosedError:
            return False
        if not stream.writing():
            return not stream.closed()  # a write that fails closes the stream
        written.add_done_callback(self._on_written)
        return False

    def close(self, code: int, reason: str) -> None:
        """Close the websocket."""
        self._close(code, reason)

    def _on_written(self, _written: object) -> None:
        if not self.closed:
            self._on_progress()
            self.on_writable()
