"""Receives the bytes of a connection into memory that outlives the process.

A position is a number of bytes since the start of the connection. The buffer is a ring in a memory
file, of which the holder has a duplicate. Its header (`kbridge.link.holder.header`) says which
positions are where:

- the byte at a position `p` is at `(p - FIRST) % SIZE`;
- `RECEIVED` is the position after the last noted read. A read that was not noted, because the
  process was killed, is found by `header.consumed`;
- the bytes before `TAKEN` are not needed: all their messages are in the file of the journal.

When all bytes are taken, the next read begins at the start of the buffer again, so that an ordinary
kernel uses the same few pages all the time. When more bytes are waiting for the journal than the
buffer holds, the oldest are overwritten; the next bridge then finds `TAKEN` too far behind, and
says in its notice that output may be missing.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from typing import Final

from kbridge.link.holder.header import (
    CANARY,
    CANARY_SIZE,
    CHUNK,
    FIRST,
    HEADER_SIZE,
    INTENDED,
    PIECE,
    RECEIVED,
    SENDING,
    SEQ,
    SIZE,
    START,
    TAKEN,
    WORDS,
    unread,
)
from kbridge.link.holder.memory import MemoryFile, MemoryPart
from kbridge.link.holder.notes import NOTES_MEMORY, Notes

__all__ = ["SharedBuffer", "SharedMemory", "memory_size"]

_KEPT: Final = 1024 * 1024  # memory that an empty buffer keeps
_CALM: Final = 32  # reads into an empty buffer that used no more, after which a burst is over


def memory_size(sizes: Sequence[int]) -> int:
    """Return the memory that some buffers take with their headers and the notes, in bytes."""
    return _offset(sizes) + NOTES_MEMORY


def _offset(sizes: Sequence[int]) -> int:
    """Return where the memory after some buffers begins."""
    return sum(sizes) + len(sizes) * HEADER_SIZE


class SharedMemory:
    """The memory of some buffers, and of notes. Pages that were never used take no memory.

    Parameters
    ----------
    sizes : sequence of int
        The size of each buffer in bytes: a multiple of the page size, at least `CHUNK`.
    part : MemoryPart, optional
        A part of a file, of `memory_size` bytes; by default a new file.

    Attributes
    ----------
    offsets : list of int
        The place of each buffer in the file.
    """

    def __init__(self, sizes: Sequence[int], part: MemoryPart | None = None) -> None:
        self._sizes = sizes
        self._part = part = part or MemoryPart(MemoryFile(memory_size(sizes)), 0)
        self._file = part.file
        self.offsets = [part.start + _offset(sizes[:i]) for i in range(len(sizes))]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self._file.name

    @property
    def fd(self) -> int:
        """The descriptor of the file."""
        return self._file.fd

    def buffer(self, index: int, position: int = 0, *, announce: bool) -> SharedBuffer:
        """Return one of the buffers, for a connection; see `SharedBuffer`."""
        return SharedBuffer(self, index, position, announce=announce)

    def view(self, index: int) -> memoryview:
        """Return the header and the bytes of a buffer."""
        start = self.offsets[index]
        return memoryview(self._file.map)[start : start + HEADER_SIZE + self._sizes[index]]

    def notes(self, index: int) -> Notes:
        """Return the notes, which the header of one of the buffers leads to."""
        start = self._part.start + _offset(self._sizes)
        memory = memoryview(self._file.map)[start : start + NOTES_MEMORY]
        words = self.view(index)[: 8 * WORDS].cast("Q")
        return Notes(memory, words, start - self.offsets[index])

    def discard(self, index: int, start: int, end: int) -> None:
        """Return the memory of some bytes of a buffer to the system."""
        first = self.offsets[index] + HEADER_SIZE
        self._file.discard(first + start, first + end)

    def close_descriptor(self) -> None:
        """Close the descriptor of a file that no other buffers use; may be called twice."""
        self._file.close()


class SharedBuffer:
    """The bytes of one connection that may not be in the file of the journal yet.

    Parameters
    ----------
    memory : SharedMemory
    index : int
        The number of the buffer there.
    position : int
        The position of the next byte.
    announce : bool
        True for a unix socket: each read is announced in the header before it is done. TCP counts
        the bytes that were read itself.

    Attributes
    ----------
    position : int
        The position after the last read.
    """

    __slots__ = (
        *("_announce", "_calm", "_canary", "_first", "_grown", "_index", "_memory", "_ring"),
        *("_size", "_start", "_taken", "_words", "position"),
    )

    def __init__(
        self, memory: SharedMemory, index: int, position: int = 0, *, announce: bool
    ) -> None:
        self.position = position
        self._memory = memory
        self._index = index
        self._announce = announce
        self._first = self._taken = position
        self._grown = 0  # the memory that a burst has used, if that is more than `_KEPT`
        self._calm = 0  # reads into an empty buffer since then
        self._canary = secrets.token_bytes(CANARY_SIZE)
        whole = memory.view(index)
        self._ring = whole[HEADER_SIZE:]
        self._size = len(self._ring)
        self._start = self._ring[:CHUNK]
        self._words = words = whole[: 8 * WORDS].cast("Q")
        words[SIZE] = self._size
        for place in (START, FIRST, RECEIVED, INTENDED, TAKEN):
            words[place] = position
        words[SEQ] = words[SENDING] = 0
        whole[8 * CANARY : 8 * CANARY + CANARY_SIZE] = self._canary

    def receive(self, sock: socket.socket) -> bytes:
        """Receive up to `CHUNK` bytes; the result is empty at the end of the connection.

        Raises
        ------
        BlockingIOError
            If no bytes wait.
        OSError
            If the connection is broken.
        """
        view = self._room()
        count = self._announced(sock, view) if self._announce else sock.recv_into(view)
        data = bytes(view[:count])
        self.position += count
        self._words[RECEIVED] = self.position
        return data

    def collect(self, sock: socket.socket, size: int) -> bytes:
        """Receive `size` bytes that wait, or fewer, at most `PIECE`; as `receive`."""
        view = self._room(size)
        count = self._announced(sock, view) if self._announce else sock.recv_into(view)
        data = bytes(view[:count])
        self.position += count
        self._words[RECEIVED] = self.position
        return data

    def receive_long(self, sock: socket.socket, pending: memoryview) -> int:
        """Receive a part of a long frame, and copy it to `pending`; return its size."""
        view = self._room(min(len(pending), PIECE))
        count = self._announced(sock, view) if self._announce else sock.recv_into(view)
        pending[:count] = view[:count]
        self.position += count
        self._words[RECEIVED] = self.position
        return count

    def mark_taken(self, position: int, seq: int) -> None:
        """Note that the messages before a position are in the file of the journal.

        Parameters
        ----------
        position : int
            The end of a message.
        seq : int
            No frame of a later message has a lower number in the journal.
        """
        self._taken = position
        self._words[TAKEN] = position
        self._words[SEQ] = seq

    def note_sending(self, under_way: bool) -> None:
        """Note that a message is being sent, or that it was sent as a whole."""
        self._words[SENDING] = under_way

    def _room(self, size: int = CHUNK) -> memoryview:
        """Return where to receive next, at most `size` bytes."""
        position = self.position
        if position == self._taken:
            used = position - self._first
            if used > _KEPT or self._grown:
                self._shrink(used)
            self._first = self._words[FIRST] = position
            return self._start if size == CHUNK else self._ring[:size]
        at = (position - self._first) % self._size
        return self._ring[at : at + size]

    def _shrink(self, used: int) -> None:
        """Return memory to the system after a burst.

        Not each time that the buffer is empty: the system would have to clear the same pages again
        for the next megabytes, which takes as long as everything else that is done with them.
        """
        if used > _KEPT:
            self._grown = max(self._grown, min(used, self._size))
            self._calm = 0
            return
        self._calm += 1
        if self._calm >= _CALM:
            self._memory.discard(self._index, _KEPT, self._grown)
            self._grown = 0

    def _announced(self, sock: socket.socket, view: memoryview) -> int:
        """Receive from a unix socket, which does not count the bytes that were read."""
        count = min(unread(sock), len(view))
        if not count:
            sock.recv(1, socket.MSG_PEEK)  # raises an error, unless the connection has ended
            count = min(unread(sock), len(view))
            if not count:
                return 0
        view[: min(count, CANARY_SIZE)] = self._canary[:count]
        self._words[INTENDED] = self.position + count
        return sock.recv_into(view, count)
