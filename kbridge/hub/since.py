"""Where a client is to begin that says what it saw last (`?since=`)."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from kbridge.errors import InvalidRequest
from kbridge.flow.journal import Journal, Place
from kbridge.hub.notices import Notices
from kbridge.wire import v1
from kbridge.wire.frames import payload
from kbridge.wire.message import scan

__all__ = ["START", "Found", "locate", "spoken_to"]

START: Final = "start"
"""All that is held."""

_LONGEST: Final = 512  # characters of a msg_id that is looked for


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


def spoken_to(journal: Journal, session: str) -> Place | None:
    """The place before the first message that came of a request of a session; None: there is none.

    For a journal that is younger than its kernel: who asked before it began is not known to it.
    """
    named = f'"{session}"'.encode()

    def matches(frame: bytes) -> bool:
        if named not in frame:
            return False
        return scan(v1.split(payload(frame)).parent_header, "session") == session

    return journal.before(matches)


def _after_id(journal: Journal, msg_id: str) -> Place | None:
    # Spellings of the id; what merely contains one (it may be everybody's parent) is told apart
    # after.
    plain = json.dumps(msg_id).encode()
    raw = b'"' + msg_id.encode("utf-8", "surrogatepass") + b'"'

    def matches(frame: bytes) -> bool:
        return (plain in frame or raw in frame) and scan(v1.header_of(frame), "msg_id") == msg_id

    return journal.after(matches)
