"""Messages that are not passed on: counted, and logged at most once per minute."""

from __future__ import annotations

import logging
from typing import TypeAlias

from kbridge.flow.log_throttle import LogThrottle
from kbridge.hub.clock import Clock

__all__ = ["IgnoredMessages", "RejectedMessages"]

_Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]


class RejectedMessages:
    """Counts the messages of one kernel that are not valid or cannot be passed on.

    Parameters
    ----------
    kernel_id : str
        The id of the kernel, for log messages.
    clock : Clock
        The source of the time.
    log : logging.Logger or adapter
        The logger.
    """

    def __init__(self, kernel_id: str, clock: Clock, log: _Log) -> None:
        self._kernel_id = kernel_id
        self._clock = clock
        self._log = log
        self._throttle = LogThrottle()

    @property
    def total(self) -> int:
        """The number of messages rejected so far."""
        return self._throttle.total

    def record(self, channel: str, reason: str) -> None:
        """Count a message, and log it if nothing was logged in the last minute."""
        count = self._throttle.record(self._clock.monotonic())
        if count:
            self._log.warning(
                "Rejected %d message(s) of kernel %s. The last, on %s: %s",
                count,
                self._kernel_id,
                channel,
                reason,
            )


class IgnoredMessages:
    """Counts the messages of clients that a kernel would ignore.

    Parameters
    ----------
    kernel_id : str
        The id of the kernel, for log messages.
    clock : Clock
        The source of the time.
    log : logging.Logger or adapter
        The logger.
    """

    def __init__(self, kernel_id: str, clock: Clock, log: _Log) -> None:
        self._kernel_id = kernel_id
        self._clock = clock
        self._log = log
        self._throttle = LogThrottle()

    @property
    def total(self) -> int:
        """The number of messages ignored so far."""
        return self._throttle.total

    def record(self, reason: str) -> None:
        """Count a message, and log it if nothing was logged in the last minute."""
        count = self._throttle.record(self._clock.monotonic())
        if count:
            self._log.warning(
                "Ignored %d message(s) of clients of kernel %s. The last: %s",
                count,
                self._kernel_id,
                reason,
            )
