"""A connected socket on the event loop: TCP, unix or TLS, without a Future for each read.

Tornado's `IOStream` hands what it has read to a Future, which wakes a Task in the loop's next
turn. That took 70 of the 85 us that a lone websocket frame cost. Here the bytes are handed on in
the turn in which they arrive.

Properties:

- one read takes at most `CHUNK` bytes; the rest of the input waits for the loop's next turn;
- nothing is read while the transport is paused;
- data that the operating system does not accept at once is queued; the owner is told when the queue
  is empty;
- `on_closed` is called once, in a later turn, after either side closes the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from typing import Final

from tornado.iostream import IOStream, StreamClosedError

from kbridge.link.interfaces import TransportEvents

__all__ = ["CHUNK", "SocketTransport"]

CHUNK: Final = 64 << 10
"""Bytes of one read.

At least one TLS record (16 KiB), so that OpenSSL never holds back decrypted bytes that the socket's
descriptor does not announce.
"""

_ALL: Final = 1 << 30
_TURN_BYTES: Final = 1 << 20  # bytes that are encrypted in one turn
_WOULD_BLOCK: Final = (
    BlockingIOError,
    InterruptedError,
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
)


class SocketTransport:
    """One end of a connection. Nothing is read before `resume` is called.

    Parameters
    ----------
    sock : socket.socket
        A connected, non-blocking socket; with TLS, after the handshake. It is closed with the
        transport.
    events : TransportEvents
        The object to notify.
    early : bytes
        Bytes that were read from the socket before.
    """

    __slots__ = ("__weakref__", "_early", "_events", "_loop", "_out", "_reading", "_socket", "_tls")

    def __init__(self, sock: socket.socket, events: TransportEvents, early: bytes = b"") -> None:
        self._socket: socket.socket | None = sock
        self._events = events
        self._early = early
        self._loop = asyncio.get_running_loop()
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._reading = False
        self._out: deque[memoryview] = deque()

    @classmethod
    def take_over(cls, stream: IOStream, events: TransportEvents) -> SocketTransport | None:
        """Continue a connection that Tornado has accepted; the stream is closed, the socket is not.

        Parameters
        ----------
        stream : IOStream
            A stream with nothing left to write.
        events : TransportEvents
            The object to notify.

        Returns
        -------
        SocketTransport or None
            None if the connection has ended.
        """
        sock = stream.socket
        if stream.closed() or sock is None:
            return None
        assert not stream.writing(), "unwritten data of the stream would be lost"
        try:
            # Done at once if bytes were read behind the handshake; then these are all of them.
            reading = asyncio.ensure_future(stream.read_bytes(_ALL, partial=True))
            early = reading.result() if reading.done() else b""
        except StreamClosedError:
            return None
        stream.set_close_callback(None)
        stream.close_fd = lambda: None  # type: ignore[method-assign]  # the socket lives on
        stream.close()
        return cls(sock, events, early)

    @property
    def closed(self) -> bool:
        """True if the transport is closed for reading and writing."""
        return self._socket is None

    @property
    def writing(self) -> bool:
        """True if data waits for the peer to read."""
        return bool(self._out)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the peer to read."""
        return sum(map(len, self._out))

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off or on; a unix socket has none."""
        sock = self._socket
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(value))

    def pause(self) -> None:
        """Stop reading for now. The peer's end of the connection is not noticed meanwhile."""
        if self._reading:
            self._reading = False
            if self._socket is not None:
                self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Start reading, or continue."""
        if self._socket is None or self._reading:
            return
        self._reading = True
        self._loop.add_reader(self._socket, self._read)
        if self._early:
            early, self._early = self._early, b""
            self._events.on_data(early)

    def write(self, data: bytes | memoryview) -> bool:
        """Write data, in order.

        Returns
        -------
        bool
            True if the operating system has accepted all of it. If False, the data is queued and
            `on_drained` follows; or the transport is closed.
        """
        if self._socket is None:
            return False
        if self._out:
            self._out.append(memoryview(data).cast("B"))
            return False
        sent = self._send(data)
        if sent == len(data):
            return True
        if self._socket is not None:
            self._out.append(memoryview(data).cast("B")[sent:])
            self._loop.add_writer(self._socket, self._flush)
        return False

    def write_eof(self) -> None:
        """Close the writing side; the peer sees the end of the stream. Needs an empty queue."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # a reset connection: reading will find out
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection and drop the queue; may be called twice."""
        sock = self._socket
        if sock is None:
            return
        self.pause()
        if self._out:
            self._loop.remove_writer(sock)
            self._out.clear()
        self._socket = None
        sock.close()
        # Not at once: the caller may be in the middle of a delivery.
        self._loop.call_soon(self._events.on_closed)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(CHUNK)
        except _WOULD_BLOCK:
            return
        except OSError:
            data = b""
        if data:
            self._events.on_data(data)
        else:
            self.close()

    def _flush(self) -> None:
        """Write what the operating system accepts of the queue."""
        out = self._out
        while out:
            data = out[0]
            sent = self._send(data)
            if self._socket is None:
                return
            if sent < len(data):
                out[0] = data[sent:]
                return
            out.popleft()
        assert self._socket is not None
        self._loop.remove_writer(self._socket)
        self._events.on_drained()

    def _send(self, data: bytes | memoryview) -> int:
        """Write once, and return the number of bytes accepted; close on an error."""
        sock, size = self._socket, len(data)
        assert sock is not None
        if not size:
            return 0
        sent = 0
        try:
            sent = sock.send(data)
            if self._tls:  # each call takes one record
                end = min(size, _TURN_BYTES)
                while sent < end:
                    sent += sock.send(memoryview(data)[sent:])
        except _WOULD_BLOCK:
            pass
        except OSError:
            self.close()
        return sent
