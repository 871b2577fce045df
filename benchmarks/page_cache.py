"""Bring the page cache into the state that it has on a server that has run for some days.

On such a machine, the page cache has used all memory, and a new page of a file is an old page of
another file. After a boot, or after large files were removed, most memory was free for a while, and
writing to files may be far more expensive: a virtual machine with free page reporting or a balloon
returns free memory to its host, which must map and clear it again at the first write. 1.2 to 1.7 ms
of CPU per MB were measured, and 0.2 to 0.3 ms with pages that were in use.

`PageCache` reads a sparse file, which uses no disk, until little memory is free, or until it has
read as many bytes as the machine has memory: Linux may free gigabytes of the cache meanwhile, which
were in use, too. The cache is clean, so its pages go whenever a program needs memory; nothing is
swapped out. `write_cost` shows the result.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from benchmarks.measure import BenchmarkError, memory

__all__ = ["PageCache", "write_cost"]

_SHARE: Final = 0.03  # of the memory that stays free; the operating system keeps about that
_SECONDS: Final = 180.0
_PIECE: Final = 4 << 20
_WRITTEN: Final = 128  # megabytes


def write_cost(directory: Path) -> float:
    """Return the milliseconds of CPU that writing one MB to a new file costs now."""
    path = directory / "write-cost"
    piece = os.urandom(1_000_000)
    with path.open("xb", buffering=0) as file:
        begin = time.thread_time()
        for _ in range(_WRITTEN):
            file.write(piece)
        seconds = time.thread_time() - begin
    path.unlink()
    return seconds * 1e3 / _WRITTEN


class PageCache:
    """Fills the page cache while a `with` block runs.

    Parameters
    ----------
    directory : Path
        For the sparse file. It must not be on a tmpfs, where reading a sparse file needs no memory.
    log : callable
        Takes a line of text.
    most : int or None
        The bytes that the first call of `fill` reads at most; None for the memory of the machine.
        Each later call reads at most an eighth of it.

    Raises
    ------
    BenchmarkError
        On other systems than Linux.
    """

    def __init__(
        self, directory: Path, log: Callable[[str], None], *, most: int | None = None
    ) -> None:
        if sys.platform != "linux":
            raise BenchmarkError("the page cache can be filled on Linux only")
        total = memory("MemTotal")
        self.enough = int(total * _SHARE)
        self._most = total if most is None else most
        self._first = self._most
        self._path = directory / "page-cache"
        self._log = log
        self._file: int | None = None
        self._position = 0
        self._size = 0

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None
        self._path.unlink()

    def fill(self) -> int:
        """Read until little memory is free; return the number of bytes.

        The call ends after 180 s in any case. Removed files and ended processes free memory, so it
        is repeated before each measurement.
        """
        assert self._file is not None, "the file exists only in a `with` block"
        before, begin = memory("MemFree"), time.monotonic()
        buffer = bytearray(_PIECE)
        nbytes = 0
        while (
            nbytes < self._most
            and memory("MemFree") > self.enough
            and time.monotonic() < begin + _SECONDS
        ):
            if self._position >= self._size:
                self._size += self._first
                os.ftruncate(self._file, self._size)
            read = os.preadv(self._file, [buffer], self._position)
            self._position += read
            nbytes += read
        self._most = min(self._most, -(-self._first // 8))
        if nbytes:
            self._log(
                f"page cache: read {nbytes >> 20:,} MiB in {time.monotonic() - begin:.1f} s; free"
                f" memory {before >> 20:,} MiB before, {memory('MemFree') >> 20:,} MiB now"
            )
        return nbytes
