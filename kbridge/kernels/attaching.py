"""Kernels that somebody else started, taken into the table and let go of.

Law of this module: nothing in it ends, restarts or signals a process.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from kbridge.errors import Busy, InvalidRequest, KernelError, NotSupported
from kbridge.kernels.attached.attached import AttachedKernel, kernel_id_for, read_connection_file
from kbridge.kernels.attached.directory import AttachDir
from kbridge.kernels.attached.heartbeats import Heartbeats
from kbridge.kernels.hubs import Hub, Hubs
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.descriptors import KernelBudget
from kbridge.kernels.lifecycle.interrupt import interrupt_by_message
from kbridge.kernels.table import KernelTable

__all__ = ["AttachingTable"]

# Those that a directory brings are to be there, and gone, within two seconds.
_LOOK_SECONDS = 1.0


class AttachingTable(KernelTable):
    """A table that kernels of others can be put into.

    Parameters
    ----------
    hubs : Hubs
        The table of hubs.
    **kwargs
        As for any configurable: `parent`, `config`, `log`, traits.
    """

    _attach_dir: AttachDir | None = None
    _closing = False

    def __init__(self, *, hubs: Hubs, **kwargs: Any) -> None:
        super().__init__(hubs=hubs, **kwargs)
        self._heartbeats = Heartbeats(hubs, self, self.log)

    def attach(self, kernel: AttachedKernel) -> str:
        """Serve a kernel that somebody else started; return its id.

        Raises
        ------
        InvalidRequest
            If its id is taken, or nothing can be reached by its connection info.
        Busy
            If the server is shutting down, or has too few descriptors left.
        """
        kernel_id = kernel.kernel_id
        if self._closing:
            raise Busy("The server is shutting down")
        if kernel_id in self._kernels:
            raise InvalidRequest(f"Kernel {kernel_id} is served already")
        try:
            with KernelBudget().start():
                self.hubs.open(kernel_id, kernel.get_connection_info())
        except (ValueError, TypeError, KernelError) as error:
            raise InvalidRequest(f"{kernel.source}: {error}") from None
        kernel.parent = self
        self._kernels[kernel_id] = kernel
        self._heartbeats.watch(kernel)
        self._last_change = time.time()
        self.log.info("Kernel attached: %s (%s)", kernel_id, kernel.source)
        return kernel_id

    async def detach(self, kernel: AttachedKernel) -> None:
        """Serve it no more; its process goes on. May be called twice."""
        if self._kernels.get(kernel.kernel_id) is not kernel:
            return
        del self._kernels[kernel.kernel_id]
        self._heartbeats.forget(kernel.kernel_id)
        self._last_change = time.time()
        try:
            await self.hubs.close(kernel.kernel_id)
        finally:
            await kernel.release()
        self.log.info("Kernel detached: %s; it was not ended", kernel.kernel_id)

    async def _interrupt_attached(self, kernel: AttachedKernel) -> None:
        """Interrupt by message: nobody here may signal its process, or even knows it.

        Raises
        ------
        NotSupported
            If it leaves the message unanswered, as kernels do that know signals only.
        """
        hub = self.hubs.get(kernel.kernel_id)
        timeout = self.interrupt_timeout
        if hub is not None and not await interrupt_by_message(kernel.kernel_id, hub, timeout):
            raise NotSupported(
                f"Kernel {kernel.kernel_id} was started elsewhere and has left interrupt_request"
                f" unanswered for {timeout:g} s: interrupt it where it runs, or raise"
                " BridgeKernelManager.interrupt_timeout if it is slow"
            )

    def _open_attach_dir(self) -> None:
        if self.attach_dir and self._attach_dir is None:
            self._attach_dir = AttachDir(
                Path(self.attach_dir).expanduser(),
                self._attach_file,
                self._detach_by_id,
                interval=_LOOK_SECONDS,
                log=self.log,
            )

    def _state(self, kernel: BridgeKernel | AttachedKernel, hub: Hub | None) -> str:
        return self._heartbeats.state(str(kernel.kernel_id)) or super()._state(kernel, hub)

    async def _close_attach_dir(self) -> None:
        self._heartbeats.close()
        if self._attach_dir is not None:
            await self._attach_dir.aclose()

    async def _attach_file(self, path: Path) -> str | None:
        kernel_id = kernel_id_for(path)
        if kernel_id in self._kernels or self._is_ours(kernel_id):
            return None
        info = await asyncio.to_thread(read_connection_file, path)
        name = str(info.get("kernel_name") or "attached")
        return self.attach(AttachedKernel(kernel_id, name, info, source=str(path)))

    async def _detach_by_id(self, kernel_id: str) -> None:
        kernel: Any = self._kernels.get(kernel_id)
        if isinstance(kernel, AttachedKernel):
            await self.detach(kernel)

    def _is_ours(self, kernel_id: str) -> bool:  # noqa: ARG002
        """Whether this table has started a kernel, or is about to; it starts none."""
        return False
