"""Drives `kbridge.flow.readiness`: the timer of the probes, and the callers that wait.

The owner sends the probes, makes new sockets and sends queued requests, when `NudgeEvents` says so.
"""

from __future__ import annotations

import asyncio

from kbridge.errors import HubClosed
from kbridge.flow.readiness import Decision, Readiness, State
from kbridge.hub.context import HubContext
from kbridge.hub.kernel.events import NudgeEvents

__all__ = ["Nudge"]

_MISSING = {
    State.HEARD: "publishes on iopub, but has answered neither on shell nor on control",
    State.REPLIED: "answers, but has published nothing on iopub",
    State.LOST: "has not accepted a connection to its iopub port",
}
_LACKS = {
    "iopub": "answers kernel_info_request without a status on iopub",
    "stdin": "does not accept connections to its stdin port, so input() will not work",
}


class Nudge:
    """Probes a kernel until it is ready.

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share. A kernel counts as ready without proof after
        `kernel_info_timeout`.
    events : NudgeEvents
        Carries out the decisions. `on_kernel_ready` is called each time that the kernel becomes
        ready, and once more if the proof comes after the timeout.

    Attributes
    ----------
    ready : bool
        True if requests may be sent.
    timed_out : bool
        True if requests may be sent only because the timeout has passed.
    proven : bool
        True if requests may be sent because the kernel has answered.
    """

    def __init__(self, context: HubContext, events: NudgeEvents) -> None:
        self._context = context
        self._clock = context.clock
        self._loop = asyncio.get_running_loop()
        self._readiness = Readiness(timeout=context.settings.kernel_info_timeout)
        self._events = events
        # Copies of what `Readiness` says: they are read for every message.
        self.ready = self.timed_out = self.proven = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[bool]] = []
        self._told: Decision | None = None  # the decision that the owner knows of
        self._closed = False

    @property
    def state(self) -> State:
        """The state of the kernel as far as it is known."""
        return self._readiness.state

    def begin(self) -> None:
        """Start probing a kernel that was just linked."""
        self.stop()
        self._poll()

    def stop(self) -> None:
        """Stop probing after the link was closed; the kernel counts as not ready."""
        self._readiness.reset(self._clock.monotonic())
        self._told = None
        self._note_state()
        self._cancel()

    def connected(self) -> None:
        """Note that iopub is connected."""
        self._readiness.on_connected(self._clock.monotonic())
        self._poll()

    def disconnected(self) -> None:
        """Note that iopub is disconnected."""
        self._readiness.on_disconnected(self._clock.monotonic())
        self._poll()

    def stdin(self, *, up: bool) -> None:
        """Note that stdin is connected or disconnected."""
        self._readiness.on_stdin(up=up, now=self._clock.monotonic())
        self._poll()

    def heard(self, *, welcome: bool = False) -> None:
        """Note a message on iopub."""
        if self.proven:
            return
        now = self._clock.monotonic()
        if welcome:
            self._readiness.on_welcome(now)
        else:
            self._readiness.on_iopub(now)
        self._poll()

    def replied(self) -> None:
        """Note an answer to a probe."""
        self._readiness.on_reply(self._clock.monotonic())
        self._poll()

    async def wait(self, timeout: float | None) -> bool:
        """Wait until the kernel is ready; return False if it is not proven, or after `timeout`.

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
        """Stop, and fail the callers that wait; may be called twice."""
        self._closed = True
        self.stop()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(HubClosed("the kernel is gone"))
                waiter.exception()  # retrieved: a cancelled caller does not await it

    def _note_state(self) -> None:
        readiness = self._readiness
        self.ready, self.timed_out = readiness.ready, readiness.timed_out
        self.proven = self.ready and not self.timed_out

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _poll(self) -> None:
        self._cancel()
        now = self._clock.monotonic()
        decision = self._readiness.poll(now)
        self._note_state()
        # First of all, or an error below would be the end of all polls.
        if decision.next_at is not None:
            self._timer = self._loop.call_later(max(0.0, decision.next_at - now), self._poll)
        if decision.renew:
            self._events.renew_sockets()
        if decision.probe:
            self._events.send_probes()
        known, self._told = self._told, decision if decision.ready else None
        if decision.ready and decision != known:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(not decision.timed_out)
            self._warn_if_unproven(decision)
            self._events.on_kernel_ready(proven=not decision.timed_out)

    def _warn_if_unproven(self, decision: Decision) -> None:
        if decision.timed_out:
            lack = _MISSING.get(self.state, "has not answered")
            lack += f" for {self._context.settings.kernel_info_timeout:g} s (kernel_info_timeout)"
        elif decision.lacks:
            lack = _LACKS[decision.lacks]
        else:
            return
        self._context.log.warning(
            "Kernel %s %s; sending requests anyway", self._context.kernel_id, lack
        )
