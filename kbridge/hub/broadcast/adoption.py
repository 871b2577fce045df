"""Requests from before the bridge connected to its kernel.

A kernel that outlived an earlier bridge may still run a request of that bridge's clients. Output
that it sent while no bridge was connected is missing, and this bridge does not know the sessions
that reconnect.
"""

from __future__ import annotations

from typing import Final

from kbridge.flow.activity import state_of
from kbridge.flow.journal import Journal, Place
from kbridge.wire.message import Message, scan

__all__ = ["Adoption"]

_LONGEST: Final = 512  # characters of a session id that is noted
_SESSIONS: Final = 1000  # sessions whose first message is noted
# Number of stored requests that were seen to begin; after so many, no earlier request is running.
_BEGUN: Final = 1000


class Adoption:
    """Notes where the sessions of an adopted kernel start, and which request was cut.

    Parameters
    ----------
    probe_mark : bytes
        A part of the parent header of every message that belongs to one of the bridge's probes.
    """

    __slots__ = ("_begun", "_first", "_mark", "_parent")

    def __init__(self, probe_mark: bytes) -> None:
        self._mark = probe_mark
        # The sequence number of the first message for each session, up to a limit.
        self._first: dict[str, int] = {}
        self._parent = b""
        # Requests that were seen to begin, until one is seen that began before the bridge did.
        self._begun: set[str] | None = set()

    def note(self, parent_header: bytes, seq: int) -> None:
        """Note the parent header of the message with that sequence number."""
        if parent_header == self._parent:  # most messages have the parent of the one before
            return
        self._parent = parent_header
        session = scan(parent_header, "session")
        if session and len(session) <= _LONGEST and len(self._first) < _SESSIONS:
            self._first.setdefault(session, seq)

    def start_of(self, journal: Journal, session: str) -> Place | None:
        """Return the place before the first message for a session; None if there is none."""
        seq = self._first.get(session)
        return None if seq is None else journal.after_seq(seq - 1)

    def is_cut(self, msg: Message, msg_type: str) -> bool:
        """Return True, once, at the first message of a request that began before the bridge did.

        Output of that request may be missing before the message.
        """
        begun, request = self._begun, msg.parent_id
        if begun is None or not request or request in begun or self._mark in msg.parent_header:
            return False
        if msg_type == "status" and state_of(msg.content) == "busy":
            begun.add(request)
            if len(begun) >= _BEGUN:
                self._begun = None
            return False
        self._begun = None
        return True

    def end(self) -> None:
        """Note that the process was replaced: no request from before the bridge is running."""
        self._begun = None
