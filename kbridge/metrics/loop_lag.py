"""Measures how late the event loop runs its timers."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Final

from kbridge.flow.histogram import LAG, Histogram

__all__ = ["LoopLag"]

_INTERVAL: Final = 0.5


class LoopLag:
    """One timer that observes its own lateness, twice per second.

    Parameters
    ----------
    clock : callable
        Returns monotonic seconds.

    Attributes
    ----------
    histogram : Histogram
        The lateness in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.histogram = Histogram(LAG)
        self._clock = clock
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; needs a running loop, and may be called twice."""
        if self._timer is None:
            self._wait()

    def stop(self) -> None:
        """End; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._due = self._clock() + _INTERVAL
        # In an empty context, the timer keeps no request alive.
        self._timer = asyncio.get_running_loop().call_later(
            _INTERVAL, self._on_timer, context=contextvars.Context()
        )

    def _on_timer(self) -> None:
        self.histogram.observe(max(0.0, self._clock() - self._due))
        self._wait()
