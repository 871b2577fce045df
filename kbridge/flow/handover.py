"""The state of one kernel that another replica needs to go on with it, besides the frames.

Sequence numbers of one journal mean nothing in another one. A place is therefore the `msg_id` of
the last message on iopub before it, which is the same everywhere; empty before the first one.
Replies and input requests are
sent to one bridge only, so the other one does not have them: their ids are *aliases* of places.

An entry is what a database holds: JSON values only. An entry that cannot be read costs that request
only.

==============  ==================================================================================
member          value
==============  ==================================================================================
`session`       the session that sent the request, as the hub knows it; empty if it cannot resume
`execution`     `Execution.entry()` without the members that say where something is in a journal
`owed`          true while the client may not have the reply
`reply`         the id of the reply, and of the message on iopub before it
`inputs`        input requests that wait: their four parts, and the message on iopub before each
==============  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kbridge.flow.execution import Execution
from kbridge.wire.message import Channel, Message

__all__ = [
    "END",
    "Changes",
    "Handover",
    "Question",
    "Remembered",
    "Request",
    "make_entry",
    "read_entry",
]

END: Final = ""
"""The session whose place is the end of the journal; a session that can resume has an id."""

_PLACES: Final = frozenset({"client", "first", "last", "replied", "ended_seq", "header", "error"})
_KEPT: Final = frozenset({"header", "error"})  # while a reply is owed
_PARTS: Final = 4  # of an input request: header, parent, metadata, content


@dataclass(frozen=True, slots=True)
class Changes:
    """Changed places and executions of a kernel, for the database.

    Attributes
    ----------
    places : dict of str to str or None
        The id of the last acknowledged message on iopub, by session; for `END` that of the last
        message. None if the session was forgotten.
    executions : dict of str to dict or None
        The entry of each request, by id; None if the request was forgotten.
    """

    places: dict[str, str | None]
    executions: dict[str, dict[str, Any] | None]

    def __bool__(self) -> bool:
        return bool(self.places or self.executions)


@dataclass(frozen=True, slots=True)
class Remembered:
    """The sessions and requests of a kernel that were not forgotten; all others may be deleted."""

    sessions: frozenset[str]
    executions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Handover:
    """The state of a kernel in the database, for the replica that takes it over.

    Attributes
    ----------
    places : dict of str to str
        The id of the last acknowledged message on iopub, by session.
    executions : dict of str to dict
        The entry of each request, by id.
    identities : tuple of bytes
        The ZeroMQ identities to which the kernel may send replies, newest last.
    """

    places: Mapping[str, str] = field(default_factory=dict)
    executions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    identities: tuple[bytes, ...] = ()

    def requests(self) -> list[Request]:
        """Return the requests whose entries can be read, in the order in which they were sent."""
        found = []
        for msg_id, entry in self.executions.items():
            try:
                found.append(read_entry(msg_id, entry))
            except (LookupError, TypeError, ValueError, AttributeError):
                continue
        return sorted(found, key=lambda request: request.execution.submitted)


@dataclass(frozen=True, slots=True)
class Question:
    """An input request that waits; `after` is the id of the message on iopub before it."""

    msg: Message
    after: str


@dataclass(frozen=True, slots=True)
class Request:
    """A request that another replica has sent.

    Attributes
    ----------
    execution : Execution
        The request. It has no client and no places yet.
    session : str
        The session that sent it.
    owed : bool
        True if the client may not have the reply.
    reply : tuple of (str, str) or None
        The id of the reply, and of the message on iopub before it.
    inputs : tuple of Question
        The input requests that wait.
    """

    execution: Execution
    session: str
    owed: bool
    reply: tuple[str, str] | None
    inputs: tuple[Question, ...]


def make_entry(
    execution: Execution,
    *,
    session: str,
    owed: bool,
    kept: tuple[bytes, dict[str, Any] | None],
    reply: tuple[str, str] | None = None,
    inputs: Iterable[Question] = (),
) -> dict[str, Any]:
    """Return the entry of a request.

    Parameters
    ----------
    execution : Execution
        The request.
    session, owed, reply, inputs
        As in `Request`.
    kept : tuple of bytes and dict
        Its header and its error, which the execution itself may have dropped.
    """
    values = {name: v for name, v in execution.entry().items() if name not in _PLACES}
    if owed:
        header, error = kept
        values["header"] = _text(header)
        if error is not None:
            values["error"] = error
    entry: dict[str, Any] = {"session": session, "execution": values, "owed": owed}
    if reply is not None:
        entry["reply"] = list(reply)
    asked = [[*(_text(bytes(part)) for part in each.msg[1:5]), each.after] for each in inputs]
    if asked:
        entry["inputs"] = asked
    return entry


def read_entry(msg_id: str, entry: Mapping[str, Any]) -> Request:
    """Return the request that an entry describes.

    Raises
    ------
    LookupError, TypeError, ValueError, AttributeError
        If no replica wrote that entry.
    """
    session = entry["session"]
    if not isinstance(session, str):
        raise TypeError("session")
    values = {name: v for name, v in entry["execution"].items() if name not in _PLACES}
    owed = bool(entry["owed"])
    if owed:
        values |= {name: v for name, v in entry["execution"].items() if name in _KEPT}
    execution = Execution.from_entry(msg_id, {**values, "client": 0}, 0)
    reply = entry.get("reply")
    if reply is not None:
        reply = (str(reply[0]), str(reply[1]))
    return Request(
        execution, session, owed, reply, tuple(_question(each) for each in entry.get("inputs", ()))
    )


def _question(value: Iterable[str]) -> Question:
    *texts, after = value
    if len(texts) != _PARTS:
        raise ValueError("parts")
    header, parent, metadata, content = (each.encode("utf-8", "surrogateescape") for each in texts)
    return Question(Message(Channel.STDIN, header, parent, metadata, content, ()), after)


def _text(part: bytes) -> str:
    return part.decode("utf-8", "surrogateescape")
