"""Where a hub gets the time from."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock", "timestamp"]


def timestamp(seconds: float) -> str:
    """Format Unix seconds as Jupyter does: UTC, ISO 8601, always with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Clock:
    """The system's clocks; a test puts its own in their place."""

    def monotonic(self) -> float:
        """Seconds that only grow: for timeouts and rates."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970: for what people read."""
        return time.time()

    def iso(self) -> str:
        """The wall clock as message headers have it."""
        return timestamp(self.wall())
