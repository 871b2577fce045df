"""REST requests about the executions of a kernel, without the web server that received them.

The standalone server and the extension of Jupyter Server have the same paths, so both parse queries
and build their replies here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kbridge.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = [
    "STATES",
    "ExecutionFilter",
    "find_execution",
    "forget_execution",
    "list_executions",
    "parse_filter",
]

STATES: Final = ("waiting", "running", "done", "error", "aborted")
"""The states of an execution; the last three are final."""

_LONGEST_LIMIT: Final = 9  # digits
_LONGEST_ID: Final = 1024  # bytes
_PER_TURN: Final = 50  # executions that are described in one turn of the event loop


@dataclass(frozen=True, slots=True)
class ExecutionFilter:
    """The executions that a client asks for.

    Attributes
    ----------
    states : frozenset of str
        Executions in one of these states; empty for all states.
    session_id, cell_id : str or None
        Executions of this session, of this cell; None for all.
    limit : int or None
        The newest executions, at most so many; None for all.
    """

    states: frozenset[str] = frozenset()
    session_id: str | None = None
    cell_id: str | None = None
    limit: int | None = None


def parse_filter(arguments: Mapping[str, Sequence[bytes]]) -> ExecutionFilter:
    """Return the filter that the arguments of a URL describe.

    Parameters
    ----------
    arguments : mapping
        The decoded values of each argument, as in Tornado's `request.query_arguments`. Unknown
        arguments are ignored: clients add tokens, and numbers that prevent caching.

    Raises
    ------
    InvalidRequest
        If a state does not exist, a limit is not a positive number, or an id is repeated, is too
        long or is not UTF-8.
    """
    limit = _single(arguments, "limit")
    return ExecutionFilter(
        _states(arguments),
        _single(arguments, "session_id"),
        _single(arguments, "cell_id"),
        None if limit is None else _number(limit),
    )


def _states(arguments: Mapping[str, Sequence[bytes]]) -> frozenset[str]:
    """Return the states in the argument `state`: names with commas between them, may be repeated.

    An empty argument has no effect, so that a form may send it.
    """
    names = {
        name.strip().decode("utf-8", "replace")
        for value in arguments.get("state", ())
        for name in value.split(b",")
        if name.strip()
    }
    unknown = sorted(names.difference(STATES))
    if unknown:
        raise InvalidRequest(f"{unknown[0][:40]!a} is not a state; states are {', '.join(STATES)}")
    return frozenset(names)


def _single(arguments: Mapping[str, Sequence[bytes]], name: str) -> str | None:
    """Return the value of an argument that may be given once; None if it is missing or empty."""
    values = arguments.get(name, ())
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given more than once")
    if not values or not values[0]:
        return None
    if len(values[0]) > _LONGEST_ID:
        raise InvalidRequest(f"{name} has more than {_LONGEST_ID} bytes")
    try:
        return values[0].decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} is not UTF-8") from None


def _number(limit: str) -> int:
    # `isdigit` alone accepts digits that `int` refuses, such as "²".
    digits = limit.isascii() and limit.isdigit() and len(limit) <= _LONGEST_LIMIT
    if not digits or int(limit) == 0:
        raise InvalidRequest("limit is not a positive number of at most nine digits")
    return int(limit)


async def list_executions(hub: Hub | None, wanted: ExecutionFilter) -> str:
    """Return the matching executions of a kernel as JSON: a list, newest last.

    Parameters
    ----------
    hub : Hub or None
        The kernel's hub; None if it has none.
    wanted : ExecutionFilter
        The filter.
    """
    if hub is None:
        return "[]"
    found = hub.executions.find(
        state=wanted.states, session=wanted.session_id, cell=wanted.cell_id, limit=wanted.limit
    )
    parts = []
    for at in range(0, len(found), _PER_TURN):
        if at:
            await asyncio.sleep(0)
        some = [hub.describe(execution) for execution in found[at : at + _PER_TURN]]
        parts.append(json.dumps(some)[1:-1])
    return f"[{', '.join(parts)}]"


def find_execution(hub: Hub | None, msg_id: str) -> dict[str, Any]:
    """Return the execution with an id.

    Raises
    ------
    NotFound
        If the kernel has no record of it.
    """
    execution = None if hub is None else hub.executions.get(msg_id)
    if hub is None or execution is None:
        raise _unknown(msg_id)
    return hub.describe(execution)


def forget_execution(hub: Hub | None, msg_id: str) -> None:
    """Delete the record of an execution that has ended, or clear the output so far.

    Raises
    ------
    NotFound
        If the kernel has no record of it.
    Conflict
        If it has not begun.
    """
    if hub is None:
        raise _unknown(msg_id)
    hub.forget_execution(msg_id)


def _unknown(msg_id: str) -> NotFound:
    return NotFound(f"no execution has the id {msg_id[:100]!a}")
