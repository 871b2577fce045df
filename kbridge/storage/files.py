"""The directory of one kernel: its lock, its owner, and its open files. For the writing thread.

Invariants:

- a process writes to a directory, or removes files in it, only while it holds the lock of the
  directory. The operating system releases the lock when the process ends, however it ends;
- only files with the names of a journal's files are removed, one by one. A symbolic link in the
  place of the directory is not followed;
- files that a process has not recovered are not removed when it begins to write: their directory
  gets another name. The numbers of the old frames belong to another journal.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from kbridge.private import open_private, prepare_directory, read_private
from kbridge.storage.disk import Disk

try:
    import fcntl
except ImportError:  # Windows: two servers with the same kernel are not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LOCKS",
    "KernelFiles",
    "OpenFiles",
    "directory_name",
    "is_journal_name",
    "is_own_directory",
    "is_set_aside",
]

LOCKS: Final = fcntl is not None
"""False if this system cannot tell whether another process writes to a directory."""

LOCK: Final = "lock"
OWNER: Final = "owner"
STATE_LOG: Final = "state.log"
_LOST: Final = ".lost-"
_FORMAT: Final = "kbridge-journal"
_INSTANCE: Final = f"{os.getpid()}-{secrets.token_hex(8)}"
_OWNER_SIZE: Final = 64 * 1024
_TOUCH_INTERVAL: Final = 3600.0
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_MOST_OPEN: Final = 64  # of the files that are being written; each kernel also has an open lock


def directory_name(kernel_id: str) -> str:
    """Return a kernel id, or its digest if it cannot be the name of a directory."""
    if kernel_id and len(kernel_id) <= 100 and _SAFE.issuperset(kernel_id):
        return kernel_id
    return f"{hashlib.sha256(kernel_id.encode('utf-8', 'surrogatepass')).hexdigest()}.id"


def is_set_aside(name: str) -> bool:
    """Return True for the name of a directory whose files were not recovered."""
    return _LOST in name


def is_journal_name(name: str) -> bool:
    """Return True if a file in the directory of a kernel has a name that this package gives."""
    name = name.removesuffix(".tmp")
    if name in {LOCK, OWNER, STATE_LOG}:
        return True
    number, _, kind = name.removesuffix(".idx").partition(".")
    return kind in {"full", "sparse"} and len(number) >= 8 and number.isascii() and number.isdigit()


def is_own_directory(path: Path) -> bool:
    """Return True for a directory of this user that is not a symbolic link.

    Raises
    ------
    OSError
        If that cannot be found out.
    """
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(status.st_mode) and (
        not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    )


class OpenFiles:
    """The files that were written last, kept open for the next write.

    Parameters
    ----------
    disk : Disk
    clock : callable
        Returns seconds that never go back.
    """

    __slots__ = ("_clock", "_disk", "_files")

    def __init__(self, disk: Disk, clock: Callable[[], float] = time.monotonic) -> None:
        self._disk = disk
        self._clock = clock
        # Descriptor and time of the last write, in the order of these times.
        self._files: OrderedDict[Path, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, path: Path, size: int) -> int:
        """Return a descriptor for appending to a file of `size` bytes, created if that is 0.

        Raises
        ------
        OSError
            If it cannot be opened, has another size, or was removed while it was open.
        """
        known = self._files.pop(path, None)
        descriptor = self._disk.append_at(path, size) if known is None else known[0]
        self._files[path] = descriptor, self._clock()
        if len(self._files) > _MOST_OPEN:
            self._close(self._files.popitem(last=False)[1][0])
        if not self._disk.is_linked(descriptor):
            self.close(path)
            raise FileNotFoundError(errno.ENOENT, "it was removed while in use", str(path))
        return descriptor

    def close(self, path: Path) -> None:
        """Close a file, if it is open."""
        known = self._files.pop(path, None)
        if known is not None:
            self._close(known[0])

    def close_all(self, directory: Path) -> None:
        """Close all files of a directory."""
        for path in [path for path in self._files if path.parent == directory]:
            self.close(path)

    def close_unused(self, seconds: float) -> None:
        """Close the files to which nothing was written for so many seconds."""
        before = self._clock() - seconds
        while self._files:
            path, (descriptor, written) = next(iter(self._files.items()))
            if written > before:
                return
            del self._files[path]
            self._close(descriptor)

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

    __slots__ = (
        *("_doubtful", "_known", "_lock", "_owner", "_signature", "_touched"),
        *("directory", "state_log"),
    )

    def __init__(self, directory: Path, owner: str) -> None:
        self.directory = directory
        self.state_log = directory / STATE_LOG
        self._owner = owner
        self._lock: int | None = None
        self._doubtful = False
        self._touched = float("-inf")
        self._known: tuple[int, int] | None = None  # the directory whose files are recovered
        self._signature: dict[str, object] | None = None  # its owner file then

    @property
    def owner(self) -> str | None:
        """The server that made the directory; None if it is not a directory of a journal."""
        signature = self._read_signature()
        return None if signature is None else str(signature.get("owner"))

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
        if not is_own_directory(self.directory):
            reason = "it is not a directory of this user"
            raise NotADirectoryError(errno.ENOTDIR, reason, str(self.directory))
        while True:
            descriptor = self._open_lock()
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

    def know(self) -> None:
        """Note that the files, which are locked, were recovered: `claim` leaves them there."""
        self._known = self._identity()
        self._signature = self._read_signature()
        self._doubtful = True  # this server is not their owner yet

    def claim(self, disk: Disk) -> Path | None:
        """Make the directory and take its lock, unless this process has it already.

        Returns
        -------
        Path or None
            The new name of a directory with files that were not recovered.

        Raises
        ------
        OSError
            If that is not possible.
        """
        if self._lock is not None and not self._doubtful and self._is_fresh():
            return None
        disk.make_directory(self.directory)
        self.lock()
        try:
            aside = None if self._is_known() else self._set_aside(disk)
            with suppress(OSError):  # a file system without modes; checked in the next line
                self.directory.chmod(0o700)
            prepare_directory(self.directory)
            self._sign(disk)
        except BaseException:
            self.unlock()
            raise
        self._doubtful = False
        return aside

    def doubt(self) -> None:
        """Let `claim` look whether the directory is still there."""
        self._doubtful = True

    def unlock(self) -> None:
        """Release the lock; may be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self, disk: Disk) -> None:
        """Remove the files, and the directory if it has no others; release the lock.

        Raises
        ------
        OSError
            If another process has the lock, or if the directory cannot be read. A file that cannot
            be removed stays for the next start.
        """
        try:
            if not is_own_directory(self.directory):
                return
            if self._known is None and self.owner is None:
                return
            self.lock()
            if self._known is not None and not self._is_known():
                return
            for name in self._names():
                if is_journal_name(name) and name not in {LOCK, OWNER}:
                    self._unlink(disk, name)
            self._unlink(disk, LOCK)
        finally:
            self.unlock()  # NFS keeps a removed file in the directory while it is open
        if self._names() <= {LOCK, OWNER}:
            self._unlink(disk, LOCK)
            self._unlink(disk, OWNER)
            self.directory.rmdir()

    def _names(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}

    def _unlink(self, disk: Disk, name: str) -> None:
        with suppress(OSError):
            disk.remove(self.directory / name)

    def _open_lock(self) -> int:
        path = self.directory / LOCK
        try:
            return open_private(path, os.O_RDWR)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return open_private(path, os.O_RDONLY)

    def _read_signature(self) -> dict[str, object] | None:
        try:
            found = json.loads(read_private(self.directory / OWNER, _OWNER_SIZE))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and _FORMAT in found else None

    def _sign(self, disk: Disk) -> None:
        """Write the owner file: this server."""
        signature: dict[str, object] = {_FORMAT: 1, "owner": self._owner, "process": _INSTANCE}
        if self._read_signature() != signature:
            self._write_signature(disk, signature)
        self._known = self._identity()
        self._signature = signature

    def _write_signature(self, disk: Disk, signature: dict[str, object]) -> None:
        disk.write_file(self.directory / OWNER, [json.dumps(signature).encode()])

    def _is_fresh(self) -> bool:
        """Show programs that remove old files that the lock is in use; False if it is missing."""
        now = time.monotonic()
        if now - self._touched > _TOUCH_INTERVAL:
            self._touched = now
            touched = [self._touch(name) for name in (LOCK, OWNER)]
            return all(touched)
        return True

    def _touch(self, name: str) -> bool:
        try:
            os.utime(self.directory / name)
        except OSError:
            return False
        return True

    def _identity(self) -> tuple[int, int]:
        status = self.directory.lstat()
        return status.st_dev, status.st_ino

    def _is_known(self) -> bool:
        """True unless another process has used the directory, or made it, since it was known."""
        if self._known != self._identity():
            return False
        # Programs that clean up old files remove the owner file alone.
        return self._read_signature() in (None, self._signature)

    def _set_aside(self, disk: Disk) -> Path | None:
        """Give a directory with files of another journal a new name, and make a new directory."""
        names = self._names() - {LOCK, OWNER, f"{OWNER}.tmp"}
        if not names:
            return None
        if self.owner is None:
            if not all(map(is_journal_name, names)):
                reason = "it has files that are not of a journal"
                raise OSError(errno.ENOTEMPTY, reason, str(self.directory))
            self._write_signature(disk, {_FORMAT: 1, "owner": ""})  # so that a start removes it
        for number in itertools.count(1):
            aside = self.directory.with_name(f"{self.directory.name}{_LOST}{number}")
            if not os.path.lexists(aside):
                break
        self.directory.rename(aside)
        os.utime(aside)  # it is kept from now on
        self.unlock()
        disk.make_directory(self.directory)
        self.lock()
        return aside
