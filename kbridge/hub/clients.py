"""Who reads a kernel: the websockets that are attached, and those that may come back.

A *client* is a session: what a frontend calls `session_id`. Its private frames (replies, input
requests) are for all websockets that it has. Two websockets with one `session_id` are two readers
of one client. The newest is what the client sees: when that goes, its place is kept for the next,
also while older ones are still there, which may be dead and not have told.
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
class Attachment:
    """One websocket's place in the journal.

    Attributes
    ----------
    client : Client
        Whose websocket it is.
    link : ClientLink
        Where its frames go.
    dialect : Dialect
        How it wants them.
    place : Place
        What to read next.
    began : Place
        What it read first.
    delivered : Place
        What has arrived for certain: where a client resumes whose connection is cut.
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

    client: Client
    link: ClientLink
    dialect: Dialect
    place: Place
    began: Place
    delivered: Place
    asked: Place | None = None
    mute: bool = False
    patience: asyncio.TimerHandle | None = None
    blocked: bool = False
    lags: bool = False
    verbatim: bool = False
    announced: Callable[[str], None] | None = None


@dataclass(slots=True, eq=False)
class Client:
    """One session.

    `parked` is its place and `parked_at` the time (seconds, monotonic) since its last websocket
    went.
    """

    number: int
    session_id: str
    attachments: list[Attachment] = field(default_factory=list)
    parked: Place | None = None
    parked_at: float = 0.0


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
        self._numbers = 0

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
            self._numbers += 1
            client = Client(self._numbers, session_id)
            if session_id:
                self._by_session[session_id] = client
        place = client.parked or self._left_by(client) or now
        client.parked = None
        self._parked.pop(session_id, None)
        attachment = Attachment(client, link, dialect, place, place, place)
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
        """Remove a websocket; the place of a client's newest one is kept.

        Returns
        -------
        bool
            False if it was not attached (any more).
        """
        if attachment not in self.attachments:
            return False
        self.attachments.remove(attachment)
        client = attachment.client
        newest = client.attachments[-1] is attachment and (
            client.parked is None or now - client.parked_at > self._resume_timeout
        )
        client.attachments.remove(attachment)
        if client.attachments and attachment.delivered == attachment.began:
            newest = False  # a handshake that died: nobody has ever read there
        if client.session_id and newest:
            client.parked_at = now
            if self._resume_timeout > 0:
                client.parked = attachment.delivered
            self._parked[client.session_id] = client
            self._parked.move_to_end(client.session_id)
            if len(self._parked) > _REMEMBERED:
                session_id, oldest = self._parked.popitem(last=False)
                oldest.parked = None
                if not oldest.attachments:
                    del self._by_session[session_id]
        return True

    @staticmethod
    def _left_by(client: Client) -> Place | None:
        """Up to where a websocket is known to have read whose client may have given it up.

        A connection that broke in silence looks like one whose acknowledgement is on its way.
        """
        return client.attachments[-1].delivered if client.attachments else None

    def slowest(self, now: float, end: int) -> int:
        """The lowest sequence number that somebody has yet to read; `end` where there is nobody."""
        for attachment in self.attachments:
            seq = attachment.delivered.seq
            end = min(end, seq)
        for client in self._holding(now):
            if client.parked is not None:
                end = min(end, client.parked.seq)
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
