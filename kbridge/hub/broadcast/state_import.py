"""Goes on with a kernel in the place of another replica, which is gone.

The hub has followed the kernel, or has just connected to it. It reads what the other replica wrote
about sessions, executions and input requests (`kbridge.flow.handover`), and joins it with what it
saw on iopub itself. Where both differ, its own journal says what was sent, and the other replica
says what clients have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from kbridge.flow.execution import ABORTED, FINISHED, RUNNING, WAITING, Execution
from kbridge.flow.executions import Executions
from kbridge.flow.handover import END, Handover, Request
from kbridge.flow.input_requests import InputRequest
from kbridge.flow.journal import EVERYONE, Journal, Place
from kbridge.flow.lost_replies import Owed

__all__ = ["Imported", "ids_in", "import_state"]

_SETTLED: Final = 60.0
"""Seconds after its end for which a reply may be lost of a request that only iopub has named.

The other replica writes once per second, so a request that it did not write is young, unless the
database was down or a client let it be forgotten.
"""


@dataclass(slots=True)
class Imported:
    """The state that a hub takes over.

    Attributes
    ----------
    sessions : dict of str to Place
        Where each session resumes.
    aliases : dict of str to Place
        Places after messages that are not in this journal.
    executions : list of Execution
        All executions, oldest first; the sessions of their clients are in `clients`.
    clients : dict of str to str
        The session of each execution, by the id of the execution.
    owed : list of Owed
        The executions whose clients may not have the reply.
    inputs : list of (str, InputRequest)
        The input requests that wait, each with the session that it is for.
    """

    sessions: dict[str, Place] = field(default_factory=dict)
    aliases: dict[str, Place] = field(default_factory=dict)
    executions: list[Execution] = field(default_factory=list)
    clients: dict[str, str] = field(default_factory=dict)
    owed: list[Owed] = field(default_factory=list)
    inputs: list[tuple[str, InputRequest]] = field(default_factory=list)


def ids_in(handover: Handover, joined: str | None) -> set[str]:
    """Return the ids of the messages whose places `import_state` needs."""
    ids = {joined or "", *handover.places.values()}
    for request in handover.requests():
        ids.update(question.after for question in request.inputs)
        if request.reply is not None:
            ids.add(request.reply[1])
    return ids - {""}


def import_state(
    handover: Handover,
    journal: Journal,
    executions: Executions,
    places: Mapping[str, Place],
    *,
    joined: str | None,
    now: float,
) -> Imported:
    """Join the state that another replica wrote with what this hub has seen.

    Parameters
    ----------
    handover : Handover
        The state.
    journal, executions
        Those of this hub. The executions are changed.
    places : mapping of str to Place
        The places after the messages of `ids_in`, as far as the journal has these messages.
    joined : str or None
        The end of the other journal when this hub began to follow; None if that is not known.
    now : float
        Unix seconds.
    """
    found = Imported()
    # A client that has all messages up to the end has missed none, if this journal begins later:
    # the kernel sent nothing in between. A follower needs `joined` for that, because the end in the
    # handover may have been written before it began.
    end = joined if executions.following else handover.places.get(END)
    if end is not None and end not in places:
        found.aliases[end] = journal.oldest()
    places = {**places, **found.aliases}
    for session_id, msg_id in handover.places.items():
        if session_id != END:
            found.sessions[session_id] = places.get(msg_id) or journal.unknown()
    for request in handover.requests():
        _join(request, found, executions, journal, places)
    known = {execution.msg_id for execution in found.executions}
    for execution in executions.find():
        if execution.msg_id not in known:
            _add_unwritten(execution, found, journal, now)
    found.executions.sort(key=lambda each: each.submitted)
    order = {each.msg_id: at for at, each in enumerate(found.executions)}
    found.owed.sort(key=lambda each: order[each.execution.msg_id])
    return found


def _join(
    request: Request,
    found: Imported,
    executions: Executions,
    journal: Journal,
    places: Mapping[str, Place],
) -> None:
    """Join a request that the other replica wrote with what this hub saw of it."""
    written = request.execution
    seen = executions.get(written.msg_id)
    execution = written if seen is None else _merged(seen, written)
    found.executions.append(execution)
    found.clients[execution.msg_id] = request.session
    if request.reply is not None and (before := places.get(request.reply[1])) is not None:
        found.aliases[request.reply[0]] = before
    ended = execution.ended_seq is not None or (seen is None and written.finished)
    if request.owed and execution.header:
        lost = executions.following and seen is None and written.state == WAITING
        _await_reply(execution, written.state)
        found.owed.append(Owed(execution, ended=ended, lost=lost))
    else:
        _settle(execution, journal.next_seq, written.state, ended=ended)
    if ended:
        return
    for question in request.inputs:
        place = places.get(question.after)
        if place is not None:
            found.aliases[question.msg.msg_id] = place
        after = journal.next_seq if place is None else place.seq
        waiting = InputRequest(question.msg, EVERYONE, -1, away=True, after=after)
        found.inputs.append((request.session, waiting))


def _merged(seen: Execution, written: Execution) -> Execution:
    """Return the execution that this hub saw, with what only the other replica knew."""
    seen.session, seen.cell, seen.code_bytes = written.session, written.cell, written.code_bytes
    seen.submitted = written.submitted
    seen.started = written.started or seen.started
    seen.ended = written.ended or seen.ended
    if seen.count is None:
        seen.count = written.count
    if seen.error is None:
        seen.error = written.error
    if written.outcome != seen.outcome and seen.error is None:
        seen.outcome = written.outcome
    seen.displays = seen.displays or written.displays
    return seen


def _await_reply(execution: Execution, written: str) -> None:
    """Set the state of an execution whose reply its client may not have."""
    execution.replied = execution.ended = None
    if written == ABORTED or execution.outcome == ABORTED:
        execution.started = None
    execution.state = RUNNING if execution.begun else WAITING


def _settle(execution: Execution, end: int, written: str, *, ended: bool) -> None:
    """Set the state of an execution whose client has the reply, or is gone."""
    if written in FINISHED:
        execution.state = written
    if execution.state in FINISHED or ended:
        execution.finish(execution.ended or execution.submitted)
        execution.ended_seq = execution.ended_seq or end
        execution.replied = execution.replied or end
        execution.settle()
    else:
        execution.replied = execution.replied or end  # only its idle status is to come


def _add_unwritten(execution: Execution, found: Imported, journal: Journal, now: float) -> None:
    """Add a request that only iopub has named."""
    found.executions.append(execution)
    found.clients[execution.msg_id] = execution.session
    ended = execution.ended_seq is not None
    if not execution.header:
        return
    if execution.ended is not None and execution.ended < now - _SETTLED:
        _settle(execution, journal.next_seq, execution.outcome, ended=True)
        return
    _await_reply(execution, "")
    found.owed.append(Owed(execution, ended=ended, lost=False))
