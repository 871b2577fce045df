"""The steps of one kernel's life, each with its hub kept in step.

Invariants:

- a kernel has a hub from the moment its process was started until the process has ended, so
  that nothing it says is lost;
- whoever starts, restarts or ends a process holds the kernel's lock (the callers here do, but
  for a kernel that nobody else knows yet);
- `kernels` holds every kernel that may have a process.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from kbridge.errors import Busy, KernelError, KernelStartError
from kbridge.kernels.hubs import Hub, Hubs
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.descriptors import KernelBudget
from kbridge.kernels.lifecycle.kernel_log import KeptLogs
from kbridge.kernels.lifecycle.restarter import Restarter
from kbridge.kernels.lifecycle.seed import Seed, run_seed
from kbridge.kernels.registry.writer import Ledger
from kbridge.kernels.settings import KernelSettings
from kbridge.kernels.tasks import stop

__all__ = ["Lifecycle"]

T = TypeVar("T")

# A start is over in a second or so; looking closely that long costs nothing.
_START_POLL = 0.05
# For a process that was sent SIGKILL to go.
_KILL_TIMEOUT = 1.0
# What kernels write, in whatever language, when they cannot bind.
_PORT_TAKEN = re.compile(r"address (already )?in use|EADDRINUSE|WinError 10048", re.IGNORECASE)


class Lifecycle:
    """Launch, watch, restart and discard kernels.

    Parameters
    ----------
    hubs : Hubs
        Where their hubs are opened and closed.
    settings : KernelSettings
        Read each time, so that a changed setting counts from the next kernel on.
    log : logging.Logger
        Where deaths are told.
    ledger : Ledger, optional
        Where it is written down which kernels run; with a registry behind it, they are started so
        that they outlive this process.
    """

    def __init__(
        self,
        hubs: Hubs,
        settings: KernelSettings,
        log: logging.Logger,
        ledger: Ledger | None = None,
    ) -> None:
        self.seed: Seed | None = None
        self.kernels: set[BridgeKernel] = set()
        self.kept_logs = KeptLogs()
        self._hubs = hubs
        self._settings = settings
        self._log = log
        self._ledger = ledger or Ledger()
        self._places = asyncio.Semaphore(settings.max_concurrent_starts)
        self._budget = KernelBudget()

    def _place(self, kernel: BridgeKernel) -> AbstractAsyncContextManager[Any]:
        """Return one of the `max_concurrent_starts` places, for kernels of this machine.

        A cluster may take minutes for a kernel: nobody else's start is to wait for that.
        """
        return self._places if kernel.starts_here else nullcontext()

    def note(self, kernel: BridgeKernel) -> None:
        """Write a kernel down as it is now."""
        if not self._ledger.enabled:
            return
        hub = self._hubs.get(str(kernel.kernel_id))
        if hub is not None:
            kernel.identities = hub.identities
        try:
            self._ledger.put_kernel(kernel.record())
        except KernelError as error:
            self._log.error("%s", error)

    async def launch(self, kernel: BridgeKernel, env: dict[str, str], cwd: Path) -> None:
        """Start a process and wait until it answers, is seeded, or is still coming up.

        Raises
        ------
        KernelStartError
            If it does not start, dies at once, or fails at the seed; nothing is left of it.
        Busy
            If the server is shutting down, or has too few descriptors left.
        """
        self.kernels.add(kernel)
        kernel.independent = self._ledger.enabled
        try:
            async with self._place(kernel):
                if kernel.closing:
                    raise Busy("The server is shutting down")
                with self._budget.start():
                    # Before there is a process: one that nobody has heard of would run forever.
                    self.note(kernel)
                    await self._ledger.settled()
                    await kernel.start(env=env, cwd=cwd)
                    hub = await self._come_up(kernel)
            if self.seed is not None and self.seed.fits(kernel.kernel_name):
                await self._while_alive(kernel, self._run_seed(hub, self.seed))
        except BaseException as error:
            badly = isinstance(error, KernelStartError)
            await self.discard(kernel, badly=badly)
            raise

    async def _come_up(self, kernel: BridgeKernel) -> Hub:
        """Wait for a process that was started; where it found a port taken, start it on others.

        A port is free when it is chosen, and whoever binds it first has it.
        """
        if kernel.closing:
            raise Busy("The server is shutting down")
        hub = self._hubs.open(kernel.kernel_id, kernel.get_connection_info())
        self.note(kernel)
        return await self._until_up(kernel, hub)

    def take_up(self, kernel: BridgeKernel) -> None:
        """Open the hub of a kernel that outlived the bridge which started it.

        Raises
        ------
        KernelError
            If it cannot be reached by what is known of it, or too few descriptors are left.
        """
        try:
            with self._budget.start():
                self._hubs.open(
                    kernel.kernel_id,
                    kernel.get_connection_info(),
                    former=kernel.identities,
                    adopted=True,
                )
        except (ValueError, TypeError, Busy) as error:
            raise KernelError(f"Kernel {kernel.kernel_id} cannot be reached: {error}") from error
        self.kernels.add(kernel)
        self.note(kernel)

    async def _until_up(self, kernel: BridgeKernel, hub: Hub) -> Hub:
        left = self._settings.port_attempts
        while True:
            try:
                await self._while_alive(kernel, hub.wait_ready(self._settings.start_grace))
            except KernelStartError as error:
                left -= 1
                if not left or kernel.closing or not _PORT_TAKEN.search(error.log_tail):
                    raise
            else:
                return hub
            self._log.warning(
                "Kernel %s found a port taken by another process, and is started on others;"
                " %d more attempt(s)",
                kernel.kernel_id,
                left - 1,
            )
            hub = await self._cycle(kernel, now=True, newports=True, asked=True)

    async def _run_seed(self, hub: Hub, seed: Seed) -> None:
        if not await hub.wait_ready(self._settings.kernel_info_timeout):
            raise KernelStartError("The kernel does not answer, so it cannot be seeded")
        await run_seed(hub, seed, self._settings.seed_timeout)

    def watch(self, kernel: BridgeKernel) -> None:
        """Restart the kernel when it dies from now on, as often as the settings allow."""
        settings = self._settings
        stable = settings.stable_start_time
        if kernel.provisioner is not None:
            stable = kernel.provisioner.get_stable_start_time(recommended=stable)
        kernel.restarter = Restarter(
            died=lambda: kernel.died(settings.watch_interval),
            restart=lambda newports: self._autorestart(kernel, newports),
            give_up=lambda: self._left_dead(kernel),
            limit=settings.restart_limit if kernel.autorestart else 0,
            stable_time=stable,
            log=self._log,
        )

    async def restart(self, kernel: BridgeKernel, *, now: bool) -> None:
        """Put a new process in the place of the old one, dead or alive.

        Raises
        ------
        KernelError
            If the old one cannot be ended, or the new one does not come up; the kernel is then
            left dead, and may be restarted once more.
        Busy
            If the kernel is shut down while it waits for its turn.
        """
        async with self._place(kernel):
            # Until here, the old process runs on.
            if kernel.closing:
                raise Busy(f"Kernel {kernel.kernel_id} is being shut down")
            if kernel.restarter is not None:
                await kernel.restarter.aclose()
            try:
                hub = await self._cycle(kernel, now=now, newports=False, asked=True)
                await self._until_up(kernel, hub)
            except BaseException:
                self._left_dead(kernel)
                raise
        self.watch(kernel)

    async def discard(self, kernel: BridgeKernel, *, badly: bool, now: bool = True) -> None:
        """End the process and clear up: hub, connection file, and the log unless it died badly.

        Raises
        ------
        KernelError
            If the provisioner cannot end it. It is cleared up nevertheless.
        """
        if kernel.restarter is not None:
            await kernel.restarter.aclose()
        try:
            await kernel.stop(now=now)
        except BaseException:
            # Whoever gave up waiting: no process and no key outlives its kernel.
            with suppress(KernelError, TimeoutError):
                async with asyncio.timeout(_KILL_TIMEOUT):
                    await kernel.stop(now=True)
            raise
        finally:
            await self._hubs.close(kernel.kernel_id)
            self.kernels.discard(kernel)
            self._ledger.drop_kernel(str(kernel.kernel_id))
            if badly:
                # The end of a failed start's log was in the answer; a death in use names the file.
                self.kept_logs.keep(kernel.output, lasting=kernel.failed)
            else:
                kernel.output.remove()

    async def _cycle(self, kernel: BridgeKernel, *, now: bool, newports: bool, asked: bool) -> Hub:
        hub = self._hubs.get(kernel.kernel_id)
        await kernel.stop(now=now, restart=True)
        if hub is not None:
            # Only now: the old process may speak until its very end.
            await hub.restarting(asked=asked)
        await kernel.start_again(newports=newports)
        info = kernel.get_connection_info()
        if hub is None:
            hub = self._hubs.open(kernel.kernel_id, info)
        else:
            hub.reconnect(info)
        self.note(kernel)
        return hub

    async def let_go(self, kernel: BridgeKernel) -> None:
        """Leave a kernel to the next bridge; its hub is the caller's to close."""
        if kernel.restarter is not None:
            await kernel.restarter.aclose()
        async with kernel.lock:  # of a restart that is under way
            self.release(kernel)

    def release(self, kernel: BridgeKernel) -> None:
        """Leave a kernel as it is, at once, whoever is at work on it; may be called twice."""
        self.kernels.discard(kernel)
        kernel.release()

    async def _autorestart(self, kernel: BridgeKernel, newports: bool) -> None:
        async with kernel.lock:
            if kernel.closing or await kernel.is_alive():
                return
            self._log.warning("%s; restarting %s", await kernel.epitaph(), kernel.kernel_id)
            # One that somebody took a port from would find it taken again.
            newports = newports or bool(_PORT_TAKEN.search(kernel.output.tail()))
            async with self._place(kernel):
                if not kernel.closing:
                    await self._cycle(kernel, now=True, newports=newports, asked=False)

    def _left_dead(self, kernel: BridgeKernel) -> None:
        kernel.failed = True
        self._ledger.drop_kernel(str(kernel.kernel_id))
        log = kernel.output.path
        self._log.error("Kernel %s is dead; what it wrote is in %s", kernel.kernel_id, log)
        hub = self._hubs.get(kernel.kernel_id)
        if hub is not None:
            hub.dead()

    async def _while_alive(self, kernel: BridgeKernel, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`; raise KernelStartError at once if the process ends before it is done."""
        task = asyncio.create_task(work)
        death = asyncio.create_task(kernel.died(_START_POLL))
        try:
            await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                death.result()
                raise KernelStartError(await kernel.epitaph(), kernel.output.tail())
            return task.result()
        finally:
            await stop(task, death)
