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
from kbridge.kernels.lifecycle.processes import ProcessState, state_of
from kbridge.kernels.lifecycle.provisioners import LOCAL, provisioner_name
from kbridge.kernels.registry.adoption import Adopter
from kbridge.kernels.registry.models import ClusterKernel, KernelRole, KernelRow, decode
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

    async def serve(self, kernel: ClusterKernel, *, by_messages: bool = False) -> bool:
        """Serve a kernel that this replica has taken over; a hub that follows it is used.

        A kernel in use whose process has ended is served, too: it is restarted as its owner would
        have done.

        Parameters
        ----------
        kernel : ClusterKernel
            The kernel, which this replica owns.
        by_messages : bool
            True to serve it by messages, although it should be possible to find its process.

        Returns
        -------
        bool
            False if the kernel was started for no client. It is ended.

        Raises
        ------
        KernelError
            If it cannot be served. It is left in the registry, and the caller may try again.
        Busy
            If the lease is over.
        """
        row, writer = kernel.row, self._services.writer
        if kernel.kernel_id in self._index:
            return True
        writer.take_kernel(row)
        try:
            # A process on another machine would look as if it had ended.
            if by_messages or not self._is_within_reach(kernel):
                return await self._serve_by_messages(kernel)
            found = await self._adopter.take_over(row)
        except BaseException:
            writer.forget_kernel(row.kernel_id)
            raise
        if found is None:
            return False
        self._use(found)
        found.watch()
        return True

    def _is_within_reach(self, kernel: ClusterKernel) -> bool:
        """Return True if this server can signal the process, or its provisioner can."""
        row = kernel.row
        if not row.pid and not _has_local_provisioner(row, self._parent):
            return True
        hidden = bool(row.start_id) and state_of(row.pid, row.start_id) is ProcessState.HIDDEN
        return kernel.hostname == platform.node() and not hidden

    async def _serve_by_messages(self, kernel: ClusterKernel) -> bool:
        row = kernel.row
        try:
            elsewhere = ElsewhereKernel(kernel, self._services)
        except (KernelError, ValueError, TypeError) as error:
            if row.role == KernelRole.USED:
                raise KernelError(f"Kernel {row.kernel_id} cannot be served: {error}") from error
            self._services.log.warning(
                "Kernel %s was starting on %s, and may run on there", row.kernel_id, kernel.hostname
            )
            self._services.writer.drop_kernel(row.kernel_id)
            return False
        if row.role != KernelRole.USED:
            await elsewhere.shutdown()
            return False
        elsewhere.manager.set_parent(self._parent)
        self._use(elsewhere)
        return True

    def lose(self, kernel_id: str) -> None:
        """Do nothing more for a kernel that another replica owns; `release` must follow."""
        self._services.writer.forget_kernel(kernel_id)
        for kernel in self._all(kernel_id):
            kernel.abandon()

    async def release(self, kernel_id: str, *, owned: bool = False) -> None:
        """Take a kernel out of use, and leave its process and its hub alone.

        Parameters
        ----------
        kernel_id : str
            The kernel.
        owned : bool
            True if the database names this replica as the owner, which still writes the row.
        """
        for kernel in self._all(kernel_id):
            try:
                await kernel.leave()
            finally:
                kernel.abandon()
                self._index.remove(kernel)
                if not owned:
                    self._services.writer.forget_kernel(kernel_id)

    def _all(self, kernel_id: str) -> list[Kernel]:
        """Return the kernel with an id that is in use, starting, or in the pool."""
        known: list[Kernel] = [k for k in self._index.known if k.kernel_id == kernel_id]
        used = self._index.get(kernel_id)
        return known if used is None or used in known else [*known, used]

    def _use(self, kernel: Kernel) -> None:
        self._index.add(kernel)
        log = kernel_log(self._services.log, kernel.kernel_id)
        log.info("Kernel taken over: %s (%s)", kernel.kernel_id, kernel.kernel_name)


def _has_local_provisioner(row: KernelRow, parent: Configurable) -> bool:
    try:
        spec = decode(row.details).get("kernelspec") or {}
    except ValueError:
        return True
    return provisioner_name(spec.get("metadata") or {}, parent) == LOCAL
