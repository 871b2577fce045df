"""A socket that carries a websocket, read and written on the loop without a Future a read.

Tornado's IOStream hands what it has read to a Future, and that wakes a Task on the loop's next
turn: 70 of the 85 us that a lone frame costs. Here what is read is handed on in the same turn. It
has the methods that Tornado's websocket code and `StreamClient` call of an IOStream.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError

__all__ = ["CHUNK", "SocketStream"]

CHUNK: Final = 64 << 10
"""Bytes of one read; what a socket has beyond that waits for the loop's next turn."""

_ALL: Final = 1 << 30


class SocketStream:
    """One end of a connection, TCP or unix.

    Parameters
    ----------
    sock : socket.socket
        Connected, and does not block. Is closed with the stream.
    early : bytes
        What was read of it before.

    Attributes
    ----------
    socket : socket.socket or None
        None once it is closed.
    io_loop : IOLoop
        Where it is served.
    """

    __slots__ = ("_early", "_ended", "_events", "_on_data", "_out", "_reads", "io_loop", "socket")

    def __init__(self, sock: socket.socket, early: bytes = b"") -> None:
        self.socket: socket.socket | None = sock
        self.io_loop = IOLoop.current()
        self._early = early
        self._events = 0
        self._reads = False
        self._on_data: Callable[[bytes], None] | None = None
        self._ended: asyncio.Future[None] | None = None
        # What waits for room, and who is told when it has gone.
        self._out: deque[tuple[memoryview, asyncio.Future[None]]] = deque()

    @classmethod
    def take_over(cls, stream: IOStream) -> SocketStream | None:
        """Go on with a connection that Tornado has accepted, in its stream's place.

        Returns
        -------
        SocketStream or None
            None where that cannot be: with TLS, in mid-write, or where descriptors have run out.
        """
        if (
            not (type(stream) is IOStream or getattr(stream, "plain", False))
            or stream.writing()
            or stream.socket is None
        ):
            return None
        try:
            sock = stream.socket.dup()
        except OSError:
            return None
        try:
            # Done at once where something was read behind the handshake: then that is all of it.
            reading = asyncio.ensure_future(stream.read_bytes(_ALL, partial=True))
            early = reading.result() if reading.done() else b""
        except StreamClosedError:
            sock.close()
            return None
        stream.set_close_callback(None)
        stream.close()  # its descriptor; the connection lives on in ours
        return cls(sock, early)

    def closed(self) -> bool:
        """Whether nothing can be read or written any more."""
        return self.socket is None

    def writing(self) -> bool:
        """Whether something that was written waits for room."""
        return bool(self._out)

    @property
    def waiting(self) -> int:
        """Bytes that were written and wait for room."""
        return sum(len(data) for data, _ in self._out)

    def set_nodelay(self, value: bool) -> None:
        """Turn Nagle's algorithm off or on; a unix socket has none."""
        if self.socket is not None and self.socket.family != getattr(socket, "AF_UNIX", None):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(value))

    async def run(self, on_data: Callable[[bytes], None]) -> None:
        """Hand on what comes, until the connection or `stop` ends it.

        Raises
        ------
        Exception
            What `on_data` raises.
        """
        if self.socket is None:
            return
        self._on_data = on_data
        self._ended = asyncio.get_running_loop().create_future()
        self.resume()
        early, self._early = self._early, b""
        if early:
            self._hand_on(early)
        try:
            await self._ended
        finally:
            self.pause()
            self._on_data = None

    def stop(self) -> None:
        """Let `run` end; the connection stays, and nothing more is read."""
        self.pause()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def pause(self) -> None:
        """Read no further for now."""
        self._reads = False
        self._listen()

    def resume(self) -> None:
        """Read on."""
        self._reads = True
        self._listen()

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        """Write; done when the operating system has it all.

        Raises
        ------
        StreamClosedError
            If the connection has ended. A write that finds that out fails its Future instead.
        """
        if self.socket is None:
            raise StreamClosedError
        written = asyncio.get_running_loop().create_future()
        self._out.append((memoryview(data).cast("B"), written))
        if len(self._out) == 1:
            self._flush()
            self._listen()
        return written

    def close(self, exc_info: Any = False) -> None:  # noqa: ARG002  # as an IOStream's
        """Close; may be called twice."""
        sock, self.socket = self.socket, None
        if sock is None:
            return
        if self._events:
            self.io_loop.remove_handler(sock)
            self._events = 0
        sock.close()
        out, self._out = self._out, deque()
        for _, written in out:
            if not written.done():
                written.set_exception(StreamClosedError())
                written.exception()  # whoever does not ask for it shall not be warned of it
        self.stop()

    def _listen(self) -> None:
        """Have the loop tell of what is waited for, and of nothing else."""
        sock = self.socket
        if sock is None:
            return
        events = (IOLoop.READ if self._reads else 0) | (IOLoop.WRITE if self._out else 0)
        if events == self._events:
            return
        if not self._events:
            self.io_loop.add_handler(sock, self._on_events, events)
        elif events:
            self.io_loop.update_handler(sock, events)
        else:
            self.io_loop.remove_handler(sock)
        self._events = events

    def _on_events(self, _sock: socket.socket, events: int) -> None:
        if events & IOLoop.WRITE and self._out:
            self._flush()
            self._listen()
        if events & IOLoop.READ and self._reads:
            self._read()

    def _read(self) -> None:
        assert self.socket is not None
        try:
            data = self.socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._hand_on(data)
        else:
            self.close()

    def _hand_on(self, data: bytes) -> None:
        assert self._on_data is not None
        try:
            self._on_data(data)
        except Exception as error:
            if self._ended is None or self._ended.done():
                raise
            self._ended.set_exception(error)

    def _flush(self) -> None:
        """Write as much as there is room for."""
        while self._out and self.socket is not None:
            data, written = self._out[0]
            try:
                sent = self.socket.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            if sent < len(data):
                self._out[0] = (data[sent:], written)
                continue
            self._out.popleft()
            if not written.done():
                written.set_result(None)
