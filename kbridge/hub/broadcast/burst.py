"""Extra memory for a journal while its readers catch up.

A kernel can write more in a second than a network carries in a minute, and cannot be slowed down:
its PUB socket silently drops messages that are not read in time. So the hub reads everything. While
the fastest live reader of a kernel is more than half of `journal_limit` behind, the journal may
grow beyond its limit, within an allowance that all kernels of a process share (`burst_limit`).

Only the fastest live reader counts, so a stalled viewer uses no extra memory. A reader is live if
it has read everything that it may read, or has made progress within `PATIENCE` seconds (longer for
a large frame: the time to send it at one mebibyte per second). A websocket that follows some
requests skips all other frames, so it counts only if no reader of all frames is live. After the
last live reader has gone, it still counts for `PATIENCE` seconds, because clients come back. After
that the journal returns to its limit. Output that `flow.pace` holds back does not count as backlog:
a rate limit delays it.

A journal that continues on disk gets extra memory, too, for a live reader whose next frames are in
memory, because reading them from disk costs twice as much; and for frames that a slow disk has not
taken yet, even if all readers have them.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from kbridge.flow.journal import Journal
from kbridge.flow.pace import Pace
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.clock import Clock

__all__ = ["PATIENCE", "Allowance", "Burst"]

PATIENCE: Final = 10.0
"""Seconds without progress after which a reader does not count as live.

Only time in which the event loop runs counts: a blocked loop cannot write to any reader."""

_SLOWEST: Final = 1 << 20  # bytes per second; larger frames get more time at this rate
_AHEAD: Final = (
    32 << 20
)  # bytes granted beyond the current size: more than a kernel sends between two checks
_LOOK: Final = 1.0  # seconds between two checks if nothing else happens
_PAUSE: Final = 2 * _LOOK  # at most this many seconds between two checks are counted
_AT_ONCE: Final = 5000  # frames that a journal drops in one step: about ten milliseconds


class Allowance:
    """Bytes that the journals of all kernels may hold beyond their limits, together.

    Parameters
    ----------
    total : int
        The number of bytes.
    """

    def __init__(self, total: int) -> None:
        self._left = max(0, total)
        self._granted: dict[int, int] = {}

    def ask(self, owner: int, nbytes: int) -> int:
        """Grant an owner up to `nbytes`, replacing its earlier grant; return the number granted."""
        self._left += self._granted.pop(owner, 0)
        granted = min(nbytes, self._left)
        if granted:
            self._granted[owner] = granted
            self._left -= granted
        return granted


class Burst:
    """Sets `Journal.spare` of one hub.

    Parameters
    ----------
    journal : Journal
        The output of the kernel.
    sessions : ClientSessions
        The readers of the journal.
    pace : Pace
        Limits how far the readers may read now.
    clock : Clock
        The source of the time.
    allowance : Allowance
        The bytes that all hubs share.

    Attributes
    ----------
    look_above : int
        The size of the journal above which `look` has something to do.
    """

    def __init__(
        self,
        journal: Journal,
        sessions: ClientSessions,
        pace: Pace,
        clock: Clock,
        allowance: Allowance,
    ) -> None:
        self._journal = journal
        self._sessions = sessions
        self._pace = pace
        self._clock = clock
        self._allowance = allowance
        self._high = journal.limit // 2
        self.look_above = self._high
        # By number of the websocket: its position at the last check, and the time until which it
        # counts as live.
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked_at = clock.monotonic()
        self._time = 0.0  # the elapsed time that is counted
        self._live_at = -math.inf  # time of the last check with an active reader
        self._lead = journal.end()  # position of the fastest reader at that time
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Grant more, or take back; call after a wake-up if the journal is above `look_above`."""
        journal = self._journal
        if journal.nbytes <= self.look_above:
            return
        excess = max(0, journal.nbytes - journal.limit)
        behind, frames, live = self._survey()
        if journal.durable:
            if self._lead.seq < journal.first_seq:
                behind = 0  # it reads from disk, and memory cannot help it
            live = 0  # slower ones find their frames on disk
            unwritten = journal.unwritten_bytes
            if unwritten > max(self._high, behind):
                # The frames that are on disk may go.
                excess = max(0, unwritten - journal.limit)
                frames = journal.next_seq - journal.first_seq
                self._grant(
                    excess + max(min(_AHEAD, journal.limit), 2 * unwritten // max(1, frames))
                )
                return
        if behind > self._high:
            self._grant(excess + max(_AHEAD, 2 * behind // max(1, frames)))
        else:
            # At most the current size, and only while a reader may still need it.
            self._grant(min(journal.spare, excess) if live > 1 else 0)

    def expect(self, nbytes: int) -> None:
        """Grant memory for a large frame that comes now; `look` takes back what nobody needs.

        Otherwise it would take the place of frames that no reader could read yet, and the next
        frame would take its place.
        """
        journal = self._journal
        needed = journal.nbytes + nbytes + min(_AHEAD, journal.limit) - journal.limit
        if needed > journal.spare:
            self._grant(needed)

    def close(self) -> None:
        """Return the whole grant, once the journal is empty; may be called twice."""
        self._grant(0)

    def _grant(self, nbytes: int) -> None:
        journal = self._journal
        # Dropping a gigabyte of small frames takes seconds, so other tasks run in between.
        rest = min(journal.spare, journal.nbytes_without(_AT_ONCE) - journal.limit)
        delay = 0.0 if nbytes < rest else _LOOK
        nbytes = max(nbytes, rest)
        if nbytes or journal.spare:
            journal.spare = self._allowance.ask(id(self), nbytes)
            self.look_above = -1 if journal.spare else self._high
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if journal.spare:
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()

    def _survey(self) -> tuple[int, int, int]:
        """Return the unread bytes of the fastest live reader, and the number of live readers.

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
        fastest: Cursor | None = None
        live = 0
        for cursor in self._sessions.cursors:
            if cursor.held:  # its place is not known yet
                continue
            seq = cursor.place.seq
            known = self._seen.get(cursor.number)
            may = min(end, self._pace.horizon) if cursor.paced else end
            if known is None or known[0] != seq or seq >= may:
                known = (seq, now + self._patience(cursor))
            seen[cursor.number] = known
            if now > known[1]:
                continue
            if may <= seq < end:  # slowed by a limit, not by its own speed
                self._live_at = -math.inf
                continue
            live += 1
            if fastest is None or (_need(cursor), seq) > (_need(fastest), fastest.place.seq):
                fastest = cursor
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

    def _patience(self, cursor: Cursor) -> float:
        """Return for how many seconds a websocket that has just moved counts as live."""
        if not cursor.blocked:
            return PATIENCE
        journal, seq = self._journal, cursor.place.seq
        return max(PATIENCE, (journal.behind(seq - 1) - journal.behind(seq)) / _SLOWEST)


def _need(cursor: Cursor) -> int:
    """Return the rank of a reader among those that are live; the fastest of the highest counts.

    A reader of some requests moves past all other frames at once, however fast it reads.
    """
    return 2 if cursor.selection is None else int(cursor.behind)
