"""One websocket, from the writing side.

Frames are written straight to the stream, a batch as one write: Tornado's `write_message` makes a
Task a message and costs ten times as much. A write that the operating system did not take whole
blocks the link until it has; nothing more is written meanwhile, so what is held here is never more
than one batch.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from kbridge.link.interfaces import nobody

__all__ = ["StreamClient"]


class StreamClient:
    """A websocket that Tornado has accepted.

    Parameters
    ----------
    stream : IOStream
        The connection's stream. What is written here are whole frames, so that Tornado's own
        (pongs, close) may come between them.
    on_close : callable
        How to close the websocket: takes code and reason.
    closing : callable
        Whether the close frame was sent: no data may follow it (RFC 6455, section 5.5.1), and
        Chrome fails the connection over data that does.
    on_progress : callable
        Told each time that a write which had to wait has gone out: the peer reads, however slowly,
        and its pongs may be as far behind.
    """

    __slots__ = ("_close", "_closing", "_on_progress", "_socket", "_stream", "on_writable")

    def __init__(
        self,
        stream: IOStream,
        on_close: Callable[[int, str], None],
        closing: Callable[[], bool] = lambda: False,
        on_progress: Callable[[], None] = nobody,
    ) -> None:
        self._stream = stream
        # What TLS sends is not what it is given.
        self._socket = None if isinstance(stream, SSLIOStream) else stream.socket
        self._close = on_close
        self._closing = closing
        self._on_progress = on_progress
        self.on_writable: Callable[[], None] = nobody
        # Nagle's algorithm and delayed acknowledgements together cost 40 ms on every cell.
        stream.set_nodelay(True)

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._stream.closed() or self._closing()

    def write(self, data: bytes | memoryview) -> bool:
        """Write whole frames; False if they did not all go at once, or not at all."""
        stream = self._stream
        if self._closing():
            return False
        if self._socket is not None and not stream.writing():
            # Nothing is on its way, so this may go past the stream's own buffer.
            try:
                sent = self._socket.send(data)
            except OSError:
                sent = 0  # full, or broken: the stream finds out which
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
