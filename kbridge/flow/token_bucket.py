"""A token bucket: limits a rate, and lets a limited burst pass immediately.

Times are parameters, in monotonic seconds.

The bucket stores the number of used tokens, which decreases by one per `interval`. An action may
start while the number is below `burst`. It may use more tokens than are left; later actions then
wait longer. A timer that fires late does not lose tokens, up to `burst`.
"""

from __future__ import annotations

import math

__all__ = ["TokenBucket"]


class TokenBucket:
    """Allows one action per `interval`, and up to `burst` at once.

    Parameters
    ----------
    interval : float
        Seconds after which a used token is available again; above zero.
    burst : float
        The number of tokens that can be used at once after a pause.
    limit : float
        The maximum number of used tokens to store; tokens above it cost nothing.
    """

    __slots__ = ("_at", "_last", "_limit", "_used", "burst", "interval")

    def __init__(self, interval: float, burst: float, limit: float = math.inf) -> None:
        self.interval = interval
        self.burst = burst
        self._limit = limit
        self._used = 0.0
        self._last = 0.0  # the tokens of the last `spend`
        self._at = 0.0

    def used(self, now: float) -> float:
        """Return the number of tokens that are used up at `now`; above `burst` if overdrawn."""
        if now > self._at:
            self._used = max(0.0, self._used - (now - self._at) / self.interval)
            self._at = now
        return self._used

    def ready(self, now: float) -> bool:
        """Return True if an action may start at `now`."""
        return self.used(now) < self.burst

    def spend(self, count: float = 1) -> None:
        """Use `count` tokens, even if fewer are left."""
        self._last = count
        self._used = min(self._used + count, self._limit)

    def try_spend(self, now: float, count: float) -> bool:
        """Use `count` tokens if an action may start at `now`; return True if it may."""
        if self.used(now) >= self.burst:
            return False
        self.spend(count)
        return True

    def overdraw(self, now: float, count: float) -> float:
        """Use `count` tokens at `now`, even if fewer are left; return the used tokens."""
        self.used(now)
        self.spend(count)
        return self._used

    def charge(self, seconds: float) -> None:
        """Delay the next action by `seconds`; `undo` does not take this back."""
        self._used += seconds / self.interval

    def undo(self) -> None:
        """Give back the tokens of the last `spend`; a second call has no effect."""
        self._used = max(0.0, self._used - self._last)
        self._last = 0.0

    def delay(self, now: float) -> float:
        """Return the seconds until the next action may start."""
        return max(self.used(now) - self.burst, 0.0) * self.interval

    def reset(self) -> None:
        """Make all tokens available again."""
        self._used = self._last = 0.0
