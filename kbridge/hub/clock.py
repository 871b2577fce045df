"""Where a hub gets the time from."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock"]


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
        return datetime.fromtimestamp(self.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
