"""Calls at regular intervals, independent of the wall clock.

Tornado's `PeriodicCallback` and `IOLoop.time()` read the wall clock: if it is set back by an hour,
they wait an hour longer. The timers of the asyncio loop are monotonic.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

__all__ = ["PeriodicTimer"]


class PeriodicTimer:
    """Call a function periodically, until the timer is stopped.

    Parameters
    ----------
    callback : callable
        The function to call; its errors are logged and do not end the timer.
    interval : float
        Seconds from one call to the next; a call that is late delays the next ones.
    jitter : float
        Share of the interval by which it varies, so that many timers do not fire at once.
    """

    def __init__(
        self, callback: Callable[[], object], interval: float, *, jitter: float = 0.0
    ) -> None:
        self._callback = callback
        self._interval = interval
        self._jitter = jitter
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; needs a running loop, and may be called twice."""
        if self._timer is None:
            self._schedule()

    def stop(self) -> None:
        """End; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        varied = self._interval * (1 + self._jitter * (random.random() - 0.5))  # noqa: S311
        self._timer = asyncio.get_running_loop().call_later(varied, self._run)

    def _run(self) -> None:
        self._schedule()
        try:
            self._callback()
        except Exception:
            logging.getLogger("kbridge.link").exception("a periodic call failed")
