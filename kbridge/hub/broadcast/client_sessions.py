"""Who reads a kernel: the websockets that are attached, and those that may come back.

A *client* is a session: what a frontend calls `session_id`. Its private frames (replies, input
requests) are for all websockets that it has. Two websockets with one `session_id` are two readers
of one client. What the client has is what the newest of those has acknowledged that ever
acknowledged anything: older ones may be dead and not have told, newer ones be handshakes that died
on the way. There the next one begins.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kbridge.flow.journal import Place
from kbridge.flow.lowest import Lowest
from kbridge.link.interfaces import ClientLink
from kbridge.wire.dialects import Dialect

__all__ = ["Attachment", "Client", "Clients"]

_REMEMBERED: Final = 1000  # clients without a websocket whose place is kept
_LONGEST_SESSION: Final = 128  # characters; of a longer session id a digest is kept


@dataclass(slots=True, eq=False)
class Client:
    """One session.

    Attributes
    ----------
    number : int
        The number of the session; the audience of its private frames.
    session_id : str
        The id that the client gave, or a digest of a long id; empty for a session that cannot be
        resumed.
    place : Place or None
        The place up to which frames have arrived; None if no frames are kept for the session.
    told_by : int
        The number of the newest websocket that has set `place`.
    parked_at : float
        The monotonic time, in seconds, when the session was last parked.
    attachments : dict of int to Attachment
        The websockets of the session by number, oldest first.
    """

    number: int
    session_id: str
    place: Place | None = None
    told_by: int = 0
    parked_at: float = 0.0
    attachments: dict[int, Attachment] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Attachment:
    """One websocket's place in the journal.

    Attributes
    ----------
    number : int
        The number of the websocket; newer websockets have higher numbers.
    client : Client
        The session that the websocket belongs to.
    link : ClientLink
        The link that frames are written to.
    dialect : Dialect
        The format of the frames.
    place : Place
        The next place to read in the journal.
    delivered : Place
        The place up to which frames are known to have arrived.
    acknowledges : bool
        True if pings ask the websocket which frames have arrived: its session can be resumed.
    asked : Place or None
        The place that an unanswered ping asks about.
    mute : bool
        True if the websocket has not answered a ping for a long time.
    patience : asyncio.TimerHandle or None
        The timer that ends the wait for the pong.
    blocked : bool
        True while the last write has not completed.
    lags : bool
        True while the websocket is behind the journal.
    verbatim : bool
        True if messages must not be joined for the websocket.
    paced : bool
        True if the rate limits apply to the websocket.
    announced : callable
        Called with each kernel status that the bridge announces itself.
    """

    number: int
    client: Client
    link: ClientLink
    dialect: Dialect
    place: Place
    _delivered: Place
    acknowledges: bool = False
    asked: Place | None = None
    mute: bool = False
    patience: asyncio.TimerHandle | None = None
    blocked: bool = False
    lags: bool = False
    verbatim: bool = False
    paced: bool = True
    announced: Callable[[str], None] | None = None

    @property
    def delivered(self) -> Place:
        """The place up to which frames are known to have arrived."""
        return self._delivered

    @delivered.setter
    def delivered(self, place: Place) -> None:
        self._delivered = place
        client = self.client
        if self.number >= client.told_by and self.number in client.attachments:
            client.told_by = self.number
            client.place = place

    def move(self, place: Place) -> None:
        """Stand elsewhere, with all before that taken for arrived."""
        self.place = self._delivered = self.client.place = place


class Clients:
    """The clients of one hub.

    Nothing here walks all clients for a message or a pong.

    Parameters
    ----------
    resume_timeout : float
        Seconds for which a parked client counts as a reader; 0: none is owed anything. No more
        than 1,000 are remembered. What they hold back is bounded by the journal's limit: a full
        journal forgets the oldest frames, whoever has yet to read them.
    """

    def __init__(self, resume_timeout: float) -> None:
        self._resume_timeout = resume_timeout
        self._attached: dict[Attachment, None] = {}  # oldest first
        self._delivered: Lowest[Attachment] = Lowest(lambda each: each.delivered.seq)
        self._by_session: dict[str, Client] = {}
        self._present: dict[int, Client] = {}  # by number, those that have a websocket
        self._parked: OrderedDict[str, Client] = OrderedDict()  # longest parked first
        # Of these, the ones that count as readers.
        self._holding: OrderedDict[Client, None] = OrderedDict()
        self._held: Lowest[Client] = Lowest(_held_seq)
        self._numbers = 0  # of clients and of websockets

    @property
    def attachments(self) -> list[Attachment]:
        """All websockets, oldest first."""
        return list(self._attached)

    def attach(self, link: ClientLink, dialect: Dialect, session_id: str, now: Place) -> Attachment:
        """Add a websocket.

        Parameters
        ----------
        link : ClientLink
            The websocket.
        dialect : Dialect
            What it speaks.
        session_id : str
            Whose it is; empty for one that cannot come back.
        now : Place
            Where it starts if nothing is owed to the session from before.
        """
        session_id = _short(session_id)
        client = self._by_session.get(session_id) if session_id else None
        if client is None:
            client = Client(self._next(), session_id)
            if session_id:
                self._by_session[session_id] = client
        self._unpark(client)
        if client.place is None:
            client.place = now
        attachment = Attachment(
            self._next(),
            client,
            link,
            dialect,
            client.place,
            client.place,
            acknowledges=bool(session_id),
        )
        client.attachments[attachment.number] = attachment
        self._present[client.number] = client
        self._attached[attachment] = None
        self._delivered.add(attachment)
        return attachment

    def begin(self, attachment: Attachment, place: Place) -> None:
        """Let a websocket that was just attached begin elsewhere, as its client says."""
        attachment.move(place)
        self._delivered.add(attachment)

    def known(self, session_id: str) -> Client | None:
        """The client of a session that was here before, if it is remembered."""
        return self._by_session.get(_short(session_id)) if session_id else None

    def is_here(self, number: int) -> bool:
        """Whether a client has a websocket."""
        return number in self._present

    def detach(self, attachment: Attachment, now: float) -> bool:
        """Remove a websocket; what its client has is remembered.

        Returns
        -------
        bool
            False if it was not attached (any more).
        """
        if attachment not in self._attached:
            return False
        del self._attached[attachment]
        self._delivered.discard(attachment)
        client = attachment.client
        here = client.attachments
        del here[attachment.number]
        if not here:
            del self._present[client.number]
        if not client.session_id or (here and (not client.told_by or client.told_by in here)):
            return True
        if self._resume_timeout <= 0 and not here:
            client.place = None
        self._park(client, now)
        return True

    def slowest(self, now: float, end: int) -> int:
        """The lowest sequence number that somebody has yet to read; `end` where there is nobody."""
        holding = self._holding
        while holding:
            oldest = next(iter(holding))
            if now - oldest.parked_at <= self._resume_timeout:
                break
            del holding[oldest]
            self._held.discard(oldest)
        for seq in (self._delivered.lowest(), self._held.lowest()):
            if seq is not None and seq < end:
                end = seq
        return end

    def furthest(self) -> int | None:
        """The sequence number that the fastest live reader reads next; None if there is none.

        Walks all websockets: for once a wake-up at most.
        """
        return max((each.place.seq for each in self._attached), default=None)

    def __len__(self) -> int:
        return len(self._attached)

    def statistics(self) -> dict[str, int]:
        """Websockets, how many of them wait for their peer, and clients that may come back."""
        return {
            "attached": len(self._attached),
            "blocked": sum(a.blocked for a in self._attached),
            "parked": len(self._parked),
        }

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _park(self, client: Client, now: float) -> None:
        self._unpark(client)
        client.parked_at = now
        self._parked[client.session_id] = client
        if client.place is not None:
            self._holding[client] = None
            self._held.add(client)
        if len(self._parked) > _REMEMBERED:
            oldest = next(iter(self._parked.values()))
            self._unpark(oldest)
            oldest.place = None
            if not oldest.attachments:
                del self._by_session[oldest.session_id]

    def _unpark(self, client: Client) -> None:
        if self._parked.pop(client.session_id, None) is not None:
            self._holding.pop(client, None)
            self._held.discard(client)


def _held_seq(client: Client) -> int:
    assert client.place is not None, "a parked client that holds nothing is not asked"
    return client.place.seq


def _short(session_id: str) -> str:
    """Return the key of a session: its id, or a digest, since clients choose ids of any length."""
    if len(session_id) <= _LONGEST_SESSION:
        return session_id
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()
