"""The calls to the operating system that write and read files.

All of them may wait for the disk, so only threads call them. Tests replace the class, to be slow or
to fail.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from kbridge.private import open_private

__all__ = ["TRANSIENT", "Disk", "Space"]

TRANSIENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
"""Errors that say nothing about a file: too many open files, not enough memory."""

# Without O_BINARY, Windows would write two bytes for each line feed.
_OPEN_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
)
_REST_S: Final = 5e-5
_IOV_MAX: Final = 1024  # Linux, macOS and the BSDs


class Space(NamedTuple):
    """A file system: the bytes that this user may still write, and its size."""

    free: int
    total: int


class Disk:
    """The file system. Each method may raise an `OSError`."""

    def create(self, path: Path) -> int:
        """Open a private file for appending; create it if it is missing."""
        return open_private(path, os.O_WRONLY | os.O_APPEND | _OPEN_FLAGS)

    def append(self, path: Path) -> int:
        """Open a file that exists for appending."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | _OPEN_FLAGS)

    def open(self, path: Path) -> int:
        """Open a file for reading."""
        return os.open(path, os.O_RDONLY | _OPEN_FLAGS)

    def write(self, descriptor: int, buffers: Sequence[bytes]) -> int:
        """Write some of the buffers; return the number of bytes."""
        if len(buffers) == 1 or not hasattr(os, "writev"):
            return os.write(descriptor, buffers[0])
        return os.writev(descriptor, buffers[:_IOV_MAX])

    def read(self, descriptor: int, size: int, position: int) -> bytes:
        """Return at most `size` bytes from a position on."""
        if hasattr(os, "pread"):
            return os.pread(descriptor, size, position)
        os.lseek(descriptor, position, os.SEEK_SET)
        return os.read(descriptor, size)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file to a size."""
        os.ftruncate(descriptor, size)

    def size(self, descriptor: int) -> int:
        """Return the size of a file."""
        return os.fstat(descriptor).st_size

    def is_linked(self, descriptor: int) -> bool:
        """Return True unless the file of a descriptor was removed from its directory."""
        return os.fstat(descriptor).st_nlink > 0

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file; no error if it is missing."""
        path.unlink(missing_ok=True)

    def remove_directory(self, path: Path) -> None:
        """Remove a directory, if it is there, has no files and may be removed."""
        with suppress(OSError):
            path.rmdir()

    def replace(self, old: Path, new: Path) -> None:
        """Give a file another name, in the place of the file with that name."""
        old.replace(new)

    def make_directory(self, path: Path) -> None:
        """Create a private directory in a private one; no error if it is there."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)

    def space(self, path: Path) -> Space:
        """Return the free space of the file system with a path."""
        if not hasattr(os, "statvfs"):
            import shutil

            usage = shutil.disk_usage(path)
            return Space(usage.free, usage.total)
        found = os.statvfs(path)
        return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    def append_at(self, path: Path, size: int) -> int:
        """Open a file of `size` bytes for appending; create it if that is 0.

        Raises
        ------
        OSError
            Also if the file has another size: it would be written at a position that is not known.
        """
        descriptor = self.append(path) if size else self.create(path)
        try:
            found = self.size(descriptor)
            if found != size:
                raise OSError(errno.EIO, f"it has {found} bytes instead of {size}", str(path))
        except BaseException:
            self.close(descriptor)
            raise
        return descriptor

    def rest(self) -> None:
        """Let other threads run: Python would make the event loop wait for 5 ms each time."""
        time.sleep(_REST_S)

    def write_all(self, descriptor: int, buffers: Sequence[bytes]) -> None:
        """Write all buffers, with as many system calls as needed."""
        left = [*buffers]
        while left:
            written = self.write(descriptor, left)
            if not written and any(left):
                raise OSError(errno.EIO, "nothing was written")
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left and written:
                left[0] = left[0][written:]

    def read_all(self, descriptor: int, size: int, position: int) -> bytes:
        """Return `size` bytes from a position on, or fewer at the end of the file."""
        data = self.read(descriptor, size, position)
        while len(data) < size:
            more = self.read(descriptor, size - len(data), position + len(data))
            if not more:
                break
            data += more
        return data

    @contextmanager
    def reading(self, path: Path) -> Iterator[int]:
        """Open a file for reading, and close it."""
        descriptor = self.open(path)
        try:
            yield descriptor
        finally:
            with suppress(OSError):
                self.close(descriptor)

    def write_file(self, path: Path, buffers: Sequence[bytes]) -> None:
        """Replace a file in one step; after an error, the old one is there."""
        temporary = path.with_name(path.name + ".tmp")
        self.remove(temporary)
        descriptor = self.create(temporary)
        try:
            try:
                self.write_all(descriptor, buffers)
            finally:
                self.close(descriptor)
            self.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.remove(temporary)
            raise

    def read_file(self, path: Path) -> bytes:
        """Return the content of a file."""
        with self.reading(path) as descriptor:
            return self.read_all(descriptor, self.size(descriptor), 0)
