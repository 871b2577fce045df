"""Send messages over the connection to one port of a kernel, or queue them until it is there.

An error of sending does not end a connection, because bytes of the peer may wait to be read:
reading finds the end behind them. Queued messages stay in the queue while the connection is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from kbridge.link.holder.buffer import SharedBuffer
from kbridge.link.zmtp.receive import ReceiveBuffer
from kbridge.link.zmtp.send_queue import SendQueue
from kbridge.wire.message import Buffer
from kbridge.wire.offsets import nbytes
from kbridge.wire.speedups import encode
from kbridge.wire.zmtp.encoder import LARGE, encode_large

__all__ = ["Writer", "WriterEvents"]

_QUEUE_BYTES: Final = 1 << 20  # of messages that wait; an empty queue takes any message
_NO_MEMORY: Final = (errno.ENOBUFS, errno.ENOMEM)
_DELAY: Final = 0.03  # seconds until the system may have memory again
_WOULD_BLOCK: Final = (BlockingIOError, InterruptedError)


class WriterEvents(Protocol):
    """The callback to the owner of a `Writer`."""

    def on_room(self) -> None:
        """Note that a writer that refused a message accepts messages again."""


class Writer:
    """Writes to one connection after another.

    Parameters
    ----------
    events : WriterEvents
        The owner.

    Attributes
    ----------
    buffer : ReceiveBuffer or SharedBuffer
        Notes whether a message is being sent.
    """

    __slots__ = ("_events", "_fd", "_loop", "_queue", "_refused", "_sock", "_writing", "buffer")

    def __init__(self, events: WriterEvents) -> None:
        self.buffer: ReceiveBuffer | SharedBuffer = ReceiveBuffer()
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._queue = SendQueue()
        self._refused = False  # True if a message was refused since `on_room`
        self._sock: socket.socket | None = None  # None while no messages can be sent
        self._fd = -1
        self._writing = False  # True if the event loop announces room

    def open(self, sock: socket.socket, buffer: ReceiveBuffer | SharedBuffer) -> None:
        """Send over this socket from now on; call `flush` next."""
        self._sock, self._fd, self.buffer = sock, sock.fileno(), buffer

    def close(self) -> None:
        """Note that the connection is gone: send incomplete messages again over the next one."""
        self._stop()
        self._sock = None
        self._queue.rewind()

    def clear(self) -> None:
        """Drop the queue."""
        self._queue.clear()

    def send(self, parts: Sequence[Buffer]) -> bool:
        """Send a message, or queue it; return False if the queue is full. `on_room` follows."""
        queue = self._queue
        pieces: Sequence[Buffer]
        if sum(map(len, parts)) < LARGE:
            data = encode(parts)
            size = len(data)
            if not queue.size and self._sock is not None:
                self.buffer.note_sending(True)
                try:
                    sent = self._sock.send(data)
                except OSError:  # the flush that follows, or the next read, finds out which
                    sent = 0
                if sent == size:
                    self.buffer.note_sending(False)
                else:
                    queue.append((data,), size, sent)
                    self._announce_room()
                return True
            pieces = (data,)
        else:
            pieces = encode_large(parts)
            size = sum(map(nbytes, pieces))
        if queue.size and queue.size + size > _QUEUE_BYTES:
            self._refused = True
            return False
        idle = not queue.size
        queue.append(pieces, size)
        if idle:
            self.flush()
        return True

    def insert(self, command: bytes) -> None:
        """Send a command before queued messages; `flush` sends it."""
        self._queue.insert(command)

    @property
    def answering(self) -> bool:
        """True if a command waits."""
        return self._queue.has_command

    def answer(self, command: bytes) -> None:
        """Send a command soon, as the answer to one of the peer."""
        self._queue.insert(command)
        self._announce_room()

    def flush(self) -> None:
        """Send queued messages, and let the event loop announce room if there is not enough."""
        sock = self._sock
        if sock is None:
            return
        self.buffer.note_sending(True)
        try:
            done = self._queue.send(sock)
        except _WOULD_BLOCK:
            done = False
        except OSError as error:
            self._stop()
            if error.errno in _NO_MEMORY:
                self._loop.call_later(_DELAY, self.flush)
            else:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # reading finds the end
            return
        if not done:
            self._announce_room()
            return
        self.buffer.note_sending(False)
        self._stop()
        if self._refused:
            self._refused = False
            self._events.on_room()

    def _announce_room(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self.flush)

    def _stop(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
