"""One request to execute code: its client and cell, its state, and where its output is.

Invariants:

- an execution is `waiting`, then `running`, then `done`, `error` or `aborted`. It has finished when
  it has its reply and its idle status, or when the process of the kernel was replaced. An aborted
  request has finished with its reply. Some kernels omit the idle status of an aborted request, or
  after an error: it counts as sent when the next request begins. An execution without a reply has
  finished when a later one has its reply;
- a reply may be lost with the bridge that waited for it. `kbridge.flow.lost_replies` then builds it
  from the header, the execution count and the error of the execution, so they are kept until the
  reply and the idle status are on disk. The code is never kept;
- the reply and the idle status are noted with the end of the journal after them: after a crash,
  they count as delivered only if their frames were written to disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from kbridge.flow.activity import state_of
from kbridge.flow.execute_contents import count_of, error_of, status_of
from kbridge.wire.message import Message

__all__ = ["ABORTED", "FINISHED", "OBSERVED", "RUNNING", "WAITING", "Execution"]

WAITING: Final = "waiting"
RUNNING: Final = "running"
DONE: Final = "done"
ERROR: Final = "error"
ABORTED: Final = "aborted"

FINISHED: Final = frozenset({DONE, ERROR, ABORTED})
"""The states of an execution that has finished."""

OBSERVED: Final = frozenset({"status", "execute_input", "execute_result", "error"})
"""The message types on iopub that change the state of an execution: pass them to `observe`."""


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
    displays : bool
        True if it has shown a display with an id, which later messages may change.
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
    displays: bool = False
    replied: int | None = None
    ended_seq: int | None = None
    # The fields that `_request_to_json` writes, and the result.
    _request: tuple[tuple[object, ...], str] | None = field(
        default=None, init=False, repr=False, compare=False
    )

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
    def end(self) -> int:
        """The sequence number after its reply and its idle status; 0 without them."""
        return max(self.replied or 0, self.ended_seq or 0)

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
        self.header, self.error, self._request = b"", None, None

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
        if msg_type == "status" and state not in ("busy", "idle"):
            return False
        if self.replied is not None and self.ended_seq is not None:
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
        status = status_of(content)
        if status in ("aborted", "abort"):
            self.outcome, self.started = ABORTED, None
        elif status == "error":
            self.outcome = ERROR
        if self.count is None:
            self.count = count_of(content, "execute_reply")
        if self.ended_seq is not None or self.outcome == ABORTED:
            self.finish(now)
        return True

    def finish(self, now: float) -> None:
        """Enter the final state, unless that has happened before."""
        if not self.finished:
            self.state, self.ended = self.outcome, now

    def end_without_idle(self, end: int, now: float) -> None:
        """Note that no idle status will come: the next request has begun before number `end`."""
        self.ended_seq = end
        self.finish(now)

    def abort(self, now: float) -> None:
        """Note that its process has gone."""
        if not self.finished:
            self.outcome = ABORTED
            self.finish(now)
        self.settle()

    # -- the log ----------------------------------------------------------------------------

    def entry(self) -> dict[str, Any]:
        """Return the value for the log: the fields that it has."""
        entry: dict[str, Any] = json.loads(self.to_json())
        return entry

    def to_json(self) -> str:
        """Return `entry` as JSON.

        It is made twice for each request; a dict and an encoder would take three times as long.
        """
        request = self.session, self.cell, self.code_bytes, self.submitted, self.header
        if self._request is None or self._request[0] != request:
            self._request = request, self._request_to_json()
        text = f'{{"client":{self.client}{self._request[1]}{self._progress_to_json()}'
        if self.error is not None:
            text += ',"error":' + json.dumps(self.error, separators=(",", ":"))
        return text + "}"

    def _request_to_json(self) -> str:
        """Return the members of the entry that do not change with the messages of the kernel."""
        text = ""
        if self.session:
            text += f',"session":{encode_basestring_ascii(self.session)}'
        if self.cell is not None:
            text += f',"cell":{encode_basestring_ascii(self.cell)}'
        if self.code_bytes:
            text += f',"code_bytes":{self.code_bytes}'
        if self.submitted:
            text += f',"submitted":{self.submitted}'
        if self.header:
            header = self.header.decode("utf-8", "surrogateescape")
            text += f',"header":{encode_basestring_ascii(header)}'
        return text

    def _progress_to_json(self) -> str:
        """Return the members of the entry that change with the messages of the kernel."""
        text = "" if self.state == WAITING else f',"state":"{self.state}"'
        if self.outcome != DONE:
            text += f',"outcome":"{self.outcome}"'
        if self.started is not None:
            text += f',"started":{self.started}'
        if self.ended is not None:
            text += f',"ended":{self.ended}'
        if self.count is not None:
            text += f',"count":{self.count}'
        if self.first is not None:
            text += f',"first":{self.first}'
        if self.last is not None:
            text += f',"last":{self.last}'
        if self.messages or self.lines or self.nbytes:
            text += f',"messages":{self.messages},"lines":{self.lines},"nbytes":{self.nbytes}'
        if self.replied is not None:
            text += f',"replied":{self.replied}'
        if self.ended_seq is not None:
            text += f',"ended_seq":{self.ended_seq}'
        if self.displays:
            text += ',"displays":true'
        return text

    @classmethod
    def from_entry(
        cls, msg_id: str, entry: Mapping[str, Any], end: int, settled: int = 0
    ) -> Execution:
        """Return the execution with that id whose value is `entry`.

        Parameters
        ----------
        msg_id, entry
            The id and the value.
        end : int
            The sequence number after the last frame on disk; a reply or status behind it is lost.
        settled : int
            The reply and the status of an execution that ended before this number were on disk,
            even if they are not now.

        Raises
        ------
        KeyError, TypeError, ValueError, AttributeError
            If no bridge wrote that value.
        """
        values = {name: _checked(name, entry[name]) for name in _NAMES if name in entry}
        header = entry.get("header", "").encode("utf-8", "surrogateescape")
        found = cls(msg_id, values.pop("client"), header, **values)
        if found.over and found.end <= settled:
            found.settle()
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
        elif self.last is not None and (not self.finished or self.last >= end):
            # The log is not written for each message, so one of these may have been a display.
            self.displays = self.displays or self.last < end - 1
            self.last = end - 1


_TEXTS: Final = frozenset({"session", "cell", "state", "outcome"})
_TIMES: Final = frozenset({"submitted", "started", "ended"})
_NAMES: Final = tuple(
    each.name for each in fields(Execution) if each.init and each.name not in ("msg_id", "header")
)
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
    if name == "displays":
        return bool(value)
    if name in _TEXTS:
        if not isinstance(value, str) or (name in ("state", "outcome") and value not in _STATES):
            raise ValueError(name)
    elif name in _TIMES:
        if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value < _LATEST):
            raise ValueError(name)
        return float(value)
    else:
        if not isinstance(value, int) or value < 0:
            raise ValueError(name)
        return int(value)  # not True
    return value
