"""Kernels that another program started: reached, shown, and never ended.

Nothing in this module ends, restarts or signals a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kbridge.errors import NotSupported
from kbridge.hub.context import kernel_log
from kbridge.kernels.attached.heartbeats import HeartbeatWatch
from kbridge.kernels.attached.manager import AttachedKernelManager
from kbridge.kernels.interface import Kernel
from kbridge.kernels.lifecycle.interrupt import interrupt_by_message
from kbridge.kernels.services import KernelServices

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["AttachedKernel"]


class AttachedKernel(Kernel):
    """A kernel in use that another program started.

    Parameters
    ----------
    manager : AttachedKernelManager
        The id, the name and the connection info.
    services : KernelServices
        The objects that all kernels share.

    Attributes
    ----------
    heartbeat : HeartbeatWatch or None
        Pings the kernel, unless heartbeats are off.

    Raises
    ------
    KernelError
        If no sockets to the kernel can be made.
    ValueError, TypeError
        If the connection info is not valid.
    """

    def __init__(self, manager: AttachedKernelManager, services: KernelServices) -> None:
        self.kernel_id = manager.kernel_id
        self.kernel_name = manager.kernel_name
        self.manager: AttachedKernelManager = manager
        self.ended = False
        self.user = ""
        self._hubs = services.hubs
        self._hub = services.hubs.open(manager.kernel_id, manager.get_connection_info())
        self._options = services.options
        self._log = kernel_log(services.log, self.kernel_id)
        self._detaching = asyncio.Lock()
        self.heartbeat = HeartbeatWatch.start(manager, self._hub, services.options, services.log)

    @property
    def hub(self) -> Hub:
        """The hub of the kernel."""
        return self._hub

    @property
    def counts_toward_limit(self) -> bool:
        """False: the kernel runs whether it is attached or not."""
        return False

    @property
    def outlives_server(self) -> bool:
        """True: this server did not start the kernel, and does not end it."""
        return True

    @property
    def connections_stay(self) -> bool:
        """True if the connections outlive this server; a tunnel does not."""
        return self._hub.connections_stay and not self.manager.tunnelled

    @property
    def cull_metadata(self) -> Mapping[str, Any] | None:
        """None: an attached kernel is never culled."""
        return None

    def execution_state(self) -> str:
        """Return the state that the REST model shows: `unknown` while the kernel is silent."""
        if self.heartbeat is not None and self.heartbeat.lost_status:
            return self.heartbeat.lost_status
        hub = self._hub
        if hub.timed_out or not hub.ready:
            return "unknown"  # this server cannot inspect the process
        return hub.activity.execution_state

    def update_env(self, env: dict[str, str]) -> None:
        """Do nothing: the environment of a process that runs cannot be changed."""

    async def restart(self, *, now: bool = False) -> None:  # noqa: ARG002
        """Raise NotSupported."""
        raise NotSupported(
            f"Kernel {self.kernel_id} was started elsewhere; it can be restarted only there"
        )

    async def interrupt(self) -> None:
        """Interrupt the kernel by message: this server cannot signal its process.

        Raises
        ------
        NotSupported
            If the kernel does not reply. Kernels that only know signals do not.
        KernelError
            If the kernel replies that it failed.
        """
        timeout = self._options.interrupt_timeout
        if not await interrupt_by_message(self.kernel_id, self._hub, timeout):
            raise NotSupported(
                f"Kernel {self.kernel_id} was started elsewhere and has left interrupt_request"
                f" unanswered for {timeout:g} s: interrupt it where it runs, or raise"
                " BridgeKernelManager.interrupt_timeout if it is slow"
            )

    async def shutdown(self, *, now: bool = False) -> None:  # noqa: ARG002
        """Detach the kernel: close its hub. Its process keeps running."""
        async with self._detaching:
            if self.ended:
                return
            self._stop_heartbeat()
            try:
                await self._hubs.close(self.kernel_id)
            finally:
                try:
                    await self.manager.release()
                finally:
                    self.ended = True
        self._log.info("Kernel detached: %s; its process was not ended", self.kernel_id)

    async def leave(self) -> None:
        """Release the connection to the kernel; its hub is closed with all others."""
        self._stop_heartbeat()
        await self.manager.release()

    def abandon(self) -> None:
        """Stop the heartbeat."""
        self._stop_heartbeat()

    def _stop_heartbeat(self) -> None:
        if self.heartbeat is not None:
            self.heartbeat.close()
