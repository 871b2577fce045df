"""A connected socket on the event loop: TCP, unix or TLS, without a Future for each read.

Tornado's `IOStream` hands what it has read to a Future, which wakes a Task in the loop's next
turn. That took 70 of the 85 us that a lone websocket frame cost. Here the owner reads the bytes in
the turn in which they arrive: the event loop calls the owner, and the owner calls the transport.

Properties:

- one read takes at most `CHUNK` bytes; the rest of the input waits for the loop's next turn;
- nothing is read while the transport is paused;
- data that the operating system does not accept at once is queued, until the owner flushes it;
- a connection that ends or fails closes the transport within `read`, `write` or `flush`;
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
# Seconds, seconds and a number of probes; milliseconds for data that is not acknowledged.
_KEEPALIVE: Final = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 25_000,
}
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
    sock : socket.socket, optional
        A connected, non-blocking socket; with TLS, after the handshake. It is closed with the
        transport. Without a socket, the transport is closed.
    early : bytes
        Bytes that were read from the socket before.

    Attributes
    ----------
    closed : bool
        True if the transport is closed for reading and writing.
    writing : bool
        True if data waits for the peer to read.
    """

    # `closed` and `writing` are read for each batch of frames, so they are not properties.
    __slots__ = (
        "__weakref__",
        "_early",
        "_events",
        "_out",
        "_reading",
        "_socket",
        "_tls",
        "closed",
        "writing",
    )

    def __init__(self, sock: socket.socket | None = None, early: bytes = b"") -> None:
        self._socket = sock
        self._early = early
        self._events: TransportEvents | None = None
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._reading = False
        self._out: deque[memoryview] = deque()
        self.closed = sock is None
        self.writing = False

    @classmethod
    def take_over(cls, stream: IOStream) -> SocketTransport:
        """Continue a connection that Tornado has accepted; the stream is closed, the socket is not.

        Parameters
        ----------
        stream : IOStream
            A stream with nothing left to write.

        Returns
        -------
        SocketTransport
            Closed if the connection has ended.
        """
        sock = stream.socket
        if stream.closed() or sock is None:
            return cls()
        assert not stream.writing(), "unwritten data of the stream would be lost"
        try:
            # Done at once if bytes were read behind the handshake; then these are all of them.
            reading = asyncio.ensure_future(stream.read_bytes(_ALL, partial=True))
            early = reading.result() if reading.done() else b""
        except StreamClosedError:
            return cls()
        stream.set_close_callback(None)
        stream.close_fd = lambda: None  # type: ignore[method-assign]  # the socket lives on
        stream.close()
        return cls(sock, early)

    def attach(self, events: TransportEvents) -> None:
        """Make the event loop call an owner, in place of the last one; before reads and writes."""
        self._events = events
        loop = asyncio.get_running_loop()
        if self._socket is None:
            loop.call_soon(events.on_closed)
            return
        if self._reading:
            loop.add_reader(self._socket, events.on_input)
        if self.writing:
            loop.add_writer(self._socket, events.on_room)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the peer to read."""
        return sum(map(len, self._out))

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off or on; a unix socket has none."""
        sock = self._socket
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(value))

    def set_keepalive(self) -> None:
        """Let the operating system find out within half a minute that the peer's machine has gone.

        Without it, a connection on which nothing is sent never ends then.
        """
        sock = self._socket
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # not on every platform
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def pause(self) -> None:
        """Stop reading for now. A disconnect by the peer is not noticed until reading continues."""
        if self._reading:
            self._reading = False
            if self._socket is not None:
                asyncio.get_running_loop().remove_reader(self._socket)

    def resume(self) -> None:
        """Start reading, or continue."""
        if self._socket is None or self._reading:
            return
        assert self._events is not None
        self._reading = True
        loop = asyncio.get_running_loop()
        # For a socket that is new to it, the event loop formats an error that names the socket's
        # addresses, four system calls; not for a number.
        loop.add_reader(self._socket.fileno(), self._events.on_input)
        if self._early:  # the descriptor does not announce it
            loop.call_soon(self._events.on_input)

    def read(self) -> bytes:
        """Return the bytes that have arrived, at most `CHUNK`; empty if there are none.

        The end of the connection closes the transport.
        """
        if self._socket is None or not self._reading:
            return b""
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            data = self._socket.recv(CHUNK)
        except _WOULD_BLOCK:
            return b""
        except OSError:
            data = b""
        if not data:
            self.close()
        return data

    def write(self, data: bytes | memoryview) -> bool:
        """Write data, in order.

        Returns
        -------
        bool
            True if the operating system has accepted all of it. If False, the data is queued and
            `on_room` follows; or the transport is closed.
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
            assert self._events is not None
            self._out.append(memoryview(data).cast("B")[sent:])
            self.writing = True
            asyncio.get_running_loop().add_writer(self._socket, self._events.on_room)
        return False

    def flush(self) -> bool:
        """Write what the operating system accepts of the queue; return True if it is empty now."""
        out = self._out
        while out:
            data = out[0]
            sent = self._send(data)
            if self._socket is None:
                return False
            if sent < len(data):
                out[0] = data[sent:]
                return False
            out.popleft()
        if self._socket is None:
            return False
        self.writing = False
        asyncio.get_running_loop().remove_writer(self._socket)
        return True

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
        loop = asyncio.get_running_loop()
        if self._out:
            loop.remove_writer(sock)
            self._out.clear()
        self._socket = None
        self.closed, self.writing = True, False
        sock.close()
        events, self._events = self._events, None  # no reference cycle remains
        if events is not None:
            # Not at once: the caller may be in the middle of a delivery.
            loop.call_soon(events.on_closed)

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
