"""One websocket's position in the journal of a kernel, and its flow control.

Acknowledgements: every websocket peer answers a ping with the same payload, after the frames that
came before it (RFC 6455, section 5.5.3). So a ping that carries the sequence number of the last
frame before it is answered with an acknowledgement, by any browser. At most one such ping per
websocket is unanswered at a time. The next is sent with the first batch after the pong, or a moment
later if nothing more is written. A websocket that receives little is pinged less often.

The bytes that were written and not acknowledged are bounded, because all of them may be sent twice.
Frames are also written to a peer that has not answered its pings for a while.

Only clients that can come back are pinged: those with a `session_id` or a `since`. Others have no
use for acknowledgements, and some programs (Zed's client) take a ping between two messages for an
error. For these clients, bytes that the operating system has accepted count as delivered.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

from kbridge.flow.journal import Place
from kbridge.flow.selection import Selection
from kbridge.hub.events import StatusListener
from kbridge.link.interfaces import ClientLink
from kbridge.wire.dialects import Dialect

__all__ = ["Attachment", "ClientSession", "Cursor", "CursorOptions"]

_WINDOW: Final = 4 << 20  # bytes that may be written and not acknowledged
_UNLIMITED: Final = sys.maxsize


@dataclass(frozen=True, slots=True)
class CursorOptions:
    """Options for writing to a websocket.

    Attributes
    ----------
    acknowledge : bool
        True if the websocket is asked with pings which frames have arrived.
    verbatim : bool
        True if messages must not be joined for the websocket.
    paced : bool
        True if the rate limits apply to the websocket.
    listener : StatusListener or None
        Receives the kernel statuses that the bridge announces.
    selection : Selection or None
        Chooses the frames that the websocket receives; None for all.
    """

    acknowledge: bool = False
    verbatim: bool = False
    paced: bool = True
    listener: StatusListener | None = None
    selection: Selection | None = None


class ClientSession:
    """One session of a client: what a frontend calls `session_id`.

    Its private frames (replies, input requests) are for all websockets of the session. The session
    resumes from the last place acknowledged by its most recent websocket that acknowledged
    anything. Older websockets may be dead without the bridge knowing; newer ones may have died
    during the handshake.

    Parameters
    ----------
    number : int
        The number of the session; the audience of its private frames.
    session_id : str
        The id that the client gave, or a digest of a long id; empty for a session that cannot be
        resumed.
    place : Place or None
        The place where a session of an earlier bridge resumes.

    Attributes
    ----------
    number, session_id
        As above.
    place : Place or None
        The place up to which frames have arrived; None if no frames are kept for the session.
    parked_at : float
        The monotonic time, in seconds, when the session was last parked.
    cursors : dict of int to Cursor
        The websockets of the session by number, oldest first.
    """

    __slots__ = ("_acked_by", "cursors", "number", "parked_at", "place", "session_id")

    def __init__(self, number: int, session_id: str, place: Place | None = None) -> None:
        self.number = number
        self.session_id = session_id
        self.place = place
        self.parked_at = 0.0
        self.cursors: dict[int, Cursor] = {}
        self._acked_by = 0  # the number of the newest websocket that has set `place`

    def join(self, cursor: Cursor, place: Place) -> Place:
        """Add a websocket; return where it starts: where the session resumes, or else `place`."""
        self.cursors[cursor.number] = cursor
        if self.place is None:
            self.place = place
        return self.place

    def remove(self, cursor: Cursor) -> None:
        """Remove a websocket."""
        del self.cursors[cursor.number]

    def park(self, now: float) -> None:
        """Note that the websocket went away whose place counts."""
        self.parked_at = now

    def release(self) -> None:
        """Keep no frames for the session."""
        self.place = None

    @property
    def acked_here(self) -> bool:
        """True if a websocket is here whose acknowledgements set `place`, or none ever did."""
        return bool(self.cursors) and (not self._acked_by or self._acked_by in self.cursors)

    def on_delivered(self, cursor: Cursor) -> None:
        """Note that frames have arrived at a websocket."""
        if cursor.number >= self._acked_by and cursor.number in self.cursors:
            self._acked_by = cursor.number
            self.place = cursor.delivered

    def restart(self, cursor: Cursor) -> None:
        """Note that a new websocket starts at a place of the client's choice."""
        self.place = cursor.delivered


