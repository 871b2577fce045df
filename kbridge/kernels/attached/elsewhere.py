"""A kernel of a cluster whose process this replica cannot signal, for example on another machine.

The replica that started it has ended. Messages reach the kernel, so it is served, interrupted and
shut down by messages. It cannot be restarted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kbridge.errors import KbridgeError, NotSupported
from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.attached.manager import AttachedKernelManager
from kbridge.kernels.registry.models import ClusterKernel, decode
from kbridge.kernels.services import KernelServices
from kbridge.wire.message import Channel

__all__ = ["ElsewhereKernel"]

_SHUTDOWN_REPLY: Final = 5.0  # as for kernels of this machine


class ElsewhereKernel(AttachedKernel):
    """A kernel that another replica started where this one cannot signal it.

    Parameters
    ----------
    kernel : ClusterKernel
        The kernel, whose row this replica owns.
    services : KernelServices
        The objects that all kernels share.

    Attributes
    ----------
    hostname : str
        The machine of the process.

    Raises
    ------
    KernelError, ValueError, TypeError
        As `AttachedKernel` raises them.
    """

    def __init__(self, kernel: ClusterKernel, services: KernelServices) -> None:
        details = decode(kernel.row.details)
        manager = AttachedKernelManager(
            kernel.kernel_id,
            kernel.row.kernel_name,
            details.get("connection", {}),
            source=f"another replica on {kernel.hostname}",
        )
        super().__init__(manager, services)
        self.hostname = kernel.hostname
        self._writer = services.writer
        self._metadata = (details.get("kernelspec") or {}).get("metadata") or {}

    @property
    def counts_toward_limit(self) -> bool:
        """True: a server of the cluster started the kernel."""
        return True

    @property
    def cull_metadata(self) -> Mapping[str, Any] | None:
        """Metadata of the kernelspec."""
        return self._metadata

    async def restart(self, *, now: bool = False) -> None:  # noqa: ARG002
        """Raise NotSupported."""
        raise NotSupported(
            f"Kernel {self.kernel_id} runs on {self.hostname}, where no replica of the cluster"
            " runs now: start a new kernel, or a replica there"
        )

    async def shutdown(self, *, now: bool = False) -> None:
        """Ask the kernel to end, and close its hub."""
        if not self.ended:
            try:
                await self.hub.request(
                    "shutdown_request", {"restart": False}, Channel.CONTROL, _SHUTDOWN_REPLY
                )
            except (TimeoutError, KbridgeError) as error:
                self._log.warning(
                    "Kernel %s on %s has not replied to shutdown_request, and may run on: %s",
                    self.kernel_id,
                    self.hostname,
                    error or "no reply",
                )
        try:
            await super().shutdown(now=now)
        finally:
            self._writer.drop_kernel(self.kernel_id)

    def abandon(self) -> None:
        """Stop the heartbeat, and end nothing from now on."""
        self.ended = True
        super().abandon()
