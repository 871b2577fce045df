"""Holds new connections, outside of Tornado, until the head of their request is complete.

Each piece of a head wakes Tornado's reader, which takes 30 to 40 us, and asyncio serves all
connections with input in the same turn: five hundred clients that send their heads a byte at a time
would delay all others by 15 ms per turn. Here

- all pending connections are one file descriptor for the loop, an epoll instance, and a turn reads
  from a few of those that have sent something. The kernel keeps the others in order of arrival;
- received bytes are read once and handed to Tornado later, so that reading costs in proportion to
  the new bytes, in however many pieces a head arrives. (Bytes that are only peeked at are copied
  again each time, and fill the kernel's buffer, so that the end of a long head would never arrive.)
- complete requests enter one by one, far enough apart that refusing them leaves the loop to other
  clients. A request that turns out to carry the token does not delay the next one.
"""

from __future__ import annotations

import asyncio
import enum
import select
import socket
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from kbridge.flow.token_bucket import TokenBucket
from kbridge.server.http.connection_limiter import ConnectionLimiter

__all__ = ["READS_PER_TURN", "HeaderGate", "ReadAhead"]

READS_PER_TURN: Final = 32
"""The number of connections that are read from in one turn of the loop."""

# Seconds. A read takes 5 us, and the turn of the loop around it as long as several reads: reading
# takes a sixth of the loop at the most.
_READ: Final = 0.001 / READS_PER_TURN
_TURN: Final = 8
# Refusing a request takes a millisecond; the bucket is charged more for expensive requests.
_REQUEST: Final = 0.003
# The ends of a head that Tornado accepts, without the carriage return that may precede them.
_ENDS: Final = (b"\n\r\n", b"\n\n")
_OVERLAP: Final = 2
# Bytes per read: few heads are longer, and all reads of a turn together stay short.
_PIECE: Final = 4 << 10
# The size of IOStream's reads: its first one must return all bytes that were read ahead.
_CHUNK: Final = 64 << 10


