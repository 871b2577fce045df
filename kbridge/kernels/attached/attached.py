"""Kernels that another program started: reached, shown, and never ended.

Nothing in this module ends, restarts or signals a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from traitlets.config import Configurable

from kbridge.errors import Busy, InvalidRequest, KernelError, NotSupported
from kbridge.kernels.attached.connection_file import kernel_id_for, read_connection_file
from kbridge.kernels.attached.heartbeats import HeartbeatWatch
from kbridge.kernels.interface import Kernel
from kbridge.kernels.lifecycle.interrupt import interrupt_by_message
from kbridge.kernels.services import KernelServices

__all__ = ["AttachedKernel", "AttachedKernelManager", "AttachedKernels"]


class AttachedKernelManager(Configurable):
    """Stands for jupyter_client's kernel manager of a kernel that another program manages.

    Like a kernel manager, it is the parent of the connections of the kernel's websockets.

    Parameters
    ----------
    kernel_id : str
        The id of the kernel on this server.
    kernel_name : str
        The name that clients see.
    connection_info : mapping
        The content of the connection file.
    source : str
        The origin of the connection info, for the log.
    release : callable, optional
        Releases what the kernel is reached through, such as a tunnel; called once.
    """

    kernel_spec = None

    def __init__(
        self,
        kernel_id: str,
        kernel_name: str,
        connection_info: Mapping[str, Any],
        *,
        source: str,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self.kernel_id = kernel_id
        self.kernel_name = kernel_name
        self.source = source
        self._info = dict(connection_info)
        self._release = release

    def get_connection_info(self) -> dict[str, Any]:
        """Return the addresses and the key of the kernel."""
        return dict(self._info)

    def set_parent(self, parent: Configurable) -> None:
        """Set the manager of all kernels, whose settings apply to the websockets."""
        self.parent = parent

    async def release(self) -> None:
        """Release what the kernel is reached through. May be called twice."""
        release, self._release = self._release, None
        if release is not None:
            await release()


class AttachedKernel(Kernel):
    """A kernel in use that another program started.

    Parameters
    ----------
    manager : AttachedKernelManager
        The id, the name and the connection info.
    services : KernelServices
        The objects that all kernels share.
    """

    def __init__(self, manager: AttachedKernelManager, services: KernelServices) -> None:
        self.kernel_id = manager.kernel_id
        self.kernel_name = manager.kernel_name
        self.manager: AttachedKernelManager = manager
        self._hubs = services.hubs
        self._options = services.options
        self._index = services.index
        self._log = services.log
        self._detaching = asyncio.Lock()
        self._detached = False
        self._heartbeat = HeartbeatWatch.start(
            manager, services.hubs, services.options, services.log
        )

    @property
    def counts_toward_limit(self) -> bool:
        """False: the kernel runs whether it is attached or not."""
        return False

    @property
    def cull_metadata(self) -> Mapping[str, Any] | None:
        """None: an attached kernel is never culled."""
        return None

    def execution_state(self) -> str:
        """Return the state that the REST model shows: `unknown` while the kernel is silent."""
        if self._heartbeat is not None and self._heartbeat.lost_status:
            return self._heartbeat.lost_status
        hub = self._hubs.get(self.kernel_id)
        if hub is None:
            return "dead"
        if hub.timed_out or not hub.ready:
            return "unknown"  # this server cannot look at the process
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
        hub = self._hubs.get(self.kernel_id)
        timeout = self._options.interrupt_timeout
        if hub is not None and not await interrupt_by_message(self.kernel_id, hub, timeout):
            raise NotSupported(
                f"Kernel {self.kernel_id} was started elsewhere and has left interrupt_request"
                f" unanswered for {timeout:g} s: interrupt it where it runs, or raise"
                " BridgeKernelManager.interrupt_timeout if it is slow"
            )

    async def shutdown(self, *, now: bool = False) -> None:  # noqa: ARG002
        """Detach the kernel: close its hub. Its process keeps running."""
        async with self._detaching:
            if self._detached:
                return
            self._stop_heartbeat()
            try:
                await self._hubs.close(self.kernel_id)
            finally:
                try:
                    await self.manager.release()
                finally:
                    self._detached = True
                    self._index.remove(self)
        self._log.info("Kernel detached: %s; its process was not ended", self.kernel_id)

    async def leave(self) -> None:
        """Release what the kernel is reached through; its hub is closed with all others."""
        self._stop_heartbeat()
        await self.manager.release()

    def abandon(self) -> None:
        """Stop the heartbeat."""
        self._stop_heartbeat()

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.close()


class AttachedKernels:
    """Attaches and detaches kernels.

    Parameters
    ----------
    services : KernelServices
        The objects that all kernels share.
    parent : Configurable
        The manager of all kernels, for the configuration of websockets.
    """

    def __init__(self, services: KernelServices, parent: Configurable) -> None:
        self._services = services
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
                services.hubs.open(manager.kernel_id, manager.get_connection_info())
        except (ValueError, TypeError, KernelError) as error:
            raise InvalidRequest(f"{manager.source}: {error}") from None
        manager.set_parent(self._parent)
        kernel = AttachedKernel(manager, services)
        services.index.add(kernel)
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
        index = self._services.index
        return kernel_id in index or index.is_known(kernel_id)
