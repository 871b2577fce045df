"""Who reads a kernel: the websockets that are attached, and those that may come back.

A *client* is a session: what a frontend calls `session_id`. Its private frames (replies, input
requests) are for all websockets that it has. Two websockets with one `session_id` are two readers
of one client. What the client has is what the newest of those has acknowledged that ever
acknowledged anything: older ones may be dead and not have told, newer ones be handshakes that died
on the way. There the next one begins.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kbridge.flow.journal import Place
from kbridge.link.interfaces import ClientLink
from kbridge.wire.dialects import Dialect

__all__ = ["Attachment", "Client", "Clients"]

_REMEMBERED = 1000  # clients without a websocket whose place is kept


@dataclass(slots=True, eq=False)
class Client:
    """One session.

    Attributes
    ----------
    number : int
        Its number; the audience of its private frames.
    session_id : str
        What it calls itself; empty for one that cannot come back.
    place : Place or None
        What it has; None where nothing is owed to it.
    told_by : int
        The number of the websocket by which that is known.
    parked_at : float
        When one of its websockets went: seconds, monotonic.
    attachments : list of Attachment
        Its websockets, oldest first.
    """

    number: int
    session_id: str
    place: Place | None = None
    told_by: int = 0
    parked_at: float = 0.0
    attachments: list[Attachment] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Attachment:
    """One websocket's place in the journal.

    Attributes
    ----------
    number : int
        Its number; newer ones have higher ones.
    client : Client
        Whose websocket it is.
    link : ClientLink
        Where its frames go.
    dialect : Dialect
        How it wants them.
    place : Place
        What to read next.
    delivered : Place
        What has arrived for certain.
    asked : Place or None
        What a ping that is under way asks about.
    mute : bool
        Whether it has left a ping unanswered for long.
    patience : asyncio.TimerHandle or None
        Ends the wait for its pong.
    blocked : bool
        Whether the last write is still on its way.
    lags : bool
        Whether it has yet to read what others have read long ago.
    verbatim : bool
        Whether it wants each message by itself, however many there are.
    announced : callable
        Is told each status of the kernel that the bridge has announced in the kernel's place.
    """

    number: int
    client: Client
    link: ClientLink
    dialect: Dialect
    place: Place
    _delivered: Place
    asked: Place | None = None
    mute: bool = False
    patience: asyncio.TimerHandle | None = None
    blocked: bool = False
    lags: bool = False
    verbatim: bool = False
    announced: Callable[[str], None] | None = None

    @property
    def delivered(self) -> Place:
        """What has arrived for certain."""
        return self._delivered

    @delivered.setter
    def delivered(self, place: Place) -> None:
        self._delivered = place
        client = self.client
        if self.number >= client.told_by and self in client.attachments:
            client.told_by = self.number
            client.place = place

    def begin(self, place: Place) -> None:
        """Begin elsewhere, as its client says."""
        self.place = self._delivered = self.client.place = place


class Clients:
    """The clients of one hub.

    Parameters
    ----------
    resume_timeout : float
        Seconds for which a parked client counts as a reader; 0: none is owed anything.
    """

    def __init__(self, resume_timeout: float) -> None:
        self.attachments: list[Attachment] = []
        self._resume_timeout = resume_timeout
        self._by_session: dict[str, Client] = {}
        self._parked: OrderedDict[str, Client] = OrderedDict()  # longest parked first
        self._numbers = 0  # of clients and of websockets

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
        client = self.known(session_id)
        if client is None:
            client = Client(self._next(), session_id)
            if session_id:
                self._by_session[session_id] = client
        if client.place is None:
            client.place = now
        self._parked.pop(session_id, None)
        attachment = Attachment(self._next(), client, link, dialect, client.place, client.place)
        client.attachments.append(attachment)
        self.attachments.append(attachment)
        return attachment

    def known(self, session_id: str) -> Client | None:
        """The client of a session that was here before, if it is remembered."""
        return self._by_session.get(session_id) if session_id else None

    def is_here(self, number: int) -> bool:
        """Whether a client has a websocket."""
        return any(attachment.client.number == number for attachment in self.attachments)

    def detach(self, attachment: Attachment, now: float) -> bool:
        """Remove a websocket; what its client has is remembered.

        Returns
        -------
        bool
            False if it was not attached (any more).
        """
        if attachment not in self.attachments:
            return False
        self.attachments.remove(attachment)
        client = attachment.client
        client.attachments.remove(attachment)
        tellers = [other.number for other in client.attachments]
        if not client.session_id or (tellers and client.told_by in (0, *tellers)):
            return True
        if self._resume_timeout <= 0 and not client.attachments:
            client.place = None
        client.parked_at = now
        self._parked[client.session_id] = client
        self._parked.move_to_end(client.session_id)
        if len(self._parked) > _REMEMBERED:
            session_id, oldest = self._parked.popitem(last=False)
            oldest.place = None
            if not oldest.attachments:
                del self._by_session[session_id]
        return True

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def slowest(self, now: float, end: int) -> int:
        """The lowest sequence number that somebody has yet to read; `end` where there is nobody."""
        for attachment in self.attachments:
            seq = attachment.delivered.seq
            end = min(end, seq)
        for client in self._holding(now):
            if client.place is not None:
                end = min(end, client.place.seq)
        return end

    def __len__(self) -> int:
        return len(self.attachments)

    def statistics(self) -> dict[str, int]:
        """Websockets, how many of them wait for their peer, and clients that may come back."""
        return {
            "attached": len(self.attachments),
            "blocked": sum(a.blocked for a in self.attachments),
            "parked": len(self._parked),
        }

    def _holding(self, now: float) -> Iterable[Client]:
        for client in reversed(self._parked.values()):
            if now - client.parked_at > self._resume_timeout:
                return
            yield client
