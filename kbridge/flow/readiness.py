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
    """The events of a kernel and of the connections to it."""

    PROBE = auto()  # noted by `poll` itself
    REPLY = auto()  # to a probe, on shell or on control
    IOPUB = auto()  # any iopub message
    WELCOME = auto()  # an `iopub_welcome`
    CONNECTED = auto()  # the handshake of iopub
    DISCONNECTED = auto()  # the end of the iopub connection
    STDIN_CONNECTED = auto()
    STDIN_DISCONNECTED = auto()


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

# Log texts about a kernel that is ready without the complete proof.
_UNPROVEN = {
    State.HEARD: "publishes on iopub, but has answered neither on shell nor on control",
    State.REPLIED: "answers, but has published nothing on iopub",
    State.LOST: "has not accepted a connection to its iopub port",
}
_LACKS = {
    "": "",
    "iopub": "answers kernel_info_request without a status on iopub",
    "stdin": "does not accept connections to its stdin port, so input() will not work",
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

    The caller calls `take` for each event, and `poll` at each `next_at`. The initial state is that
    after a `reset` at 0; call `reset` with the real time before the first `poll`.

    Parameters
    ----------
    interval : float
        Seconds between probes.
    timeout : float
        Seconds after which a kernel counts as ready without proof (`kernel_info_timeout`).

    Attributes
    ----------
    state : State
        The knowledge about the kernel.
    ready : bool
        True if requests of clients may be sent, because of the proof or of the timeout.
    timed_out : bool
        True if the kernel counts as ready without proof; a later proof resets it.
    proven : bool
        True if the kernel is ready and the timeout has not passed. No event of a message changes
        the decision then.
    """

    def __init__(self, interval: float = 0.5, timeout: float = 60.0) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be above 0 seconds, not {interval}")
        self._interval = interval
        self._timeout = timeout
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Forget all evidence and the connections, because the kernel or the sockets are new."""
        self.state = State.NEW
        self._handshake = False  # on iopub
        self._stdin = False
        self._wait(now)

    def _wait(self, now: float) -> None:
        self.timed_out = False
        self._deadline = now + self._timeout
        self._next_probe = -math.inf
        self._lacks = ""
        self._stdin_deadline = math.inf
        self._renew_after = RENEW_SECONDS
        self._restart_evidence()
        self._update()

    def _restart_evidence(self) -> None:
        self._replies = 0
        self._quiet_at = math.inf
        self._renew_at = math.inf

    def _update(self) -> None:
        """Set `ready` and `proven`, which are read for every message, from the rest."""
        complete = self.state is State.PROVEN and (self._stdin or self._lacks == "stdin")
        self.ready = self.timed_out or complete
        self.proven = self.ready and not self.timed_out

    def take(self, event: Event, now: float) -> Decision:
        """Note an event, and return the next actions; see `poll`."""
        self.note(event, now)
        return self.poll(now)

    def poll(self, now: float) -> Decision:
        """Return the next actions; the caller must carry out a probe or renewal in it."""
        if now >= self._quiet_at and self._replies >= QUIET_REPLIES:
            self._lacks = "iopub"
            self._enter(State.PROVEN, now)
        if self.state is State.PROVEN and not self.ready and now >= self._stdin_deadline:
            self._lacks = "stdin"
            self._update()
        if not self.ready and now >= self._deadline:
            self.timed_out = True
            self._update()
        if self.ready:
            return Decision(False, True, self.timed_out, None, lacks=self._lacks)
        if self.state is State.LOST:
            return Decision(False, False, False, self._deadline)
        if self.state is State.PROVEN:
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
            self._move(Event.PROBE, now)
        next_at = min(self._next_probe, self._deadline)
        return Decision(probe, False, False, next_at, renew=renew)

    def note(self, event: Event, now: float) -> None:
        """Note an event; the next `poll` decides.

        A ready kernel becomes unready when its iopub or its stdin connection ends. On iopub, the
        proof and the wait start again. On stdin, it lasts until stdin is connected again, because
        the next request may need an input request.

        An iopub handshake makes the next probe due immediately. After a timeout, the wait starts
        again, because the kernel can answer only from now on.
        """
        match event:
            case Event.STDIN_CONNECTED | Event.STDIN_DISCONNECTED:
                self._note_stdin(event is Event.STDIN_CONNECTED, now)
            case Event.REPLY:
                if self.state is State.REPLIED:
                    self._replies += 1
            case Event.CONNECTED:
                self._handshake = True
                if self.timed_out:
                    self._wait(now)
            case Event.DISCONNECTED:
                self._handshake = False
                if self.ready or self.state is State.PROVEN:
                    self._wait(now)
        self._move(event, now)
        if event is Event.IOPUB and self.state is State.HEARD and self._renew_at == math.inf:
            self._renew_at = now + self._renew_after

    @property
    def connected(self) -> bool:
        """True while iopub is connected."""
        return self._handshake

    def explain(self) -> str:
        """Return what the proof of a ready kernel lacks, for the log; empty if it is complete."""
        if not self.timed_out:
            return _LACKS[self._lacks]
        lack = _UNPROVEN.get(self.state, "has not answered")
        return f"{lack} for {self._timeout:g} s (kernel_info_timeout)"

    def _note_stdin(self, connected: bool, now: float) -> None:
        was_ready = self.ready
        self._stdin = connected
        if connected and self._lacks == "stdin":
            self._lacks = ""
        self._update()
        if was_ready and not self.ready:
            self._stdin_deadline = self._deadline = now + STDIN_SECONDS

    def _move(self, event: Event, now: float) -> None:
        state = TRANSITIONS[self.state].get(event, self.state)
        if state is not self.state:
            self._enter(state, now)

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        if state is State.PROVEN:
            self.timed_out = False
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
        self._update()
