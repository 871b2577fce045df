"""The requests to execute code of one kernel, bounded in number."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from kbridge.flow.activity import shell_of
from kbridge.flow.execute_contents import cell_of, code_size
from kbridge.flow.execution import FINISHED, RUNNING, Execution
from kbridge.flow.journal import EVERYONE
from kbridge.wire.message import Message, scan

__all__ = ["LIMIT", "Executions"]

LIMIT: Final = 1000
"""Executions per kernel."""

_HEADER_BYTES: Final = 4096  # requests with a longer header are not noted


class Executions:
    """The executions of one kernel, at most 1,000: those that finished first are forgotten first.

    If none of them has finished, further ones are not noted.

    Parameters
    ----------
    saved : iterable of Execution
        The executions that earlier bridges noted, oldest first.
    following : bool
        True if another bridge sends the requests. Requests are then noted when the kernel begins
        them, and finish with their idle status, because the replies are sent to that bridge.

    Attributes
    ----------
    following : bool
        As above; `take_over` sets it to False.
    """

    def __init__(self, saved: Iterable[Execution] = (), *, following: bool = False) -> None:
        self.following = following
        self._forgotten: list[str] = []
        self._set(saved)

    def _set(self, executions: Iterable[Execution]) -> None:
        self._all = {execution.msg_id: execution for execution in executions}
        self._finished = {e.msg_id: None for e in self._all.values() if e.finished}
        self._running = {e.msg_id: e for e in self._all.values() if e.state == RUNNING}
        # Those that have a reply, but no idle status yet, and the reverse; in the order in which
        # they got the one, which is the order in which the kernel has run them.
        self._replied = {e.msg_id: e for e in self._all.values() if _waits_for_idle(e)}
        self._unreplied = {e.msg_id: e for e in self._all.values() if _waits_for_reply(e)}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def unfinished(self) -> int:
        """The number of executions that run or wait."""
        return len(self._all) - len(self._finished)

    @property
    def running(self) -> list[Execution]:
        """The executions that the kernel runs now, in the order in which they began."""
        return list(self._running.values())

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
            None if the request is not noted: it has no id, or a header that is too long to be
            kept, or so many others wait. Call `take_forgotten` in any case.
        """
        msg_id, header = msg.msg_id, bytes(msg.header)
        if not msg_id or len(header) > _HEADER_BYTES:
            return None
        if msg_id in self._all:  # clients choose the ids
            self._forget(msg_id)
        if not self._make_room():
            return None
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
        if execution is None and self.following:
            execution = self._note_foreign(msg, now)
        if execution is None:
            return []
        state = execution.state
        if not execution.observe(msg, msg_type, end, now):
            return []
        if self.following:
            self._finish_followed(execution, now)
        if execution.state != state or msg_type == "status":
            self._note(execution)
        if execution.state == RUNNING != state and self._replied:
            return [execution, *self._end_replied(execution, end, now)]
        return [execution]

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
        ended = self._end_unreplied(execution, now) if self._unreplied else []
        self._note(execution)
        return [execution, *ended]

    def process_replaced(self, now: float, waiting: Collection[str] = ()) -> list[Execution]:
        """Abort all executions that have not finished, except those in `waiting`; return them."""
        aborted = [
            each
            for each in self._all.values()
            if (not each.finished or each.owed) and each.msg_id not in waiting
        ]
        for execution in aborted:
            execution.abort(now)
            self._note(execution)
        return aborted

    def take_over(self, executions: Iterable[Execution]) -> None:
        """Go on with these executions, oldest first, as the bridge that sends the requests."""
        self.following = False
        self._set(executions)
        while len(self._all) > LIMIT and self._finished:
            self._forget(next(iter(self._finished)))

    def forget(self, msg_id: str) -> bool:
        """Forget an execution that has finished; return False if there is none with that id."""
        if msg_id not in self._finished:
            return False
        self._remove(msg_id)
        return True

    def take_forgotten(self) -> list[str]:
        """Return the ids of the executions that were forgotten for newer ones, once.

        An id that was used again is among them.
        """
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def clear(self) -> None:
        """Forget everything."""
        for known in (self._all, self._finished, self._running, self._replied, self._unreplied):
            known.clear()

    def _note_foreign(self, msg: Message, now: float) -> Execution | None:
        """Note the request that a message on iopub belongs to, which another bridge has sent."""
        header = bytes(msg.parent_header)
        if len(header) > _HEADER_BYTES or scan(header, "msg_type") != "execute_request":
            return None
        msg_id = msg.parent_id
        if not msg_id or not self._make_room():
            return None
        execution = Execution(
            msg_id, EVERYONE, header, session=scan(header, "session"), submitted=now
        )
        self._all[msg_id] = execution
        return execution

    def _finish_followed(self, execution: Execution, now: float) -> None:
        """Finish executions that have ended on iopub: no replies arrive while following."""
        if execution.ended_seq is not None:
            execution.finish(now)
            return
        for earlier in _before(execution, self._running):  # some kernels omit the idle status
            earlier.finish(now)
            self._note(earlier)

    def _make_room(self) -> bool:
        """Forget executions for another one; return False if none has finished."""
        while len(self._all) >= LIMIT:
            if not self._finished:
                return False
            self._forget(next(iter(self._finished)))
        return True

    def _note(self, execution: Execution) -> None:
        """Note the present state of an execution that has changed."""
        msg_id, state = execution.msg_id, execution.state
        if state in FINISHED:
            self._finished[msg_id] = None
        else:
            self._finished.pop(msg_id, None)
        if state == RUNNING:
            self._running[msg_id] = execution
        else:
            self._running.pop(msg_id, None)
        if (execution.replied is None) == (execution.ended_seq is None):  # most changes
            self._replied.pop(msg_id, None)
            self._unreplied.pop(msg_id, None)
            return
        if _waits_for_idle(execution):
            self._replied[msg_id] = execution
        else:
            self._replied.pop(msg_id, None)
        if _waits_for_reply(execution):
            self._unreplied[msg_id] = execution
        else:
            self._unreplied.pop(msg_id, None)

    def _end_replied(self, begun: Execution, end: int, now: float) -> list[Execution]:
        """End the executions whose idle status is missing: the kernel runs another one."""
        ended = _before(begun, self._replied)
        for execution in ended:
            execution.end_without_idle(end, now)
            self._note(execution)
        return ended

    def _end_unreplied(self, replied: Execution, now: float) -> list[Execution]:
        """Finish the executions whose reply is missing: the kernel has replied to a later one.

        A reply that was lost with a connection may still be built for them.
        """
        ended = _before(replied, self._unreplied)
        for execution in ended:
            execution.finish(now)
            self._note(execution)
        return ended

    def _forget(self, msg_id: str) -> None:
        self._remove(msg_id)
        self._forgotten.append(msg_id)

    def _remove(self, msg_id: str) -> None:
        if self._all.pop(msg_id, None) is not None:
            self._finished.pop(msg_id, None)
            self._running.pop(msg_id, None)
            self._replied.pop(msg_id, None)
            self._unreplied.pop(msg_id, None)


def _waits_for_idle(execution: Execution) -> bool:
    return execution.owed and execution.replied is not None


def _waits_for_reply(execution: Execution) -> bool:
    return execution.ended_seq is not None and execution.replied is None and not execution.finished


def _before(latest: Execution, known: Mapping[str, Execution]) -> list[Execution]:
    """Return the executions that the kernel has run before the latest one.

    Subshells run in parallel, so they say nothing about each other.
    """
    found: list[Execution] = []
    if shell_of(latest.header):
        return found
    for execution in known.values():
        if execution is latest:
            break
        if not shell_of(execution.header):
            found.append(execution)
    return found
