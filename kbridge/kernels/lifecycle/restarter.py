"""Kernels that die unasked are started again, up to a limit.

`Attempts` decides and knows no clock; `Restarter` waits and acts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from kbridge.errors import KernelError
from kbridge.kernels.tasks import spawn, stop

__all__ = ["Attempts", "Restarter", "Verdict"]


class Verdict(Enum):
    """What to do about a kernel that died."""

    RESTART = "restart"
    RESTART_ELSEWHERE = "restart on new ports"  # it never ran stably: a port may be taken
    GIVE_UP = "give up"


@dataclass(slots=True)
class Attempts:
    """Restarts in a row, as jupyter_client counts them.

    Parameters
    ----------
    limit : int
        How many restarts in a row are tried.
    stable_time : float
        Seconds that a process must run for the count to begin anew.
    started : float
        When the first process was started, on the caller's clock.
    """

    limit: int
    stable_time: float
    started: float
    count: int = 0
    _ever_stable: bool = False

    def died(self, now: float) -> Verdict:
        """Decide, given that the process ended at `now`."""
        if now - self.started >= self.stable_time:
            self._ever_stable = True
            self.count = 0
        if self.count >= self.limit:
            return Verdict.GIVE_UP
        self.count += 1
        return Verdict.RESTART if self._ever_stable else Verdict.RESTART_ELSEWHERE

    def restarted(self, now: float) -> None:
        """Note that a new process was started at `now`."""
        self.started = now


class Restarter:
    """Watch one kernel's process.

    Parameters
    ----------
    died : callable
        Returns, awaited, when the process has ended.
    restart : callable
        Starts a new process; its argument says whether on new ports.
    give_up : callable
        Called once, when the limit is reached; the restarter then ends.
    limit, stable_time
        As `Attempts` has them.
    log : logging.Logger
        Where restarts are told.
    """

    def __init__(
        self,
        *,
        died: Callable[[], Awaitable[None]],
        restart: Callable[[bool], Awaitable[None]],
        give_up: Callable[[], None],
        limit: int = 5,
        stable_time: float = 10.0,
        log: logging.Logger,
    ) -> None:
        self._died = died
        self._restart = restart
        self._give_up = give_up
        self._attempts = Attempts(limit, stable_time, time.monotonic())
        self._log = log
        self._task = spawn(self._run(), log)

    async def _run(self) -> None:
        while True:
            await self._died()
            verdict = self._attempts.died(time.monotonic())
            if verdict is Verdict.GIVE_UP:
                self._give_up()
                return
            self._log.info(
                "A kernel died: restart %d/%d", self._attempts.count, self._attempts.limit
            )
            try:
                await self._restart(verdict is Verdict.RESTART_ELSEWHERE)
            except KernelError as error:
                # The process that did not come up is found dead next time round, and counted.
                self._log.error("%s", error)
            self._attempts.restarted(time.monotonic())

    async def aclose(self) -> None:
        """Stop watching. May be called twice, but not from the callbacks."""
        await stop(self._task)
