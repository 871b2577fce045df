"""Decide from the answers to heartbeat pings whether a kernel is lost.

Invariants:

- a kernel that has never answered is not lost: it may have no heartbeat, or may not run yet;
- a busy kernel is lost only if it has answered a ping while busy before: a kernel with a single
  thread answers only between two requests;
- at most `misses` pings wait for an answer on one connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["HeartbeatActions", "HeartbeatMonitor"]


@dataclass(frozen=True, slots=True)
class HeartbeatActions:
    """The actions of one tick, in this order; the caller then sends a ping.

    Attributes
    ----------
    lost : bool
        Report that the kernel is lost.
    reconnect : bool
        Open a new connection and drop the pings on the old one.
    """

    lost: bool
    reconnect: bool


class HeartbeatMonitor:
    """The heartbeat of one kernel.

    Parameters
    ----------
    misses : int
        Number of consecutive unanswered pings after which the kernel is lost.
    """

    __slots__ = ("_answers_busy", "_busy_with", "_heard", "_known", "_lost", "_misses", "_waiting")

    def __init__(self, misses: int) -> None:
        if misses < 1:
            raise ValueError(f"misses must be at least 1, not {misses}")
        self._misses = misses
        self.forget()

    def forget(self) -> None:
        """Reset the state, because the kernel may have been replaced."""
        self._known = False
        self._lost = False
        self._heard = False
        self._waiting = 0
        self._busy_with = ""
        self._answers_busy = False

    @property
    def lost(self) -> bool:
        """True if the kernel has answered before and no longer does."""
        return self._lost

    def tick(self, busy_with: str = "") -> HeartbeatActions:
        """Decide what to do before the next ping.

        Parameters
        ----------
        busy_with : str
            The `msg_id` of the request that the kernel runs; empty if it is idle.
        """
        # The same request before the ping and after the answer: the kernel answered while busy.
        if self._heard and busy_with and busy_with == self._busy_with:
            self._answers_busy = True
        self._heard = False
        self._busy_with = busy_with
        silent = self._waiting >= self._misses
        lost = silent and self._known and not self._lost and (not busy_with or self._answers_busy)
        self._lost = self._lost or lost
        self._waiting = 1 if silent else self._waiting + 1
        return HeartbeatActions(lost=lost, reconnect=silent)

    def answered(self) -> bool:
        """Note an answer; return True if the kernel was lost before."""
        was_lost, self._lost = self._lost, False
        self._known = self._heard = True
        self._waiting = 0
        return was_lost

    def statistics(self) -> dict[str, Any]:
        """Return whether it has ever answered, whether it is lost, and the unanswered pings."""
        return {"known": self._known, "lost": self._lost, "waiting": self._waiting}