class ReadAhead(socket.socket):
    """A socket with bytes that were read before its owner asked for them.

    Attributes
    ----------
    ahead : bytearray
        The bytes that `recv_into` returns first.
    """

    __slots__ = ("ahead",)

    def __init__(
        self, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        super().__init__(family, kind, proto, fileno)
        self.ahead = bytearray()

    @classmethod
    def take_over(cls, sock: socket.socket) -> ReadAhead:
        """Take over the connection of `sock`, which is detached."""
        return cls(sock.family, sock.type, sock.proto, sock.detach())

    def read_ahead(self, buffer: memoryview) -> int:
        """Read into `buffer` and keep the bytes; return their number, 0 at the end of input."""
        count = super().recv_into(buffer)
        self.ahead += buffer[:count]
        return count

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Read like any socket, the bytes read ahead first."""
        if not self.ahead:
            return super().recv_into(buffer, nbytes, flags)
        with memoryview(buffer) as view:
            count = min(nbytes or len(view), len(view), len(self.ahead))
            view[:count] = self.ahead[:count]
        del self.ahead[:count]
        return count


class _Head(enum.Enum):
    INCOMPLETE = enum.auto()
    COMPLETE = enum.auto()  # or too long, which Tornado refuses
    CLOSED = enum.auto()


@dataclass(slots=True, eq=False)
class _Connection:
    stream: IOStream
    sock: ReadAhead
    address: Any


class HeaderGate:
    """The pending connections of one server.

    Parameters
    ----------
    max_header_size : int
        The number of bytes after which a head is passed on although its end has not arrived.
    server : TCPServer
        Tornado's server, which serves a connection when its head is complete, or too long.
    limiter : ConnectionLimiter
        Forgets a connection that the client closes before.

    Attributes
    ----------
    entries : TokenBucket
        The rate at which requests enter; charging it delays the next one.
    """

    def __init__(
        self, max_header_size: int, server: TCPServer, limiter: ConnectionLimiter[Any]
    ) -> None:
        self._max_bytes = min(max_header_size + 1, _CHUNK)
        self._server = server
        self._limiter = limiter
        self._loop = asyncio.get_running_loop()  # its clock is monotonic, Tornado's is not
        self._handlers = IOLoop.current()
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._buffer = memoryview(bytearray(_PIECE))
        self._incomplete: dict[int, _Connection] = {}
        self._ready: deque[_Connection] = deque()
        # The connection that entered last, until it is authenticated.
        self._last: IOStream | None = None
        self._reads = TokenBucket(_READ, READS_PER_TURN)
        self.entries = TokenBucket(_REQUEST, 1)
        self._next_read: asyncio.TimerHandle | None = None
        self._next_entry: asyncio.TimerHandle | None = None
        self._handlers.add_handler(self._fd, self._read_some, IOLoop.READ)

    @staticmethod
    def available() -> bool:
        """True if the operating system has epoll (Linux)."""
        return hasattr(select, "epoll")

    @property
    def busy(self) -> bool:
        """True if complete requests wait to enter."""
        return bool(self._ready)

    @property
    def pending_connections(self) -> int:
        """The number of connections held here."""
        return len(self._incomplete) + len(self._ready)

    def add(self, stream: IOStream, sock: ReadAhead, address: Any) -> None:
        """Hold a new connection; in most cases its request has arrived already."""
        connection = _Connection(stream, sock, address)
        head = self._read(sock)
        if head is _Head.INCOMPLETE:
            self._incomplete[sock.fileno()] = connection
            self._epoll.register(sock, select.EPOLLIN)
        else:
            self._release(connection, head)

    def discard(self, stream: IOStream) -> None:
        """Forget a connection that is about to be closed; it may have entered long ago."""
        if stream.closed():
            return
        fd = stream.socket.fileno()
        connection = self._incomplete.get(fd)
        if connection is not None and connection.stream is stream:
            self._forget(fd)
        # Closed streams in `_ready` are skipped when their turn comes.

    def mark_authenticated(self, stream: IOStream) -> None:
        """Record that a client has shown the token, so that the next request need not wait."""
        if stream is self._last:
            self._last = None
            self.entries.undo()
            self._enter()

    def close(self) -> None:
        """Close all pending connections; a second call has no effect."""
        if self._epoll.closed:
            return
        if self._next_read is None:
            self._handlers.remove_handler(self._fd)
        else:
            self._next_read.cancel()
        connections = [*self._incomplete.values(), *self._ready]
        self._incomplete.clear()
        self._ready.clear()
        self._enter()  # stops the timer; no connection enters
        self._epoll.close()
        for connection in connections:
            self._end(connection)

    def _read_some(self, _fd: int, _events: int) -> None:
        """Read from some connections with input; for the others the loop calls again."""
        readable = self._epoll.poll(0, READS_PER_TURN)
        for fd, _ in readable:
            connection = self._incomplete[fd]
            head = self._read(connection.sock)
            if head is not _Head.INCOMPLETE:
                self._forget(fd)
                self._release(connection, head)
        now = self._loop.time()
        self._reads.spend(len(readable) + _TURN)
        if not self._reads.ready(now):
            self._handlers.remove_handler(self._fd)
            self._next_read = self._loop.call_later(self._reads.delay(now), self._resume_reading)

    def _resume_reading(self) -> None:
        self._next_read = None
        self._handlers.add_handler(self._fd, self._read_some, IOLoop.READ)

    def _read(self, sock: ReadAhead) -> _Head:
        try:
            count = sock.read_ahead(self._buffer[: self._max_bytes - len(sock.ahead)])
        except BlockingIOError:
            return _Head.INCOMPLETE
        except OSError:
            count = 0
        if not count:
            return _Head.CLOSED
        begin = max(0, len(sock.ahead) - count - _OVERLAP)
        ended = any(sock.ahead.find(end, begin) >= 0 for end in _ENDS)
        complete = ended or len(sock.ahead) >= self._max_bytes
        return _Head.COMPLETE if complete else _Head.INCOMPLETE

    def _forget(self, fd: int) -> None:
        # Closing the socket would not be enough: a child process that is being started may hold a
        # copy of it.
        self._epoll.unregister(fd)
        del self._incomplete[fd]

    def _release(self, connection: _Connection, head: _Head) -> None:
        if head is _Head.CLOSED:
            self._end(connection)
        else:
            self._ready.append(connection)
            self._enter()

    def _end(self, connection: _Connection) -> None:
        connection.stream.close()
        self._limiter.closed(connection.stream)

    def _enter(self) -> None:
        """Pass on the connections that may enter now, and set a timer for the others."""
        if self._next_entry is not None:
            self._next_entry.cancel()
            self._next_entry = None
        now = self._loop.time()
        while self._ready and self.entries.ready(now):
            connection = self._ready.popleft()
            if not connection.stream.closed():
                self.entries.spend()
                self._last = connection.stream
                self._server.handle_stream(connection.stream, connection.address)
        if self._ready:
            self._next_entry = self._loop.call_later(self.entries.delay(now), self._enter)
