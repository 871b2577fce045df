"""Decide from the answers to heartbeat pings whether a kernel is lost.

Invariants:

- a kernel that has never answered is not lost: it may have no heartbeat, or may not run yet;
- a busy kernel is lost only if it has answered a ping while busy before: a kernel with a single
  thread answers only between two requests;
- at most `misses` pings wait for an answer on one connection.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    Attributes
    ----------
    known : bool
        True if the kernel has answered a ping.
    lost : bool
        True if the kernel has answered before and no longer does.
    waiting : int
        Pings on the current connection that are not answered.
    """

    __slots__ = ("_answers_busy", "_busy_with", "_heard", "_misses", "known", "lost", "waiting")

    def __init__(self, misses: int) -> None:
        if misses < 1:
            raise ValueError(f"misses must be at least 1, not {misses}")
        self._misses = misses
        self.forget()

    def forget(self) -> None:
        """Reset the state, because the kernel may have been replaced."""
        self.known = False
        self.lost = False
        self._heard = False
        self.waiting = 0
        self._busy_with = ""
        self._answers_busy = False

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
        silent = self.waiting >= self._misses
        lost = silent and self.known and not self.lost and (not busy_with or self._answers_busy)
        self.lost = self.lost or lost
        self.waiting = 1 if silent else self.waiting + 1
        return HeartbeatActions(lost=lost, reconnect=silent)

    def answered(self) -> bool:
        """Note an answer; return True if the kernel was lost before."""
        was_lost, self.lost = self.lost, False
        self.known = self._heard = True
        self.waiting = 0
        return was_lost
