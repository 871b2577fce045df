"""The hubs of kernels that Jupyter Server manages."""

from __future__ import annotations

import asyncio
import contextvars
import platform
from typing import Any, Final

from kbridge.hub.hub import Hub
from kbridge.hub.table import HubTable
from kbridge.jupyter.kernel_watch import KernelWatch

__all__ = ["JupyterHubs"]

_SWEEP_SECONDS: Final = 5.0


class JupyterHubs:
    """Open and close the hubs of Jupyter Server's kernels; keep each in step with its kernel.

    Parameters
    ----------
    kernels : jupyter_server.services.kernels.kernelmanager.MappingKernelManager
        The manager of all kernels.
    table : HubTable
        The table of the hubs. Only this object opens and closes hubs in it.

    Attributes
    ----------
    table : HubTable
        The table of the hubs.
    loop : asyncio.AbstractEventLoop
        The event loop of the hubs: the running loop at construction.
    """

    def __init__(self, kernels: Any, table: HubTable) -> None:
        self.table = table
        self.loop = asyncio.get_running_loop()
        self._kernels = kernels
        self._watches: dict[str, KernelWatch] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the journals on disk before the first hub; a later call waits for the first.

        Kernels end with Jupyter Server: files that an earlier server left behind are removed.
        """
        if self._opening is None and not len(self.table):
            # In an empty context, the timers that start here do not keep the request alive.
            self._opening = self.loop.create_task(
                self.table.open_journal(f"{platform.node()} Jupyter Server"),
                context=contextvars.Context(),
            )
        if self._opening is not None:
            await asyncio.shield(self._opening)

    def open_for(self, kernel: Any) -> Hub:
        """Return the hub of a kernel; open it if there is none.

        Parameters
        ----------
        kernel : jupyter_client.KernelManager
            The manager of the kernel.
        """
        kernel_id = str(kernel.kernel_id)
        known = self._watches.get(kernel_id)
        if known is not None and not known.gone:
            return known.hub
        if known is not None:  # of another kernel that had the same id
            self._on_gone(known)
        # The tasks that start here outlive the current request. In an empty context, they do not
        # keep the request alive.
        return contextvars.Context().run(self._open_and_watch, kernel_id, kernel)

    def _open_and_watch(self, kernel_id: str, kernel: Any) -> Hub:
        hub = self.table.open(kernel_id, kernel.get_connection_info())
        self._watches[kernel_id] = KernelWatch(hub, kernel, self._kernels, self._on_gone)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.ensure_future(self._sweep())
        return hub

    async def close(self, kernel_id: str) -> None:
        """Close the hub of a kernel, if there is one, and stop watching the kernel."""
        watch = self._watches.pop(kernel_id, None)
        if watch is not None:
            self._await_later(watch.close())
        await self.table.close(kernel_id)

    def states(self) -> list[tuple[str, str, str]]:
        """Return id, kernelspec and state of each kernel that has a hub."""
        found = []
        for kernel_id, watch in self._watches.items():
            name = str(getattr(watch.kernel, "kernel_name", ""))
            found.append((kernel_id, name, watch.hub.activity.execution_state))
        return found

    async def aclose(self) -> None:
        """Close all hubs; may be called twice."""
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            self._await_later(watch.close())
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._await_later({self._sweeper})
        try:
            if self._opening is not None:
                await asyncio.wait({self._opening})
        finally:
            await self.table.aclose()
        while self._closing:
            await asyncio.wait(self._closing)

    async def _sweep(self) -> None:
        """Close the hubs of kernels that left the manager while their processes kept running."""
        missed: set[KernelWatch] = set()
        while self._watches:
            await asyncio.sleep(_SWEEP_SECONDS)
            missing = {watch for watch in self._watches.values() if watch.missing}
            for watch in missing & missed:  # missing twice: a restart takes less time
                self._on_gone(watch)
            missed = missing

    def _on_gone(self, watch: KernelWatch) -> None:
        """Close the hub of a kernel that has left the manager."""
        if self._watches.get(watch.hub.kernel_id) is not watch:
            return
        # The hub leaves the table at once, because another kernel may get the same id.
        del self._watches[watch.hub.kernel_id]
        closing = asyncio.ensure_future(self.table.close(watch.hub.kernel_id))
        self._await_later({*watch.close(), closing})

    def _await_later(self, tasks: set[asyncio.Task[None]]) -> None:
        """Note tasks that are ending; `aclose` waits for them."""
        for task in tasks:
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
