"""The kernels of one server: those in use, by id, and those that start or wait in the pool.

Invariants:

- a kernel that may have a process is in `known` until the process has ended or was left running;
- a kernel in use is in the index under its id, exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kbridge.errors import KernelNotFound
from kbridge.hub import HubTable
from kbridge.hub.clock import timestamp
from kbridge.kernels.interface import Kernel
from kbridge.kernels.lifecycle.kernel_log import KeptLogs

if TYPE_CHECKING:
    from kbridge.kernels.lifecycle.started import StartedKernel

__all__ = ["KernelIndex"]


class KernelIndex:
    """Finds kernels by their id, and describes them for the REST interface.

    Parameters
    ----------
    hubs : HubTable
        The hubs of the kernels.

    Attributes
    ----------
    kept_logs : KeptLogs
        The log files of kernels that failed.
    """

    def __init__(self, hubs: HubTable) -> None:
        self.kept_logs = KeptLogs()
        self._hubs = hubs
        self._known: set[StartedKernel] = set()
        self._in_use: dict[str, Kernel] = {}
        self._last_change = time.time()

    # -- kernels that this server started -----------------------------------------------------

    @property
    def known(self) -> frozenset[StartedKernel]:
        """All kernels that this server started and that may have a process."""
        return frozenset(self._known)

    def register(self, kernel: StartedKernel) -> None:
        """Add a kernel that is about to have a process."""
        self._known.add(kernel)

    def unregister(self, kernel: StartedKernel) -> None:
        """Remove a kernel whose process has ended or was left running. May be called twice."""
        self._known.discard(kernel)

    def is_known(self, kernel_id: str) -> bool:
        """Return True if this server started a kernel with that id, in use or not."""
        return any(kernel.kernel_id == kernel_id for kernel in self._known)

    # -- kernels in use -----------------------------------------------------------------------

    def add(self, kernel: Kernel) -> None:
        """Put a kernel in use."""
        self._in_use[kernel.kernel_id] = kernel
        self.touch()

    def remove(self, kernel: Kernel) -> None:
        """Take a kernel out of use. May be called twice."""
        if self._in_use.get(kernel.kernel_id) is kernel:
            del self._in_use[kernel.kernel_id]
            self.touch()

    def remove_all(self) -> list[Kernel]:
        """Take all kernels out of use and return them."""
        kernels = list(self._in_use.values())
        self._in_use.clear()
        return kernels

    def touch(self) -> None:
        """Note that a kernel was started, restarted or shut down now."""
        self._last_change = time.time()

    def find(self, kernel_id: str) -> Kernel:
        """Return a kernel in use.

        Raises
        ------
        KernelNotFound
            If no kernel in use has that id.
        """
        kernel = self._in_use.get(kernel_id)
        if kernel is None:
            raise KernelNotFound(f"There is no kernel {kernel_id}")
        return kernel

    def get(self, kernel_id: str) -> Kernel | None:
        """Return a kernel in use, or None."""
        return self._in_use.get(kernel_id)

    async def shutdown(self, kernel_id: str, *, now: bool = False) -> None:
        """End or detach a kernel in use, which takes it out of use.

        Raises
        ------
        KernelNotFound
            If no kernel in use has that id.
        KernelError
            If its provisioner cannot end it. The kernel is taken out of use nevertheless.
        """
        await self.find(kernel_id).shutdown(now=now)

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._in_use

    def __iter__(self) -> Iterator[Kernel]:
        return iter(list(self._in_use.values()))

    def __len__(self) -> int:
        return len(self._in_use)

    # -- what is shown of them ----------------------------------------------------------------

    def model(self, kernel_id: str) -> dict[str, Any]:
        """Return the REST model of a kernel in use.

        Raises
        ------
        KernelNotFound
            If no kernel in use has that id.
        """
        kernel = self.find(kernel_id)
        return {
            "id": kernel_id,
            "name": kernel.kernel_name,
            "last_activity": timestamp(self.last_activity_of(kernel_id)),
            "execution_state": kernel.execution_state(),
            "connections": self._hubs.connections(kernel_id),
        }

    def models(self) -> list[dict[str, Any]]:
        """Return the REST models of all kernels in use; those in a pool are not included."""
        return [self.model(kernel_id) for kernel_id in self._in_use]

    def last_activity_of(self, kernel_id: str) -> float:
        """Return the time of a kernel's last activity, in unix seconds."""
        hub = self._hubs.get(kernel_id)
        return hub.activity.last_activity if hub is not None else self._last_change

    @property
    def last_activity(self) -> float:
        """The time when any kernel was last active, started or shut down, in unix seconds."""
        return max([self._last_change, *(self.last_activity_of(i) for i in self._in_use)])
