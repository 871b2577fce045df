"""How often something may be done: what strangers take of the loop's time.

Laws of this module:

- nothing here knows a clock: the time comes in as a parameter;
- a timer that is late loses nothing, up to a few: who counts on one a millisecond gets as many.
"""

from __future__ import annotations

__all__ = ["Toll"]


class Toll:
    """One each so many seconds.

    Parameters
    ----------
    price : float
        Seconds for each.
    at_once : int
        How many are made up for where nothing was paid for a while.
    """

    def __init__(self, price: float, at_once: int) -> None:
        self._price = price
        self._credit = price * at_once
        self._paid = 0.0  # until when what was done has used up its time
        self._before = 0.0

    def free(self, now: float) -> bool:
        """Whether the next may be done at `now` (seconds, monotonic)."""
        self._paid = max(self._paid, now - self._credit)
        return self._paid < now

    def pay(self, count: int = 1) -> None:
        """Note that so many were done."""
        self._before = self._paid
        self._paid += self._price * count

    def charge(self, seconds: float) -> None:
        """Note that something done before costs this many seconds more; `refund` keeps them."""
        self._paid += seconds
        self._before += seconds

    def refund(self) -> None:
        """Take back what was paid last; it may be called twice."""
        self._paid = min(self._paid, self._before)

    def wait(self, now: float) -> float:
        """Seconds until the next may be done."""
        return max(self._paid - now, 0.0)
