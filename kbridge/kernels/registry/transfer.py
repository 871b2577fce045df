"""Kernels that pass from one replica of a cluster to another while both run.

The caller has changed the owner in the database before. Nothing here ends a process, except that of
a kernel whose id no client was told.
"""

from __future__ import annotations

import platform

from traitlets.config import Configurable

from kbridge.errors import KernelError
from kbridge.hub.context import kernel_log
from kbridge.kernels.attached.elsewhere import ElsewhereKernel
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.interface import Kernel
from kbridge.kernels.registry.adoption import Adopter
from kbridge.kernels.registry.models import ClusterKernel, KernelRole
from kbridge.kernels.services import KernelServices

__all__ = ["KernelTransfer"]


class KernelTransfer:
    """Serves kernels that this replica now owns, and releases those that it owns no longer.

    Parameters
    ----------
    adopter : Adopter
        Finds their processes.
    services : KernelServices
        The objects that all kernels share.
    index : KernelIndex
        The kernels in use.
    parent : Configurable
        The manager of all kernels, for the configuration of websockets.
    """

    def __init__(
        self, adopter: Adopter, services: KernelServices, index: KernelIndex, parent: Configurable
    ) -> None:
        self._adopter = adopter
        self._services = services
        self._index = index
        self._parent = parent

    async def serve(self, kernel: ClusterKernel) -> bool:
        """Serve a kernel that this replica has taken over; a hub that follows it is used.

        Returns
        -------
        bool
            False if the kernel has ended, or was started for no client and is ended.
        """
        row, writer = kernel.row, self._services.writer
        if kernel.kernel_id in self._index:
            return True
        writer.take_kernel(row)
        # A process on another machine would look as if it had ended.
        if kernel.hostname == platform.node() or not row.pid:
            found = await self._adopter.adopt([row])
            if found and found[0].role is KernelRole.POOLED:
                await found[0].discard(keep_log=False)
                return False
            if found:
                self._use(found[0])
                found[0].watch()
                return True
            if not writer.has_kernel(row.kernel_id):
                return False
        try:
            elsewhere = ElsewhereKernel(kernel, self._services)
        except (KernelError, ValueError, TypeError) as error:
            self._services.log.error("Kernel %s cannot be served: %s", row.kernel_id, error)
            return False
        elsewhere.manager.set_parent(self._parent)
        self._use(elsewhere)
        return True

    def lose(self, kernel_id: str) -> None:
        """Do nothing more for a kernel that another replica owns; `release` must follow."""
        self._services.writer.forget_kernel(kernel_id)
        kernel = self._index.get(kernel_id)
        if kernel is not None:
            kernel.abandon()

    async def release(self, kernel_id: str, *, owned: bool = False) -> None:
        """Take a kernel out of use and leave its process and its hub alone.

        Parameters
        ----------
        kernel_id : str
            The kernel.
        owned : bool
            True if the database names this replica as the owner, which still writes the row.
        """
        kernel = self._index.get(kernel_id)
        if kernel is None:
            return
        try:
            await kernel.leave()
        finally:
            kernel.abandon()
            self._index.remove(kernel)
            if not owned:
                self._services.writer.forget_kernel(kernel_id)

    def _use(self, kernel: Kernel) -> None:
        self._index.add(kernel)
        log = kernel_log(self._services.log, kernel.kernel_id)
        log.info("Kernel taken over: %s (%s)", kernel.kernel_id, kernel.kernel_name)
