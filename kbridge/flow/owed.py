"""Replies to execute requests that were lost, made from what iopub said.

A kernel addresses a reply to the identity that sent the request. When the bridge that sent it was
killed, or its sockets were replaced, the reply may reach nobody, and the cell would stay `[*]` for
ever. iopub says the same, though: the execution count (`execute_input`, `execute_result`), the
`error`, and the end (`status: idle`).

Laws of this module:

- only a reply that may have been lost is made: its request was sent over sockets of the past, or
  by an earlier bridge. Replies to requests over the present sockets are left to the kernel;
- a reply is made `GRACE` seconds after the end of its request, if the real one has not arrived;
  a real one that arrives later still is dropped, so that a client gets one;
- a request without `idle` (some kernels leave it out after an error) ends when the shell is
  *calm*: it has answered two of our requests with no request of the past between them. A ROUTER
  reads its peers in turn, so nothing of the past waits there any more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kbridge.flow.activity import state_of
from kbridge.wire.message import Message, scan

__all__ = ["GRACE", "Due", "Owed"]

GRACE: Final = 2.0  # seconds
_LIMIT: Final = 1000  # requests of each kind that are remembered
_HEADER_BYTES: Final = 4096  # longer ones than any client writes are not remembered
_EXECUTE: Final = "execute_request"


@dataclass(slots=True)
class _Request:
    """A request whose reply may be lost."""

    parent_header: bytes  # its own header, as replies name it
    begun: bool = False
    count: int | None = None
    error: dict[str, Any] | None = None
    ended_at: float | None = None
    heard_at: float = -math.inf

    def reply(self) -> dict[str, Any]:
        """Return the content of its reply."""
        content: dict[str, Any] = {"execution_count": self.count}
        if self.error is not None:
            return {"status": "error", **self.error, **content, "user_expressions": {}}
        if self.begun:
            return {"status": "ok", **content, "payload": [], "user_expressions": {}}
        return {"status": "aborted", **content}


class Due(NamedTuple):
    """A reply to make.

    Attributes
    ----------
    request : bytes
        The header of the request that the reply answers.
    content : dict
        The content of the reply.
    idle : bool
        True if the kernel has sent the idle status for the request. Otherwise the status has to be
        made as well: a frontend shows a cell as running until it has both.
    """

    request: bytes
    content: dict[str, Any]
    idle: bool


class Owed:
    """The execute requests of one kernel whose replies have yet to come.

    Parameters
    ----------
    adopted : bool
        An earlier bridge was connected to the kernel: it may be at requests of that one.
    knows : callable
        True if the request with that `msg_id` was made by a client of this bridge.
    """

    def __init__(self, *, adopted: bool, knows: Callable[[str], bool]) -> None:
        self._adopted = adopted
        self._knows = knows
        self._open: dict[str, bytes] = {}  # sent over the present sockets: their headers
        self._lost: dict[str, _Request] = {}
        self._made: dict[str, None] = {}
        self._between = True  # a request of the past may have begun since the shell's last answer
        self._answered_at = math.inf  # the first of the shell's two answers
        self._calm_at: float | None = None

    @property
    def active(self) -> bool:
        """True while a reply may be lost, so that iopub has to be observed."""
        return self._adopted or bool(self._lost)

    def sent(self, msg_id: str, header: bytes) -> None:
        """Note an execute request that goes out."""
        if len(header) <= _HEADER_BYTES:
            self._open[msg_id] = header
            _bound(self._open)

    def connection_lost(self) -> None:
        """Note that the replies to all requests under way may be lost."""
        for msg_id, header in self._open.items():
            self._lost[msg_id] = _Request(header)
        _bound(self._lost)
        self._open.clear()
        self._between, self._calm_at = True, None

    def replied(self, msg_id: str) -> bool:
        """Note the reply to a request; False if it is not wanted, because one was made before."""
        self._open.pop(msg_id, None)
        self._lost.pop(msg_id, None)
        return msg_id not in self._made

    def observe(self, msg: Message, msg_type: str, now: float) -> None:
        """Look at a message on iopub, while `active`."""
        parent = msg.parent_header
        if len(parent) > _HEADER_BYTES or scan(parent, "msg_type") != _EXECUTE:
            return
        msg_id = msg.parent_id
        request = self._lost.get(msg_id)
        state = state_of(msg.content) if msg_type == "status" else ""
        if request is None:
            if not self._adopted or msg_id in self._made or self._knows(msg_id):
                return
            request = self._lost[msg_id] = _Request(parent)
            _bound(self._lost)
        if state == "busy":
            self._between, self._calm_at = True, None
            return
        request.begun = True
        request.heard_at = now
        if state == "idle":
            request.ended_at = now
        elif msg_type == "error":
            request.error = _fields(msg.content, "ename", "evalue", "traceback")
        elif msg_type in ("execute_input", "execute_result"):
            count = _fields(msg.content, "execution_count").get("execution_count")
            request.count = count if isinstance(count, int) else request.count

    def shell_answered(self, now: float) -> None:
        """Note that the kernel answered a request over the present shell socket."""
        if not self._between and self._calm_at is None:
            self._calm_at = now + GRACE
        if self._between:
            self._answered_at = now
        self._between = False

    @property
    def calm(self) -> bool:
        """True if the shell is calm, as far as is known."""
        return self._calm_at is not None

    def due(self, now: float) -> list[Due]:
        """Return the replies to make now."""
        calm = self._calm_at is not None and now >= self._calm_at
        if calm:
            self._adopted = False
        found = []
        for msg_id, request in list(self._lost.items()):
            over = request.ended_at is not None and now >= request.ended_at + GRACE
            # A subshell has a queue of its own, and some kernels answer while a cell runs.
            behind = b'"subshell_id"' not in request.parent_header
            if over or (calm and behind and request.heard_at <= self._answered_at):
                del self._lost[msg_id]
                self._made[msg_id] = None
                _bound(self._made)
                found.append(Due(request.parent_header, request.reply(), over))
        return found

    def next_at(self) -> float | None:
        """When `due` has something new to say, as far as is known."""
        times = [r.ended_at + GRACE for r in self._lost.values() if r.ended_at is not None]
        if self._calm_at is not None:
            times.append(self._calm_at)
        return min(times, default=None)

    def clear(self) -> None:
        """Forget all: the process that owed the replies is gone."""
        self._adopted = False
        for known in (self._open, self._lost, self._made):
            known.clear()

    def statistics(self) -> dict[str, int]:
        """Requests without a reply, and how many of them may never get one."""
        return {"unanswered": len(self._open) + len(self._lost), "reply_lost": len(self._lost)}


def _bound(known: dict[str, Any]) -> None:
    while len(known) > _LIMIT:
        del known[next(iter(known))]


def _fields(content: bytes, *names: str) -> dict[str, Any]:
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return {name: whole[name] for name in names if name in whole} if isinstance(whole, dict) else {}
