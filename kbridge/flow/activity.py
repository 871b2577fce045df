"""Derive `execution_state` and `last_activity` of a kernel from its messages.

Invariants:

- a kernel is busy while any request of a user is busy. A `status` message applies only to the
  request that it names, because control and subshells run in parallel with shell;
- one missing message does not keep a request busy. A request ends with its `idle`, with its reply,
  or when the next request begins on the same shell. PUB sockets drop messages for slow subscribers,
  and some kernels omit the `idle` or name another parent in it;
- requests that frontends send by themselves (`QUIET`) and requests on control neither make a kernel
  busy nor count as activity; otherwise a kernel with an open page would never be culled;
- output counts as activity for any parent, because threads publish under the current parent.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from kbridge.wire.message import Message, field

__all__ = ["CONTROL", "QUIET", "Activity", "shell_of", "state_of"]

CONTROL = frozenset(
    {
        "create_subshell_request",
        "debug_request",
        "delete_subshell_request",
        "interrupt_request",
        "list_subshell_request",
        "shutdown_request",
        "usage_request",
    }
)
"""Requests that are sent on control."""

QUIET = CONTROL | {"comm_info_request", "kernel_info_request"}
"""Requests that do not show that a user works with the kernel."""

# Messages that are neither output nor replies to a user's request. `status` messages are judged by
# their parent.
_QUIET_MESSAGES = frozenset(
    {"debug_event", "iopub_welcome", "status"}
    | QUIET
    | {name.removesuffix("_request") + "_reply" for name in QUIET}
)

# Stands for a request from before the bridge connected.
_BEFORE = "before"
_NAMELESS = "nameless"  # a request without a msg_id
_ID_CHARS = 256  # unusually long ids are not stored
_PARSED = 64 << 10  # bytes; longer headers and contents are not parsed

_STATES = {
    spelling.format(state).encode(): state
    for state in ("busy", "idle", "starting")
    for spelling in ('{{"execution_state": "{}"}}', '{{"execution_state":"{}"}}')
}


def state_of(content: bytes) -> str:
    """Return `execution_state` of the content of a status message; empty if it is missing.

    Contents of more than 64 KiB are not parsed, because that blocks the bridge.
    """
    known = _STATES.get(content)
    if known is not None:
        return known
    if len(content) > _PARSED:
        return ""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    state = value.get("execution_state") if isinstance(value, dict) else None
    return state if isinstance(state, str) else ""


def shell_of(header: bytes) -> str:
    """Return the id of the subshell that a request went to (JEP 91); empty for the main shell.

    The headers of JupyterLab say `"subshell_id": null` for the main shell.
    """
    if len(header) > _PARSED or b'"subshell_id"' not in header:
        return ""
    try:
        found = json.loads(header).get("subshell_id")
    except (ValueError, RecursionError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


class Activity:
    """The state of a kernel, and the time of its last activity for a user.

    The caller must not pass the bridge's own probes.

    Parameters
    ----------
    now : float
        Unix time in seconds, as in all methods of this class.
    limit : int
        Maximum number of stored requests; the oldest are forgotten first. Bounds the memory for a
        kernel that never sends idle.
    quiet : collection of str
        More types of requests to treat as `QUIET`.

    Attributes
    ----------
    last_activity : float
        Time of the last request of a user, of the last output, or of the last change of state that
        such a request caused.
    """

    __slots__ = (
        *("_busy", "_latest", "_over", "_phase", "_probed", "_quiet"),
        *("last_activity", "limit"),
    )

    def __init__(self, now: float, limit: int = 1000, quiet: Collection[str] = ()) -> None:
        self.last_activity = now
        self.limit = limit
        self._quiet = QUIET.union(quiet)
        self._latest = "idle"  # the last status of a user's request
        # Shell -> msg_id of its busy request, in the order of the busy messages. The key of the
        # main shell is empty; the key of a subshell is its id.
        self._busy: dict[str, str] = {}
        self._over: dict[str, None] = {}  # requests that have a reply, but no idle yet
        self._probed = ""  # the busy request of the main shell when `doubt` was called
        # Overrides busy and idle; None for a kernel that is up.
        self._phase: str | None = "starting"

    @property
    def execution_state(self) -> str:
        """One of starting, idle, busy, restarting, dead."""
        return self._phase or ("busy" if self._busy else "idle")

    @property
    def latest_state(self) -> str:
        """Return `execution_state` as Jupyter Server shows it: the last status counts.

        It differs while requests run in parallel in subshells: idle as soon as one of them ends.
        """
        return self._phase or (self._latest if self._busy else "idle")

    @property
    def at_work(self) -> str:
        """The msg_id of the request that has been busy for the longest time; empty if none is."""
        return next(iter(self._busy.values()), "")

    @property
    def presumed(self) -> bool:
        """True if the kernel is only presumed to be busy, with a request from before."""
        return list(self._busy.values()) == [_BEFORE]

    def observe(self, msg: Message, msg_type: str, now: float) -> None:
        """Process one message from the kernel, on any channel."""
        if msg_type == "status":
            self._status(msg, now)
        elif msg_type not in _QUIET_MESSAGES:
            self.last_activity = now

    def _status(self, msg: Message, now: float) -> None:
        state = state_of(msg.content)
        if state == "starting":
            # Sent by a new process, so the requests of the old one have ended. The phase does not
            # change to starting, because the proof that the kernel is up may have arrived before
            # this message.
            self._forget()
            return
        if self._phase == "dead" or state not in ("busy", "idle"):
            return
        parent = msg.parent_header
        request = field(parent, "msg_type")
        if request in self._quiet:
            # Proves that the kernel is up, except if the request shuts it down.
            if state == "idle" and request != "shutdown_request":
                self._phase = None
            # kernel_info_request is also sent on control.
            if state == "busy" and request not in CONTROL and request != "kernel_info_request":
                self._busy.pop(shell_of(parent), None)
            return
        self._phase = None
        self._latest = state
        self.last_activity = now
        parent_id = msg.parent_id
        if state == "busy":
            self._begin(shell_of(parent), parent_id or _NAMELESS)
        elif parent_id:
            self._end(parent_id)
            self._over.pop(parent_id, None)
        else:
            # Without a parent, the status applies to the whole kernel.
            self._busy.clear()

    def _begin(self, shell: str, request: str) -> None:
        self._busy.pop(shell, None)
        if request in self._over:  # its reply has already arrived
            return
        self._busy[shell] = request
        if len(self._busy) > self.limit:
            del self._busy[next(iter(self._busy))]

    def _end(self, request: str) -> None:
        for shell, busy_with in self._busy.items():
            if busy_with == request:
                del self._busy[shell]
                return

    def replied(self, msg: Message, msg_type: str, now: float) -> None:
        """Process a reply on shell or control, which ends its request."""
        if f"{msg_type.removesuffix('_reply')}_request" in self._quiet:
            return
        self.last_activity = now
        request = msg.parent_id
        if 0 < len(request) <= _ID_CHARS:
            self._end(request)
            self._over[request] = None
            if len(self._over) > self.limit:
                del self._over[next(iter(self._over))]

    def touch(self, now: float, msg_type: str = "") -> None:
        """Count a client's request as activity, unless its type is `QUIET`."""
        if msg_type not in self._quiet:
            self.last_activity = now

    def presume_busy(self) -> None:
        """Show a kernel as busy that may run a request from before the bridge connected.

        The state lasts until `free` is called.
        """
        self._phase = None
        self._busy[""] = _BEFORE
        self._latest = "busy"

    def doubt(self) -> bool:
        """Return True if the main shell is busy and was not probed yet; note the probe."""
        busy_with = self._busy.get("", "")
        if not busy_with or self._probed:
            return False
        self._probed = busy_with
        return True

    def free(self, now: float) -> None:
        """Note that the main shell answered a probe: the request running at the probe has ended.

        Any request from before the bridge connected has ended, too.
        """
        busy_with = self._busy.get("", "")
        if busy_with == _BEFORE:
            self.last_activity = now
        if busy_with in (_BEFORE, self._probed):
            self._busy.pop("", None)
        self._probed = ""

    def alive(self, now: float) -> None:  # noqa: ARG002
        """Note that the kernel is up; this does not count as activity."""
        if self._phase != "dead":
            self._phase = None

    def restarted(self, now: float) -> None:
        """Note that the process was or will be replaced; its requests have ended."""
        self._enter("restarting", now)

    def dead(self, now: float) -> None:
        """Note that the process has ended; only `restarted` revives the kernel."""
        self._enter("dead", now)

    def _forget(self) -> None:
        self._busy.clear()
        self._over.clear()
        self._probed = ""

    def _enter(self, phase: str, now: float) -> None:
        self._forget()
        self._phase = phase
        self.last_activity = now
