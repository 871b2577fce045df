"""When a kernel is ready: what to ask it next, and what counts as proof.

A hub is ready once its kernel answers, its iopub subscription is known to work, and its stdin
socket is connected; only then are clients' requests sent, so that neither output nor a question is
lost. Proof is a reply to one of our probes (`kernel_info_request` on shell and on control: a busy
kernel answers control) together with any iopub message that came after a probe. An
`iopub_welcome` proves as much alone (JEP 65), but ipykernel sends it to its first subscriber only,
so it cannot be relied on. Stdin is where a kernel speaks first: its ROUTER drops an
`input_request` for a peer that has not finished its handshake, and nobody sends it again.

Kernels that cannot give the whole proof do not wait for `timeout`:

- a kernel that answers `QUIET_REPLIES` probes over a connected iopub for `QUIET_SECONDS` and
  publishes nothing is ready: it sends no status for kernel_info_request;
- a kernel whose stdin does not connect within `STDIN_SECONDS` of the rest is ready without it.

`timeout` seconds after the wait began the hub is ready whatever was seen: requests then go out
unproven rather than never.

A kernel that publishes on iopub but answers neither on shell nor on control may have mistaken our
sockets for those of a dead peer: a ROUTER ignores a second peer with an identity that it still
knows, for good. So after `RENEW_SECONDS` the hub is told to make new sockets under a new identity,
and again after twice that time, but only if iopub has spoken since: such a kernel may just be busy.

Laws of this module:

- nothing seen before the first probe, or while the subscription is down, proves anything;
- a lost connection takes all proof away;
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
    """What is known about the kernel."""

    NEW = auto()  # nothing: no probe was sent yet
    ASKED = auto()  # a probe was sent, nothing was heard
    REPLIED = auto()  # a probe was answered, iopub is silent
    HEARD = auto()  # iopub speaks, no probe was answered
    PROVEN = auto()
    LOST = auto()  # iopub is not connected


class Event(Enum):
    """What happens to a hub that waits for its kernel."""

    PROBE = auto()
    REPLY = auto()
    IOPUB = auto()
    WELCOME = auto()
    CONNECTED = auto()
    DISCONNECTED = auto()


# A pair that is not here changes nothing. A handshake after other evidence means that the evidence
# is of an older connection; a proven hub has seen through the new one, and knows better.
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
    """What a hub is to do now.

    Attributes
    ----------
    probe : bool
        Send a probe on shell and on control.
    ready : bool
        Let clients' requests through.
    timed_out : bool
        Ready for want of time, not of proof.
    next_at : float or None
        When to ask again (the unit of `now`), None: when something happens.
    renew : bool
        Make new sockets for shell, control and stdin, under a new identity, before probing.
    lacks : str
        The channel on which a ready kernel could not be proven: "iopub", "stdin", or empty.
    """

    probe: bool
    ready: bool
    timed_out: bool
    next_at: float | None
    renew: bool = False
    lacks: str = ""


class Readiness:
    """The nudge, as a machine that is told events and asked for decisions.

    Whoever drives it calls `poll` after each event and at each `next_at`. It begins as after a
    `reset` at 0; call `reset` with the real time before the first `poll`.

    Parameters
    ----------
    interval : float
        Seconds between probes.
    timeout : float
        Seconds after which a hub that waits is ready unproven (`kernel_info_timeout`).
    """

    def __init__(self, interval: float = 0.5, timeout: float = 60.0) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be above 0 seconds, not {interval}")
        self._interval = interval
        self._timeout = timeout
        self._resets = 0
        self._losses = 0
        self._probes = 0
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Forget all evidence, and the connections: the kernel or the sockets are new."""
        self._state = State.NEW
        self._resets += 1
        self._handshake = False  # on iopub
        self._stdin = False
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._timed_out = False
        self._since = now
        self._deadline = now + self._timeout
        self._next_probe = -math.inf
        self._waited: float | None = None
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
        """What is known about the kernel."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether clients' requests may be sent, for proof or for want of time."""
        return self._timed_out or (
            self._state is State.PROVEN and (self._stdin or self._lacks == "stdin")
        )

    @property
    def timed_out(self) -> bool:
        """Whether it is ready without proof. Proof that comes later ends it."""
        return self._timed_out

    def poll(self, now: float) -> Decision:
        """Decide what to do now. A probe or a renewal that this asks for counts as done."""
        if now >= self._quiet_at and self._replies >= QUIET_REPLIES:
            self._lacks = "iopub"
            self._enter(State.PROVEN, now)
        if self._state is State.PROVEN and not self.ready and now >= self._stdin_deadline:
            self._lacks = "stdin"
            self._waited = now - self._since
        if not self.ready and now >= self._deadline:
            self._timed_out = True
            self._waited = now - self._since
        if self.ready:
            return Decision(False, True, self._timed_out, None, lacks=self._lacks)
        if self._state is State.LOST:
            return Decision(False, False, False, self._deadline)
        if self._state is State.PROVEN:
            return Decision(False, False, False, self._stdin_deadline)
        renew = now >= self._renew_at
        if renew:
            self._renew_after *= 2
            self._renew_at = math.inf  # until iopub speaks again
            self._next_probe = -math.inf
            self._stdin = False
        probe = now >= self._next_probe
        if probe:
            self._next_probe = now + self._interval
            self._probes += 1
            self._take(Event.PROBE, now)
        next_at = min(self._next_probe, self._deadline)
        return Decision(probe, False, False, next_at, renew=renew)

    def on_reply(self, now: float) -> None:
        """Take note of a reply to a probe, on shell or on control."""
        if self._state is State.REPLIED:
            self._replies += 1
        self._take(Event.REPLY, now)

    def on_iopub(self, now: float) -> None:
        """Take note of any iopub message. Cheap once the hub is proven."""
        if self._state is not State.PROVEN:
            self._take(Event.IOPUB, now)
            if self._state is State.HEARD and self._renew_at == math.inf:
                self._renew_at = now + self._renew_after

    def on_welcome(self, now: float) -> None:
        """Take note of an `iopub_welcome`."""
        self._take(Event.WELCOME, now)

    def on_stdin(self, *, up: bool, now: float) -> None:
        """Take note of stdin's handshake, or of its end.

        A hub that was ready holds requests back until stdin is there again: the first of them may
        ask a question.
        """
        was_ready = self.ready
        self._stdin = up
        if up:
            if self._lacks == "stdin":
                self._lacks = ""
            if self.ready and not was_ready:
                self._waited = now - self._since
        elif was_ready and not self.ready:
            self._stdin_deadline = self._deadline = now + STDIN_SECONDS
            self._waited = None

    def on_connected(self, now: float) -> None:
        """Take note of the iopub handshake. The next probe is due at once.

        A hub that had given up waits anew: only now is there somebody who could answer.
        """
        if self._timed_out:
            self._wait(now)
        self._take(Event.CONNECTED, now)
        self._handshake = True

    def on_disconnected(self, now: float) -> None:
        """Take note that the iopub connection is gone. A hub that was ready waits anew."""
        if self._state is not State.LOST:
            self._losses += 1
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
            self._waited = now - self._since
            self._restart_evidence()
            if not self._stdin:
                self._waited = None
                # A hub that had given up does not wait once more.
                self._stdin_deadline = min(now + STDIN_SECONDS, max(self._deadline, now))
        elif state is State.REPLIED:
            self._replies = 1
            self._quiet_at = now + QUIET_SECONDS if self._handshake else math.inf
        elif state in (State.NEW, State.LOST):
            self._next_probe = -math.inf
            self._restart_evidence()

    def statistics(self) -> dict[str, str | int | float | bool | None]:
        """State, counts since the start, and the seconds that the last wait took (None: waits)."""
        return {
            "state": self._state.name.lower(),
            "ready": self.ready,
            "timed_out": self._timed_out,
            "waited": self._waited,
            "probes": self._probes,
            "resets": self._resets,
            "losses": self._losses,
            "lacks": self._lacks,
        }
