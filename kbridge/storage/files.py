"""The directory of one kernel: its lock, its owner, and its open files. For the writing thread.

Invariants:

- a process writes to a directory, or removes one, only while it holds the lock of the directory.
  The operating system releases the lock when the process ends, however it ends;
- a process that takes a directory that it has not recovered empties it first: the numbers of the
  old frames belong to another journal.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

from kbridge.private import open_private
from kbridge.storage.disk import Disk

try:
    import fcntl
except ImportError:  # Windows: two servers with the same kernel are not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["KernelFiles", "OpenFiles", "directory_name"]

LOCK: Final = "lock"
OWNER: Final = "owner"
STATE_LOG: Final = "state.log"
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_MOST_OPEN: Final = 64  # of the files that are being written; each kernel also has an open lock


def directory_name(kernel_id: str) -> str:
    """Return a kernel id, or its digest if it cannot be the name of a directory."""
    if kernel_id and len(kernel_id) <= 100 and _SAFE.issuperset(kernel_id):
        return kernel_id
    return f"{hashlib.sha256(kernel_id.encode('utf-8', 'surrogatepass')).hexdigest()}.id"


class OpenFiles:
    """The files that were written last, kept open for the next write."""

    __slots__ = ("_descriptors", "_disk")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def get(self, path: Path, size: int) -> int:
        """Return a descriptor for appending to a file of `size` bytes, created if that is 0.

        Raises
        ------
        OSError
            If it cannot be opened, has another size, or was removed while it was open.
        """
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._disk.append_at(path, size)
            self._descriptors[path] = descriptor
            if len(self._descriptors) > _MOST_OPEN:
                self._close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(path)
        if not self._disk.is_linked(descriptor):
            self.close(path)
            raise FileNotFoundError(errno.ENOENT, "it was removed while in use", str(path))
        return descriptor

    def close(self, path: Path) -> None:
        """Close a file, if it is open."""
        descriptor = self._descriptors.pop(path, None)
        if descriptor is not None:
            self._close(descriptor)

    def close_all(self, directory: Path) -> None:
        """Close all files of a directory."""
        for path in [path for path in self._descriptors if path.parent == directory]:
            self.close(path)

    def _close(self, descriptor: int) -> None:
        with suppress(OSError):  # an error of an earlier write, which was reported there
            self._disk.close(descriptor)


class KernelFiles:
    """The directory of one kernel.

    Parameters
    ----------
    directory : Path
    owner : str
        The server that made it; see `JournalStore.open`.

    Attributes
    ----------
    directory : Path
    state_log : Path
    """

    __slots__ = ("_doubtful", "_lock", "_owner", "directory", "state_log")

    def __init__(self, directory: Path, owner: str) -> None:
        self.directory = directory
        self.state_log = directory / STATE_LOG
        self._owner = owner
        self._lock: int | None = None
        self._doubtful = False

    @property
    def owner(self) -> str:
        """The server that made the directory; empty if that is not known."""
        try:
            return (self.directory / OWNER).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def lock(self) -> None:
        """Take the lock of a directory that exists.

        Raises
        ------
        OSError
            If another process has it (`BlockingIOError`), or if it cannot be opened.
        """
        if self._lock is not None:
            if os.fstat(self._lock).st_nlink:
                return
            self.unlock()
        while True:
            descriptor = open_private(self.directory / LOCK, os.O_RDWR)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                linked = os.fstat(descriptor).st_nlink > 0
            except BlockingIOError:
                os.close(descriptor)
                reason = "another process writes the journal of this kernel"
                raise BlockingIOError(errno.EAGAIN, reason, str(self.directory)) from None
            except BaseException:
                os.close(descriptor)
                raise
            if linked:
                self._lock = descriptor
                return
            os.close(descriptor)  # another process has removed the directory

    def claim(self, disk: Disk) -> None:
        """Make the directory and take its lock, unless this process has it already.

        Raises
        ------
        OSError
            If that is not possible.
        """
        if self._lock is not None and (not self._doubtful or os.fstat(self._lock).st_nlink):
            self._doubtful = False
            return
        disk.make_directory(self.directory)
        self.lock()
        try:
            for entry in self.directory.iterdir():
                if entry.name != LOCK:
                    disk.remove(entry)
            name = self._owner.encode("utf-8", "surrogatepass")
            disk.write_file(self.directory / OWNER, [name])
        except BaseException:
            self.unlock()
            raise

    def doubt(self) -> None:
        """Let `claim` look whether the directory is still there."""
        self._doubtful = True

    def unlock(self) -> None:
        """Release the lock; may be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Remove the directory with all files, and release the lock."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.unlock()
