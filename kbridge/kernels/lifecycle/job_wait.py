"""Waits until the job of a kernel leaves the queue of its scheduler.

The kernel's hub is told of each new reason of the wait; the log gets each once. When the kernel
runs, the hub is connected to it. Nothing here ends a job or decides what follows its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from kbridge.errors import Busy, KernelError, KernelStartError
from kbridge.hub.context import Log
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.tasks import stop

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["JobWait"]

_AGAIN: Final = 1.0  # seconds


class JobWait:
    """The wait of one kernel for its job; begins at once.

    Parameters
    ----------
    manager : BridgeKernel
        The kernel, whose job was submitted.
    hub : Hub
        The hub of the kernel.
    on_running : callable
        Called when the hub was connected to the kernel, to record the connection.
    log : logging.Logger or adapter
        The logger.
    descriptors : callable
        Reserves the file descriptors of one kernel; see `StartLimits.descriptors`.
    prepare : callable, optional
        Runs the seed notebook then, before the requests of clients are sent.
    """

    def __init__(
        self,
        manager: BridgeKernel,
        hub: Hub,
        on_running: Callable[[], None],
        log: Log,
        descriptors: Callable[[], AbstractContextManager[None]],
        prepare: Callable[[Hub], Awaitable[None]] | None = None,
    ) -> None:
        self._manager = manager
        self._hub = hub
        self._on_running = on_running
        self._log = log
        self._descriptors = descriptors
        self._prepare = prepare
        self._logged = ""
        manager.observe_queue(self._on_change)
        self._on_change()
        self._task = asyncio.create_task(self._run())

    @property
    def over(self) -> bool:
        """True if the kernel runs and is prepared, or its job has ended."""
        return self._task.done()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the kernel runs and is prepared; return False after `timeout` seconds.

        The wait goes on if the caller is cancelled.

        Raises
        ------
        KernelStartError
            If the job ended before the kernel ran, with the reason of the scheduler.
        """
        await asyncio.wait({self._task}, timeout=timeout)
        if not self._task.done():
            return False
        if self._task.cancelled():
            raise KernelStartError("The wait for the kernel was ended")
        self._task.result()
        return True

    async def aclose(self) -> None:
        """Wait no more; the job is left alone. May be called twice."""
        self._manager.observe_queue(None)
        await stop(self._task)

    def cancel(self) -> None:
        """Do at once what of `aclose` cannot wait. May be called twice."""
        self._manager.observe_queue(None)
        self._task.cancel()

    async def _run(self) -> None:
        hub, manager = self._hub, self._manager
        try:
            await manager.wait_running()
        finally:
            manager.observe_queue(None)
        try:
            await self._connect()
        except (ValueError, TypeError, KernelError) as error:
            await manager.kill_quietly()
            raise KernelStartError(f"The kernel cannot be reached: {error}") from error
        hub.activity.touch(time.time())  # the time in the queue is not idle time
        self._log.info("Kernel %s runs now", manager.kernel_id)
        self._on_running()
        if self._prepare is not None:
            await self._run_seed(hub, self._prepare)

    async def _connect(self) -> None:
        """Connect the hub, as soon as there are file descriptors for it."""
        told = False
        while True:
            try:
                with self._descriptors():
                    self._hub.reconnect(self._manager.get_connection_info())
            except Busy as error:
                if not told:
                    self._log.error("Kernel %s runs: %s", self._manager.kernel_id, error)
                told = True
                await asyncio.sleep(_AGAIN)
            else:
                return

    async def _run_seed(self, hub: Hub, prepare: Callable[[Hub], Awaitable[None]]) -> None:
        hub.reserve()
        try:
            await prepare(hub)
        except KernelError as error:
            await self._manager.kill_quietly()
            if isinstance(error, KernelStartError):
                raise
            raise KernelStartError(error.reason) from error
        finally:
            hub.reserve(False)

    def _on_change(self) -> None:
        text = self._manager.queue_text
        if text and text != self._logged:
            self._logged = text
            self._log.info("Kernel %s: %s", self._manager.kernel_id, text)
            self._hub.wait_in_queue(text)
