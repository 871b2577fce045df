"""Writes the state of a kernel's clients and requests to its state log.

`kbridge.hub.recovered` describes the entries. Writing costs no I/O here: the log is written in
another thread, with the frames.

If the connections outlive this bridge, the messages come again. States that follow from them are
written as late as the frames, and a new request is remembered until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from kbridge.flow.execution import WAITING, Execution
from kbridge.flow.input_requests import InputRequest
from kbridge.hub.recovered import LIVES, Lives, input_entry, shown_late
from kbridge.storage.history import History

if TYPE_CHECKING:
    from kbridge.hub.broadcast.cursor import ClientSession

__all__ = ["PLACES_EVERY", "Recorder"]

PLACES_EVERY: Final = 0.05
"""Seconds between two writes of acknowledged places."""

_INPUT_BYTES: Final = 16384  # larger input requests are not recorded


class Recorder:
    """Writes the state log of one kernel.

    Parameters
    ----------
    history : History
        The files of the kernel.
    lives : Lives
        The bridges that have served the kernel; this one is written to the log.
    executions : iterable of Execution
        The requests to execute code in the log.
    """

    def __init__(self, history: History, lives: Lives, executions: Iterable[Execution]) -> None:
        self._history = history
        # The ends of these may not be on disk yet: the number after each end, by id.
        self._ended: dict[str, tuple[int, Execution]] = {}
        self._unwritten: set[str] = set()  # ids of those whose present state is not written yet
        self._inputs: dict[str, object] = {}  # client, number and readers, as recorded
        # As recorded, by number of the session; -1 if that is not known.
        self._places: dict[int, int | None] = {}
        self._moved: dict[ClientSession, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        history.record(f"life/{lives.index}", list(lives.present))
        if lives.index >= LIVES:
            history.record(f"life/{lives.index - LIVES}", None)
        # The log may name replies that were not written. Frames of this bridge get their numbers.
        known = {} if history.recovered is None else history.recovered.records
        for execution in executions:
            if execution.over:
                execution.settle()
            if execution.entry() != known.get(f"execution/{execution.msg_id}"):
                self._write(execution)
        # If frames are missing, their numbers are given to others: an old `settled` means nothing.
        self._settled = 0
        history.record("settled", 0)

    def kernel(self, mark: str) -> None:
        """Write the `kernel_mark` of the kernel."""
        self._history.record("kernel", mark)

    # -- sessions ---------------------------------------------------------------------------

    def attached(self, session: ClientSession, *, known: bool) -> None:
        """Note a websocket of a session; write the number of a session that was not known."""
        if not session.session_id:
            return
        if not known:
            self._history.record(f"session/{session.session_id}", session.number)
        self._places.setdefault(session.number, -1)
        self._place(session)

    def detached(self, session: ClientSession, forgotten: Iterable[ClientSession]) -> None:
        """Note that a websocket of a session has gone, and remove forgotten sessions."""
        self._place(session)
        for each in forgotten:
            self._moved.pop(each, None)
            self._places.pop(each.number, None)
            self._history.record(f"session/{each.session_id}", None)
            self._history.record(f"place/{each.number}", None)

    def _place(self, session: ClientSession, *, late: bool = False) -> None:
        seq = None if session.place is None else session.place.seq
        number = session.number
        if self._places.get(number, seq) != seq:  # a forgotten session has no entry
            self._places[number] = seq
            self._history.record(f"place/{number}", seq, late=late)

    def moved(self, session: ClientSession) -> None:
        """Write the place of a session soon, because it may have changed."""
        self._moved[session] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(PLACES_EVERY, self.write_places)

    def write_places(self) -> None:
        """Write the places that have changed, at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moved, self._moved = self._moved, {}
        for session in moved:
            self._place(session, late=True)

    def close(self) -> None:
        """Write the places that have changed, and hold no memory; may be called twice."""
        self.write_places()
        self._ended.clear()
        self._unwritten.clear()
        self._places.clear()

    # -- requests ---------------------------------------------------------------------------

    def execution(self, execution: Execution) -> None:
        """Write the state of a request to execute code, as it is when its line is made.

        That is at the end of the wake-up in which the request ends, or when the log is written.

        The fields from which a lost reply is built go when its end is on disk. In the log, they
        stay until the next bridge reads it, unless they are large; `settled` tells that bridge so.
        """
        if execution.msg_id not in self._unwritten:  # a cell changes several times between writes
            self._write(execution)
        if execution.over:
            self._history.finish(f"execution/{execution.msg_id}")
            if execution.header:
                self._settle()
                self._ended[execution.msg_id] = execution.end, execution

    def _settle(self) -> None:
        """Drop these fields of the executions whose end is on disk now."""
        on_disk, settled = self._history.end, []
        for end, execution in self._ended.values():
            if end > on_disk:
                break
            settled.append(execution)
            self._settled = max(self._settled, end)
        if not settled:
            return
        self._history.record("settled", self._settled, late=True)
        for execution in settled:
            del self._ended[execution.msg_id]
            large = execution.error is not None
            execution.settle()
            if large and execution.msg_id not in self._unwritten:
                self._write(execution)

    def forget_execution(self, msg_id: str) -> None:
        """Remove a request to execute code."""
        self._ended.pop(msg_id, None)
        self._unwritten.discard(msg_id)
        self._history.record(f"execution/{msg_id}", None, late=True)

    def _write(self, execution: Execution) -> None:
        self._unwritten.add(execution.msg_id)
        key, history = f"execution/{execution.msg_id}", self._history
        # The messages of a request that has begun, or has a reply, say what has become of it.
        late = execution.begun or execution.replied is not None
        if execution.state == WAITING and not late:
            late = history.remember(key, execution.to_json)
        history.record(key, partial(self._to_json, execution), late=late)

    def _to_json(self, execution: Execution) -> str:
        """Return the state of an execution, which is being written."""
        self._unwritten.discard(execution.msg_id)
        return execution.to_json()

    def inputs(self, waiting: Mapping[str, InputRequest]) -> None:
        """Take the input requests without an answer, by id, after each change."""
        for msg_id in self._inputs.keys() - waiting.keys():
            del self._inputs[msg_id]
            self._history.record(f"input/{msg_id}", None)
        for msg_id, question in waiting.items():
            place = question.client, question.seq, shown_late(question)
            if self._inputs.get(msg_id) != place and question.msg.nbytes <= _INPUT_BYTES:
                self._inputs[msg_id] = place
                self._history.record(f"input/{msg_id}", input_entry(question))
