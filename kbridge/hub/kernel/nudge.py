"""Drives the nudge: does what `kbridge.flow.readiness` decides, when it wants to.

Owns the timer, and those who wait for the kernel to be ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kbridge.errors import HubClosed
from kbridge.flow.readiness import Decision, Readiness, State
from kbridge.hub.clock import Clock
from kbridge.link.interfaces import nobody

__all__ = ["Nudge", "unproven"]

_MISSING = {
    State.HEARD: "publishes on iopub, but has answered neither on shell nor on control",
    State.REPLIED: "answers, but has published nothing on iopub",
    State.LOST: "has not accepted a connection to its iopub port",
}
_LACKS = {
    "iopub": "answers kernel_info_request without a status on iopub",
    "stdin": "does not accept connections to its stdin port, so input() will not work",
}


def unproven(state: State, decision: Decision, timeout: float) -> str:
    """Say what is missing of a kernel that is ready without the whole proof, for the log."""
    if decision.timed_out:
        missing = _MISSING.get(state, "has not answered")
        return f"{missing} for {timeout:g} s (kernel_info_timeout)"
    return _LACKS[decision.lacks]


class Nudge:
    """Whether a kernel is ready, and what it takes to find out.

    Parameters
    ----------
    clock : Clock
        The time.
    timeout : float
        Seconds after which a kernel is taken for ready without proof.
    probe : callable
        Sends a probe on shell and control.
    on_ready : callable
        Is told each time that the kernel becomes ready, with the decision; and once more where
        the proof comes after time had run out.
    renew : callable
        Makes new sockets for shell, control and stdin, under a new identity.
    """

    def __init__(
        self,
        clock: Clock,
        timeout: float,
        probe: Callable[[], None],
        on_ready: Callable[[Decision], None],
        renew: Callable[[], None] = nobody,
    ) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._readiness = Readiness(timeout=timeout)
        self._probe = probe
        self._on_ready = on_ready
        self._renew = renew
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[bool]] = []
        self._told: Decision | None = None  # the decision that `on_ready` knows of
        self._closed = False

    @property
    def ready(self) -> bool:
        """True if requests may be sent."""
        return self._readiness.ready

    @property
    def timed_out(self) -> bool:
        """True if requests may be sent only because the timeout has passed."""
        return self._readiness.timed_out

    @property
    def state(self) -> State:
        """The state of the kernel as far as it is known."""
        return self._readiness.state

    @property
    def proven(self) -> bool:
        """True if requests may be sent because the kernel has answered."""
        return self._readiness.ready and not self._readiness.timed_out

    def begin(self) -> None:
        """Start probing a kernel that was just linked."""
        self.stop()
        self._poll()

    def stop(self) -> None:
        """Stop probing after the link was closed; the kernel counts as not ready."""
        self._readiness.reset(self._clock.monotonic())
        self._told = None
        self._cancel()

    def connected(self) -> None:
        """The kernel's side of iopub is there."""
        self._readiness.on_connected(self._clock.monotonic())
        self._poll()

    def disconnected(self) -> None:
        """The kernel's side of iopub went away."""
        self._readiness.on_disconnected(self._clock.monotonic())
        self._poll()

    def stdin(self, *, up: bool) -> None:
        """The kernel's side of stdin is there, or went away."""
        self._readiness.on_stdin(up=up, now=self._clock.monotonic())
        self._poll()

    def heard(self, *, welcome: bool = False) -> None:
        """Something came on iopub."""
        if self.proven:
            return
        now = self._clock.monotonic()
        if welcome:
            self._readiness.on_welcome(now)
        else:
            self._readiness.on_iopub(now)
        self._poll()

    def replied(self) -> None:
        """A probe was answered."""
        self._readiness.on_reply(self._clock.monotonic())
        self._poll()

    async def wait(self, timeout: float | None) -> bool:
        """Wait until ready; False for want of proof, or of time.

        Raises
        ------
        HubClosed
            After `close`.
        """
        if self._closed:
            raise HubClosed("the kernel is gone")
        if self.ready:
            return not self.timed_out
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            return False
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def close(self) -> None:
        """Stop, and tell those who wait; may be called twice."""
        self._closed = True
        self.stop()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(HubClosed("the kernel is gone"))
                waiter.exception()  # seen: whoever was cancelled meanwhile awaits it no more

    def statistics(self) -> dict[str, Any]:
        """As `Readiness.statistics`."""
        return self._readiness.statistics()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _poll(self) -> None:
        self._cancel()
        now = self._clock.monotonic()
        decision = self._readiness.poll(now)
        # First of all, or an error below would be the end of all polls.
        if decision.next_at is not None:
            self._timer = self._loop.call_later(max(0.0, decision.next_at - now), self._poll)
        if decision.renew:
            self._renew()
        if decision.probe:
            self._probe()
        known, self._told = self._told, decision if decision.ready else None
        if decision.ready and decision != known:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(not decision.timed_out)
            self._on_ready(decision)
