"""Where kernels write what is not a message: a file for each, never our terminal.

A kernel whose stdout is a closed pipe breaks, and one that cannot start says why on stderr.
Invariants: the file is its owner's alone (0600), what is read of it is bounded, and so is the
file itself as long as somebody calls `trim`.
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
        The file; made when the kernel is started.
    limit : int
        Bytes that `trim` lets it grow to.
    """

    def __init__(self, path: Path, limit: int = 10 * 2**20) -> None:
        self.path = path
        self._limit = limit
        self._start = 0

    def open(self) -> BinaryIO:
        """Open for a process that is about to start; `tail` shows nothing from before.

        Raises
        ------
        OSError
            If the file cannot be made.
        """
        # O_APPEND, so that a trimmed file does not grow a hole where its writer left off.
        fd = open_private(self.path, os.O_WRONLY | os.O_APPEND)
        self._start = os.fstat(fd).st_size
        return os.fdopen(fd, "ab", buffering=0)

    def tail(self, lines: int = 20) -> str:
        """Return the last lines that the newest process wrote, without terminal colours.

        At most 16 KiB; empty where there is no file.
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
        """Keep only the end of a file that has outgrown its limit; True if there was need to."""
        try:
            return self._trim()
        except OSError:
            # No file, a full disk, one that is gone: whoever watches over the kernel has more to
            # watch than its log, and will be back.
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
        """Remove the file; no error when there is none."""
        self.path.unlink(missing_ok=True)


class KeptLogs:
    """The logs of kernels that died badly: kept for whoever asks why, the newest few only.

    Parameters
    ----------
    limit : int
        How many.
    """

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit
        self._logs: deque[tuple[KernelLog, bool]] = deque()

    def keep(self, log: KernelLog, *, lasting: bool = True) -> None:
        """Keep one more, and remove the oldest when there are too many.

        Parameters
        ----------
        log : KernelLog
        lasting : bool
            Keep it beyond the end of the server, because a message has named the file.
        """
        self._logs.append((log, lasting))
        while len(self._logs) > self._limit:
            self._logs.popleft()[0].remove()

    def end(self) -> None:
        """Remove the logs that are not to outlast the server."""
        for log, lasting in self._logs:
            if not lasting:
                log.remove()
        self._logs = deque(entry for entry in self._logs if entry[1])

    def __iter__(self) -> Iterator[KernelLog]:
        return iter([log for log, _ in self._logs])

    def __len__(self) -> int:
        return len(self._logs)
