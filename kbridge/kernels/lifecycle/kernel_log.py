"""Log files for the stdout and stderr of kernels, one per kernel.

A file, because kernels break if their stdout is a closed pipe, and report errors of their start on
stderr.

Invariants: only the owner can read the file (mode 0600), reads of it are bounded, and its size is
bounded while `trim` is called at regular intervals.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kbridge.private import open_private

__all__ = ["KeptLogs", "KernelLog"]

_TAIL_BYTES = 16 * 1024
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class KernelLog:
    """The log of one kernel.

    Parameters
    ----------
    path : Path
        The file, which is made when the kernel is started.
    limit : int
        Maximum size in bytes that `trim` allows.
    """

    def __init__(self, path: Path, limit: int = 10 * 2**20) -> None:
        self.path = path
        self._limit = limit
        self._start = 0

    def open(self) -> BinaryIO:
        """Open the file for a new process; `tail` omits the output of earlier processes.

        Raises
        ------
        OSError
            If the file cannot be opened.
        """
        # O_APPEND: otherwise the kernel would write behind the end of a trimmed file.
        fd = open_private(self.path, os.O_WRONLY | os.O_APPEND)
        self._start = os.fstat(fd).st_size
        return os.fdopen(fd, "ab", buffering=0)

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the newest process, without terminal colours.

        The result has at most 16 KiB, and is empty if there is no file.
        """
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._start, end - _TAIL_BYTES))
                raw = file.read(_TAIL_BYTES)
        except FileNotFoundError:
            return ""
        text = _ESCAPES.sub("", raw.decode("utf-8", errors="replace"))
        return "\n".join(text.splitlines()[-lines:])

    def trim(self) -> bool:
        """Keep only the end of a file that exceeds its limit; return True if it did."""
        try:
            return self._trim()
        except OSError:
            # No file, or a full disk: the caller watches the process, which is more important, and
            # calls again later.
            return False

    def _trim(self) -> bool:
        size = self.path.stat().st_size
        if size <= self._limit:
            return False
        with self.path.open("r+b") as file:
            file.seek(max(0, size - _TAIL_BYTES))
            end = file.read(_TAIL_BYTES)
            file.truncate(0)
        self._start = 0
        with self.path.open("ab", buffering=0) as file:
            file.write(end)
        return True

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)


class KeptLogs:
    """The log files of kernels that failed; the oldest are removed.

    Parameters
    ----------
    limit : int
        Maximum number of files.
    """

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit
        self._logs: deque[tuple[KernelLog, bool]] = deque()

    def keep(self, log: KernelLog, *, lasting: bool = True) -> None:
        """Add a log file, and remove the oldest if there are too many.

        Parameters
        ----------
        log : KernelLog
        lasting : bool
            True to keep the file after the end of the server, because a message names it.
        """
        self._logs.append((log, lasting))
        while len(self._logs) > self._limit:
            self._logs.popleft()[0].remove()

    def end(self) -> None:
        """Remove the files that are not kept after the end of the server."""
        for log, lasting in self._logs:
            if not lasting:
                log.remove()
        self._logs = deque(entry for entry in self._logs if entry[1])

    def __iter__(self) -> Iterator[KernelLog]:
        return iter([log for log, _ in self._logs])

    def __len__(self) -> int:
        return len(self._logs)
