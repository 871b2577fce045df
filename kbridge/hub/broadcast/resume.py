"""Finds the place in a journal of the last message that a client saw (`?since=`)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

from kbridge.errors import InvalidRequest
from kbridge.flow.executions import Executions
from kbridge.flow.journal import Journal, Place
from kbridge.hub.recovered import Lives
from kbridge.storage.history import History
from kbridge.wire import v1
from kbridge.wire.message import id_keys, scan

__all__ = [
    "START",
    "ResumePoint",
    "before_requests",
    "find_in_memory",
    "find_on_disk",
    "resolve_since",
]

START: Final = "start"
"""The value of `since` that asks for all frames in the journal."""

_LONGEST: Final = 512  # maximum characters of a msg_id to search for


class ResumePoint(NamedTuple):
    """A place in a journal.

    Attributes
    ----------
    place : Place
        The place.
    exact : bool
        True if the client is known to have seen all frames before it.
    """

    place: Place
    exact: bool


def resolve_since(journal: Journal, since: str, lives: Lives) -> ResumePoint:
    """Find the place in a journal that a client names.

    A message that is not in the journal is not an error: the client then gets a marker for the gap.

    Parameters
    ----------
    journal : Journal
        The journal.
    since : str
        The `msg_id` of the last message that the client saw, its sequence number (digits, as in
        the pings of the bridge), or "start".
    lives : Lives
        The bridges that have served the kernel, for the numbers in their pings and the ids of their
        markers.

    Raises
    ------
    InvalidRequest
        If `since` is longer than any id.
    """
    if len(since) > _LONGEST:
        raise InvalidRequest(f"since has more than {_LONGEST} characters")
    if since == START:
        return ResumePoint(journal.oldest(), exact=False)
    seq = lives.marker_seq(since)
    if seq is None and since.isdecimal() and since.isascii():
        seq = lives.seq_of(int(since))
    place = journal.after_seq(seq) if seq is not None else None
    if place is None:
        place = find_in_memory(journal, since)
    if place is None:
        return ResumePoint(journal.unknown(), exact=False)
    return ResumePoint(place, exact=True)


def before_requests(journal: Journal, executions: Executions, requests: Iterable[str]) -> Place:
    """Return the place before the first message of the earliest of some requests.

    It is before all frames if one of the requests is not known, and after all frames if the kernel
    has yet to begin all of them.
    """
    first, oldest = journal.next_seq, journal.oldest()
    for request in requests:
        execution = executions.get(request)
        if execution is None:
            return oldest
        if execution.first is not None:
            first = min(first, execution.first)
    place = journal.after_seq(first - 1) or oldest
    # If the frame is gone, the gap is reported at once, and not with the next frame of the kernel.
    return place if place.seq >= oldest.seq else place._replace(seq=oldest.seq)


async def find_on_disk(history: History, msg_id: str) -> Place | None:
    """Return the place after the newest message on disk with that id; None if there is none."""
    matches = partial(_has_id, msg_id)
    found = [await history.find(key, matches) for key in id_keys(msg_id)]
    return max((place for place in found if place is not None), default=None)


def find_in_memory(journal: Journal, msg_id: str) -> Place | None:
    """Return the place after the newest message in memory with that id; None if there is none."""
    matches = partial(_has_id, msg_id)
    found = (journal.after(key, matches) for key in id_keys(msg_id))
    return max((place for place in found if place is not None), default=None)


def _has_id(msg_id: str, frame: bytes) -> bool:
    return scan(v1.header_of(frame), "msg_id") == msg_id
