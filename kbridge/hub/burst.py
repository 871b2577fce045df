"""What a journal may hold beyond its limit while its readers are on their way.

A kernel can say more in a second than a network carries in a minute, and nobody can make it wait:
its PUB socket drops what is not read in time, silently. So all is read, and while the fastest live
reader of a kernel is more than half of `journal_limit` behind, its journal may grow: within an
allowance that the kernels of a process share (`burst_limit`).

The fastest live reader decides, so a viewer that is stalled costs nothing. A reader is live while
it has all that it may read, or has moved on within `PATIENCE` seconds, or as many as the frame that
it is being sent takes at a mebibyte a second. When the last live reader
has gone, it counts for `PATIENCE` seconds more, because clients come back. After that the journal
returns to its limit. What `flow.pace` holds back is no backlog: there a limit is at work.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from kbridge.flow.journal import Journal
from kbridge.flow.pace import Pace
from kbridge.hub.clients import Attachment, Clients
from kbridge.hub.clock import Clock

__all__ = ["PATIENCE", "Allowance", "Burst"]

PATIENCE: Final = 10.0
"""Seconds without progress after which a reader does not count as live.

Seconds in which the loop had turns: nobody can be written to while it has none."""

_SLOWEST: Final = 1 << 20  # bytes a second by which a larger frame gets more time
_AHEAD: Final = 32 << 20  # bytes granted beyond what is held: more than comes between two looks
_LOOK: Final = 1.0  # seconds between two looks where nothing else happens
_PAUSE: Final = 2 * _LOOK  # what counts, at most, of the time between two looks
_AT_ONCE: Final = 5000  # frames that a journal forgets without a break: some ten milliseconds


class Allowance:
    """Bytes that the journals of all kernels may hold beyond their limits, together.

    Parameters
    ----------
    total : int
        How many.
    """

    def __init__(self, total: int) -> None:
        self._left = max(0, total)
        self._granted: dict[int, int] = {}

    def ask(self, owner: int, nbytes: int) -> int:
        """Return how many of the bytes an owner gets; its earlier grant ends."""
        self._left += self._granted.pop(owner, 0)
        granted = min(nbytes, self._left)
        if granted:
            self._granted[owner] = granted
            self._left -= granted
        return granted


class Burst:
    """Keeps `Journal.spare` of one hub.

    Parameters
    ----------
    journal : Journal
        What the kernel said.
    clients : Clients
        Its readers.
    pace : Pace
        How far they may read now.
    clock : Clock
        The time.
    allowance : Allowance
        What there is to be had.
    """

    def __init__(
        self, journal: Journal, clients: Clients, pace: Pace, clock: Clock, allowance: Allowance
    ) -> None:
        self._journal = journal
        self._clients = clients
        self._pace = pace
        self._clock = clock
        self._allowance = allowance
        # By number of the websocket: what it read next when it was last looked at, and until when
        # it counts without another move.
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked_at = clock.monotonic()
        self._time = 0.0  # the time that counts
        self._live_at = -math.inf  # when there was last a live reader
        self._lead = journal.end()  # where the fastest one stood then
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Grant more, or take back; call after each wake-up."""
        journal = self._journal
        high = journal.limit // 2
        if journal.nbytes <= high and not journal.spare:
            return
        behind, frames, live = self._survey()
        excess = max(0, journal.nbytes - journal.limit)
        if behind > high:
            self._grant(excess + max(_AHEAD, 2 * behind // max(1, frames)))
        else:
            # No more than there is, and that only while somebody may still read it.
            self._grant(min(journal.spare, excess) if live > 1 else 0)

    def close(self) -> None:
        """Give all back, once the journal is empty; may be called twice."""
        self._grant(0)

    def _grant(self, nbytes: int) -> None:
        journal = self._journal
        # A gigabyte of small frames takes seconds to forget: others have their turn meanwhile.
        rest = min(journal.spare, journal.nbytes_without(_AT_ONCE) - journal.limit)
        delay = 0.0 if nbytes < rest else _LOOK
        nbytes = max(nbytes, rest)
        if nbytes or journal.spare:
            journal.spare = self._allowance.ask(id(self), nbytes)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if journal.spare:
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()

    def _survey(self) -> tuple[int, int, int]:
        """Return what the fastest live reader has yet to read, and the number of live readers.

        Returns
        -------
        nbytes, frames : int
            0 if no reader is live.
        live : int
        """
        journal, clock = self._journal, self._clock.monotonic()
        self._time += min(clock - self._looked_at, _PAUSE)
        self._looked_at, now = clock, self._time
        end = journal.next_seq
        seen: dict[int, tuple[int, float]] = {}
        fastest: Attachment | None = None
        live = 0
        for attachment in self._clients.attachments:
            seq = attachment.place.seq
            known = self._seen.get(attachment.number)
            may = min(end, self._pace.horizon_of(attachment.paced))
            if known is None or known[0] != seq or seq >= may:
                known = (seq, now + self._patience(attachment))
            seen[attachment.number] = known
            if now > known[1]:
                continue
            if may <= seq < end:  # held back by a limit, and not by its speed
                self._live_at = -math.inf
                continue
            live += 1
            if fastest is None or seq > fastest.place.seq:
                fastest = attachment
        self._seen = seen
        if fastest is not None:
            self._live_at, self._lead = now, fastest.place
        elif seen or now - self._live_at > PATIENCE:
            return 0, 0, live
        place = self._lead
        if place.seq >= end:
            return 0, 0, live
        behind = journal.appended - place.nbytes if place.nbytes >= 0 else journal.nbytes
        return min(behind, journal.nbytes), end - place.seq, live

    def _patience(self, attachment: Attachment) -> float:
        """Return for how many seconds a websocket that has just moved counts as live."""
        if not attachment.blocked:
            return PATIENCE
        journal, seq = self._journal, attachment.place.seq
        return max(PATIENCE, (journal.behind(seq - 1) - journal.behind(seq)) / _SLOWEST)
