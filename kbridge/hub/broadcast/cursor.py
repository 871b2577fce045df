"""One websocket's position in the journal of a kernel, and its flow control.

Acknowledgements: every websocket peer answers a ping with the same payload, after the frames that
came before it (RFC 6455, section 5.5.3). So a ping that carries the sequence number of the last
frame before it is answered with an acknowledgement, by any browser. At most one such ping per
websocket is unanswered at a time. The next is sent with the first batch after the pong, or a moment
later if nothing more is written.

The bytes that were written and not acknowledged are bounded, because all of them may be sent twice.
A peer that leaves its pings unanswered for a while is written to all the same.

Only clients that can come back are pinged: those with a `session_id` or a `since`. Others have no
use for acknowledgements, and some programs (Zed's client) take a ping between two messages for an
error. For these clients, bytes that the operating system has accepted count as delivered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kbridge.flow.journal import Place
from kbridge.hub.events import StatusListener
from kbridge.link.interfaces import ClientLink
from kbridge.wire.dialects import Dialect
from kbridge.wire.frames import ping

__all__ = ["Attachment", "ClientSession", "Cursor", "CursorOptions"]

_WINDOW: Final = 4 << 20  # bytes that may be written and not acknowledged


@dataclass(frozen=True, slots=True)
class CursorOptions:
    """Options for writing to a websocket.

    Attributes
    ----------
    ack_origin : int or None
        Added to the sequence numbers of the journal in pings; None if the websocket is not asked
        which frames have arrived.
    verbatim : bool
        True if messages must not be joined for the websocket.
    paced : bool
        True if the rate limits apply to the websocket.
    listener : StatusListener or None
        Is told the kernel statuses that the bridge announces.
    """

    ack_origin: int | None = None
    verbatim: bool = False
    paced: bool = True
    listener: StatusListener | None = None


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

    def __init__(self, number: int, session_id: str) -> None:
        self.number = number
        self.session_id = session_id
        self.place: Place | None = None
        self.parked_at = 0.0
        self.cursors: dict[int, Cursor] = {}
        self._acked_by = 0  # the number of the newest websocket that has set `place`

    def add(self, cursor: Cursor) -> None:
        """Add a websocket."""
        self.cursors[cursor.number] = cursor

    def remove(self, cursor: Cursor) -> None:
        """Remove a websocket."""
        del self.cursors[cursor.number]

    def open_at(self, place: Place) -> Place:
        """Return where a new websocket starts: where the session resumes, or else at `place`."""
        if self.place is None:
            self.place = place
        return self.place

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
        The first place to read.
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
    blocked : bool
        True while the last write has not completed.
    behind : bool
        True while the websocket is behind the journal.
    unresponsive : bool
        True if the websocket has not answered a ping for a long time.
    verbatim, paced, listener
        As in `CursorOptions`.
    """

    __slots__ = (
        "_ack_origin",
        "behind",
        "blocked",
        "delivered",
        "dialect",
        "link",
        "listener",
        "number",
        "paced",
        "pinged",
        "place",
        "session",
        "unresponsive",
        "verbatim",
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
        self.place = place
        self.delivered = place
        self._ack_origin = options.ack_origin
        self.verbatim = options.verbatim
        self.paced = options.paced
        self.listener = options.listener
        self.pinged: Place | None = None
        self.blocked = False
        self.behind = False
        self.unresponsive = False

    # -- position ---------------------------------------------------------------------------

    def start_at(self, place: Place) -> None:
        """Move to another place before anything was written; all before it counts as delivered."""
        self.place = self.delivered = place
        self.session.restart(self)

    def advance(self, place: Place) -> None:
        """Move to the next place to read; the frames before it are written next."""
        self.place = place

    def set_behind(self, behind: bool) -> None:
        """Note whether the websocket is behind the journal."""
        self.behind = behind

    def skip(self, place: Place) -> None:
        """Move past frames of which none are for this websocket."""
        all_delivered = self.delivered == self.place
        self.place = place
        if all_delivered:
            self._deliver(place)

    # -- writing ----------------------------------------------------------------------------

    def write(self, data: bytes) -> bool:
        """Write whole frames; return False if the write has not completed."""
        # The link may run code of a subclass that calls this method: count as blocked meanwhile.
        self.blocked = True
        self.blocked = blocked = not self.link.write(data)
        if not blocked and self._ack_origin is None:
            self._deliver(self.place)
        return not blocked

    def written(self) -> None:
        """Note that the last write has completed."""
        self.blocked = False
        if self._ack_origin is None:
            self._deliver(self.place)
        self.behind = True

    # -- acknowledgements -------------------------------------------------------------------

    @property
    def window_full(self) -> bool:
        """True if an acknowledgement has to come before more is written."""
        return (
            self.pinged is not None
            and not self.unresponsive
            and self.place.nbytes - self.delivered.nbytes > _WINDOW
        )

    @property
    def ping_due(self) -> bool:
        """True if frames were written that no ping asks about."""
        return self.pinged is None and self._ack_origin is not None and self.delivered != self.place

    def take_ping(self) -> bytes:
        """Return the ping to write after all frames written so far; empty if none is due."""
        origin, place = self._ack_origin, self.place
        if self.pinged is not None or origin is None or self.delivered == place:
            return b""
        self.pinged = place
        return ping(b"%d" % (origin + place.seq - 1))

    def on_pong(self, payload: bytes) -> bool:
        """Take the payload of a pong; return True if it answers the ping.

        A peer that has two pings to answer may answer only the later one. So an empty pong, as a
        keepalive's ping causes it, means that the ping has to be sent again.
        """
        pinged = self.pinged
        if pinged is None:
            return False
        if payload == self._payload(pinged):
            self._deliver(pinged)
        elif payload:
            return False
        self.pinged = None
        self.unresponsive = False
        return True

    def set_unresponsive(self) -> None:
        """Note that the websocket has not answered a ping for a long time."""
        self.unresponsive = True

    def _payload(self, place: Place) -> bytes:
        assert self._ack_origin is not None
        return b"%d" % (self._ack_origin + place.seq - 1)

    def _deliver(self, place: Place) -> None:
        self.delivered = place
        self.session.on_delivered(self)


Attachment = Cursor
"""The former name of `Cursor`."""