class Cursor:
    """One websocket's position in the journal; only its own methods change it.

    Parameters
    ----------
    number : int
        The number of the websocket; newer websockets have higher numbers.
    session : ClientSession
        The session that the websocket belongs to.
    link : ClientLink
        The link that frames are written to.
    dialect : Dialect
        The format of the frames.
    place : Place
        The first place to read, unless its session resumes.
    options : CursorOptions
        The options for writing to the websocket.

    Attributes
    ----------
    number, session, link, dialect
        As above.
    place : Place
        The next place to read in the journal.
    delivered : Place
        The place up to which frames are known to have arrived.
    pinged : Place or None
        The place that an unanswered ping asks about.
    ping_at : float
        The monotonic time, in seconds, from which on a ping is due although little was written.
    window_end : int
        The bytes of the journal after which the window is full: an acknowledgement has to come
        before more is written.
    blocked : bool
        True while the last write has not completed.
    behind : bool
        True while the websocket is behind the journal.
    held : bool
        True while the message after which it starts is looked for on disk: until then, `place` says
        nothing.
    acknowledge, verbatim, paced, listener, selection
        As in `CursorOptions`.
    """

    __slots__ = (
        "_ping",
        "acknowledge",
        "behind",
        "blocked",
        "delivered",
        "dialect",
        "held",
        "link",
        "listener",
        "number",
        "paced",
        "ping_at",
        "pinged",
        "place",
        "selection",
        "session",
        "verbatim",
        "window_end",
    )

    def __init__(
        self,
        number: int,
        session: ClientSession,
        link: ClientLink,
        dialect: Dialect,
        place: Place,
        options: CursorOptions,
    ) -> None:
        self.number = number
        self.session = session
        self.link = link
        self.dialect = dialect
        self.place = self.delivered = session.join(self, place)
        self.acknowledge = options.acknowledge
        self.verbatim = options.verbatim
        self.paced = options.paced
        self.listener = options.listener
        self.selection = options.selection
        self.pinged: Place | None = None
        self.ping_at = 0.0
        self._ping = b""  # the payload of the unanswered ping
        self.window_end = _UNLIMITED
        self.blocked = False
        self.behind = False
        self.held = False

    # -- position ---------------------------------------------------------------------------

    def start_at(self, place: Place) -> None:
        """Move to another place before anything was written; all before it counts as delivered."""
        self.place = self.delivered = place
        self.session.restart(self)

    def set_behind(self, behind: bool) -> None:
        """Note whether the websocket is behind the journal."""
        self.behind = behind

    def set_held(self, held: bool) -> None:
        """Note whether the place where the websocket starts is being looked for."""
        self.held = held

    def skip(self, place: Place) -> None:
        """Move past frames of which none are for this websocket."""
        all_delivered = self.delivered == self.place
        if self.window_end != _UNLIMITED:  # frames that were not written are not sent twice
            self.window_end += max(0, place.nbytes - self.place.nbytes)
        self.place = place
        if all_delivered:
            self._deliver(place)

    # -- writing ----------------------------------------------------------------------------

    def write(self, data: bytes, end: Place, ping: bytes = b"") -> None:
        """Write whole frames; `blocked` is True afterwards if the write has not completed.

        Parameters
        ----------
        data : bytes
            The frames from `place` to `end`, and the ping.
        end : Place
            The next place to read.
        ping : bytes
            The payload of the ping at the end of `data`, which asks about all frames before it.
        """
        self.place = end
        if ping:
            self._ping = ping
            self.pinged = end
            self.window_end = self.delivered.nbytes + _WINDOW
        # The link may run code of a subclass that calls this method: count as blocked until then.
        self.blocked = True
        self.blocked = blocked = not self.link.write(data)
        if not blocked and not self.acknowledge:
            self._deliver(self.place)

    def written(self) -> None:
        """Note that the last write has completed."""
        self.blocked = False
        if not self.acknowledge:
            self._deliver(self.place)
        self.behind = True

    # -- acknowledgements -------------------------------------------------------------------

    def set_ping_at(self, time: float) -> None:
        """Note when the next ping is due although little was written."""
        self.ping_at = time

    def on_pong(self, payload: bytes) -> bool:
        """Take the payload of a pong; return True if it answers the ping.

        A peer that has two pings to answer may answer only the later one. So an empty pong, as a
        keepalive's ping causes it, means that the ping has to be sent again.
        """
        pinged = self.pinged
        if pinged is None:
            return False
        if payload == self._ping:
            self._deliver(pinged)
        elif payload:
            return False
        self.pinged = None
        self.window_end = _UNLIMITED
        return True

    def set_unresponsive(self) -> None:
        """Note that the websocket does not answer its ping: until it does, it has no window."""
        self.window_end = _UNLIMITED

    def _deliver(self, place: Place) -> None:
        self.delivered = place
        self.session.on_delivered(self)


Attachment = Cursor
"""The former name of `Cursor`."""
