"""The kernels of one server: those in use, by id, and those that start or wait in the pool.

Invariants:

- a kernel that may have a process is in `known` until the process has ended or was left running;
- a kernel in use is in the index under its id, exactly once.

Kernels do not know the index: it reads from them whether they have ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kbridge.errors import KernelNotFound
from kbridge.hub.clock import timestamp
from kbridge.kernels.interface import Kernel

if TYPE_CHECKING:
    from kbridge.kernels.lifecycle.started import StartedKernel

__all__ = ["KernelIndex"]


class KernelIndex:
    """Finds kernels by their id, and describes them for the REST interface."""

    def __init__(self) -> None:
        self._known: set[StartedKernel] = set()
        self._in_use: dict[str, Kernel] = {}
        self._last_change = time.time()

    # -- kernels that this server started -----------------------------------------------------

    @property
    def known(self) -> frozenset[StartedKernel]:
        """All kernels that this server started and that may have a process."""
        self._forget_ended()
        return frozenset(self._known)

    def register(self, kernel: StartedKernel) -> None:
        """Add a kernel that is about to have a process, or has one."""
        self._known = {kernel, *self.known}

    def is_known(self, kernel_id: str) -> bool:
        """Return True if this server started a kernel with that id, in use or not."""
        return any(kernel.kernel_id == kernel_id for kernel in self.known)

    def served(self) -> frozenset[str]:
        """Return the ids of all kernels of this server: in use, starting, and in a pool."""
        kernels = [*self.known, *self._in_use.values()]
        return frozenset(kernel.kernel_id for kernel in kernels if not kernel.ended)

    def pids(self) -> dict[str, int]:
        """Return the process ids of these kernels, by kernel id, if they run on this machine."""
        processes = ((kernel.kernel_id, kernel.manager.process) for kernel in self.known)
        return {kernel_id: p.pid for kernel_id, p in processes if p is not None}

    # -- kernels in use -----------------------------------------------------------------------

    def add(self, kernel: Kernel) -> None:
        """Put a kernel in use."""
        self._in_use[kernel.kernel_id] = kernel
        self.touch()

    def remove(self, kernel: Kernel) -> None:
        """Take a kernel out of use, if it is; its process is left alone."""
        if self._in_use.get(kernel.kernel_id) is kernel:
            del self._in_use[kernel.kernel_id]
            self.touch()
        self._forget_ended()

    def remove_all(self) -> list[Kernel]:
        """Take all kernels out of use and return them."""
        kernels = list(self._in_use.values())
        self._in_use.clear()
        return kernels

    def remove_outliving(self) -> list[Kernel]:
        """Take the kernels out of use that do not end with this server, and return them."""
        kernels = [kernel for kernel in self if kernel.outlives_server]
        for kernel in kernels:
            del self._in_use[kernel.kernel_id]
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

    @property
    def counted(self) -> int:
        """The number of kernels in use that count toward `max_kernels`."""
        return sum(kernel.counts_toward_limit for kernel in self._in_use.values())

    def counted_of(self, user: str) -> int:
        """Return how many of these kernels a user has."""
        return sum(kernel.user == user and kernel.counts_toward_limit for kernel in self)

    async def shutdown(self, kernel: Kernel, *, now: bool = False) -> None:
        """End or detach a kernel, and take it out of use. A second call waits for the first.

        Raises
        ------
        KernelError
            If its provisioner cannot end it. The kernel is taken out of use nevertheless.
        """
        try:
            await kernel.shutdown(now=now)
        finally:
            # A shutdown that is cancelled while it waits for a restart ends nothing.
            if kernel.ended and self._in_use.get(kernel.kernel_id) is kernel:
                del self._in_use[kernel.kernel_id]
                self.touch()
            self._forget_ended()  # its hub and its journal need no memory any longer

    def _forget_ended(self) -> None:
        self._known = {kernel for kernel in self._known if not kernel.ended}

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
        return self._describe(self.find(kernel_id))

    def models(self) -> list[dict[str, Any]]:
        """Return the REST models of all kernels in use; those in a pool are not included."""
        return [self._describe(kernel) for kernel in self._in_use.values()]

    def last_activity_of(self, kernel: Kernel) -> float:
        """Return the time of a kernel's last activity, in unix seconds."""
        hub = kernel.hub
        return hub.activity.last_activity if hub is not None else self._last_change

    @property
    def last_activity(self) -> float:
        """The time when any kernel was last active, started or shut down, in unix seconds."""
        return max([self._last_change, *map(self.last_activity_of, self._in_use.values())])

    def _describe(self, kernel: Kernel) -> dict[str, Any]:
        hub = kernel.hub
        model = {
            "id": kernel.kernel_id,
            "name": kernel.kernel_name,
            "last_activity": timestamp(self.last_activity_of(kernel)),
            "execution_state": kernel.execution_state(),
            "connections": hub.connections if hub is not None else 0,
            **({"reason": kernel.reason} if kernel.reason else {}),
        }
        return {**model, "user": kernel.user} if kernel.user else model
