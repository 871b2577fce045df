"""Samples of the time from a ping to its pong, at most one per second.

A busy websocket is pinged with every batch. Reading the clock for each of these pings would cost
more than the figure is worth.
"""

from __future__ import annotations

from typing import Final

from kbridge.flow.histogram import ROUND_TRIP, Histogram

__all__ = ["RoundTrips"]

_INTERVAL: Final = 1.0
_PATIENCE: Final = 60.0


class RoundTrips:
    """Measures the round trips of some pings.

    Attributes
    ----------
    measured : int
        The number of the websocket whose ping is measured; 0 if none is.
    due : float
        The time, in seconds, from which on the next ping may be measured.
    histogram : Histogram
        The round trips so far.
    last : dict of int to float
        The last round trip of each websocket, by its number.
    """

    __slots__ = ("_payload", "_sent", "due", "histogram", "last", "measured")

    def __init__(self) -> None:
        self.due = float("-inf")
        self.histogram = Histogram(ROUND_TRIP)
        self.last: dict[int, float] = {}
        self.measured = 0
        self._payload = b""
        self._sent = 0.0

    def sent(self, number: int, payload: bytes, now: float) -> None:
        """Measure a ping from now on, unless another one is measured and not overdue.

        Parameters
        ----------
        number : int
            The number of the websocket.
        payload : bytes
            The payload of the ping.
        now : float
            Monotonic seconds.
        """
        self.due = now + _INTERVAL
        if not self.measured or now - self._sent >= _PATIENCE:
            self.measured = number
            self._payload = payload
            self._sent = now

    def answered(self, payload: bytes, now: float) -> None:
        """Take a pong of the websocket whose ping is measured."""
        if payload == self._payload:
            number, self.measured = self.measured, 0
            self.last[number] = taken = max(0.0, now - self._sent)
            self.histogram.observe(taken)

    def gone(self, number: int) -> None:
        """Forget a websocket that was detached."""
        self.last.pop(number, None)
        if self.measured == number:
            self.measured = 0
