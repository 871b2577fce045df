"""Collects changes in the state of a kernel, for the replica that may take it over.

It is asked about once per second, so it costs nothing per message. Each time, it looks at the
sessions that are or were connected, and at the executions that have changed.
`kbridge.flow.handover` describes the entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from kbridge.flow.execution import Execution
from kbridge.flow.handover import END, Changes, Question, make_entry
from kbridge.flow.journal import EVERYONE, Journal
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import ClientSession
from kbridge.hub.broadcast.execution_tracker import ExecutionTracker
from kbridge.hub.broadcast.inputs import Inputs
from kbridge.wire import v1
from kbridge.wire.message import Channel, scan

__all__ = ["OwnFrames", "StateExport", "id_before"]

_OWN: Final = 1000  # frames of the bridge whose numbers are kept
_SEARCHED: Final = 2000  # frames before a place that are looked at
_INPUT_BYTES: Final = 16384  # larger input requests are not passed on
_IOPUB: Final = Channel.IOPUB.encode()


class OwnFrames:
    """The numbers of the latest frames that the bridge itself has made.

    Other replicas do not have these frames.
    """

    def __init__(self) -> None:
        self._seqs: dict[int, None] = {}

    def add(self, seq: int) -> None:
        """Note the number of a frame."""
        self._seqs[seq] = None
        if len(self._seqs) > _OWN:
            del self._seqs[next(iter(self._seqs))]

    def __contains__(self, seq: object) -> bool:
        return seq in self._seqs


def id_before(journal: Journal, seq: int, own: OwnFrames) -> str | None:
    """Return the id of the last message of the kernel on iopub before number `seq`.

    Empty if there is none; None if the frames before it are not in memory any longer.
    """
    for at in range(seq - 1, max(-1, seq - 1 - _SEARCHED), -1):
        found = journal.in_memory(at)
        if found is None:
            break
        frame, audience = found
        if audience == EVERYONE and at not in own:
            channel, header, _ = v1.envelope(frame)
            if channel == _IOPUB:
                return scan(header, "msg_id")
    else:
        return "" if seq <= _SEARCHED else None
    return None


class StateExport:
    """Collects the changes of one kernel.

    Parameters
    ----------
    journal : Journal
        The output of the kernel.
    sessions : ClientSessions
        The sessions of its clients.
    tracker : ExecutionTracker
        The executions; it collects those that change from now on.
    inputs : Inputs
        The input requests that wait.
    own : OwnFrames
        The frames that only this replica has.

    Attributes
    ----------
    new : dict of ClientSession
        The sessions that are new since the last call of a method; the broadcaster adds them.
    """

    def __init__(
        self,
        journal: Journal,
        sessions: ClientSessions,
        tracker: ExecutionTracker,
        inputs: Inputs,
        own: OwnFrames,
    ) -> None:
        self._journal = journal
        self._sessions = sessions
        self._tracker = tracker
        self._inputs = inputs
        self._own = own
        self._end = -1  # of the journal, at the last time
        self._places: dict[ClientSession, int] = {}  # of the sessions that are connected
        self.new: dict[ClientSession, None] = {}
        self._forgotten: dict[str, None] = {}
        # Those that have lost a websocket; `ClientSessions` adds them.
        self._sessions_left = sessions.left = dict.fromkeys(sessions.all)
        # By id, the executions that other replicas have to build a reply for: header and error.
        self._owed: dict[str, tuple[bytes, dict[str, Any] | None]] = {}
        self._asked: dict[str, str] = {}  # the request of each input request that waits
        tracker.changed = {
            each.msg_id: (each.header, each.error) for each in tracker.executions.find()
        }

    def take(self) -> Changes:
        """Return the changes since the last call."""
        return Changes(self._take_places(), self._take_executions())

    def take_new(self) -> dict[str, str]:
        """Return the places of the sessions that are new since the last call of a method."""
        new, self.new = self.new, {}
        found: dict[str, str | None] = {}
        for session in new:
            if session.place is not None:
                self._places[session] = session.place.seq
                self._add(found, session.session_id, session.place.seq)
        return {name: msg_id for name, msg_id in found.items() if msg_id is not None}

    def forget(self, sessions: Iterable[ClientSession]) -> None:
        """Note that sessions are not remembered any longer."""
        for session in sessions:
            self._places.pop(session, None)
            self._sessions_left.pop(session, None)
            self._forgotten[session.session_id] = None

    def _take_places(self) -> dict[str, str | None]:
        forgotten, self._forgotten = self._forgotten, {}
        found: dict[str, str | None] = {
            name: None for name in forgotten if not self._sessions.known(name)
        }
        self.new.clear()  # they are among the sessions that are, or were, connected
        if self._end != self._journal.next_seq:
            self._end = self._journal.next_seq
            self._add(found, END, self._end)
        left = self._sessions_left
        known, self._places = self._places, {}
        for session in {**left, **dict.fromkeys(self._sessions.present)}:
            place = session.place
            if session.session_id and place is not None:
                if session.cursors:
                    self._places[session] = place.seq
                if known.get(session) != place.seq:
                    self._add(found, session.session_id, place.seq)
        left.clear()
        return found

    def _add(self, places: dict[str, str | None], session_id: str, seq: int) -> None:
        msg_id = id_before(self._journal, seq, self._own)
        if msg_id is not None:
            places[session_id] = msg_id

    def _take_executions(self) -> dict[str, dict[str, Any] | None]:
        executions, changed = self._tracker.executions, self._tracker.changed
        assert changed is not None
        asked = {msg_id: each.msg.parent_id for msg_id, each in self._inputs.open.items()}
        if asked != self._asked:
            for msg_id in asked.keys() ^ self._asked.keys():
                request = asked.get(msg_id) or self._asked[msg_id]
                changed.setdefault(request, self._owed.get(request, (b"", None)))
            self._asked = asked
        found = dict[str, dict[str, Any] | None]()
        for msg_id, kept in changed.items():
            execution = executions.get(msg_id)
            if kept[0] or msg_id not in self._owed:
                self._owed[msg_id] = kept
            if execution is None:
                self._owed.pop(msg_id, None)
                found[msg_id] = None
            else:
                found[msg_id] = self._entry(execution)
        changed.clear()
        for msg_id in list(self._owed.keys() - found.keys()):
            execution = executions.get(msg_id)
            if execution is None:
                del self._owed[msg_id]
            elif execution.replied is not None and not self._is_owed(execution):
                found[msg_id] = self._entry(execution)
        return found

    def _entry(self, execution: Execution) -> dict[str, Any]:
        msg_id = execution.msg_id
        session = self._sessions.find(execution.client)
        kept = self._owed[msg_id]
        owed = bool(kept[0]) and self._is_owed(execution)
        if not owed:
            del self._owed[msg_id]
        return make_entry(
            execution,
            session="" if session is None else session.session_id,
            owed=owed,
            kept=kept,
            reply=self._reply_of(execution),
            inputs=self._questions(msg_id),
        )

    def _is_owed(self, execution: Execution) -> bool:
        """Return True if the client may not have the reply."""
        if execution.replied is None:
            return not execution.finished or execution.owed
        session = self._sessions.find(execution.client)
        if session is None or not session.session_id or session.place is None:
            return False  # nobody can come back for it
        return session.place.seq < execution.replied

    def _reply_of(self, execution: Execution) -> tuple[str, str] | None:
        if execution.replied is None:
            return None
        found = self._journal.in_memory(execution.replied - 1)
        if found is None:
            return None
        msg_id = scan(v1.header_of(found[0]), "msg_id")
        before = id_before(self._journal, execution.replied - 1, self._own)
        return None if before is None else (msg_id, before)

    def _questions(self, request: str) -> list[Question]:
        return [
            Question(each.msg, id_before(self._journal, each.seq, self._own) or "")
            for each in self._inputs.open.values()
            if each.msg.parent_id == request and each.msg.nbytes <= _INPUT_BYTES
        ]
