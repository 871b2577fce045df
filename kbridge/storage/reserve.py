"""Decide from the free space of the file system when the journals give up output, or stop."""

from __future__ import annotations

from collections import deque
from typing import Final

from kbridge.storage.context import Usage
from kbridge.storage.disk import Space

__all__ = ["Reserve"]

SETTLE_S: Final = 30.0
"""Seconds in which a file system may count the space of removed files as free; some need as long as
that."""

_MARGIN: Final = 64 * 1024 * 1024  # beyond the reserve, for writing again
_ALL: Final = 0.9  # of the bytes that are expected, because directories and indexes need space, too


class Reserve:
    """The share of a file system that stays free.

    Parameters
    ----------
    share : float

    Attributes
    ----------
    full : bool
        True if too little is free although the journals have nothing to give up.
    """

    __slots__ = ("_free", "_last", "_pending", "_wanted", "full", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self.full = False
        self._free = self._wanted = 0
        self._last = (0, 0, 0)  # the free space, the added and the removed bytes
        self._pending: deque[tuple[float, int]] = deque()  # removed, but not free yet; when

    def measured(self, space: Space, usage: Usage, now: float) -> int:
        """Return the bytes to give up, without those that were removed and will be free soon."""
        free, added, removed = self._last
        freed = space.free - free + usage.added - added
        if usage.removed > removed:
            self._pending.append((now, usage.removed - removed))
        self._last = space.free, usage.added, usage.removed
        self._take(freed, now)
        self._free, self._wanted = space.free, int(self.share * space.total)
        return max(self._wanted - space.free - self._expected, 0)

    def settle(self, missing: int) -> bool:
        """Set `full` when the journals have given up what they can; return True if it changed.

        Parameters
        ----------
        missing : int
            The bytes that are missing still.
        """
        margin = min(self._wanted // 5, _MARGIN) if self.full else 0
        full = missing > 0 or (self.full and self._free < self._wanted + margin)
        changed = full != self.full
        self.full = full
        return changed

    @property
    def _expected(self) -> int:
        return sum(nbytes for _, nbytes in self._pending)

    def _take(self, freed: int, now: float) -> None:
        """Forget the removed bytes that are free now, and those that should be."""
        pending = self._pending
        while pending and now - pending[0][0] >= SETTLE_S:
            pending.popleft()
        if freed >= self._expected * _ALL:
            pending.clear()
        while pending and freed > 0:
            when, nbytes = pending.popleft()
            if nbytes > freed:
                pending.appendleft((when, nbytes - freed))
            freed -= nbytes
