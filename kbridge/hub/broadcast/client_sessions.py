"""The websockets attached to a hub, and the sessions that may reconnect.

No method iterates over all websockets for a message or a pong.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from operator import attrgetter
from typing import Final

from kbridge.flow.journal import Place
from kbridge.flow.lowest import Lowest
from kbridge.hub.broadcast.cursor import ClientSession, Cursor, CursorOptions
from kbridge.link.interfaces import ClientLink
from kbridge.wire.dialects import Dialect

__all__ = ["ClientSessions"]

_REMEMBERED: Final = 1000  # sessions without a websocket whose place is kept
_LONGEST_SESSION: Final = 128  # characters; of a longer session id a digest is kept


class ClientSessions:
    """The sessions of one hub's clients.

    Parameters
    ----------
    resume_timeout : float
        Seconds for which frames are kept for a session without a websocket; 0 keeps none. At most
        1,000 such sessions are remembered. The journal's limit bounds the frames kept: a full
        journal forgets the oldest frames, also those that were not read.
    first_number : int
        A number that is below those of all sessions and websockets, except restored ones.

    Attributes
    ----------
    cursors : list of Cursor
        All websockets, oldest first. The list is replaced when they change, never modified.
    keeps_all : bool
        True while another replica serves the clients: then it is not known here what they have
        read, so no frame counts as read by all.
    left : dict of ClientSession or None
        The sessions that have lost a websocket, for other replicas; None if they are not collected.
        The reader removes them.
    """

    def __init__(self, resume_timeout: float, first_number: int = 0) -> None:
        self._resume_timeout = resume_timeout
        self.cursors: list[Cursor] = []
        self._attached: dict[Cursor, None] = {}  # oldest first
        self._delivered: Lowest[Cursor] = Lowest(attrgetter("delivered.seq"))
        self._by_session: dict[str, ClientSession] = {}
        self._present: dict[int, ClientSession] = {}  # sessions with a websocket, by number
        self._parked: OrderedDict[str, ClientSession] = OrderedDict()  # oldest disconnect first
        # The parked sessions that frames are kept for.
        self._holding: OrderedDict[ClientSession, None] = OrderedDict()
        self._held: Lowest[ClientSession] = Lowest(attrgetter("place.seq"))
        self.keeps_all = False
        self.left: dict[ClientSession, None] | None = None
        self._numbers = first_number  # used for sessions and for websockets
        self._forgotten: list[ClientSession] = []

    def attach(
        self,
        link: ClientLink,
        dialect: Dialect,
        session_id: str,
        place: Place,
        options: CursorOptions,
    ) -> Cursor:
        """Add a websocket.

        Parameters
        ----------
        link, dialect, options
            The websocket, the format of its frames, and its options.
        session_id : str
            The id of its session; empty for a websocket that cannot resume.
        place : Place
            Where it starts if its session does not resume.
        """
        session_id = _short(session_id)
        session = self._by_session.get(session_id) if session_id else None
        if session is None:
            session = ClientSession(self._next(), session_id)
            if session_id:
                self._by_session[session_id] = session
        self._unpark(session)
        cursor = Cursor(self._next(), session, link, dialect, place, options)
        self._present[session.number] = session
        self._attached[cursor] = None
        self.cursors = list(self._attached)
        self._delivered.add(cursor)
        return cursor

    def restore(
        self, session_id: str, number: int, place: Place | None, now: float
    ) -> ClientSession:
        """Remember a session of an earlier bridge, which may come back; return it.

        Parameters
        ----------
        session_id, number
            Its id and its number.
        place : Place or None
            Where it resumes; None if no frames are kept for it.
        now : float
            Monotonic seconds.
        """
        known = self._by_session.get(session_id)
        if known is not None:
            self._unpark(known)
        session = ClientSession(number, session_id, place if self._resume_timeout > 0 else None)
        self._by_session[session_id] = session
        self._park(session, now)
        return session

    def adopt(self, session_id: str, place: Place, now: float) -> ClientSession:
        """Remember a session of another replica, which may come back; return it.

        A session that is known has no websocket; the later of its places counts.

        Parameters
        ----------
        session_id : str
            Its id, as `ClientSession.session_id` has it.
        place : Place
            Where it resumes.
        now : float
            Monotonic seconds.
        """
        known = self._by_session.get(session_id)
        if known is None:
            return self.restore(session_id, self._next(), place, now)
        if known.place is not None and place.frames >= 0 and known.place.seq > place.seq:
            return known  # this bridge has served it before, and knows better
        return self.restore(session_id, known.number, place, now)

    @property
    def all(self) -> list[ClientSession]:
        """The sessions that are remembered, connected or not, except those without an id."""
        return list(self._by_session.values())

    @property
    def present(self) -> list[ClientSession]:
        """The sessions that have a websocket."""
        return list(self._present.values())

    def find(self, number: int) -> ClientSession | None:
        """Return the session with that number; None if it is not remembered."""
        session = self._present.get(number)
        if session is not None or number <= 0:
            return session
        return next((each for each in self._parked.values() if each.number == number), None)

    def get(self, session_id: str) -> ClientSession | None:
        """Return the session with an id; None if it is not remembered."""
        return self._by_session.get(_short(session_id)) if session_id else None

    def take_forgotten(self) -> list[ClientSession]:
        """Return the sessions that are not remembered any longer, once."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def start_at(self, cursor: Cursor, place: Place) -> None:
        """Let a websocket that was just attached start at the place that its client named."""
        cursor.start_at(place)
        self._delivered.add(cursor)

    def known(self, session_id: str) -> bool:
        """Return True if a session is remembered."""
        return bool(session_id) and _short(session_id) in self._by_session

    def is_here(self, number: int) -> bool:
        """Return True if the session with that number has a websocket."""
        return number in self._present

    def detach(self, cursor: Cursor, now: float) -> bool:
        """Remove a websocket; the place of its session is remembered.

        Returns
        -------
        bool
            False if it was not attached.
        """
        if cursor not in self._attached:
            return False
        del self._attached[cursor]
        self.cursors = list(self._attached)
        self._delivered.discard(cursor)
        session = cursor.session
        session.remove(cursor)
        if self.left is not None and session.session_id:
            self.left[session] = None
        if not session.cursors:
            del self._present[session.number]
        if not session.session_id or session.acked_here:
            return True
        if self._resume_timeout <= 0 and not session.cursors:
            session.release()
        self._park(session, now)
        return True

    def slowest(self, now: float, end: int) -> int:
        """Return the lowest sequence number that a client has not read; `end` without clients."""
        if self.keeps_all:
            return 0
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

    @property
    def paced(self) -> bool:
        """True if the rate limits apply to some websocket."""
        return any(cursor.paced for cursor in self.cursors)

    @property
    def parked(self) -> int:
        """The number of sessions that are remembered without a websocket, or with a silent one."""
        return len(self._parked)

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _park(self, session: ClientSession, now: float) -> None:
        self._unpark(session)
        session.park(now)
        self._parked[session.session_id] = session
        if session.place is not None:
            self._holding[session] = None
            self._held.add(session)
        if len(self._parked) > _REMEMBERED:
            oldest = next(iter(self._parked.values()))
            self._unpark(oldest)
            oldest.release()
            if not oldest.cursors:
                del self._by_session[oldest.session_id]
                self._forgotten.append(oldest)

    def _unpark(self, session: ClientSession) -> None:
        if self._parked.pop(session.session_id, None) is not None:
            self._holding.pop(session, None)
            self._held.discard(session)


def _short(session_id: str) -> str:
    """Return the key of a session: its id, or a digest, since clients choose ids of any length."""
    if len(session_id) <= _LONGEST_SESSION:
        return session_id
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()
