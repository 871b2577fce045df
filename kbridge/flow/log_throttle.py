"""Limit how often an event is logged, and count the events that are not logged.

This is not a `TokenBucket`: the limit is a number of lines per interval, and the first line of an
interval reports how many events the previous interval suppressed.
"""

from __future__ import annotations

__all__ = ["LogThrottle"]


class LogThrottle:
    """Counts events of one kind, and says which of them to log.

    Parameters
    ----------
    interval : float
        Seconds, counted from the first event that is logged.
    burst : int
        The number of events to log per interval.

    Attributes
    ----------
    total : int
        The number of events so far.
    """

    __slots__ = ("_burst", "_interval", "_left", "_next", "_unreported", "total")

    def __init__(self, interval: float = 60.0, burst: int = 1) -> None:
        self._interval = interval
        self._burst = burst
        self._left = 0
        self._unreported = 0
        self._next = float("-inf")
        self.total = 0

    def record(self, now: float) -> int:
        """Count one event at `now` (seconds, monotonic).

        Returns
        -------
        int
            The number of events to report, including this one; 0: do not log this event.
        """
        self.total += 1
        self._unreported += 1
        if now >= self._next:
            self._next = now + self._interval
            self._left = self._burst
        if not self._left:
            return 0
        self._left -= 1
        count, self._unreported = self._unreported, 0
        return count
