"""Build execute replies that were lost, from messages on iopub.

A kernel sends a reply to the identity that sent the request. If the bridge that sent it was killed,
or its sockets were replaced, no client receives the reply, and the cell would stay `[*]`. Messages
on iopub contain the same information: the execution count (`execute_input`, `execute_result`), the
`error`, and the end (`status: idle`).

Invariants:

- only replies that may be lost are built: their requests were sent over earlier sockets or by an
  earlier bridge. Replies to requests over the current sockets come from the kernel;
- a reply is built `GRACE` seconds after the end of its request if the real one has not arrived. A
  real reply that arrives later is dropped, so that a client receives one reply;
- a request without `idle` (some kernels omit it after an error) ends when the shell is *calm*: it
  has answered two requests over the current sockets, without an earlier request between them. A
  ROUTER reads its peers in turn, so no earlier request is waiting then;
- a subshell has a separate queue, about which the shell says nothing. A request of an earlier
  bridge to a subshell, which may be gone, ends when the kernel has said nothing about it for
  `SILENCE` seconds;
- a lost connection may also lose the idle of a request whose real reply arrives. That idle is
  built when the shell is calm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kbridge.flow.activity import shell_of, state_of
from kbridge.flow.execute_contents import count_of, error_of
from kbridge.flow.execution import Execution
from kbridge.flow.routing import Routing
from kbridge.wire.message import Message, scan

__all__ = ["GRACE", "REQUEST_LOST", "SILENCE", "BuiltReply", "LostReplies", "Owed"]

GRACE: Final = 2.0  # seconds
SILENCE: Final = 300.0
"""Seconds without a message after which a request of an earlier bridge to a subshell has ended."""
_LIMIT: Final = 1000  # maximum number of stored requests of each kind
_HEADER_BYTES: Final = 4096  # unusually long headers are not stored
_EXECUTE: Final = "execute_request"


REQUEST_LOST: Final[Mapping[str, Any]] = {
    "status": "error",
    "ename": "RequestLost",
    "evalue": "the server ended before the kernel received this request; it was not run",
    "traceback": [],
    "execution_count": None,
    "user_expressions": {},
}
"""The content of the reply to a request that no kernel has received."""


class Owed(NamedTuple):
    """A request of another replica whose client may not have the reply.

    Attributes
    ----------
    execution : Execution
        The request.
    ended : bool
        True if the kernel has ended it, so that its reply was sent to the other replica.
    lost : bool
        True if the kernel has said nothing about it, although this bridge was listening. It waits
        in the kernel, or the other replica ended before it sent the request.
    """

    execution: Execution
    ended: bool
    lost: bool


@dataclass(slots=True)
class _Request:
    """An execute request whose reply may be lost."""

    parent_header: bytes  # the header of the request, which replies name as parent
    begun: bool = False
    replied_at: float | None = None
    idle_lost: bool = False  # iopub was disconnected after the request was sent
    cut: bool = False  # iopub was disconnected, and the client has not been told
    unheard: bool = False  # an earlier bridge sent it, and no message of it was heard since
    lost: bool = False  # another replica had it, and the kernel is not known to have received it
    count: int | None = None
    error: dict[str, Any] | None = None
    ended_at: float | None = None
    heard_at: float = -math.inf
    quiet_since: float = math.inf  # of an earlier bridge: when it was restored or heard last
    in_subshell: bool = field(init=False)

    def __post_init__(self) -> None:
        self.in_subshell = bool(shell_of(self.parent_header))

    def reply(self) -> dict[str, Any]:
        """Return the content of the reply."""
        content: dict[str, Any] = {"execution_count": self.count}
        if self.lost and not self.begun:
            return {**REQUEST_LOST, **content}
        if self.error is not None:
            return {"status": "error", **self.error, **content, "user_expressions": {}}
        if self.begun:
            return {"status": "ok", **content, "payload": [], "user_expressions": {}}
        return {"status": "aborted", **content}


class BuiltReply(NamedTuple):
    """A reply to build.

    Attributes
    ----------
    request : bytes
        The header of the request that the reply answers.
    content : dict or None
        The content of the reply. None if the kernel's own reply was delivered, and only the idle
        status is missing.
    idle : bool
        True if the kernel has sent the idle status of the request. Otherwise the caller must send
        the status too, because a frontend shows a cell as running until it has both.
    unheard : bool
        True if the request ended while no bridge ran: its output is missing.
    lost : bool
        True if the kernel has never received the request.
    """

    request: bytes
    content: dict[str, Any] | None
    idle: bool
    unheard: bool = False
    lost: bool = False


class LostReplies:
    """The execute requests of one kernel that have no reply yet.

    Parameters
    ----------
    adopted : bool
        True if an earlier bridge was connected to the kernel, which may still run its requests.
    routing : Routing
        The requests that clients of this bridge sent.
    """

    def __init__(self, *, adopted: bool, routing: Routing) -> None:
        self._adopted = adopted
        self._routing = routing
        self._open: dict[str, bytes] = {}  # msg_id -> header, of requests over the current sockets
        self._lost: dict[str, _Request] = {}
        self._made: dict[str, None] = {}
        self._answered: dict[str, None] = {}  # requests whose real reply has arrived
        self._checked_at = -math.inf
        self._between = True  # an earlier request may have begun since the last answer
        self._answered_at = math.inf  # time of the first of the two answers
        self._calm_at: float | None = None

    @property
    def active(self) -> bool:
        """True while a reply may be lost; the caller must then call `observe`."""
        return self._adopted or bool(self._lost)

    def restore(self, request: Execution, now: float) -> None:
        """Note a request of an earlier bridge that has not ended, as far as that bridge knew.

        Call it for the requests in the order in which they were sent, before any other method.
        """
        self._lost[request.msg_id] = _Request(
            request.header,
            begun=request.begun,
            replied_at=None if request.replied is None else now,
            idle_lost=True,
            unheard=request.ended_seq is None,
            count=request.count,
            error=request.error,
            ended_at=None if request.ended_seq is None else now,
            quiet_since=now,
        )
        _bound(self._lost)

    def take_over(self, requests: Iterable[Owed], now: float) -> None:
        """Note the requests of another replica, which has ended; in the order of their sending.

        Replies to requests that have ended are built at once: they were sent before the sockets
        under the identity of that replica were opened here.
        """
        self._adopted = True
        self._between, self._calm_at = True, None
        for execution, ended, lost in requests:
            self._lost[execution.msg_id] = _Request(
                execution.header,
                begun=execution.begun,
                idle_lost=True,
                lost=lost,
                count=execution.count,
                error=execution.error,
                ended_at=now - GRACE if ended else None,
                quiet_since=now,
            )
        _bound(self._lost)

    def sent(self, msg_id: str, header: bytes) -> None:
        """Note an execute request that was sent."""
        if len(header) <= _HEADER_BYTES:
            self._open[msg_id] = header
            _bound(self._open)

    def connection_lost(self, *, iopub: bool = False) -> None:
        """Note that the replies to all open requests may be lost.

        Parameters
        ----------
        iopub : bool
            True if the connection to iopub was lost: output may be missing, too.
        """
        for msg_id, header in self._open.items():
            self._lost[msg_id] = _Request(header)
        _bound(self._lost)
        if iopub:
            for request in self._lost.values():
                request.idle_lost = True
            running = next((r for r in self._lost.values() if r.replied_at is None), None)
            if running is not None:
                running.cut = True
        self._open.clear()
        self._between, self._calm_at = True, None

    def replied(self, msg_id: str, now: float) -> bool:
        """Note the reply to a request; return False if one was built before."""
        self._open.pop(msg_id, None)
        request = self._lost.get(msg_id)
        if request is not None:
            request.replied_at = now
            if request.ended_at is not None or not request.idle_lost:
                del self._lost[msg_id]
        if self.active:
            self._answered[msg_id] = None
            _bound(self._answered)
        return msg_id not in self._made

    def cut(self) -> bytes | None:
        """Return the header of the request that ran when iopub was lost; None after the first call.

        A kernel runs its requests in the order in which they were sent.
        """
        for request in self._lost.values():
            if request.cut:
                request.cut = False
                return request.parent_header
        return None

    def observe(self, msg: Message, msg_type: str, now: float) -> None:
        """Process a message on iopub, while `active`."""
        parent = msg.parent_header
        if len(parent) > _HEADER_BYTES or scan(parent, "msg_type") != _EXECUTE:
            return
        msg_id = msg.parent_id
        request = self._lost.get(msg_id)
        state = state_of(msg.content) if msg_type == "status" else ""
        if request is None:
            ended = msg_id in self._made or msg_id in self._answered
            known = self._routing.owner(msg_id) is not None
            if ended or known or not self._adopted:
                return
            request = self._lost[msg_id] = _Request(parent)
            _bound(self._lost)
        request.unheard = False
        if state == "busy":
            self._between, self._calm_at = True, None
            return
        request.begun = True
        request.heard_at = now
        if request.quiet_since < math.inf:
            request.quiet_since = now
        if state == "idle":
            request.ended_at = now
            if request.replied_at is not None:
                del self._lost[msg_id]
        elif msg_type == "error":
            request.error = error_of(msg.content)
        elif msg_type in ("execute_input", "execute_result"):
            count = count_of(msg.content, msg_type)
            request.count = request.count if count is None else count

    def shell_answered(self, now: float) -> None:
        """Note that the kernel answered a request over the current shell socket."""
        if not self._between and self._calm_at is None:
            self._calm_at = now + GRACE
        if self._between:
            self._answered_at = now
        self._between = False

    @property
    def calm(self) -> bool:
        """True if the shell is calm."""
        return self._calm_at is not None

    def due(self, now: float) -> list[BuiltReply]:
        """Return the replies to build now."""
        self._checked_at = now
        calm = self._calm_at is not None and now >= self._calm_at
        if calm:
            self._adopted = False
        found = []
        for msg_id, request in list(self._lost.items()):
            over = request.ended_at is not None and now >= request.ended_at + GRACE
            if request.replied_at is not None:
                if calm and now >= request.replied_at + GRACE:
                    del self._lost[msg_id]
                    found.append(BuiltReply(request.parent_header, None, idle=False))
                continue
            if request.in_subshell:
                ended = now >= request.quiet_since + SILENCE
            else:  # some kernels answer while a cell runs
                ended = request.heard_at <= self._answered_at
            if over or (calm and ended):
                del self._lost[msg_id]
                self._made[msg_id] = None
                _bound(self._made)
                found.append(
                    BuiltReply(
                        request.parent_header,
                        request.reply(),
                        over,
                        request.unheard,
                        request.lost and not request.begun,
                    )
                )
        return found

    def next_at(self) -> float | None:
        """Return the time of the next call of `due`, after the last one; None if it is unknown."""
        times = [r.ended_at + GRACE for r in self._lost.values() if r.ended_at is not None]
        if self._calm_at is not None:
            times.append(self._calm_at)
            replied = [r.replied_at for r in self._lost.values() if r.replied_at is not None]
            times += [max(self._calm_at, at + GRACE) for at in replied]
            silent = [r.quiet_since + SILENCE for r in self._lost.values() if r.in_subshell]
            times += [max(self._calm_at, at) for at in silent if at < math.inf]
        # `due` does not always build something at such a time: it must not be returned again.
        return min((at for at in times if at > self._checked_at), default=None)

    def clear(self) -> None:
        """Forget all requests, because the process of the kernel has ended."""
        self._adopted = False
        for known in (self._open, self._lost, self._made, self._answered):
            known.clear()


def _bound(known: dict[str, Any]) -> None:
    while len(known) > _LIMIT:
        del known[next(iter(known))]
