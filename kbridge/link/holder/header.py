"""The header of a shared buffer, and how much of a connection was read into the buffer.

The header is in front of the bytes, in the memory file. It consists of unsigned numbers of 64 bits;
`kbridge.link.holder.buffer` says what they mean.
"""

from __future__ import annotations

import _socket as socket  # `socket` itself takes another megabyte
import os
import sys

if sys.platform != "win32":
    import fcntl

__all__ = ["CHUNK", "PIECE", "consumed", "read_header", "unread"]

HEADER_SIZE = 4096
WORDS = 16
SIZE, START, FIRST, RECEIVED, INTENDED, TAKEN, SEQ, SENDING = range(8)
CANARY = 8  # two words
CANARY_SIZE = 16
NOTES, NOTES_SIZE, NOTES_FIRST, NOTES_SECOND = range(10, 14)  # see `kbridge.link.holder.notes`

CHUNK = 128 * 1024
"""The most bytes of one call, unless a bridge receives in advance, or a long frame."""

PIECE = 1024 * 1024
"""The most bytes that a bridge receives by one call."""

_FIONREAD = 0x541B
_TCP_INFO_SIZE = 192
_BYTES_RECEIVED = 128  # offset of `tcpi_bytes_received`
_ESTABLISHED, _CLOSE_WAIT = 1, 8


def unread(sock: socket.socket) -> int:
    """Return the number of bytes that wait in a socket."""
    found = fcntl.ioctl(sock.fileno(), _FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


def consumed(sock: socket.socket, memory: int, offset: int) -> int | None:
    """Return how many bytes of a connection its reader has received, after the reader has ended.

    The header of the buffer has the last noted number, but the reader may have been killed between
    a `recv` and its note. TCP counts the bytes itself. For a unix socket, the reader notes before
    each `recv` how many bytes it will read, and writes a random pattern where they will be.

    Parameters
    ----------
    sock : socket
    memory, offset : int
        The descriptor of the memory file, and the place of the shared buffer in it.

    Returns
    -------
    int or None
        None if the numbers contradict each other.
    """
    header = read_header(memory, offset)
    received = header[RECEIVED]
    if sock.family == socket.AF_UNIX:
        intended = header[INTENDED] - received
        if intended <= 0:
            return received
        size = min(CANARY_SIZE, intended)
        at = offset + HEADER_SIZE + (received - header[FIRST]) % header[SIZE]
        untouched = os.pread(memory, size, at) == _canary(header)[:size]
        return received if untouched else received + intended
    while True:
        state, counted = _tcp_counts(sock)
        waiting = unread(sock)
        if _tcp_counts(sock) == (state, counted):
            break
    if state == _CLOSE_WAIT:
        counted -= 1  # the kernel counts the FIN
    elif state != _ESTABLISHED:
        return received  # it was reset: nothing can be read any longer
    found = counted - waiting
    return found if received <= found <= received + PIECE else None


def read_header(memory: int, offset: int) -> list[int]:
    """Return the numbers in the header of a shared buffer."""
    return memoryview(os.pread(memory, 8 * WORDS, offset)).cast("Q").tolist()


def _canary(header: list[int]) -> bytes:
    return b"".join(word.to_bytes(8, sys.byteorder) for word in header[CANARY : CANARY + 2])


def _tcp_counts(sock: socket.socket) -> tuple[int, int]:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    counted = info[_BYTES_RECEIVED : _BYTES_RECEIVED + 8]
    return info[0], int.from_bytes(counted, sys.byteorder)
