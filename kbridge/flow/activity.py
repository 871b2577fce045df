"""`execution_state` and `last_activity` of a kernel, from the messages that pass by.

Laws of this module:

- a kernel is busy as long as any request that a user made is; each request's `status` messages
  speak for that request alone, because control and subshells run beside shell;
- no request stays busy for want of one message. A request ends with its `idle`, with its reply, or
  when a later one begins on the same shell: PUB drops messages for a subscriber that does not keep
  up, and some kernels leave the `idle` out, or name another parent in it;
- requests that frontends make on their own (`QUIET`), and control's, neither make a kernel busy
  nor count as activity, or no kernel with an open page would ever be culled;
- output counts whatever its parent: threads publish under the parent that happens to be current.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from kbridge.wire.message import Message, scan

__all__ = ["CONTROL", "QUIET", "Activity", "state_of"]

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
"""Requests that travel on control."""

QUIET = CONTROL | {"comm_info_request", "kernel_info_request"}
"""Requests that say nothing about whether somebody uses the kernel."""

# What is no output and no reply to a user's request. `status` is looked at by its parent.
_QUIET_MESSAGES = frozenset(
    {"debug_event", "iopub_welcome", "status"}
    | QUIET
    | {name.removesuffix("_request") + "_reply" for name in QUIET}
)

# Stands for whatever a kernel was at before anybody here listened.
_BEFORE = "before"
_NAMELESS = "nameless"  # a request that no status names
_ID_CHARS = 256  # longer ids than any client makes are not remembered

_STATES = {
    spelling.format(state).encode(): state
    for state in ("busy", "idle", "starting")
    for spelling in ('{{"execution_state": "{}"}}', '{{"execution_state":"{}"}}')
}


def state_of(content: bytes) -> str:
    """Read `execution_state` from the content of a status message; empty if there is none."""
    known = _STATES.get(content)
    if known is not None:
        return known
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    state = value.get("execution_state") if isinstance(value, dict) else None
    return state if isinstance(state, str) else ""


def _shell_of(header: bytes) -> str:
    """Return the id of the subshell that a request went to (JEP 91); empty for the main shell."""
    if b'"subshell_id"' not in header:
        return ""
    try:
        found = json.loads(header).get("subshell_id")
    except (ValueError, RecursionError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


class Activity:
    """What a kernel does, and when it last did something for a user.

    The bridge's own probes are not to be shown to it.

    Parameters
    ----------
    now : float
        Unix seconds, as everywhere in this class.
    limit : int
        How many requests are remembered; the oldest are forgotten first. It bounds memory against
        a kernel that never says idle.
    quiet : collection of str
        Requests to count among the `QUIET` ones, beside those.

    Attributes
    ----------
    last_activity : float
        Unix seconds of the last user's request, output, or change that such a request caused.
    """

    __slots__ = (
        *("_asked", "_busy", "_latest", "_over", "_phase", "_quiet"),
        *("last_activity", "limit"),
    )

    def __init__(self, now: float, limit: int = 1000, quiet: Collection[str] = ()) -> None:
        self.last_activity = now
        self.limit = limit
        self._quiet = QUIET.union(quiet)
        self._latest = "idle"  # what the last status of a user's request said
        # The msg_id of the request that each shell is busy with, in the order in which they got
        # busy; the main shell's key is empty, a subshell's is its id.
        self._busy: dict[str, str] = {}
        self._over: dict[str, None] = {}  # requests that were answered, and have yet to say idle
        self._asked = ""  # what the main shell was busy with when it was asked whether it is free
        # What outweighs busy and idle; None for a kernel that is up.
        self._phase: str | None = "starting"

    @property
    def execution_state(self) -> str:
        """One of starting, idle, busy, restarting and dead."""
        return self._phase or ("busy" if self._busy else "idle")

    @property
    def latest_state(self) -> str:
        """Return `execution_state` as Jupyter Server shows it: the last status counts.

        It differs where requests run side by side, in subshells: idle as soon as one of them ends.
        """
        return self._phase or (self._latest if self._busy else "idle")

    @property
    def at_work(self) -> str:
        """The msg_id of the request that has been busy longest; empty if there is none."""
        return next(iter(self._busy.values()), "")

    def observe(self, msg: Message, msg_type: str, now: float) -> None:
        """Look at one message from the kernel, on any channel."""
        if msg_type == "status":
            self._status(msg, now)
        elif msg_type not in _QUIET_MESSAGES:
            self.last_activity = now

    def _status(self, msg: Message, now: float) -> None:
        state = state_of(msg.content)
        if state == "starting":
            # A new process says so: whatever the old one was at is gone. It never takes an idle
            # kernel back to starting, for the proof that it is up may have overtaken this message.
            self._forget()
            return
        if self._phase == "dead" or state not in ("busy", "idle"):
            return
        parent = msg.parent_header
        request = scan(parent, "msg_type")
        if request in self._quiet:
            # Any of them proves that the kernel is up, but for the one that takes it down.
            if state == "idle" and request != "shutdown_request":
                self._phase = None
            # kernel_info_request travels on control, too.
            if state == "busy" and request not in CONTROL and request != "kernel_info_request":
                self._busy.pop(_shell_of(parent), None)
            return
        self._phase = None
        self._latest = state
        self.last_activity = now
        parent_id = scan(parent, "msg_id")
        if state == "busy":
            self._begin(_shell_of(parent), parent_id or _NAMELESS)
        elif parent_id:
            self._end(parent_id)
            self._over.pop(parent_id, None)
        else:
            # Without a parent it speaks for the whole kernel.
            self._busy.clear()

    def _begin(self, shell: str, request: str) -> None:
        self._busy.pop(shell, None)
        if request in self._over:  # its reply was faster
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
        """Look at a reply on shell or on control: its request is over."""
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
        """Take note of a client's request; one of the `QUIET` types changes nothing."""
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
        if not busy_with or self._asked:
            return False
        self._asked = busy_with
        return True

    def free(self, now: float) -> None:
        """Note that the main shell answered a probe: the request running at the probe has ended.

        Any request from before the bridge connected has ended, too.
        """
        busy_with = self._busy.get("", "")
        if busy_with == _BEFORE:
            self.last_activity = now
        if busy_with in (_BEFORE, self._asked):
            self._busy.pop("", None)
        self._asked = ""

    def alive(self, now: float) -> None:  # noqa: ARG002
        """Note that the kernel is up; this does not count as activity."""
        if self._phase != "dead":
            self._phase = None

    def restarted(self, now: float) -> None:
        """The process was replaced, or is about to be: nothing of the old one is busy."""
        self._enter("restarting", now)

    def dead(self, now: float) -> None:
        """The process is gone for good; only `restarted` brings the kernel back."""
        self._enter("dead", now)

    def _forget(self) -> None:
        self._busy.clear()
        self._over.clear()
        self._asked = ""

    def _enter(self, phase: str, now: float) -> None:
        self._forget()
        self._phase = phase
        self.last_activity = now

    def statistics(self) -> dict[str, str | int | float]:
        """State, last activity, and how many requests are busy."""
        return {
            "execution_state": self.execution_state,
            "last_activity": self.last_activity,
            "busy_requests": len(self._busy),
        }
