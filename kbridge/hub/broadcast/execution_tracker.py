"""Notes the state of each request to execute code, and writes the changes to the state log.

Clients come first: what the messages of a wake-up say about requests is noted after their frames
were written, by `settle`, or as soon as somebody asks for the executions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from kbridge.errors import Conflict, NotFound
from kbridge.flow.execution import Execution
from kbridge.flow.executions import Executions
from kbridge.flow.output_counter import OutputCounter
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.clock import Clock, timestamp
from kbridge.hub.events import ExecutionObserver
from kbridge.hub.recorder import Recorder
from kbridge.wire.message import Message

__all__ = ["ExecutionTracker"]

# A wake-up may bring any number of messages; those that are not noted yet are held in memory.
_LARGE: Final = 64 << 10  # bytes; the content of a message that is noted at once
_MANY: Final = 100  # messages that are noted together


class ExecutionTracker:
    """Changes the executions of one kernel.

    Parameters
    ----------
    saved : iterable of Execution
        The executions that earlier bridges noted, oldest first.
    recorder : Recorder or None
        Writes the state log; None for a journal in memory only.
    sessions : ClientSessions
        The sessions of the clients.
    clock : Clock
        The source of the time.
    origin : int
        Added to sequence numbers for clients, as in pings.
    trace : ExecutionObserver, optional
        Receives the changes.
    following : bool
        True if another bridge sends the requests; see `Executions`.

    Attributes
    ----------
    counter : OutputCounter
        Counts the messages in the journal.
    changed : dict or None
        For other replicas, by id, the executions that have changed: header and error, which are not
        kept long; None if they are not collected. The reader removes them.
    """

    def __init__(
        self,
        saved: Iterable[Execution],
        recorder: Recorder | None,
        sessions: ClientSessions,
        clock: Clock,
        origin: int,
        trace: ExecutionObserver | None = None,
        *,
        following: bool = False,
    ) -> None:
        self._executions = Executions(saved, following=following)
        # Messages that are not noted yet, with their types and the sequence numbers after them.
        self._heard: list[tuple[Message, str, int]] = []
        self.changed: dict[str, tuple[bytes, dict[str, Any] | None]] | None = None
        self.counter = OutputCounter(self._executions)
        self._recorder = recorder
        self._sessions = sessions
        self._clock = clock
        self._origin = origin
        self._trace = trace

    def submitted(self, msg: Message, client: int) -> None:
        """Note an `execute_request` of the session with that number."""
        execution = self.executions.submit(msg, client, self._clock.wall())
        self.counter.look_again()
        for forgotten in self.executions.take_forgotten():
            self._forgotten(forgotten)
        if execution is not None:
            self._changed((execution,))
        elif self._trace is not None:
            self._trace.on_not_noted(msg.msg_id)

    @property
    def executions(self) -> Executions:
        """The executions."""
        self.settle()
        return self._executions

    def hear(self, msg: Message, msg_type: str, end: int) -> None:
        """Take a message on iopub of one of the types `OBSERVED`, or an `execute_reply`.

        Parameters
        ----------
        msg, msg_type
            The message, as clients receive it, and its type.
        end : int
            The sequence number after it.
        """
        self._heard.append((msg, msg_type, end))
        if (
            self._executions.following  # the request may be new: its output must be counted
            or len(msg.content) > _LARGE
            or len(self._heard) >= _MANY
        ):
            self.settle()

    def settle(self) -> None:
        """Note what the messages say that were heard; call it at the end of a wake-up."""
        if not self._heard:
            return
        heard, self._heard = self._heard, []
        now = self._clock.wall()
        for msg, msg_type, end in heard:
            if msg_type == "execute_reply":
                self._changed(self._executions.replied(msg, end, now))
            else:
                self._observe(msg, msg_type, end, now)

    def _observe(self, msg: Message, msg_type: str, end: int, now: float) -> None:
        executions = self._executions
        noted = len(executions) if executions.following else 0
        changed = executions.observe(msg, msg_type, end, now)
        if changed:
            self._changed(changed)
            if executions.following and len(executions) > noted:
                # Its first message is in the journal already.
                changed[0].first = end - 1
                changed[0].count_output(end, 1, 0, len(msg.content))
                self.counter.look_again()

    def process_replaced(self, waiting: Collection[str]) -> None:
        """Note that the process of the kernel has gone: what it has not finished is aborted.

        Requests with an id in `waiting` are for the next process.
        """
        self._changed(self.executions.process_replaced(self._clock.wall(), waiting))

    def take_over(self, executions: Collection[Execution]) -> None:
        """Go on with these executions as the bridge that sends the requests; oldest first."""
        self.executions.take_over(executions)
        self.counter.look_again()
        for forgotten in self.executions.take_forgotten():
            self._forgotten(forgotten)
        self._changed(self.executions.find())

    def forget(self, msg_id: str) -> None:
        """Forget an execution that has finished.

        Raises
        ------
        NotFound
            If there is no execution with that id.
        Conflict
            If it has not finished.
        """
        if self.executions.get(msg_id) is None:
            raise NotFound("there is no such execution")
        if not self.executions.forget(msg_id):
            raise Conflict("the execution has not finished")
        self.counter.look_again()
        self._forgotten(msg_id)

    def describe(self, execution: Execution) -> dict[str, Any]:
        """Return an execution as clients receive it, in JSON."""
        return {
            "id": execution.msg_id,
            "session_id": execution.session,
            "cell_id": execution.cell,
            "state": execution.state,
            "code_bytes": execution.code_bytes,
            "submitted": timestamp(execution.submitted),
            "started": _time(execution.started),
            "ended": _time(execution.ended),
            "execution_count": execution.count,
            "first_seq": self._number(execution.first),
            "last_seq": self._number(execution.last),
            "messages": execution.messages,
            "lines": execution.lines,
            "output_bytes": execution.nbytes,
            "displays": execution.displays,
            "connected": self._sessions.is_here(execution.client),
        }

    def close(self) -> None:
        """Hold no memory."""
        self.executions.clear()
        if self._trace is not None:
            self._trace.close()
        self.counter.look_again()

    def _number(self, seq: int | None) -> int | None:
        return None if seq is None else self._origin + seq

    def _changed(self, executions: Iterable[Execution]) -> None:
        """Write executions that have changed.

        Their output is counted at the end of a wake-up, before the log is written.
        """
        recorder, trace, collected = self._recorder, self._trace, self.changed
        for execution in executions:
            if collected is not None and (execution.header or execution.msg_id not in collected):
                collected[execution.msg_id] = execution.header, execution.error
            if trace is not None:
                trace.on_execution(execution)
            if recorder is not None:
                recorder.execution(execution)
            elif execution.over:
                execution.settle()

    def _forgotten(self, msg_id: str) -> None:
        if self.changed is not None:
            self.changed[msg_id] = b"", None
        if self._recorder is not None:
            self._recorder.forget_execution(msg_id)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)
