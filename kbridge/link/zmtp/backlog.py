"""The bytes of one connection that were received and are not parsed yet.

A kernel's PUB drops output when the buffers of the sockets are full and 1,000 more messages wait.
So bytes are received as soon as they arrive, although the messages before them are still being
handled: by the event loop, if a read did not get everything, and by a thread, if the event loop
does not read (`LateReader`).

Invariants:

- bytes are received in order, by one thread at a time: the one that has `lock`. It asks once how
  many bytes wait, and receives once: each of these calls gives up the interpreter's lock, so that
  other threads may run for some milliseconds, while the event loop may wait for `lock`;
- while bytes are here, a call of `on_backlog` is coming, unless it is silent: the event loop does
  not announce a socket that was emptied;
- the end of a connection, and its errors, are left to the event loop, which finds them last;
- the socket is not closed, and its descriptor not used for another file, during a call that uses
  it: `close` waits for `lock`.

No byte may be left in the socket in order to be announced: with one byte of it, a segment of 64 KiB
stays in the buffer of the system, and TCP then lets the kernel wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from typing import Final, Protocol

from kbridge.link.holder.buffer import SharedBuffer
from kbridge.link.holder.header import PIECE
from kbridge.link.zmtp.receive import CHUNK, ReceiveBuffer, waiting

__all__ = ["Backlog", "BacklogEvents"]

_LIMIT: Final = 1 << 30
"""Bytes of one connection; then TCP lets the kernel wait. Output of a minute at 17 MB/s, and more
than journals keep in memory, but less than a machine with kernels has."""


class BacklogEvents(Protocol):
    """The callback to the owner of a `Backlog`."""

    def on_backlog(self) -> None:
        """Take bytes; called by the event loop."""


class Backlog:
    """Receives in advance from one socket.

    Parameters
    ----------
    sock : socket
        The connection; closed by `close`.
    buffer : ReceiveBuffer or SharedBuffer
        The memory to receive into.
    events : BacklogEvents
        The owner.
    silent : bool
        True to announce nothing until `start`, because the owner takes no bytes yet.

    Attributes
    ----------
    buffer : ReceiveBuffer or SharedBuffer
        As above.
    lock : Lock
        Held by the thread that receives from the socket.
    size : int
        The number of bytes here.
    reads : int
        Raised by each read of the event loop; the thread sees from it whether the loop is late.
    """

    __slots__ = (
        *("_announced", "_at", "_chunks", "_events", "_loop", "_silent", "_sock"),
        *("buffer", "lock", "reads", "size"),
    )

    def __init__(
        self,
        sock: socket.socket,
        buffer: ReceiveBuffer | SharedBuffer,
        events: BacklogEvents,
        *,
        silent: bool = False,
    ) -> None:
        self._sock: socket.socket | None = sock
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._at = 0  # the bytes of the first chunk that were taken
        self._announced = False  # True if a call of `on_backlog` is coming
        self._silent = silent
        self.buffer = buffer
        self.lock = threading.Lock()
        self.size = 0
        self.reads = 0

    def start(self) -> None:
        """Announce bytes from now on, also those that are here; called by the event loop."""
        with self.lock:
            self._silent = False
            here = self.size > 0
        if here:
            self.announce()

    def collect(self) -> None:
        """Receive waiting bytes, at most `PIECE`; called by the event loop."""
        with self.lock:
            self._collect()

    def collect_late(self) -> bool:
        """Receive and announce waiting bytes, at most `PIECE`; called by another thread.

        Returns
        -------
        bool
            False if nobody will take bytes any longer, because the event loop is closed.
        """
        if self._loop.is_closed():
            return False
        with self.lock:
            self._collect()
            if not self.size or self._announced or self._silent:
                return True
            self._announced = True
            try:
                self._loop.call_soon_threadsafe(self._announce)
            except RuntimeError:  # it was closed in the meantime
                return False
            return True

    def announce(self) -> None:
        """Let the event loop call `on_backlog` soon; called by the event loop."""
        with self.lock:
            if not self._announced:
                self._announced = True
                self._loop.call_soon(self._announce)

    def take(self) -> bytes:
        """Return the next bytes, at most `CHUNK`; empty if there are none."""
        parts: list[bytes] = []
        room = CHUNK
        with self.lock:
            while room and self._chunks:
                part = self._chunks[0][self._at : self._at + room]
                parts.append(part)
                room -= len(part)
                self._advance(len(part))
        return b"".join(parts)

    def take_into(self, place: memoryview) -> int:
        """Copy some of the next bytes to the place of a long part; return their number."""
        with self.lock, memoryview(self._chunks[0]) as first, first[self._at :] as rest:
            count = min(len(place), len(rest))
            place[:count] = rest[:count]
        with self.lock:
            self._advance(count)
        return count

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 if it is closed."""
        sock = self._sock
        return -1 if sock is None else sock.fileno()

    @property
    def waiting(self) -> int:
        """The number of bytes here and in the socket."""
        with self.lock:
            try:
                return self.size + (0 if self._sock is None else waiting(self._sock))
            except OSError:
                return self.size

    def close(self) -> None:
        """Close the socket, and forget the bytes."""
        with self.lock:
            sock, self._sock = self._sock, None
            self._chunks.clear()
            self._at = self.size = 0
            if sock is not None:
                sock.close()

    def _collect(self) -> None:
        sock = self._sock
        if sock is None:
            return
        with contextlib.suppress(OSError):  # the event loop finds it as well
            size = min(waiting(sock), PIECE, _LIMIT - self.size)
            data = self.buffer.collect(sock, size) if size > 0 else b""
            if data:
                self._chunks.append(data)
                self.size += len(data)

    def _advance(self, count: int) -> None:
        self.size -= count
        self._at += count
        if self._at == len(self._chunks[0]):
            self._chunks.popleft()
            self._at = 0

    def _announce(self) -> None:
        with self.lock:
            self._announced = False
        if self._sock is not None:
            self._events.on_backlog()
