"""Decide when a kernel is ready, and which probe to send next.

A kernel is ready when it answers, its iopub subscription works, and its stdin socket is connected.
Only then are requests of clients sent, so that neither output nor an input request is lost. The
proof is a reply to a probe (`kernel_info_request` on shell and on control; a busy kernel answers
control), together with any iopub message after a probe. An `iopub_welcome` alone is a proof too
(JEP 65), but ipykernel sends it only to the first subscriber, so it is not sufficient to wait for
it. On stdin, the kernel sends the first message: its ROUTER drops an `input_request` for a peer
that has not finished its handshake, and the request is not repeated.

Some kernels cannot give the complete proof. They do not wait for `timeout`:

- a kernel that answers `QUIET_REPLIES` probes over a connected iopub for `QUIET_SECONDS`, and does
  not publish anything, is ready: it sends no status for kernel_info_request;
- a kernel whose stdin does not connect within `STDIN_SECONDS` after the other proofs is ready
  without stdin.

After `timeout` seconds a kernel counts as ready without proof, so that requests do not wait
forever.

A kernel that publishes on iopub but answers neither on shell nor on control may have taken the
sockets for those of a dead peer: a ROUTER permanently ignores a second peer with an identity that
it still knows. After `RENEW_SECONDS` the decision is therefore to open new sockets with another
identity, and again after twice that time, if iopub has sent messages since. Without iopub messages
the kernel may just be busy.

Invariants:

- events before the first probe, or while the subscription is down, are not a proof;
- after a lost connection the proof starts again;
- a ready kernel is not probed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Decision", "Event", "Readiness", "State"]

QUIET_SECONDS = 2.0
QUIET_REPLIES = 3
STDIN_SECONDS = 5.0
RENEW_SECONDS = 5.0


class State(Enum):
    """The knowledge about the kernel."""

    NEW = auto()  # no probe was sent yet
    ASKED = auto()  # a probe was sent, no message has arrived
    REPLIED = auto()  # a probe was answered, no iopub message has arrived
    HEARD = auto()  # an iopub message has arrived, no probe was answered
    PROVEN = auto()
    LOST = auto()  # iopub is not connected


class Event(Enum):
    """The events that change the state."""

    PROBE = auto()
    REPLY = auto()
    IOPUB = auto()
    WELCOME = auto()
    CONNECTED = auto()
    DISCONNECTED = auto()


# Pairs that are missing here do not change the state. A handshake after other evidence means that
# the evidence belongs to an older connection. In the state PROVEN, the evidence came over the new
# connection, so a handshake does not change it.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.NEW: {
        Event.PROBE: State.ASKED,
        Event.WELCOME: State.PROVEN,
        Event.DISCONNECTED: State.LOST,
    },
    State.ASKED: {
        Event.REPLY: State.REPLIED,
        Event.IOPUB: State.HEARD,
        Event.WELCOME: State.PROVEN,
        Event.CONNECTED: State.NEW,
        Event.DISCONNECTED: State.LOST,
    },
    State.REPLIED: {
        Event.IOPUB: State.PROVEN,
        Event.WELCOME: State.PROVEN,
        Event.CONNECTED: State.NEW,
        Event.DISCONNECTED: State.LOST,
    },
    State.HEARD: {
        Event.REPLY: State.PROVEN,
        Event.WELCOME: State.PROVEN,
        Event.CONNECTED: State.NEW,
        Event.DISCONNECTED: State.LOST,
    },
    State.PROVEN: {Event.DISCONNECTED: State.LOST},
    State.LOST: {Event.CONNECTED: State.NEW},
}


@dataclass(frozen=True, slots=True)
class Decision:
    """The next actions of the caller.

    Attributes
    ----------
    probe : bool
        Send a probe on shell and on control.
    ready : bool
        Send the requests of clients.
    timed_out : bool
        True if the kernel counts as ready because of the timeout, without proof.
    next_at : float or None
        The time at which to call `poll` again, in the unit of `now`; None: after the next event.
    renew : bool
        Open new sockets for shell, control and stdin with a new identity, before probing.
    lacks : str
        The channel without proof of a ready kernel: "iopub", "stdin", or empty.
    """

    probe: bool
    ready: bool
    timed_out: bool
    next_at: float | None
    renew: bool = False
    lacks: str = ""


class Readiness:
    """The state machine of the probes.

    The caller calls `poll` after each event and at each `next_at`. The initial state is that after
    a `reset` at 0; call `reset` with the real time before the first `poll`.

    Parameters
    ----------
    interval : float
        Seconds between probes.
    timeout : float
        Seconds after which a kernel counts as ready without proof (`kernel_info_timeout`).
    """

    def __init__(self, interval: float = 0.5, timeout: float = 60.0) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be above 0 seconds, not {interval}")
        self._interval = interval
        self._timeout = timeout
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Forget all evidence and the connections, because the kernel or the sockets are new."""
        self._state = State.NEW
        self._handshake = False  # on iopub
        self._stdin = False
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._timed_out = False
        self._deadline = now + self._timeout
        self._next_probe = -math.inf
        self._lacks = ""
        self._stdin_deadline = math.inf
        self._renew_after = RENEW_SECONDS
        self._restart_evidence()

    def _restart_evidence(self) -> None:
        self._replies = 0
        self._quiet_at = math.inf
        self._renew_at = math.inf

    @property
    def state(self) -> State:
        """The knowledge about the kernel."""
        return self._state

    @property
    def ready(self) -> bool:
        """True if requests of clients may be sent, because of the proof or of the timeout."""
        return self._timed_out or (
            self._state is State.PROVEN and (self._stdin or self._lacks == "stdin")
        )

    @property
    def timed_out(self) -> bool:
        """True if the kernel counts as ready without proof; a later proof resets it."""
        return self._timed_out

    def poll(self, now: float) -> Decision:
        """Return the next actions; the caller must carry out a probe or renewal in it."""
        if now >= self._quiet_at and self._replies >= QUIET_REPLIES:
            self._lacks = "iopub"
            self._enter(State.PROVEN, now)
        if self._state is State.PROVEN and not self.ready and now >= self._stdin_deadline:
            self._lacks = "stdin"
        if not self.ready and now >= self._deadline:
            self._timed_out = True
        if self.ready:
            return Decision(False, True, self._timed_out, None, lacks=self._lacks)
        if self._state is State.LOST:
            return Decision(False, False, False, self._deadline)
        if self._state is State.PROVEN:
            return Decision(False, False, False, self._stdin_deadline)
        renew = now >= self._renew_at
        if renew:
            self._renew_after *= 2
            self._renew_at = math.inf  # until the next iopub message
            self._next_probe = -math.inf
            self._stdin = False
        probe = now >= self._next_probe
        if probe:
            self._next_probe = now + self._interval
            self._take(Event.PROBE, now)
        next_at = min(self._next_probe, self._deadline)
        return Decision(probe, False, False, next_at, renew=renew)

    def on_reply(self, now: float) -> None:
        """Note a reply to a probe, on shell or on control."""
        if self._state is State.REPLIED:
            self._replies += 1
        self._take(Event.REPLY, now)

    def on_iopub(self, now: float) -> None:
        """Note any iopub message; cheap in the state PROVEN."""
        if self._state is not State.PROVEN:
            self._take(Event.IOPUB, now)
            if self._state is State.HEARD and self._renew_at == math.inf:
                self._renew_at = now + self._renew_after

    def on_welcome(self, now: float) -> None:
        """Note an `iopub_welcome`."""
        self._take(Event.WELCOME, now)

    def on_stdin(self, *, up: bool, now: float) -> None:
        """Note the handshake of the stdin connection, or its end.

        A ready kernel becomes unready until stdin is connected again, because the next request may
        need an input request.
        """
        was_ready = self.ready
        self._stdin = up
        if up:
            if self._lacks == "stdin":
                self._lacks = ""
        elif was_ready and not self.ready:
            self._stdin_deadline = self._deadline = now + STDIN_SECONDS

    def on_connected(self, now: float) -> None:
        """Note the iopub handshake; the next probe is due immediately.

        After a timeout, the wait starts again, because the kernel can answer only from now on.
        """
        if self._timed_out:
            self._wait(now)
        self._take(Event.CONNECTED, now)
        self._handshake = True

    def on_disconnected(self, now: float) -> None:
        """Note that the iopub connection has ended; for a ready kernel, the wait starts again."""
        if self.ready or self._state is State.PROVEN:
            self._wait(now)
        self._take(Event.DISCONNECTED, now)
        self._handshake = False

    def _take(self, event: Event, now: float) -> None:
        state = TRANSITIONS[self._state].get(event, self._state)
        if state is not self._state:
            self._enter(state, now)

    def _enter(self, state: State, now: float) -> None:
        self._state = state
        if state is State.PROVEN:
            self._timed_out = False
            self._restart_evidence()
            if not self._stdin:
                # After a timeout, do not wait for stdin beyond the deadline.
                self._stdin_deadline = min(now + STDIN_SECONDS, max(self._deadline, now))
        elif state is State.REPLIED:
            self._replies = 1
            self._quiet_at = now + QUIET_SECONDS if self._handshake else math.inf
        elif state in (State.NEW, State.LOST):
            self._next_probe = -math.inf
            self._restart_evidence()
