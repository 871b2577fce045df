"""Reports to JupyterHub when users were last active, by the kernels that this server serves.

A kernel that runs a cell counts as active, although it may say nothing for hours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tornado.log import app_log

from kbridge.errors import UsersUnavailable
from kbridge.kernels.index import KernelIndex

__all__ = ["ActivityReporter", "last_activities"]

_FORBIDDEN: Final = 403


def last_activities(kernels: KernelIndex, now: float) -> dict[str, float]:
    """Return when each user was last active, in unix seconds.

    Parameters
    ----------
    kernels : KernelIndex
        The kernels.
    now : float
        Unix seconds.
    """
    found: dict[str, float] = {}
    for kernel in kernels:
        if kernel.user:
            busy = kernel.execution_state() == "busy"
            last = now if busy else kernels.last_activity_of(kernel)
            found[kernel.user] = max(found.get(kernel.user, 0.0), last)
    return found


class ActivityReporter:
    """Reports the activity of users, from `start` on.

    Parameters
    ----------
    read : callable
        Returns when each user was last active.
    report : callable
        Reports the activity of one user; returns the HTTP status of the answer.
    interval : float
        Seconds between two reports.
    pause : callable
        Waits for a number of seconds.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, float]],
        report: Callable[[str, float], Awaitable[int]],
        interval: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._read = read
        self._report = report
        self._interval = interval
        self._pause = pause
        self._reported: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    @classmethod
    def of(
        cls,
        kernels: KernelIndex,
        report: Callable[[str, float], Awaitable[int]],
        interval: float,
    ) -> ActivityReporter:
        """Return a reporter for the kernels of a server."""
        return cls(lambda: last_activities(kernels, time.time()), report, interval)

    def start(self) -> None:
        """Begin to report."""
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Stop; may be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while True:
            await self._pause(self._interval)
            try:
                await self.report_once()
            except Exception:  # noqa: BLE001 - the next report must come
                app_log.exception("The activity of users is not reported this time")

    async def report_once(self) -> None:
        """Report the users who were active since the last report."""
        for user, last in self._read().items():
            if last <= self._reported.get(user, 0.0):
                continue
            try:
                status = await self._report(user, last)
            except UsersUnavailable as error:
                self._complain(error.reason)
                return  # all later
            if status == _FORBIDDEN:
                self._complain("JupyterHub does not permit it: give the service users:activity")
                return
            # A user that JupyterHub does not know any longer is not reported again either.
            self._reported[user] = last
            self._failing = False

    def _complain(self, reason: str) -> None:
        """Log once why the activity of users is not reported."""
        if not self._failing:
            app_log.warning("The activity of users is not reported: %s", reason)
        self._failing = True
