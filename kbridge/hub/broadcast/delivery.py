"""Writes the journal to its cursors, in turns.

Each step writes one chunk to one websocket. A websocket that has more to read than one turn allows
goes on in a later turn of the event loop, which all hubs of the loop share.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from kbridge.flow.journal import Journal, Place
from kbridge.flow.pace import Pace
from kbridge.flow.round_trips import RoundTrips
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.broadcast.rendering import UNLOADED, Renderer
from kbridge.hub.broadcast.turns import turns
from kbridge.hub.clock import Clock
from kbridge.wire import v1
from kbridge.wire.frames import ping
from kbridge.wire.message import Message

__all__ = ["ACK_TIMEOUT", "PING_DELAY", "PING_INTERVAL", "Delivery"]

PING_DELAY: Final = 0.25
"""Seconds after which a ping asks about the last frames, if nothing more is written."""

PING_INTERVAL: Final = 0.02
"""Seconds between two pings to a websocket that receives little: over a network, a pong takes as
long. Each pong costs a wake-up of the event loop. The frames after a ping are asked about when this
time has passed."""

_LITTLE: Final = 64 << 10
"""Bytes without an acknowledgement at which a ping is sent earlier."""

ACK_TIMEOUT: Final = 1.0
"""Seconds to wait for a pong before more than the window is written."""

_TURN: Final = 128 << 10
"""Bytes that one websocket gets in one turn (more if one chunk is larger)."""

_AT_ONCE: Final = 2 << 20
"""Bytes that all websockets together get at once; the others wait for a turn."""

_PINGED_AT_ONCE: Final = 100
"""Websockets that get a delayed ping without a break."""

_SLACK: Final = 64
"""Part of `history_limit` by which the past may exceed it before it is trimmed."""

_FRESH: Final = 1.0
"""Seconds for which chunks are kept for websockets that are behind."""

_JOINED: Final = 64 << 10
"""Largest write, in bytes, to which a ping is appended instead of being written separately."""

_COST: Final = 16 << 10
"""Fixed cost per write, as the number of bytes that could be written in the same time."""


class Delivery:
    """Writes a journal to its cursors.

    Parameters
    ----------
    journal : Journal
        The journal.
    pace : Pace
        Limits how far websockets may read now.
    sessions : ClientSessions
        The websockets.
    renderer : Renderer
        Reads the journal and renders it.
    clock : Clock
        The source of the time.
    ack_origin : int
        Added to the sequence numbers of the journal in pings.

    Attributes
    ----------
    round_trips : RoundTrips
        Measures how long acknowledgements take.
    writes, written_bytes : int
        The number of writes of frames to websockets, and the bytes of these frames.
    limited : int
        The number of times that output for some websocket began to wait for the limit of bytes.
    """

    def __init__(
        self,
        journal: Journal,
        pace: Pace,
        sessions: ClientSessions,
        renderer: Renderer,
        clock: Clock,
        ack_origin: int,
    ) -> None:
        self._journal = journal
        self._pace = pace
        self._sessions = sessions
        self._renderer = renderer
        self._clock = clock
        self._ack_origin = ack_origin
        # Not for every frame, because checking all positions costs more than the memory is worth.
        self._trim_above = journal.history_limit + journal.history_limit // _SLACK
        self._loop = asyncio.get_running_loop()
        self._turns = turns()
        self._in_turns = False
        # The websockets that have more to read than one turn allows.
        self._waiting: OrderedDict[Cursor, None] = OrderedDict()
        # The websockets that wait for the disk.
        self._loading: set[Cursor] = set()
        # The work so far: bytes read, plus a fixed number of bytes per write.
        self._work = 0
        # False while there is one websocket, for which it is not worth keeping chunks.
        self._shared = True
        # The last data that was written with a ping, the payload of the ping, and both joined.
        self._pinged = (b"", b"", b"")
        self._pace_timer: asyncio.TimerHandle | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pings_at = 0.0  # when that timer ends
        self._chunk_timer: asyncio.TimerHandle | None = None
        self._ack_timers: dict[Cursor, asyncio.TimerHandle] = {}
        self._stopped = False
        self.round_trips = RoundTrips()
        self.writes = self.written_bytes = self.limited = 0
        self._now = 0.0  # the time of the last flush, pong or timer
        self._ask_at = 0  # the number after the frame that a ping must follow

    def flush(self) -> None:
        """Write new frames, as far as the pace allows, and forget what every client has."""
        journal = self._journal
        pace = self._pace
        first = journal.first_seq
        if pace.released < first:
            first = journal.held_from(pace.released)  # the disk may have the frames between
        self._now = now = self._clock.monotonic()
        waits = pace.waits
        again = pace.settle(first, journal.next_seq, now)
        if again is not None and self._pace_timer is None and not self._stopped:
            self._pace_timer = self._loop.call_later(again, self._on_pace)
        waiting = self._waiting
        end = self._work + _AT_ONCE
        cursors = self._sessions.cursors  # stays as it is, although a hook may detach websockets
        if pace.waits != waits and self._sessions.paced:
            self.limited += 1
        self._shared = len(cursors) > 1
        for cursor in cursors:
            if cursor.blocked or (waiting and cursor in waiting):
                if not cursor.behind:
                    cursor.set_behind(True)
            elif self._work < end:
                self._pump(cursor)
            else:
                self._wait(cursor)
        self._rest()

    def ask_about_newest(self) -> None:
        """Send a ping right behind the newest frame, even if another ping is unanswered.

        For a frame at which clients close their websocket and come back, as JupyterLab does at the
        status `restarting`: without an acknowledgement, they would receive it again.
        """
        self._ask_at = self._journal.next_seq

    def hold(self, cursor: Cursor) -> None:
        """Write nothing to a websocket that was just attached until `start`."""
        cursor.set_held(True)
        self._loading.add(cursor)

    def start(self, cursor: Cursor) -> None:
        """Write to a websocket that was just attached the frames that it has missed."""
        if cursor.place.seq < self._journal.next_seq:
            cursor.set_behind(True)
        cursor.set_held(False)
        self._loading.discard(cursor)
        self._shared = True
        self._pump(cursor)
        self._rest()

    def go_on(self, cursor: Cursor) -> None:
        """Write to a websocket that has something to read although the journal has not grown."""
        self._pump(cursor)
        self._rest()

    def say(self, cursor: Cursor, messages: list[Message]) -> None:
        """Write messages that are not in the journal to a websocket that was just attached."""
        frames = [v1.encode_frame(msg) for msg in messages]
        data = self._renderer.join(frames, cursor.dialect)
        if data and not cursor.link.closed:
            cursor.write(data, cursor.place)

    def on_pong(self, cursor: Cursor, payload: bytes) -> None:
        """Take a pong, which may be an acknowledgement."""
        trips = self.round_trips
        self._now = self._clock.monotonic()
        if trips.measured == cursor.number:
            trips.answered(payload, self._now)
        if not cursor.on_pong(payload):
            return
        if self._cancel_ack_timer(cursor):
            self._go_on_soon(cursor)
            self._rest()
        else:
            self.trim()
        if _is_ping_due(cursor):
            self._ping_within(PING_DELAY)

    def on_writable(self, cursor: Cursor) -> None:
        """Continue with a websocket whose last write has completed."""
        self._now = self._clock.monotonic()
        cursor.written()
        self._go_on_soon(cursor)
        self._rest()

    def on_request(self) -> None:
        """Let websockets that are behind give way to a request of a client."""
        self._turns.on_request()

    def remove(self, cursor: Cursor) -> None:
        """Write no more to a websocket that was detached."""
        cursor.set_held(False)
        self.round_trips.gone(cursor.number)
        self._waiting.pop(cursor, None)
        self._loading.discard(cursor)
        self._cancel_ack_timer(cursor)
        self.trim()

    def trim(self) -> None:
        """Drop the frames that every client has, except the last `history_limit` bytes."""
        journal = self._journal
        if journal.nbytes > self._trim_above:
            journal.trim(self._sessions.slowest(self._clock.monotonic(), journal.next_seq))

    def forget_chunks(self) -> None:
        """Drop all cached chunks: the audience of a frame has changed."""
        self._renderer.forget_all()

    def close(self) -> None:
        """Cancel the timers and drop the caches; may be called twice."""
        self._stopped = True
        for timer in (self._pace_timer, self._ping_timer, self._chunk_timer):
            if timer is not None:
                timer.cancel()
        self._pace_timer = self._ping_timer = self._chunk_timer = None
        self._forget()
        self._renderer.forget_all()

    # -- writing ----------------------------------------------------------------------------

    def _pump(self, cursor: Cursor) -> None:
        """Write to a websocket for one turn, and let it wait for the next if there is more."""
        if self._loading and cursor in self._loading:
            cursor.set_behind(True)
            return
        end = self._work + _TURN
        while self._write_next(cursor):
            if self._work >= end:
                self._wait(cursor)
                break
        if cursor.behind and cursor.place.nbytes > cursor.window_end:
            self._start_ack_timer(cursor)

    def _go_on_soon(self, cursor: Cursor) -> None:
        """Write to a websocket that has made room: now, or in its turn if others send requests."""
        unread = self._journal.appended - cursor.place.nbytes
        if unread > _TURN and self._turns.gives_way:
            self._wait(cursor)
        else:
            self._pump(cursor)
            self._ping(cursor)

    def _write_next(self, cursor: Cursor) -> bool:
        """Write the next chunk to a websocket.

        Returns
        -------
        bool
            True if more can be written: the last write has completed, no acknowledgement has to
            come first, and there are more frames to read.
        """
        if cursor.blocked or cursor.link.closed:
            return False
        if cursor.place.nbytes > cursor.window_end:
            cursor.set_behind(True)
            return False
        portion = self._renderer.next(cursor, shared=self._shared)
        if portion is None:
            if cursor.behind:
                cursor.set_behind(False)
            return False
        if portion is UNLOADED:
            self._load(cursor)
            return False
        data, end, nbytes = portion
        self._work += nbytes + _COST
        if data:
            self._write(cursor, data, end)
        else:
            cursor.skip(end)
        # Checked after the write, because a hook may have caused more messages.
        if end.seq >= self._journal.next_seq or (cursor.paced and end.seq >= self._pace.horizon):
            if cursor.behind != cursor.blocked:
                cursor.set_behind(cursor.blocked)
            return False
        return not cursor.blocked

    def _write(self, cursor: Cursor, data: bytes, end: Place) -> None:
        """Write frames up to a place to a websocket, with a ping unless one is unanswered."""
        asked = cursor.place.seq < self._ask_at <= end.seq
        if not cursor.acknowledge or (cursor.pinged is not None and not asked):
            cursor.write(data, end)
        elif not asked and self._is_early(cursor, end):
            cursor.write(data, end)
            self._ping_within(cursor.ping_at - self._now)
        elif len(data) <= _JOINED:
            payload = self._payload(end)
            self._note_ping(cursor, payload)
            cursor.write(self._with_ping(data, payload), end, payload)
        else:
            cursor.write(data, end)
            self._ping(cursor, replace=asked)
        self.writes += 1
        self.written_bytes += len(data)

    def _ping(self, cursor: Cursor, *, replace: bool = False) -> None:
        """Ask a websocket which frames have arrived, if that is due.

        With `replace`, another ping may be unanswered, whose answer then means nothing.
        """
        if _is_ping_due(cursor, replace) and not cursor.blocked and not cursor.link.closed:
            payload = self._payload(cursor.place)
            self._note_ping(cursor, payload)
            cursor.write(ping(payload), cursor.place, payload)

    def _is_early(self, cursor: Cursor, end: Place) -> bool:
        """Return True if a ping after the frames before `end` would come soon after the last."""
        return self._now < cursor.ping_at and end.nbytes - cursor.delivered.nbytes < _LITTLE

    def _note_ping(self, cursor: Cursor, payload: bytes) -> None:
        """Note that a ping is being sent."""
        cursor.set_ping_at(self._now + PING_INTERVAL)
        if self._now >= self.round_trips.due:
            self.round_trips.sent(cursor.number, payload, self._clock.monotonic())

    def _ping_within(self, delay: float) -> None:
        """Ask about the last frames in so many seconds, if nothing more is written."""
        due = self._now + delay
        if self._stopped or (self._ping_timer is not None and self._pings_at <= due):
            return
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._pings_at = due
        self._ping_timer = self._loop.call_later(delay, self._on_ping_delay)

    def _payload(self, place: Place) -> bytes:
        """Return the payload of a ping that asks about the frames before a place."""
        return b"%d" % (self._ack_origin + place.seq - 1)

    def _with_ping(self, data: bytes, payload: bytes) -> bytes:
        if not self._shared:
            return data + ping(payload)
        if self._pinged[0] is not data or self._pinged[1] != payload:
            self._pinged = (data, payload, data + ping(payload))
        return self._pinged[2]

    # -- the disk ---------------------------------------------------------------------------

    def _load(self, cursor: Cursor) -> None:
        """Let a websocket wait until its next frames were loaded from disk."""
        if not self._stopped:
            cursor.set_behind(True)
            self._loading.add(cursor)
            self._renderer.load(cursor, self._on_loaded)

    def _on_loaded(self, cursors: list[Cursor]) -> None:
        """Go on with websockets whose next frames were loaded: one now, the others in turns.

        So each load is used by a websocket, even if many loads follow before the next turn.
        """
        here = [cursor for cursor in cursors if cursor in self._loading]
        self._loading.difference_update(here)
        for cursor in here[1:]:
            self._wait(cursor)
        if here:
            self._pump(here[0])
        else:
            self._renderer.forget_all()
        self._rest()

    # -- turns ------------------------------------------------------------------------------

    def _wait(self, cursor: Cursor) -> None:
        """Let a websocket continue in a later turn of the event loop."""
        if self._stopped:
            return
        self._waiting[cursor] = None
        if not self._in_turns:
            self._in_turns = True
            self._turns.add(self._take_turn)

    def _take_turn(self) -> bool:
        """Continue with the websocket that has waited longest; return True if others wait."""
        if self._waiting and not self._stopped:
            cursor, _ = self._waiting.popitem(last=False)
            self._now = self._clock.monotonic()
            try:
                self._pump(cursor)
                self._ping(cursor)
            except BaseException:
                # The queue forgets a step that fails: the others that wait need another one.
                self._in_turns = False
                for other in self._waiting:
                    self._wait(other)
                    break
                raise
            self._rest()
        self._in_turns = bool(self._waiting) and not self._stopped
        return self._in_turns

    def _rest(self) -> None:
        """End a turn: drop frames that every client has, and the chunks that nobody waits for."""
        if self._journal.nbytes > self._trim_above:
            self.trim()
        renderer = self._renderer
        if renderer.caches:
            if not self._waiting:
                self._forget()
            else:  # websockets that wait are often at the place of the last one
                renderer.forget_large()
            if renderer.caches and self._chunk_timer is None and not self._stopped:
                self._chunk_timer = self._loop.call_later(_FRESH, self._on_chunks_stale)

    def _forget(self) -> None:
        self._renderer.forget()
        self._pinged = (b"", b"", b"")

    # -- timers -----------------------------------------------------------------------------

    def _start_ack_timer(self, cursor: Cursor) -> None:
        if cursor not in self._ack_timers and not self._stopped:
            timer = self._loop.call_later(ACK_TIMEOUT, self._on_ack_timeout, cursor)
            self._ack_timers[cursor] = timer

    def _cancel_ack_timer(self, cursor: Cursor) -> bool:
        timer = self._ack_timers.pop(cursor, None)
        if timer is None:
            return False
        timer.cancel()
        return True

    def _on_ack_timeout(self, cursor: Cursor) -> None:
        del self._ack_timers[cursor]
        cursor.set_unresponsive()
        self._pump(cursor)
        self._rest()

    def _on_chunks_stale(self) -> None:
        self._chunk_timer = None
        self._renderer.forget_all()

    def _on_pace(self) -> None:
        self._pace_timer = None
        self.flush()

    def _on_ping_delay(self) -> None:
        self._ping_timer = None
        self._now = self._clock.monotonic()
        pinged = 0
        for cursor in self._sessions.cursors:
            if _is_ping_due(cursor):
                self._ping(cursor)
                pinged += 1
                if pinged >= _PINGED_AT_ONCE and not self._stopped:
                    self._ping_timer = self._loop.call_later(0, self._on_ping_delay)
                    return


def _is_ping_due(cursor: Cursor, replace: bool = False) -> bool:
    """Return True if frames were written that no ping asks about."""
    unasked = cursor.pinged is None or replace
    return cursor.acknowledge and unasked and cursor.delivered != cursor.place
