"""Messages that are not passed on: counted, and logged at most once per minute."""

from __future__ import annotations

import logging
from typing import Final, TypeAlias

from kbridge.flow.log_throttle import LogThrottle
from kbridge.hub.clock import Clock

__all__ = ["IGNORED", "REJECTED", "DroppedMessages"]

_Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]

REJECTED: Final = "Rejected %d message(s) of kernel %s. The last, on %s: %s"
IGNORED: Final = "Ignored %d message(s) of clients of kernel %s. The last: %s"


class DroppedMessages:
    """Counts the messages of one kernel, or of its clients, that are not passed on.

    Parameters
    ----------
    text : str
        The log message, for the number of messages, the kernel and the arguments of `record`:
        `REJECTED` for messages of a kernel that are not valid, `IGNORED` for messages of clients
        that a kernel would ignore.
    kernel_id : str
        The id of the kernel.
    clock : Clock
        The source of the time.
    log : logging.Logger or adapter
        The logger.
    """

    def __init__(self, text: str, kernel_id: str, clock: Clock, log: _Log) -> None:
        self._text = text
        self._kernel_id = kernel_id
        self._clock = clock
        self._log = log
        self._throttle = LogThrottle()

    @property
    def total(self) -> int:
        """The number of messages dropped so far."""
        return self._throttle.total

    def record(self, *last: str) -> None:
        """Count a message, and log it if nothing was logged in the last minute.

        Parameters
        ----------
        *last : str
            The rest of the log message: with `REJECTED` the channel and the reason, with
            `IGNORED` the reason.
        """
        count = self._throttle.record(self._clock.monotonic())
        if count:
            self._log.warning(self._text, count, self._kernel_id, *last)
