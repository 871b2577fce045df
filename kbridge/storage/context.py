"""The objects that the journals of all kernels share."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Final

from kbridge.storage.disk import Disk
from kbridge.storage.files import OpenFiles
from kbridge.storage.flush import FlushQueue
from kbridge.storage.workers import Workers

__all__ = ["RETRY_INTERVAL", "FailureLog", "StoreContext", "Usage", "segment_size"]

RETRY_INTERVAL: Final = 10.0
"""Seconds between two attempts to use a disk that failed."""

_SMALLEST_SEGMENT: Final = 1024 * 1024
_LARGEST_SEGMENT: Final = 16 * _SMALLEST_SEGMENT


def segment_size(limit: int) -> int:
    """Return the size of a segment file for a kernel that may use `limit` bytes."""
    size = min(max(limit // 16, _SMALLEST_SEGMENT), _LARGEST_SEGMENT)
    return max(min(size, limit // 4), 1)


class Usage:
    """The bytes that all journals use.

    Parameters
    ----------
    limit : int

    Attributes
    ----------
    nbytes : int
        Bytes on disk.
    written : int
        Bytes that were ever written.
    added, removed : int
        Bytes that `nbytes` ever rose and fell by.
    """

    __slots__ = ("_limit", "added", "nbytes", "removed", "written")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.nbytes = self.written = self.added = self.removed = 0

    def change(self, added: int, removed: int) -> None:
        """Count the bytes of files that were written, and of files that were removed."""
        self.nbytes += added - removed
        self.added += added
        self.removed += removed

    @property
    def over(self) -> bool:
        """True if the journals use more than the limit."""
        return self.nbytes > self._limit


class FailureLog:
    """Logs that journals are not written, once per cause, and once that they are written again.

    Parameters
    ----------
    directory : Path
    log : logging.Logger or logging.LoggerAdapter
    """

    __slots__ = ("_directory", "_failing", "_log", "_logged", "damages")

    def __init__(self, directory: Path, log: Logger | LoggerAdapter[Logger]) -> None:
        self._directory = directory
        self._log = log
        self._failing: set[str] = set()
        self._logged: set[int | None] = set()
        self.damages = 0

    @property
    def failing(self) -> int:
        """The number of kernels whose journal is not written."""
        return len(self._failing)

    def failed(self, kernel_id: str, error: BaseException) -> None:
        """Note that the journal of a kernel was not written."""
        self._failing.add(kernel_id)
        cause = error.errno if isinstance(error, OSError) else None
        if cause in self._logged:
            return
        self._logged.add(cause)
        known = isinstance(error, OSError)
        self._log.warning(
            "The journal of kernel %s is not written to %s (journal_dir): %s. It continues in"
            " memory; the next attempt is in %d s. Later failures of this kind are not logged.",
            *(kernel_id, self._directory, error, RETRY_INTERVAL),
            exc_info=None if known else error,
        )

    def works(self, kernel_id: str) -> None:
        """Note that the journal of a kernel is written."""
        if kernel_id not in self._failing:
            return
        self._failing.discard(kernel_id)
        if not self._failing:
            self._logged.clear()
            self._log.info("All journals are written to %s again", self._directory)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that has ended."""
        self._failing.discard(kernel_id)
        if not self._failing:
            self._logged.clear()

    def stopped(self, reason: str) -> None:
        """Log that no journal is written."""
        self._log.warning(
            "The journals are not written to %s (journal_dir): %s. They continue in memory; the"
            " next attempt is in %d s.",
            *(self._directory, reason, RETRY_INTERVAL),
        )

    def resumed(self) -> None:
        """Log that the journals are written again."""
        self._log.info("The journals are written to %s again", self._directory)

    def set_aside(self, kernel_id: str, path: Path) -> None:
        """Log that the files of an earlier journal of a kernel have another name."""
        self._log.warning(
            "The earlier journal of kernel %s was not recovered: it is in %s now, and is removed by"
            " a server that starts after 24 hours",
            *(kernel_id, path),
        )

    def damaged(self, kernel_id: str, path: Path, error: OSError | None) -> None:
        """Log that a part of a journal cannot be read."""
        self.damages += 1
        self._log.warning(
            "A part of the journal of kernel %s cannot be read and is skipped: %s in %s",
            *(kernel_id, error.strerror if error else "wrong checksum", path),
        )


@dataclass(frozen=True)
class StoreContext:
    """The objects that the journals of all kernels share.

    Attributes
    ----------
    disk : Disk
    queue : FlushQueue
        The writing thread.
    opened : OpenFiles
        For the writing thread.
    readers : Workers
        The reading threads.
    usage : Usage
    failures : FailureLog
    limit : int
        Bytes per kernel.
    """

    disk: Disk
    queue: FlushQueue
    opened: OpenFiles
    readers: Workers
    usage: Usage
    failures: FailureLog
    limit: int


TRANSIENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
"""Errors that say nothing about a file: too many open files, not enough memory."""
