"""How often to say the same thing: what may come a million times is logged once a minute."""

from __future__ import annotations

__all__ = ["Complaints"]


class Complaints:
    """Counts faults of one kind.

    Parameters
    ----------
    interval : float
        Seconds between two reports, at the least.
    """

    def __init__(self, interval: float = 60.0) -> None:
        self.interval = interval
        self.total = 0
        self._unreported = 0
        self._next = float("-inf")

    def note(self, now: float) -> int:
        """Count one more at `now` (seconds, monotonic).

        Returns
        -------
        int
            How many to report: 0 as long as it is too early.
        """
        self.total += 1
        self._unreported += 1
        if now < self._next:
            return 0
        self._next = now + self.interval
        count, self._unreported = self._unreported, 0
        return count
