"""The source of the time for hubs."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock", "timestamp"]


def timestamp(seconds: float) -> str:
    """Format Unix seconds as Jupyter does: UTC, ISO 8601, always with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Clock:
    """Reads the clocks of the system; a test can pass another clock.

    The functions of the system are called directly, because each message needs the time.

    Methods
    -------
    monotonic()
        Return monotonic seconds, for timeouts and rates.
    wall()
        Return Unix seconds, for times that people read.
    """

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    def iso(self) -> str:
        """Return the wall clock in the format of message headers."""
        return timestamp(self.wall())
