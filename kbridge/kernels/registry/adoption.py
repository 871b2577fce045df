"""Finds the kernels of an earlier server again.

The reaction to a kernel that the registry names:

====================================  ===========================================================
it runs, and was in use               served again, under its id
it runs, and waited in a pool         waits in the pool again, or is ended if it does not fit there
it runs, but was still starting       ended: no client was told its id
it waits in a scheduler's queue       the wait for its job goes on
its job of a scheduler has ended      as if it ended now: dead with its reason, or submitted again
it has ended                          logged once, with the path of its log, and removed
its provisioner cannot be asked       logged; not served, but left in the registry
====================================  ===========================================================

A replica that takes a kernel over from another one (`take_over`) restarts a kernel in use that has
ended, and reports what it cannot adopt to its caller, which tries again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from kbridge.errors import Busy, KernelError
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.lifecycle.factory import KernelFactory
from kbridge.kernels.lifecycle.processes import commands, same_boot
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.registry.models import KernelRole, KernelRow
from kbridge.kernels.tasks import in_thread

__all__ = ["Adopter", "ProcessTable"]

_TOGETHER: Final = 0.01  # seconds in which kernels that need the process table are collected
_TIMEOUT: Final = 3.0  # seconds for the answer of a provisioner; all are asked at once


class ProcessTable:
    """Reads the process table in a thread; kernels that are adopted at the same time share it."""

    def __init__(self) -> None:
        self._reading = asyncio.Lock()
        self._begun = 0
        self._found: dict[int, list[str]] | None = None

    async def read(self) -> dict[int, list[str]]:
        """Return the command lines of all processes, as they are now or later."""
        begun = self._begun  # one that is being read may lack the newest process
        async with self._reading:
            if self._begun == begun or self._found is None:
                await asyncio.sleep(_TOGETHER)
                self._begun, self._found = self._begun + 1, None
                self._found = await in_thread(commands)
            return self._found


class Adopter:
    """Adopts kernels.

    Parameters
    ----------
    factory : KernelFactory
        Makes the kernels, without their processes.
    index : KernelIndex
        Kernels that run are registered in it.
    log : logging.Logger
        The logger for kernels that are not served.
    """

    def __init__(self, factory: KernelFactory, index: KernelIndex, log: logging.Logger) -> None:
        self._factory = factory
        self._index = index
        self._log = log
        self._processes = ProcessTable()

    async def adopt(self, rows: Iterable[KernelRow]) -> list[StartedKernel]:
        """Adopt the kernels in rows of the registry.

        Returns
        -------
        list of StartedKernel
            Those that run and are used or pooled (`role`), each with its hub.
        """
        adopted = await asyncio.gather(*(self._adopt(row) for row in rows))
        kernels = [kernel for kernel in adopted if kernel is not None]
        starting = [kernel for kernel in kernels if kernel.role is KernelRole.STARTING]
        await self._end(starting)
        return [kernel for kernel in kernels if kernel not in starting]

    async def _adopt(self, row: KernelRow) -> StartedKernel | None:
        try:
            return await self._find(row)
        except KernelError as error:
            self._log.warning(
                "Kernel %s (%s) is not served: %s. It is left in the registry, and looked for"
                " again at the next start",
                *(row.kernel_id, row.kernel_name, error),
            )
            return None

    async def take_over(self, row: KernelRow) -> StartedKernel | None:
        """Adopt a kernel that another replica of the cluster has served.

        Returns
        -------
        StartedKernel or None
            A kernel in use. Its process may have ended: watch it, and it is restarted. None if
            the kernel was not in use, and is ended, or has ended with its machine.

        Raises
        ------
        KernelError
            If it cannot be adopted. It is left in the registry.
        Busy
            If the lease is over.
        """
        # A start of another boot may be of another machine with the same name, where it runs.
        dead_too = same_boot(row.start_id)
        kernel = await self._find(row, dead_too=dead_too)
        if kernel is None or kernel.role is KernelRole.USED:
            return kernel
        try:
            await kernel.process.lease.ensure()
            kernel.process.check()
        except Busy:
            kernel.abandon()
            raise
        await kernel.discard(keep_log=False)
        return None

    async def _find(self, row: KernelRow, *, dead_too: bool = False) -> StartedKernel | None:
        """Adopt one kernel; return None if it has ended."""
        kernel = self._factory.remake(row)
        env = self._factory.environment(None)
        try:
            await kernel.manager.prepare_adoption(row)
            async with asyncio.timeout(_TIMEOUT):
                alive = await kernel.manager.adopt(row, env, self._processes.read)
                # The clients are told how the job of a scheduler has ended.
                kept = dead_too or kernel.manager.queued is not None
                if not alive and not (kept and kernel.role is KernelRole.USED):
                    await self._forget(kernel, row)
                    return None
            kernel.adopt()
        except TimeoutError:
            kernel.abandon()
            raise KernelError("its provisioner does not answer") from None
        except KernelError:
            kernel.abandon()
            raise
        self._index.register(kernel)
        if not alive and dead_too:
            self._log.warning(
                "Kernel %s (%s) ended before this replica took it over; its output is in %s",
                *(row.kernel_id, row.kernel_name, row.log_path),
            )
        return kernel

    async def _forget(self, kernel: StartedKernel, row: KernelRow) -> None:
        """Remove what a kernel that has ended left behind; keep its log if it was in use."""
        await kernel.clear_away(row)
        if kernel.role is KernelRole.USED:
            self._log.warning(
                "Kernel %s (%s) ended while no server ran; its output is in %s",
                row.kernel_id,
                row.kernel_name,
                row.log_path,
            )

    async def _end(self, kernels: list[StartedKernel]) -> None:
        """End kernels whose ids no client was told."""
        for kernel in kernels:
            self._log.info(
                "Kernel %s was still starting when its server ended; it is ended", kernel.kernel_id
            )
        ends = [kernel.discard(keep_log=False) for kernel in kernels]
        for error in await asyncio.gather(*ends, return_exceptions=True):
            if error is not None:
                self._log.error("%s", error)
