"""Limits on the file descriptors that kernels may use, so that some remain for other purposes.

Each kernel needs some 20 descriptors for the sockets of its hub. If kernels used the last one, no
client could connect, not even to shut a kernel down, and libzmq would abort the process: it does so
if it gets no descriptor for a socket.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kbridge.errors import Busy

__all__ = ["KernelBudget", "free_descriptors"]

_KERNEL: Final = 24
"""Maximum per kernel. Measured: 19; 22 during the start; 23 if the kernel is re-attached."""
_RESERVE: Final = 64
_TABLES: Final = ("/proc/self/fd", "/dev/fd")


def _limit() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def free_descriptors(*, quick: bool = False) -> int:
    """Return how many more descriptors this process may open.

    Parameters
    ----------
    quick : bool
        Rather than count them one by one, return `sys.maxsize`.
    """
    limit = _limit()
    for table in _TABLES:
        try:
            used = os.stat(table).st_size  # noqa: PTH116 - Linux 6.2 and later count them here
            if not used and quick:
                return sys.maxsize
            return limit - (used or len(os.listdir(table)))  # noqa: PTH208
        except OSError:
            continue
    return sys.maxsize


class KernelBudget:
    """Holds back starts for which there are too few descriptors."""

    def __init__(self) -> None:
        self._starting = 0

    @contextmanager
    def start(self) -> Iterator[None]:
        """Set descriptors aside for one kernel while it starts, is attached or taken up.

        Raises
        ------
        Busy
            If it would need some of those that are kept for connections and shutdowns.
        """
        reserve = min(_RESERVE, _limit() // 4)
        needed = _KERNEL * (self._starting + 1)
        if free_descriptors() < reserve + needed:
            raise Busy(
                "The server has too few file descriptors left for another kernel: shut one down, or"
                " allow more (ulimit -n, LimitNOFILE=; see KbridgeApp.min_open_files_limit)"
            )
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
