"""Restarts a kernel whose process ended, up to a limit.

`RestartPolicy` decides and reads no clock; `Restarter` waits and acts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from enum import Enum

from kbridge.errors import Busy, KbridgeError, KernelError
from kbridge.kernels.lifecycle.kernel_process import KernelProcess
from kbridge.kernels.tasks import spawn, stop

__all__ = ["RestartDecision", "RestartPolicy", "Restarter"]


class RestartDecision(Enum):
    """The reaction to the end of a process."""

    RESTART = "restart"
    # The kernel never became stable: another process may use a port.
    NEW_PORTS = "restart on new ports"
    GIVE_UP = "give up"


@dataclass(slots=True)
class RestartPolicy:
    """Counts consecutive restarts as jupyter_client does.

    Parameters
    ----------
    limit : int
        Maximum number of consecutive restarts.
    stable_time : float
        Seconds that a process must run for the count to start from zero again.
    started : float
        The start of the first process, on the caller's clock.
    """

    limit: int
    stable_time: float
    started: float
    count: int = 0
    _ever_stable: bool = False

    def exited(self, now: float) -> RestartDecision:
        """Decide whether to replace a process that ended at `now`."""
        if now - self.started >= self.stable_time:
            self._ever_stable = True
            self.count = 0
        if self.count >= self.limit:
            return RestartDecision.GIVE_UP
        self.count += 1
        return RestartDecision.RESTART if self._ever_stable else RestartDecision.NEW_PORTS

    def refused(self) -> None:
        """Note that no new process was started, because the server may not do so now."""
        self.count -= 1

    def restarted(self, now: float) -> None:
        """Note that a new process was started at `now`."""
        self.started = now


class Restarter:
    """Watches the process of one kernel until the limit is reached or `aclose` is called.

    Parameters
    ----------
    process : KernelProcess
        The process to watch and restart.
    policy : RestartPolicy
        Decides what to do when it ends.
    interval : float
        Seconds between two checks, where the operating system does not report the end.
    log : logging.Logger
        The logger for restarts.
    """

    def __init__(
        self,
        process: KernelProcess,
        policy: RestartPolicy,
        *,
        interval: float,
        log: logging.Logger,
    ) -> None:
        self._process = process
        self._policy = policy
        self._interval = interval
        self._log = log
        self._task = spawn(self._run(), log)

    async def _run(self) -> None:
        while True:
            try:
                if await self._process.leave_queue():
                    self._policy.restarted(time.monotonic())
            except KbridgeError as error:
                await self._wait_for_lease()
                if not self._process.closing:
                    self._process.mark_dead(error.reason)
                return
            await self._process.manager.wait_exit(self._interval)
            await self._wait_for_lease()
            if self._process.closing:
                return
            decision = self._policy.exited(time.monotonic())
            if decision is RestartDecision.GIVE_UP or not await self._process.may_restart():
                self._process.mark_dead(await self._process.manager.exit_description())
                return
            self._log.info(
                "The process of kernel %s ended: restart %d of at most %d",
                self._process.kernel_id,
                self._policy.count,
                self._policy.limit,
            )
            try:
                await self._process.restart_after_exit(
                    new_ports=decision is RestartDecision.NEW_PORTS
                )
            except Busy as error:
                self._log.info("%s", error)
                self._policy.refused()
                await asyncio.sleep(self._interval)
                continue
            except KernelError as error:
                # `wait_exit` then returns at once, and the attempt is counted.
                self._log.error("%s", error)
            self._policy.restarted(time.monotonic())

    async def _wait_for_lease(self) -> None:
        """Wait until the server may act; tell the clients of the exit if that takes long.

        After a stop of the server's process, the next renewal says whether another replica has the
        kernel, so clients hear nothing before.
        """
        lease = self._process.lease
        try:
            await lease.ensure()
        except Busy:
            await self._process.announce_exit()
            await lease.wait()

    async def aclose(self) -> None:
        """Stop watching. May be called twice."""
        await stop(self._task)
