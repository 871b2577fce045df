"""Where a client is to begin that says what it saw last (`?since=`)."""

from __future__ import annotations

from typing import Final, NamedTuple

from kbridge.errors import InvalidRequest
from kbridge.flow.journal import Journal, Place
from kbridge.hub.notices import Notices
from kbridge.wire import v1
from kbridge.wire.message import id_keys, scan

__all__ = ["START", "Found", "SessionIndex", "locate"]

START: Final = "start"
"""All that is held."""

_LONGEST: Final = 512  # characters of a msg_id that is looked for, or of a session that is noted
_SESSIONS: Final = 1000  # sessions whose first message is noted


class Found(NamedTuple):
    """A place in a journal, and whether what lies before it is known to have been seen."""

    place: Place
    seen: bool


def locate(journal: Journal, since: str, origin: int, notices: Notices) -> Found:
    """Find the place in a journal that a client names.

    What is not held any more, or never was, is no error: the place is then one whose reader is told
    of the gap.

    Parameters
    ----------
    journal : Journal
        Where to look.
    since : str
        The `msg_id` of the last message that the client saw, the last sequence number (digits,
        as the bridge's pings carry it), or "start".
    origin : int
        What is added to the journal's sequence numbers outside.
    notices : Notices
        Who made the markers, whose ids say where they stand.

    Raises
    ------
    InvalidRequest
        If it is longer than any id.
    """
    if len(since) > _LONGEST:
        raise InvalidRequest(f"since has more than {_LONGEST} characters")
    if since == START:
        return Found(journal.oldest(), seen=False)
    seq = notices.stands_behind(since)
    if seq is None and since.isdecimal() and since.isascii():
        seq = int(since) - origin
    place = journal.after_seq(seq) if seq is not None else None
    if place is None:
        place = _after_id(journal, since)
    return Found(journal.unknown(), seen=False) if place is None else Found(place, seen=True)


class SessionIndex:
    """Where the first message stands that answers a request of each session.

    For a journal that is younger than its kernel: a session that sent requests before the journal
    began, and comes back, starts there. Sessions beyond a limit are not noted.
    """

    __slots__ = ("_first", "_parent")

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._parent = b""

    def note(self, parent_header: bytes, seq: int) -> None:
        """Note the parent header of the message with that sequence number."""
        if parent_header == self._parent:  # most messages have the parent of the one before
            return
        self._parent = parent_header
        session = scan(parent_header, "session")
        if session and len(session) <= _LONGEST and len(self._first) < _SESSIONS:
            self._first.setdefault(session, seq)

    def find(self, journal: Journal, session: str) -> Place | None:
        """Return the place before the first message for a session; None if there is none."""
        seq = self._first.get(session)
        return None if seq is None else journal.after_seq(seq - 1)


def _after_id(journal: Journal, msg_id: str) -> Place | None:
    def matches(frame: bytes) -> bool:
        return scan(v1.header_of(frame), "msg_id") == msg_id

    found = (journal.after(key, matches) for key in id_keys(msg_id))
    return max((place for place in found if place is not None), default=None)
