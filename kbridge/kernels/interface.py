"""The interface of a kernel that this server serves, started here or elsewhere.

Two classes implement it: `StartedKernel` for kernels that this server started, `AttachedKernel` for
kernels that another program started. An operation that a kind of kernel does not support raises
`NotSupported` (HTTP 501), so that callers never ask which kind they have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub


__all__ = ["Kernel"]


class Kernel(ABC):
    """A kernel.

    Attributes
    ----------
    kernel_id : str
        The id of the kernel.
    kernel_name : str
        The name of its kernelspec, or the name under which it was attached.
    manager : Configurable
        The object that Jupyter's classes know as the kernel's manager: the parent of the
        connections of its websockets.
    ended : bool
        True once the process has ended, or the kernel was detached or left running.
    user : str
        The name of the user who started it; empty for the operator, and for kernels that another
        program started.
    """

    kernel_id: str
    kernel_name: str
    manager: Any
    ended: bool
    user: str

    @property
    @abstractmethod
    def hub(self) -> Hub | None:
        """The hub of the kernel; None before its process was started."""

    @property
    @abstractmethod
    def counts_toward_limit(self) -> bool:
        """True if the kernel counts toward `max_kernels`."""

    @property
    @abstractmethod
    def outlives_server(self) -> bool:
        """True if the process keeps running whatever happens to this server."""

    @property
    @abstractmethod
    def connections_stay(self) -> bool:
        """True if the connections to the kernel outlive this server."""

    @property
    @abstractmethod
    def cull_metadata(self) -> Mapping[str, Any] | None:
        """Metadata of the kernelspec, which culling reads; None if the kernel is never culled."""

    @property
    def waiting(self) -> bool:
        """True while the kernel waits in the queue of a scheduler: it has no process yet."""
        return False

    @property
    def reason(self) -> str:
        """Why the kernel waits, or why it is dead, for its users; empty if there is no reason."""
        return ""

    @abstractmethod
    def execution_state(self) -> str:
        """Return the state that the REST model shows."""

    @abstractmethod
    def update_env(self, env: dict[str, str]) -> None:
        """Set environment variables from the next restart on, if this server can restart it."""

    @abstractmethod
    async def restart(self, *, now: bool = False) -> None:
        """Replace the process; see `BridgeKernelManager.restart_kernel` for the errors."""

    @abstractmethod
    async def interrupt(self) -> None:
        """Interrupt the kernel; see `BridgeKernelManager.interrupt_kernel` for the errors."""

    @abstractmethod
    async def shutdown(self, *, now: bool = False) -> None:
        """End the kernel if this server started it, else detach it, and close its hub.

        A second call waits for the first. Callers use `KernelIndex.shutdown`, which also takes
        the kernel out of use.

        Raises
        ------
        KernelError
            If the provisioner cannot end the kernel.
        """

    @abstractmethod
    async def leave(self) -> None:
        """Stop serving the kernel because the server ends; its process keeps running."""

    @abstractmethod
    def abandon(self) -> None:
        """Do at once what of `leave` cannot wait. May be called twice."""
