"""The figures of one kernel for the live view, read from its hub.

Everything is counted or kept by the hub anyway. Nothing here happens for each message.
"""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final

from kbridge.flow.execution import Execution

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["read_hub"]

_CLIENTS: Final = 20
_EXECUTIONS: Final = 8
_SESSION: Final = 8  # characters of a session id, enough to tell the pages of a user apart


def read_hub(hub: Hub) -> dict[str, Any]:
    """Return the figures of a hub.

    Returns
    -------
    dict
        `frames` and `bytes` count all output so far. `clients` has the websockets that are most
        behind, at most 20; `executions` those that run, wait or ended last, newest last.
    """
    figures = hub.statistics()
    journal, clients, pace = figures["journal"], figures["clients"], figures["pace"]
    return {
        "ready": hub.ready,
        "last_activity": hub.activity.last_activity,
        "frames": journal["appended_frames"],
        "bytes": journal["appended_bytes"],
        "memory_bytes": journal["bytes"],
        "disk_bytes": journal["disk_bytes"],
        "dropped_frames": journal["forgotten_frames"],
        "held_bytes": pace["held_bytes"],
        "flooding": pace["flooding"],
        "waiting_requests": figures["outbox"]["requests"],
        "connections": clients["attached"],
        "behind": clients["behind"],
        "lag_bytes": clients["max_lag_bytes"],
        "parked": clients["parked"],
        "clients": _clients(hub),
        "executions": _executions(hub),
    }


def _clients(hub: Hub) -> list[dict[str, Any]]:
    found = nlargest(_CLIENTS, hub.clients(), key=lambda client: client["lag_bytes"])
    for client in found:
        client["session"] = client["session"][:_SESSION]
    return sorted(found, key=lambda client: client["number"])


def _executions(hub: Hub) -> dict[str, Any]:
    executions = hub.executions
    running = executions.running
    newest = executions.find(limit=_EXECUTIONS)
    # Requests that wait may be newer than all of these.
    ids = {each.msg_id for each in newest}
    shown = [each for each in running[-_EXECUTIONS:] if each.msg_id not in ids] + newest
    return {
        "waiting": max(0, executions.unfinished - len(running)),
        "running": len(running),
        "total": len(executions),
        "shown": [_execution(each) for each in shown],
    }


def _execution(execution: Execution) -> dict[str, Any]:
    return {
        "id": execution.msg_id,
        "state": execution.state,
        "count": execution.count,
        "submitted": execution.submitted,
        "started": execution.started,
        "ended": execution.ended,
        "messages": execution.messages,
        "output_bytes": execution.nbytes,
    }
