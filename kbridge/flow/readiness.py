"""When a kernel is ready: what to ask it next, and what counts as proof.

A hub is ready once its kernel answers and its iopub subscription is known to work; only then are
clients' requests sent, so that no output of theirs is lost. Proof is a reply to one of our
probes (`kernel_info_request` on shell and on control: a busy kernel answers control) together with
any iopub message that came after a probe. An `iopub_welcome` proves as much alone (JEP 65), but
ipykernel sends it to its first subscriber only, so it cannot be relied on. `timeout` seconds after
the wait began the hub is ready whatever was seen: requests then go out unproven rather than never.

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
    """

    probe: bool
    ready: bool
    timed_out: bool
    next_at: float | None


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
        """Forget all evidence, and the connection: the kernel or the sockets are new."""
        self._state = State.NEW
        self._resets += 1
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._timed_out = False
        self._since = now
        self._deadline = now + self._timeout
        self._next_probe = -math.inf
        self._waited: float | None = None

    @property
    def state(self) -> State:
        """What is known about the kernel."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether clients' requests may be sent, for proof or for want of time."""
        return self._state is State.PROVEN or self._timed_out

    @property
    def timed_out(self) -> bool:
        """Whether it is ready without proof. Proof that comes later ends it."""
        return self._timed_out

    def poll(self, now: float) -> Decision:
        """Decide what to do now. A probe that this asks for counts as sent."""
        if not self.ready and now >= self._deadline:
            self._timed_out = True
            self._waited = now - self._since
        if self.ready:
            return Decision(probe=False, ready=True, timed_out=self._timed_out, next_at=None)
        if self._state is State.LOST:
            return Decision(probe=False, ready=False, timed_out=False, next_at=self._deadline)
        probe = now >= self._next_probe
        if probe:
            self._next_probe = now + self._interval
            self._probes += 1
            self._take(Event.PROBE, now)
        next_at = min(self._next_probe, self._deadline)
        return Decision(probe=probe, ready=False, timed_out=False, next_at=next_at)

    def on_reply(self, now: float) -> None:
        """Take note of a reply to a probe, on shell or on control."""
        self._take(Event.REPLY, now)

    def on_iopub(self, now: float) -> None:
        """Take note of any iopub message. Cheap once the hub is proven."""
        if self._state is not State.PROVEN:
            self._take(Event.IOPUB, now)

    def on_welcome(self, now: float) -> None:
        """Take note of an `iopub_welcome`."""
        self._take(Event.WELCOME, now)

    def on_connected(self, now: float) -> None:
        """Take note of the iopub handshake. The next probe is due at once.

        A hub that had given up waits anew: only now is there somebody who could answer.
        """
        if self._timed_out:
            self._wait(now)
        self._take(Event.CONNECTED, now)

    def on_disconnected(self, now: float) -> None:
        """Take note that the iopub connection is gone. A hub that was ready waits anew."""
        if self._state is not State.LOST:
            self._losses += 1
        if self.ready:
            self._wait(now)
        self._take(Event.DISCONNECTED, now)

    def _take(self, event: Event, now: float) -> None:
        state = TRANSITIONS[self._state].get(event, self._state)
        if state is self._state:
            return
        self._state = state
        if state is State.PROVEN:
            self._timed_out = False
            self._waited = now - self._since
        elif state is State.NEW:
            self._next_probe = -math.inf

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
        }
