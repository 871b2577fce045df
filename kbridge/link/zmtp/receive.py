"""Receive from sockets into one buffer.

`socket.recv(n)` allocates `n` bytes and gives most of them back. For a small message and a large
`n`, that takes several times as long as to receive into memory that is there, and to copy.
"""

from __future__ import annotations

import mmap
import socket
import sys
import threading
from typing import Final

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["CHUNK", "LONG_CHUNK", "ReceiveBuffer", "waiting"]

CHUNK: Final = 128 << 10
"""Bytes of one read, unless the place of a long part is known."""

LONG_CHUNK: Final = 2 << 20
"""Bytes of one read into the place of a long part: about a millisecond."""

# One buffer for all connections of a thread: each read is copied out at once. Memory of mmap is not
# touched before it is used, and its slices are `bytes`.
_thread = threading.local()


def waiting(sock: socket.socket) -> int:
    """Return the number of bytes that wait in a socket; 0 where the system does not tell it.

    Raises
    ------
    OSError
        If the socket is closed.
    """
    if sys.platform == "win32":
        return 0
    found = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


class ReceiveBuffer:
    """Receives the bytes of one connection."""

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        memory = getattr(_thread, "memory", None)
        if memory is None:
            # Private, so that a forked child does not write into it.
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            memory = _thread.memory = mmap.mmap(-1, CHUNK, flags=flags)
        self._memory: mmap.mmap = memory

    def receive(self, sock: socket.socket) -> bytes:
        """Return bytes that have arrived, at most `CHUNK`; empty at the end of the connection.

        Raises
        ------
        BlockingIOError
            If nothing has arrived.
        OSError
            If the connection failed.
        """
        memory = self._memory
        return memory[: sock.recv_into(memory)]

    def receive_long(self, sock: socket.socket, place: memoryview) -> int:
        """Receive into the place of a long part, and return the number of bytes; as `receive`."""
        with place[:LONG_CHUNK] as part:
            return sock.recv_into(part)

    def collect(self, sock: socket.socket, size: int) -> bytes:
        """Receive `size` bytes that wait, or fewer; as `receive`, but in any thread."""
        return sock.recv(size)

    def note_sending(self, under_way: bool) -> None:
        """Do nothing: the connection ends with this process."""
