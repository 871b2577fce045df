"""Attaches kernels that another program started, and detaches them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from traitlets.config import Configurable

from kbridge.errors import Busy, InvalidRequest, KernelError
from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.attached.connection_file import kernel_id_for, read_connection_file
from kbridge.kernels.attached.manager import AttachedKernelManager
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.services import KernelServices

__all__ = ["Attacher"]


class Attacher:
    """Attaches and detaches kernels.

    Parameters
    ----------
    services : KernelServices
        The objects that all kernels share.
    index : KernelIndex
        The kernels in use, among which attached kernels are.
    parent : Configurable
        The manager of all kernels, for the configuration of websockets.
    """

    def __init__(self, services: KernelServices, index: KernelIndex, parent: Configurable) -> None:
        self._services = services
        self._index = index
        self._parent = parent

    def attach(self, manager: AttachedKernelManager) -> AttachedKernel:
        """Serve a kernel that another program started.

        Raises
        ------
        InvalidRequest
            If its id is taken, or its connection info is unusable.
        Busy
            If the server is shutting down, or too few file descriptors are left.
        """
        services = self._services
        if services.limits.closed:
            raise Busy("The server is shutting down")
        if self.is_served(manager.kernel_id):
            raise InvalidRequest(f"Kernel {manager.kernel_id} is served already")
        try:
            with services.limits.descriptors():
                kernel = AttachedKernel(manager, services)
        except (ValueError, TypeError, KernelError) as error:
            raise InvalidRequest(f"{manager.source}: {error}") from None
        manager.set_parent(self._parent)
        self._index.add(kernel)
        services.log.info("Kernel attached: %s (%s)", kernel.kernel_id, manager.source)
        return kernel

    async def attach_file(self, path: Path) -> AttachedKernel | None:
        """Attach the kernel of a connection file, and return it.

        Returns None if the kernel is in use, or is started by this server.

        Raises
        ------
        InvalidRequest, Busy
            See `attach`.
        """
        kernel_id = kernel_id_for(path)
        if self.is_served(kernel_id):
            return None
        info = await asyncio.to_thread(read_connection_file, path)
        name = str(info.get("kernel_name") or "attached")
        return self.attach(AttachedKernelManager(kernel_id, name, info, source=str(path)))

    def is_served(self, kernel_id: str) -> bool:
        """Return True if a kernel with that id is in use, or is started by this server."""
        return kernel_id in self._index or self._index.is_known(kernel_id)

    async def detach(self, kernel: AttachedKernel) -> None:
        """Detach a kernel; not by its id, which another kernel may have by now."""
        await self._index.shutdown(kernel)
