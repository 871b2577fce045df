"""The requests to execute code of one kernel: who sent each, from which cell, and its output.

Invariants:

- an execution is `waiting`, then `running`, then `done`, `error` or `aborted`. It has finished when
  it has its reply and its idle status, or when the process of the kernel was replaced. Some kernels
  omit the idle status of an aborted request, or after an error: an aborted request has finished
  with its reply, others at the latest when the next request begins;
- a reply may be lost with the bridge that waited for it. `kbridge.flow.lost_replies` then builds it
  from the header, the execution count and the error of the execution, so they are kept until the
  reply and the idle status are on disk. The code is never kept;
- the reply and the idle status are noted with the end of the journal after them: after a crash,
  they count as delivered only if their frames were written to disk.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from kbridge.flow.activity import state_of
from kbridge.flow.execute_contents import (
    cell_of,
    code_size,
    count_of,
    error_of,
    status_of,
)
from kbridge.wire.message import Message, scan

__all__ = ["FINISHED", "OBSERVED", "Execution", "Executions"]

WAITING: Final = "waiting"
RUNNING: Final = "running"
DONE: Final = "done"
ERROR: Final = "error"
ABORTED: Final = "aborted"

FINISHED: Final = frozenset({DONE, ERROR, ABORTED})
"""The states of an execution that has finished."""

OBSERVED: Final = frozenset({"status", "execute_input", "execute_result", "error"})
"""The message types on iopub that change the state of an execution: pass them to `observe`."""

LIMIT: Final = 1000  # executions per kernel
_HEADER_BYTES: Final = 4096  # requests with a longer header are not noted


@dataclass(slots=True)
class Execution:
    """A request to execute code.

    Attributes
    ----------
    msg_id : str
        The id of the request.
    client : int
        The number of the session that sent it.
    header : bytes
        The header of the request, which replies name as parent; empty when no reply can be lost
        any longer.
    session : str
        The session in that header.
    cell : str or None
        `cellId` of the metadata of the request.
    code_bytes : int
        The size of the code.
    state : str
        `waiting`, `running`, `done`, `error` or `aborted`.
    outcome : str
        The state that it will finish with, as far as the kernel has said.
    submitted, started, ended : float or None
        Unix seconds; None if that has not happened.
    count : int or None
        The execution count.
    error : dict or None
        `ename`, `evalue` and `traceback` of its error; kept as long as `header`.
    first, last : int or None
        The sequence numbers in the journal of its first and its last message so far.
    messages : int
        The number of its messages in the journal.
    lines : int
        The number of line ends in its stream messages.
    nbytes : int
        The size of the contents of its messages.
    replied, ended_seq : int or None
        The sequence number after its reply, and after its idle status; None without one.
    """

    msg_id: str
    client: int
    header: bytes = b""
    session: str = ""
    cell: str | None = None
    code_bytes: int = 0
    state: str = WAITING
    outcome: str = DONE
    submitted: float = 0.0
    started: float | None = None
    ended: float | None = None
    count: int | None = None
    error: dict[str, Any] | None = None
    first: int | None = None
    last: int | None = None
    messages: int = 0
    lines: int = 0
    nbytes: int = 0
    replied: int | None = None
    ended_seq: int | None = None

    @property
    def finished(self) -> bool:
        """True if it is `done`, `error` or `aborted`."""
        return self.state in FINISHED

    @property
    def begun(self) -> bool:
        """True if the kernel has begun to run it."""
        return self.started is not None

    @property
    def over(self) -> bool:
        """True if it has its reply and its idle status."""
        return self.replied is not None and self.ended_seq is not None

    @property
    def owed(self) -> bool:
        """True if its reply or its idle status may be lost with the bridge."""
        return bool(self.header) and not self.over

    def count_output(self, end: int, messages: int, lines: int, nbytes: int) -> None:
        """Count its messages in the journal, up to number `end`."""
        self.last = end - 1
        self.messages += messages
        self.lines += lines
        self.nbytes += nbytes

    def settle(self) -> None:
        """Drop the fields from which a lost reply is built."""
        self.header, self.error = b"", None

    # -- events -----------------------------------------------------------------------------

    def observe(self, msg: Message, msg_type: str, end: int, now: float) -> bool:
        """Note a message of one of the types `OBSERVED`, whose parent the request is.

        Parameters
        ----------
        msg, msg_type
            The message and its type.
        end : int
            The sequence number after the message.
        now : float
            Unix seconds.

        Returns
        -------
        bool
            True if the message says something new about the execution.
        """
        state = state_of(msg.content) if msg_type == "status" else ""
        if self.over or (msg_type == "status" and state not in ("busy", "idle")):
            return False
        if self.state == ABORTED and self.replied is None:
            # The process that it was sent to has gone; perhaps the next one runs it.
            if state != "busy" and msg_type != "execute_input":
                return False
            self.state, self.outcome, self.ended = WAITING, DONE, None
            self.header = msg.parent_header
        changed = self.state == WAITING
        if changed:
            self.state, self.started = RUNNING, now
        if state == "idle":
            changed = self.ended_seq is None or changed
            self.ended_seq = self.ended_seq or end
            if self.replied is not None:
                self.finish(now)
        elif msg_type == "error":
            self.error, self.outcome, changed = error_of(msg.content), ERROR, True
        elif msg_type != "status":
            count = count_of(msg.content, msg_type)
            if count is not None and count != self.count:
                self.count, changed = count, True
        return changed

    def reply(self, content: bytes, end: int, now: float) -> bool:
        """Note the content of its reply; return True if it is the first one."""
        if self.replied is not None or self.state == ABORTED:
            return False
        self.replied = end
        status, count = status_of(content)
        if status in ("aborted", "abort"):
            self.outcome, self.started = ABORTED, None
        elif status == "error":
            self.outcome = ERROR
        if self.count is None:
            self.count = count
        if self.ended_seq is not None or self.outcome == ABORTED:
            self.finish(now)
        return True

    def finish(self, now: float) -> None:
        """Enter the final state, unless that has happened before."""
        if not self.finished:
            self.state, self.ended = self.outcome, now

    def abort(self, now: float) -> None:
        """Note that its process has gone."""
        if not self.finished:
            self.outcome = ABORTED
            self.finish(now)
        self.settle()

    # -- the log ----------------------------------------------------------------------------

    def entry(self) -> dict[str, Any]:
        """Return the value for the log: the fields that differ from their defaults."""
        found = {name: getattr(self, name) for name in _FIELDS}
        entry = {name: value for name, value in found.items() if value != _DEFAULTS.get(name)}
        if self.header:
            entry["header"] = self.header.decode("utf-8", "surrogateescape")
        return entry

    @classmethod
    def from_entry(cls, msg_id: str, entry: Mapping[str, Any], end: int) -> Execution:
        """Return the execution with that id whose value is `entry`.

        Parameters
        ----------
        msg_id, entry
            The id and the value.
        end : int
            The sequence number after the last frame on disk; a reply or status behind it is lost.

        Raises
        ------
        KeyError, TypeError, ValueError, AttributeError
            If no bridge wrote that value.
        """
        values = {name: _checked(name, entry[name]) for name in _FIELDS if name in entry}
        header = entry.get("header", "").encode("utf-8", "surrogateescape")
        found = cls(msg_id, values.pop("client"), header, **values)
        found._forget_unwritten(end)
        return found

    def _forget_unwritten(self, end: int) -> None:
        """Forget the frames from `end` on, which were not written to disk."""
        lost = False
        if self.header and self.replied is not None and self.replied > end:
            self.replied, lost = None, True
        if self.header and self.ended_seq is not None and self.ended_seq > end:
            self.ended_seq = None
            lost = lost or self.outcome != ABORTED
        if lost and self.finished:
            self.state, self.ended = (RUNNING if self.begun else WAITING), None
        if self.first is not None and self.first >= end:
            self.first = self.last = None
        elif self.last is not None and (self.owed or self.last >= end):
            self.last = end - 1  # the log is not written for each message


_DEFAULTS: Final = {field.name: field.default for field in fields(Execution)}
_TEXTS: Final = frozenset({"session", "cell", "state", "outcome"})
_TIMES: Final = frozenset({"submitted", "started", "ended"})
_FIELDS: Final = tuple(name for name in _DEFAULTS if name not in ("msg_id", "header"))
_STATES: Final = FINISHED | {WAITING, RUNNING}
_LATEST: Final = 1e11  # Unix seconds


def _checked(name: str, value: Any) -> Any:
    """Return a value of an entry if it has the type of that field.

    Raises
    ------
    TypeError, ValueError
        If it does not have it.
    """
    if name == "error":
        return dict(value)
    if name in _TEXTS:
        if not isinstance(value, str) or (name in ("state", "outcome") and value not in _STATES):
            raise ValueError(name)
    elif name in _TIMES:
        if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value < _LATEST):
            raise ValueError(name)
    elif not isinstance(value, int) or value < 0:
        raise ValueError(name)
    return value


class Executions:
    """The executions of one kernel, at most 1,000: the oldest that have finished go first.

    Parameters
    ----------
    saved : iterable of Execution
        The executions that earlier bridges noted, oldest first.
    """

    def __init__(self, saved: Iterable[Execution] = ()) -> None:
        self._all = {execution.msg_id: execution for execution in saved}
        self._finished = {e.msg_id: None for e in self._all.values() if e.finished}
        # Those that have a reply, but no idle status yet.
        self._replied = {
            e.msg_id: e for e in self._all.values() if e.replied is not None and not e.finished
        }
        self._forgotten: list[str] = []

    def __len__(self) -> int:
        return len(self._all)

    def get(self, msg_id: str) -> Execution | None:
        """Return the execution with that id, or None."""
        return self._all.get(msg_id)

    def find(
        self,
        state: Collection[str] = (),
        session: str | None = None,
        cell: str | None = None,
        limit: int | None = None,
    ) -> list[Execution]:
        """Return the executions with all these properties, newest last.

        Parameters
        ----------
        state : collection of str
            The states to return; empty for all.
        session, cell : str, optional
            The session that sent the request, and the id of the cell.
        limit : int, optional
            Return only so many: the newest.
        """
        found: list[Execution] = []
        for execution in reversed(self._all.values()):
            if limit is not None and len(found) >= limit:
                break
            if (
                (not state or execution.state in state)
                and (session is None or execution.session == session)
                and (cell is None or execution.cell == cell)
            ):
                found.append(execution)
        found.reverse()
        return found

    # -- events -----------------------------------------------------------------------------

    def submit(self, msg: Message, client: int, now: float) -> Execution | None:
        """Note an `execute_request`.

        Parameters
        ----------
        msg : Message
            The request.
        client : int
            The number of the session that sent it.
        now : float
            Unix seconds, as in all methods.

        Returns
        -------
        Execution or None
            None if the request has no id, or a header that is too long to be kept.
        """
        msg_id, header = msg.msg_id, bytes(msg.header)
        if not msg_id or len(header) > _HEADER_BYTES:
            return None
        self._remove(msg_id)  # clients choose the ids
        execution = Execution(
            msg_id,
            client,
            header,
            session=scan(header, "session"),
            cell=cell_of(msg.metadata),
            code_bytes=code_size(msg.content),
            submitted=now,
        )
        self._all[msg_id] = execution
        while len(self._all) > LIMIT:
            oldest = next(iter(self._finished or self._all))
            self._remove(oldest)
            self._forgotten.append(oldest)
        return execution

    def observe(self, msg: Message, msg_type: str, end: int, now: float) -> list[Execution]:
        """Note a message on iopub of one of the types `OBSERVED`.

        Parameters
        ----------
        msg, msg_type
            The message, as clients receive it, and its type.
        end : int
            The sequence number after it.
        now : float
            Unix seconds.

        Returns
        -------
        list of Execution
            The executions that have changed.
        """
        execution = self._all.get(msg.parent_id)
        if execution is None:
            return []
        state = execution.state
        if not execution.observe(msg, msg_type, end, now):
            return []
        changed = [execution]
        if execution.state != state:
            self._note(execution)
            if execution.state == RUNNING and self._replied:
                changed += self._end_replied(execution, now)
        return changed

    def replied(self, msg: Message, end: int, now: float) -> list[Execution]:
        """Note an `execute_reply`; `end` is the sequence number after it.

        Returns
        -------
        list of Execution
            The executions that have changed.
        """
        execution = self._all.get(msg.parent_id)
        if execution is None or not execution.reply(msg.content, end, now):
            return []
        self._note(execution)
        return [execution]

    def process_replaced(self, now: float) -> list[Execution]:
        """Abort all executions that have not finished; return them."""
        aborted = [e for e in self._all.values() if not e.finished or e.owed]
        for execution in aborted:
            execution.abort(now)
            self._note(execution)
        return aborted

    def forget(self, msg_id: str) -> bool:
        """Forget an execution that has finished; return False if there is none with that id."""
        if msg_id not in self._finished:
            return False
        self._remove(msg_id)
        return True

    def take_forgotten(self) -> list[str]:
        """Return the ids of the executions that were forgotten for newer ones, once."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def clear(self) -> None:
        """Forget everything."""
        for known in (self._all, self._finished, self._replied):
            known.clear()

    def _note(self, execution: Execution) -> None:
        """Note the present state of an execution that has changed."""
        msg_id = execution.msg_id
        if execution.finished:
            self._finished[msg_id] = None
            self._replied.pop(msg_id, None)
        else:
            self._finished.pop(msg_id, None)
            if execution.replied is not None:
                self._replied[msg_id] = execution

    def _end_replied(self, begun: Execution, now: float) -> list[Execution]:
        """Finish the executions whose idle status is missing: the kernel runs another one.

        Subshells run in parallel, so they say nothing about each other.
        """
        ended = [
            execution
            for execution in self._replied.values()
            if execution is not begun
            and execution.begun
            and b'"subshell_id"' not in execution.header + begun.header
        ]
        for execution in ended:
            execution.finish(now)
            self._note(execution)
        return ended

    def _remove(self, msg_id: str) -> None:
        if self._all.pop(msg_id, None) is not None:
            self._finished.pop(msg_id, None)
            self._replied.pop(msg_id, None)
