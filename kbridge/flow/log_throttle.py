"""Limits how often the same event is logged, and counts the rest.

Not a `TokenBucket`: what is promised is a number of lines per interval, and the first line of an
interval reports how many events the interval before it suppressed.
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
            How many events to report, this one included; 0 if nothing is to be logged now.
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
