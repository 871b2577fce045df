"""Whether a kernel's heart beats: what its answers to pings, and their absence, say.

Laws of this module:

- a kernel that was never heard is not lost: it may have no heartbeat, or not be there yet;
- a kernel that is at work is lost only if it is known to beat at work: some answer between two
  requests only, because they have one thread;
- at most `misses` pings wait for an answer on one connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Beat", "Pulse"]


@dataclass(frozen=True, slots=True)
class Beat:
    """What to do at a beat, in this order; then a ping is sent.

    Attributes
    ----------
    lost : bool
        Say that the kernel has stopped beating.
    afresh : bool
        Use a new connection: whatever waits on the old one is given up.
    """

    lost: bool
    afresh: bool


class Pulse:
    """The pulse of one kernel.

    Parameters
    ----------
    misses : int
        How many pings in a row may be left unanswered.
    """

    __slots__ = ("_at_work", "_beats_at_work", "_heard", "_known", "_lost", "_misses", "_waiting")

    def __init__(self, misses: int) -> None:
        if misses < 1:
            raise ValueError(f"misses must be at least 1, not {misses}")
        self._misses = misses
        self.forget()

    def forget(self) -> None:
        """Forget the kernel: another one may be in its place."""
        self._known = False
        self._lost = False
        self._heard = False
        self._waiting = 0
        self._at_work = ""
        self._beats_at_work = False

    @property
    def lost(self) -> bool:
        """Whether the kernel was beating and has stopped."""
        return self._lost

    def beat(self, at_work: str = "") -> Beat:
        """Decide at a beat.

        Parameters
        ----------
        at_work : str
            The request that the kernel is at; empty if it is at none.
        """
        # The same request before the ping and after the answer: it was answered at work.
        if self._heard and at_work and at_work == self._at_work:
            self._beats_at_work = True
        self._heard = False
        self._at_work = at_work
        silent = self._waiting >= self._misses
        lost = silent and self._known and not self._lost and (not at_work or self._beats_at_work)
        self._lost = self._lost or lost
        self._waiting = 1 if silent else self._waiting + 1
        return Beat(lost=lost, afresh=silent)

    def heard(self) -> bool:
        """Take note of an answer; True if that of a kernel that was lost."""
        found, self._lost = self._lost, False
        self._known = self._heard = True
        self._waiting = 0
        return found

    def statistics(self) -> dict[str, Any]:
        """Whether it was ever heard, whether it is lost, and the pings that wait for an answer."""
        return {"known": self._known, "lost": self._lost, "waiting": self._waiting}
