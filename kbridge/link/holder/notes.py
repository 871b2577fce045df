"""Notes in memory that outlives the process, until they are on disk.

A note is a line that is written to disk later. The memory has two halves: while the notes of one
half are being written, new ones go to the other half. The header of a shared buffer says where the
memory is (`NOTES`, in bytes from the beginning of that header), how large a half is (`NOTES_SIZE`),
and how many bytes each half has. A process that is killed leaves whole lines, except the last one,
which counts only once its end is noted.
"""

from __future__ import annotations

import os
from typing import Final

from kbridge.link.holder.header import (
    NOTES,
    NOTES_FIRST,
    NOTES_SECOND,
    NOTES_SIZE,
    read_header,
)

__all__ = ["NOTES_MEMORY", "Notes", "read_notes"]

NOTES_MEMORY: Final = 128 * 1024
"""The bytes that the notes of a kernel take: both halves."""


class Notes:
    """The notes of one kernel.

    Parameters
    ----------
    memory : memoryview
        `NOTES_MEMORY` bytes.
    words : memoryview of int
        The header of a buffer, for the next process.
    place : int
        Where the memory is, in bytes from the beginning of the header.
    """

    __slots__ = ("_ends", "_halves", "_place", "_size", "_words")

    def __init__(self, memory: memoryview, words: memoryview[int], place: int) -> None:
        self._size = size = len(memory) // 2
        self._halves = memory[:size], memory[size : 2 * size]
        self._ends = [NOTES_FIRST, NOTES_SECOND]  # the current half first
        self._words = words
        words[NOTES_FIRST] = words[NOTES_SECOND] = 0
        words[NOTES_SIZE] = size
        words[NOTES] = place

    def add(self, line: bytes) -> bool:
        """Add a note, and return True if there is room for it."""
        word = self._ends[0]
        at = self._words[word]
        end = at + len(line)
        if end > self._size:
            return False
        self._halves[word - NOTES_FIRST][at:end] = line
        self._words[word] = end
        return True

    def begin_write(self) -> None:
        """Begin a half, because all notes so far are being written.

        If the last attempt to write has failed, the other half is still in use: then nothing is
        begun, and `forget_written` forgets that half only.
        """
        if not self._words[self._ends[1]]:
            self._ends.reverse()

    def forget_written(self) -> None:
        """Forget the notes from before `begin_write`."""
        self._words[self._ends[1]] = 0


def read_notes(memory: int, offset: int) -> bytes:
    """Return the notes that a process has left.

    Parameters
    ----------
    memory, offset : int
        The descriptor of the memory file, and the place of the header in it.
    """
    header = read_header(memory, offset)
    size, place = header[NOTES_SIZE], offset + header[NOTES]
    found = b""
    for half, word in enumerate((NOTES_FIRST, NOTES_SECOND)):
        found += os.pread(memory, min(header[word], size), place + half * size)
    return found
