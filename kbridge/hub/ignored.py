"""Messages of clients that no kernel takes: dropped, counted, and logged once a minute."""

from __future__ import annotations

import logging
from typing import Any

from kbridge.flow.log_throttle import LogThrottle
from kbridge.hub.clock import Clock

__all__ = ["IgnoredMessages"]


class IgnoredMessages:
    """Counts the messages for one kernel that were ignored.

    Parameters
    ----------
    kernel_id : str
        For the log.
    clock : Clock
        The time.
    log : logging.Logger or adapter
        Where to report them.
    """

    def __init__(
        self, kernel_id: str, clock: Clock, log: logging.Logger | logging.LoggerAdapter[Any]
    ) -> None:
        self._kernel_id = kernel_id
        self._clock = clock
        self._log = log
        self._throttle = LogThrottle()

    @property
    def total(self) -> int:
        """How many there were."""
        return self._throttle.total

    def note(self, reason: str) -> None:
        """Count one more, and log it if the last line is a minute old."""
        count = self._throttle.record(self._clock.monotonic())
        if count:
            self._log.warning(
                "Ignored %d message(s) of clients of kernel %s. The last: %s",
                count,
                self._kernel_id,
                reason,
            )
