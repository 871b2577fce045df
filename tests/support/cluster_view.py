"""A cluster without a database, for tests of what a replica does with its view."""

from __future__ import annotations

from collections.abc import Callable

from kbridge.errors import RegistryError
from kbridge.kernels.registry.models import ClusterKernel, KernelRole, KernelRow, Replica

__all__ = ["FixedView", "kernel_of", "replica_at"]


def replica_at(url: str, replica_id: str = "other") -> Replica:
    """Return a replica whose URL is `url`, with a slash at the end."""
    return Replica(replica_id, "lab", url, "host", 1, "start", "1.0", lease_left=6.0)


def kernel_of(
    replica_id: str,
    kernel_id: str = "a-kernel",
    *,
    state: str = "",
    role: str = KernelRole.USED,
    user: str = "",
) -> ClusterKernel:
    """Return a kernel that a replica owns."""
    row = KernelRow(kernel_id, "python3", role, 0, "", "", "{}", user)
    return ClusterKernel(row, replica_id, "host", 1, state)


class FixedView:
    """The view of the replica `self`; `on_refresh` changes it when the database is asked."""

    def __init__(self, *replicas: Replica) -> None:
        self.me = replica_at("http://self/", "self")
        self.replicas = {replica.replica_id: replica for replica in replicas}
        self.kernels: dict[str, ClusterKernel] = {}
        self.refreshed = 0
        self.fails = False
        self.on_refresh: Callable[[], None] = lambda: None

    def put(self, *kernels: ClusterKernel) -> None:
        self.kernels |= {kernel.kernel_id: kernel for kernel in kernels}

    async def refresh(self) -> None:
        self.refreshed += 1
        if not self.fails:
            self.on_refresh()

    async def fetch(self, kernel_id: str) -> ClusterKernel | None:
        await self.refresh()
        if self.fails:
            raise RegistryError("the database cannot be read")
        return self.kernels.get(kernel_id)
