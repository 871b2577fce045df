"""The hubs of kernels whose life Jupyter Server's manager leads."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any, Final

from kbridge.errors import HubClosed
from kbridge.hub.hub import Hub
from kbridge.hub.kernel.process_link import LinkFactory
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.jupyter.watch import KernelWatch
from kbridge.link.kernel import KernelLink

__all__ = ["JupyterHubs"]

_SWEEP_SECONDS: Final = 5.0


class JupyterHubs(HubTable):
    """A table of hubs each of which is kept in step with its kernel.

    Parameters
    ----------
    kernels : jupyter_server.services.kernels.kernelmanager.MappingKernelManager
        The manager of all kernels.
    settings, log, link
        As for `HubTable`.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
        The one that it was made on, and that its hubs live on.
    """

    def __init__(
        self,
        kernels: Any,
        settings: HubSettings,
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        link: LinkFactory = KernelLink,
    ) -> None:
        super().__init__(settings, link=link, log=log)
        self.loop = asyncio.get_running_loop()
        self._kernels = kernels
        self._watches: dict[str, KernelWatch] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def open_for(self, kernel: Any) -> Hub:
        """The hub of a kernel, made where there is none.

        Parameters
        ----------
        kernel : jupyter_client.KernelManager
            Its manager.
        """
        kernel_id = str(kernel.kernel_id)
        known = self._watches.get(kernel_id)
        if known is not None and not known.gone:
            return known.hub
        if known is not None:  # of another kernel that had the same id
            self._on_gone(known)
        # What begins here outlives the request in whose context we are, and must not hold it.
        return contextvars.Context().run(self._open_and_watch, kernel_id, kernel)

    def _open_and_watch(self, kernel_id: str, kernel: Any) -> Hub:
        hub = self.open(kernel_id, kernel.get_connection_info())
        self._watches[kernel_id] = KernelWatch(hub, kernel, self._kernels, self._on_gone)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.ensure_future(self._sweep())
        return hub

    async def close(
        self,
        kernel_id: str,
        code: int = HubClosed.close_code,
        reason: str = "the kernel was shut down",
    ) -> None:
        """Close a kernel's hub, where there is one, and watch the kernel no more."""
        watch = self._watches.pop(kernel_id, None)
        if watch is not None:
            self._ending(watch.close())
        await super().close(kernel_id, code, reason)

    async def aclose(self) -> None:
        """Close all; may be called twice."""
        await super().aclose()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._ending({self._sweeper})
        while self._closing:
            await asyncio.wait(self._closing)

    async def _sweep(self) -> None:
        """Let go of kernels that left the manager with their processes running, as they may."""
        missed: set[KernelWatch] = set()
        while self._watches:
            await asyncio.sleep(_SWEEP_SECONDS)
            missing = {watch for watch in self._watches.values() if watch.missing}
            for watch in missing & missed:
                self._on_gone(watch)
            missed = missing

    def _on_gone(self, watch: KernelWatch) -> None:
        if self._watches.get(watch.hub.kernel_id) is not watch:
            return
        # Out of the table at once: a kernel may come that has the same id.
        del self._watches[watch.hub.kernel_id]
        self.take(watch.hub.kernel_id)
        self._ending({*watch.close(), asyncio.ensure_future(watch.hub.aclose())})

    def _ending(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
