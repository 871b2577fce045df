"""The objects that the journals of all kernels share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Final

from kbridge.flow.log_throttle import LogThrottle
from kbridge.storage.disk import Disk
from kbridge.storage.files import OpenFiles
from kbridge.storage.flush import FlushQueue
from kbridge.storage.workers import Workers

__all__ = ["RETRY_INTERVAL", "FailureLog", "StoreContext", "Usage", "segment_size"]

RETRY_INTERVAL: Final = 10.0
"""Seconds between two attempts to use a disk that failed."""

_LOG_INTERVAL: Final = 3600.0
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

    Damaged files, and a disk that comes and goes, are logged once per cause and hour.

    Parameters
    ----------
    directory : Path
    log : logging.Logger or logging.LoggerAdapter

    Attributes
    ----------
    damages : int
        The number of times that a part of a file could not be read.
    waits : bool
        True while the directory cannot be used, until a journal is written.
    """

    __slots__ = (
        "_directory",
        "_failing",
        "_log",
        "_logged",
        "_stopped",
        "_throttles",
        "damages",
        "waits",
    )

    def __init__(self, directory: Path, log: Logger | LoggerAdapter[Logger]) -> None:
        self._directory = directory
        self._log = log
        self._failing: set[str] = set()
        self._logged: set[int | None] = set()
        self._throttles: dict[tuple[str, object], LogThrottle] = {}  # by cause
        self._stopped = False  # and that was logged
        self.damages = 0
        self.waits = False

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

    def unusable(self, error: OSError) -> None:
        """Note that the directory cannot be used; `works` ends that."""
        self.waits = True
        self._logged.add(error.errno)
        self._log_stop(str(error))

    def works(self, kernel_id: str) -> None:
        """Note that the journal of a kernel is written."""
        if kernel_id not in self._failing and not self.waits:
            return
        self.waits = False
        self._failing.discard(kernel_id)
        if not self._failing:
            self._logged.clear()
            self._log.info("All journals are written to %s again", self._directory)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that has ended."""
        self._throttles.pop(("damaged", kernel_id), None)
        self._failing.discard(kernel_id)
        if not self._failing:
            self._logged.clear()

    def stopped(self, reason: str) -> None:
        """Log that no journal is written."""
        if not self._is_new("stopped", reason):
            return
        self._stopped = True
        self._log_stop(reason)

    def _log_stop(self, reason: str) -> None:
        self._log.warning(
            "The journals are not written to %s (journal_dir): %s. They continue in memory; the"
            " next attempt is in %d s.",
            *(self._directory, reason, RETRY_INTERVAL),
        )

    def resumed(self) -> None:
        """Log that the journals are written again."""
        if self._stopped:
            self._stopped = False
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
        # All kernels have the same error if the directory is removed; damage is that of one file.
        if self._is_new("damaged", error.errno if error else kernel_id):
            self._log.warning(
                "A part of the journal of kernel %s cannot be read and is skipped: %s in %s",
                *(kernel_id, error.strerror if error else "wrong checksum", path),
            )

    def unreadable(self, kernel_id: str, path: Path, error: OSError) -> None:
        """Log that a file cannot be read now."""
        if self._is_new("unreadable", error.errno):
            self._log.warning(
                "A part of the journal of kernel %s cannot be read now: %s in %s. Clients skip it;"
                " the next attempt is in %d s. Later failures of this kind are not logged for an"
                " hour.",
                *(kernel_id, error.strerror, path, RETRY_INTERVAL),
            )

    def _is_new(self, kind: str, cause: object) -> bool:
        """Return True if a cause was not logged in the last hour."""
        throttle = self._throttles.setdefault((kind, cause), LogThrottle(_LOG_INTERVAL))
        return throttle.record(asyncio.get_running_loop().time()) > 0


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
