"""The end of a server: its kernels are ended, or left to the next server.

Invariant: no kernel starts after `end_all` or `leave_all` was called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from kbridge.kernels.attached.directory import AttachDirectory
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.lifecycle.culling import Culler
from kbridge.kernels.lifecycle.pool import Pool
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.registry.models import KernelRole
from kbridge.kernels.services import KernelServices
from kbridge.kernels.tasks import spawn, stop

__all__ = ["Shutdown", "run_all"]

# Kernels get `shutdown_wait_time` (5 s) to end by themselves; the others are killed.
_SHUTDOWN_TIMEOUT = 6.0
_KILL_TIMEOUT = 1.5


async def run_all(steps: Iterable[Coroutine[Any, Any, None]], log: logging.Logger) -> None:
    """Run all steps at once; an error of one is logged and does not stop the others."""
    for error in await asyncio.gather(*steps, return_exceptions=True):
        if error is not None:
            log.error("%s", error)


class Shutdown:
    """Ends all kernels, or leaves them running.

    Parameters
    ----------
    services : KernelServices
        The limits, the registry and the logs of all kernels.
    index : KernelIndex
        The kernels.
    pool : Pool
        The kernels that nobody uses yet.
    background : sequence of Culler or AttachDirectory
        The culler and the attach directory, which are stopped first.
    """

    def __init__(
        self,
        services: KernelServices,
        index: KernelIndex,
        pool: Pool,
        background: Sequence[Culler | AttachDirectory],
    ) -> None:
        self._limits = services.limits
        self._writer = services.writer
        self._kept_logs = services.kept_logs
        self._log = services.log
        self._index = index
        self._pool = pool
        self._background = background
        self._ending: set[asyncio.Task[None]] = set()

    async def end_all(self, *, now: bool) -> None:
        """End every kernel; see `BridgeKernelManager.shutdown_all`."""
        if not self._ending:
            self._limits.close()
            # Before anything else: a kernel that is told to end must not be restarted.
            for kernel in self._index.known:
                kernel.refuse_restarts()
            unused = [k for k in self._index.known if k.role is not KernelRole.USED]
            # The next server continues the journals of kernels that run on; `shutdown` would remove
            # them.
            staying = self._index.remove_outliving()
            work: list[Coroutine[Any, Any, None]] = [kernel.leave() for kernel in staying]
            work += [self._index.shutdown(kernel) for kernel in self._index]
            work += [self._end_pool(), self._end_starts(unused)]
            self._ending = {spawn(step, self._log) for step in work}
        await self._close_background()
        if now:
            await self._kill_all()
        _, late = await asyncio.wait(self._ending, timeout=_SHUTDOWN_TIMEOUT)
        if late:
            self._log.warning("Killing kernels that did not end within %g s", _SHUTDOWN_TIMEOUT)
            await self._kill_all()
            _, late = await asyncio.wait(late, timeout=_KILL_TIMEOUT)
            await stop(*late)
        self._kept_logs.end()

    async def leave_all(self) -> None:
        """Leave every kernel running; see `BridgeKernelManager.leave_all`."""
        self._limits.close()
        await self._close_background()
        waiting = await self._pool.drain()
        starting = [k for k in self._index.known if k.role is KernelRole.STARTING]
        for started in starting:
            started.refuse_restarts()
        try:
            async with asyncio.timeout(_SHUTDOWN_TIMEOUT):
                await self._end_starts(starting)
        except TimeoutError:  # a provisioner does not return from its launch
            self._log.warning(
                "%d kernel(s) are still starting; not waiting for them", self._limits.admitted
            )
        staying = [*self._index.remove_all(), *waiting]
        pids = self._index.pids()
        leaving = asyncio.ensure_future(run_all((kernel.leave() for kernel in staying), self._log))
        try:
            await asyncio.wait({leaving}, timeout=_SHUTDOWN_TIMEOUT)
        finally:
            await stop(leaving)
            # Those that did not finish in time: otherwise their files would be removed at exit.
            for kernel in staying:
                kernel.abandon()
        self._kept_logs.end()
        if not await self._writer.settled():
            self._log.error(
                "Could not record all running kernels in the registry; some will not be found at"
                " the next start (pids: %s)",
                pids,
            )

    async def wait_for_starts(self) -> None:
        """Wait for the starts and the restarts of kernels that clients wait for.

        Call it within `StartLimits.hold`: otherwise starts that overlap could go on without end.
        """
        await self._limits.wait_for_requests()
        for kernel in self._restarting():
            async with kernel.process.lock:
                pass

    def count_starting(self) -> int:
        """Return the number of starts that clients wait for, and of kernels that are restarted."""
        return self._limits.pending + len(self._restarting())

    def _restarting(self) -> list[StartedKernel]:
        """Return the kernels whose processes are replaced, but not those that are shut down."""
        return [
            kernel
            for kernel in self._index.known
            if kernel.role is KernelRole.USED
            and kernel.process.lock.locked()
            and not kernel.process.closing
        ]

    def start_no_more(self) -> None:
        """Admit no more starts."""
        self._limits.close()

    def count_staying(self) -> int:
        """Return how many kernels `leave_all` would leave running."""
        return sum(
            not kernel.failed and kernel.role is not KernelRole.STARTING
            for kernel in self._index.known
        )

    async def _close_background(self) -> None:
        for part in self._background:
            await part.aclose()

    async def _end_pool(self) -> None:
        # Nobody has state in these kernels, so they need no shutdown request.
        waiting = await self._pool.drain()
        await run_all((kernel.discard(keep_log=False) for kernel in waiting), self._log)

    async def _end_starts(self, starting: Iterable[StartedKernel]) -> None:
        # The callers that wait for these kernels see their processes end, and discard them.
        await run_all((kernel.kill() for kernel in starting), self._log)
        await self._limits.wait_for_admitted()

    async def _kill_all(self) -> None:
        await run_all((kernel.kill() for kernel in self._index.known), self._log)
