"""Where a client is to begin that says what it saw last (`?since=`)."""

from __future__ import annotations

import json
from typing import Final

from kbridge.errors import InvalidRequest
from kbridge.flow.journal import Gap, Journal, Place
from kbridge.hub.notices import Notices
from kbridge.wire import v1
from kbridge.wire.frames import payload

__all__ = ["START", "locate"]

START: Final = "start"
"""All that is held."""

_LONGEST: Final = 512  # characters of a msg_id that is looked for


def locate(journal: Journal, since: str, origin: int, notices: Notices) -> tuple[Place, Gap | None]:
    """Find the place in a journal that a client names.

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

    Returns
    -------
    place : Place
        What to read next.
    gap : Gap or None
        What was lost before that, where something was: the place is then the oldest one. Its
        numbers are 0 where nobody knows them.

    Raises
    ------
    InvalidRequest
        If it is longer than any id.
    """
    if len(since) > _LONGEST:
        raise InvalidRequest(f"since has more than {_LONGEST} characters")
    oldest = journal.oldest()
    if since == START:
        return oldest, Gap(oldest.seq, oldest.nbytes, b"") if oldest.seq else None
    seq = notices.stands_behind(since)
    if seq is None and since.isdecimal() and since.isascii():
        seq = int(since) - origin
    place = journal.after_seq(seq) if seq is not None else _after_id(journal, since)
    if place is not None:
        return place, None
    known = seq is not None and 0 <= seq < oldest.seq
    return oldest, Gap(oldest.seq - seq - 1 if known and seq is not None else 0, 0, b"")


def _after_id(journal: Journal, msg_id: str) -> Place | None:
    # JSON writers put an id either so or so; what only contains it is told apart after.
    spellings = {json.dumps(msg_id)[1:-1].encode(), msg_id.encode("utf-8", "surrogatepass")}

    def matches(frame: bytes) -> bool:
        return any(s in frame for s in spellings) and v1.split(payload(frame)).msg_id == msg_id

    return journal.after(matches)
