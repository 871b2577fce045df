"""Memory files that outlive the process, for the buffers of many kernels.

A mapped file takes two descriptors, so each file has room for some kernels. Pages that were never
used take no memory, and the part of a kernel returns its pages when nothing refers to it any
longer. Only then another kernel gets it: a thread that still receives for the old one cannot write
into the buffers of the new one.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from collections import deque
from contextlib import suppress
from typing import Final

__all__ = ["MemoryFile", "MemoryPart", "MemoryPool"]

_PARTS: Final = 32  # in one file; it takes address space only


class MemoryFile:
    """A memory file that is mapped as a whole.

    Parameters
    ----------
    size : int
        In bytes.

    Attributes
    ----------
    fd : int
        Its descriptor; -1 after `close`. The mapping has another one.
    name : str
        A name for the holder.
    map : mmap
        The mapping.
    """

    def __init__(self, size: int) -> None:
        self.name = secrets.token_hex(8)
        self.fd = fd = os.memfd_create("kbridge-received")
        self._close = weakref.finalize(self, os.close, fd)
        os.ftruncate(fd, size)
        self.map = mmap.mmap(fd, size)

    def discard(self, start: int, end: int) -> None:
        """Return the memory of some bytes to the system."""
        self.map.madvise(mmap.MADV_REMOVE, start, end - start)

    def close(self) -> None:
        """Close the descriptor; may be called twice. The mapping stays."""
        self._close()
        self.fd = -1


class MemoryPart:
    """The part of a file that one kernel has, until this object is collected.

    Attributes
    ----------
    file : MemoryFile
    start : int
        The place of the part in the file.
    """

    __slots__ = ("__weakref__", "file", "start")

    def __init__(self, file: MemoryFile, start: int) -> None:
        self.file = file
        self.start = start


class MemoryPool:
    """Gives parts of files to kernels. Files are never closed: without kernels, they are empty.

    Parameters
    ----------
    size : int
        The size of each part in bytes: a multiple of the page size.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: deque[tuple[MemoryFile, int]] = deque()

    def take(self) -> MemoryPart:
        """Return a part that no kernel has.

        Raises
        ------
        OSError
            If memory or descriptors are missing.
        """
        if not self._free:
            file = MemoryFile(_PARTS * self._size)
            self._free.extend((file, i * self._size) for i in range(_PARTS))
        file, start = self._free.popleft()
        part = MemoryPart(file, start)
        end = weakref.finalize(part, _release, self._free, file, start, start + self._size)
        end.atexit = False
        return part


def _release(free: deque[tuple[MemoryFile, int]], file: MemoryFile, start: int, end: int) -> None:
    with suppress(OSError):
        file.discard(start, end)
    free.append((file, start))
