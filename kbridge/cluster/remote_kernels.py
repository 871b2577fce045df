"""Finds the kernels of the other replicas.

Invariants:

- `get` and iteration ask nobody: they read what this replica knows of the cluster, which is as old
  as the last renewal of its lease, at most a third of `lease_seconds`;
- `find` asks the database for an id that this replica does not know, so that a kernel can be used
  anywhere as soon as a client has its id;
- a kernel that is being handed over is found, although no replica serves it at the moment;
- a kernel that the database gives to this replica is served here before `find` returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kbridge.cluster.peers import Peers
from kbridge.cluster.relays import Relays
from kbridge.cluster.remote_kernel import RemoteKernel
from kbridge.errors import Misdirected, ReplicaUnreachable
from kbridge.kernels.registry.models import ClusterKernel, KernelRole, Replica

if TYPE_CHECKING:
    from kbridge.cluster.membership import Change

__all__ = ["Arrivals", "ClusterView", "RemoteKernels"]

T = TypeVar("T")


class Arrivals(Protocol):
    """Serves the kernels that this replica is given."""

    async def settle(self, kernel_id: str) -> None:
        """Wait while a kernel is being taken into use, or out of it."""

    def has_ended(self, kernel_id: str) -> bool:
        """Return True if this replica has just ended a kernel, which the view may still have."""


class ClusterView(Protocol):
    """The cluster, as far as this replica knows it."""

    @property
    def me(self) -> Replica:
        """The replica that this server is."""
        ...

    @property
    def replicas(self) -> Mapping[str, Replica]:
        """The replicas, by id."""
        ...

    @property
    def kernels(self) -> Mapping[str, ClusterKernel]:
        """The kernels of all replicas, by id."""
        ...

    async def fetch(self, kernel_id: str) -> ClusterKernel | None:
        """Read a kernel from the database now, and add it to `kernels`; None if it has ended.

        Raises
        ------
        RegistryError
            If the database cannot be used.
        """
        ...

    async def refresh(self) -> None:
        """Read all changes from the database now; without the database, nothing changes."""
        ...


class RemoteKernels:
    """The kernels that this replica does not serve.

    It iterates over all kernels of the view that are in use: also those that this replica owns and
    does not serve yet, or no longer. Callers leave out those that it serves.

    Parameters
    ----------
    view : ClusterView
        The cluster.
    peers : Peers
        Sends requests to the other replicas.

    Attributes
    ----------
    relays : Relays
        The websockets that are passed on.
    """

    def __init__(self, view: ClusterView, peers: Peers) -> None:
        self.view = view
        self.peers = peers
        self.relays = Relays()
        self._arrivals: Arrivals | None = None

    def wait_for(self, arrivals: Arrivals) -> None:
        """Wait, in `find`, until a kernel that was given to this replica is served."""
        self._arrivals = arrivals

    def on_view(self, change: Change) -> None:
        """Close the websockets that are passed on to a replica which is not the owner now."""
        self.relays.follow(change.kernels)

    def get(self, kernel_id: str) -> RemoteKernel | None:
        """Return a kernel, as far as this replica knows, or None.

        Callers look among the kernels that this replica serves first.
        """
        kernel = self.view.kernels.get(kernel_id)
        if kernel is None or kernel.row.role != KernelRole.USED:
            return None
        mine = kernel.replica_id == self.view.me.replica_id
        if mine and self._arrivals is not None and self._arrivals.has_ended(kernel_id):
            return None
        replica = None if mine else self.view.replicas.get(kernel.replica_id)
        return RemoteKernel(kernel, replica, self.peers)

    def __iter__(self) -> Iterator[RemoteKernel]:
        for kernel_id in list(self.view.kernels):
            found = self.get(kernel_id)
            if found is not None:
                yield found

    def models(self, served: Container[str]) -> list[dict[str, Any]]:
        """Return the REST models of the kernels that this replica does not serve, as it knows them.

        Parameters
        ----------
        served : container of str
            The ids of the kernels that this replica serves now, which are left out.
        """
        return [kernel.model() for kernel in self if kernel.kernel_id not in served]

    async def find(self, kernel_id: str, *, fresh: bool = False) -> RemoteKernel | None:
        """Return a kernel, or None; ask the database if it is not known, or not served.

        Parameters
        ----------
        kernel_id : str
            The id of the kernel.
        fresh : bool
            True to ask in any case: the replica that was known does not serve the kernel.

        Raises
        ------
        RegistryError
            If the database cannot be asked.
        """
        found = None if fresh else self.get(kernel_id)
        if found is not None and found.replica is not None:
            return found
        kernel = await self.view.fetch(kernel_id)
        if kernel is None:
            return None
        if kernel.replica_id == self.view.me.replica_id:
            if self._arrivals is not None:
                await self._arrivals.settle(kernel_id)
        elif kernel.replica_id not in self.view.replicas:  # a new replica
            await self.view.refresh()
        return self.get(kernel_id)

    async def ask(
        self,
        kernel: RemoteKernel,
        work: Callable[[RemoteKernel], Awaitable[T]],
        served: Container[str],
    ) -> tuple[RemoteKernel, T] | None:
        """Send a request to the owner of a kernel; if that has changed, once more to the new one.

        Parameters
        ----------
        kernel : RemoteKernel
            The kernel, as this replica knows it.
        work : callable
            Sends the request to `RemoteKernel.require_replica`.
        served : container of str
            The ids of the kernels that this replica serves.

        Returns
        -------
        (RemoteKernel, result of `work`) or None
            None if the kernel has ended, or this replica has become the owner.

        Raises
        ------
        ReplicaUnreachable
            If no replica serves the kernel at the moment.
        RegistryError
            If the database cannot be asked for the new owner.
        """
        try:
            return kernel, await work(kernel)
        except (Misdirected, ReplicaUnreachable) as error:
            failed = error
        now = await self.find(kernel.kernel_id, fresh=True)
        if now is None or kernel.kernel_id in served:
            return None
        if now.replica_id == kernel.replica_id and isinstance(failed, ReplicaUnreachable):
            raise failed
        if now.replica_id != kernel.replica_id:
            try:
                return now, await work(now)
            except Misdirected:
                pass  # it has changed again: the client has to try again
        raise ReplicaUnreachable(
            f"The kernel {kernel.kernel_id} is handed over from one replica to another. Try again"
        )
