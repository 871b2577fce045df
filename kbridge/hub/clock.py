"""The source of the time for hubs."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock", "timestamp"]


def timestamp(seconds: float) -> str:
    """Format Unix seconds as Jupyter does: UTC, ISO 8601, always with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Clock:
    """Reads the clocks of the system; a test can pass another clock."""

    def monotonic(self) -> float:
        """Return monotonic seconds, for timeouts and rates."""
        return time.monotonic()

    def wall(self) -> float:
        """Return Unix seconds, for times that people read."""
        return time.time()

    def iso(self) -> str:
        """Return the wall clock in the format of message headers."""
        return timestamp(self.wall())
