"""The registry of a replica: like that of a server, but shared with the other replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kbridge.kernels.lifecycle.processes import ProcessState, same_boot, same_process
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.file_system import file_system_of, shares_memory
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, Replica, SessionRow
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.store import Key

__all__ = ["ClusterRegistry"]


class ClusterRegistry(Registry):
    """A registry whose rows belong to the replicas of a cluster.

    Parameters
    ----------
    url : str
        As for `Registry`.
    replica : Replica
        This server.

    Attributes
    ----------
    store : ClusterStore
        The rows of the cluster.
    """

    advice = "All replicas of a cluster need it: see KbridgeApp.registry_url"

    def __init__(self, url: str, replica: Replica) -> None:
        super().__init__(url)
        self.shared = True
        self.store = ClusterStore(self, replica)

    @property
    def warning(self) -> str:
        """A warning for the log about the file system of an SQLite file; empty if there is none."""
        if self.path is None or shares_memory(self.path):
            return ""
        kind = file_system_of(self.path)
        return kind and (
            f"The registry {self.path} is on a file system of the type {kind}. It is used without"
            " SQLite's write-ahead log, which needs a local one, so replicas wait for each other:"
            " set KbridgeApp.registry_url to a file on a local disk, or to PostgreSQL"
        )

    def claim(self, owner: Owner, state_of: Callable[[int, str], ProcessState]) -> Claim:
        """Take over the kernels of replicas that have ended, if they run on this machine.

        The processes of other machines cannot be seen from here, and a replica that runs without a
        lease may be about to renew it, if the database could not be used for a time. If another
        replica that lives can take a kernel, it may have the output, which this one has not.
        `kbridge.cluster.ownership` takes all these kernels over later. The sessions stay in the
        database, where all replicas find them.

        Raises
        ------
        RegistryError
            If it cannot be read or written.
        """
        del owner
        view = self.store.view()
        replicas = {replica.replica_id: replica for replica in view.replicas}
        me = self.store.replica
        lives = [
            replica.hostname
            for replica in view.replicas
            if replica.lease_left > -replica.patience
            and not (replica.draining or replica.replica_id == me.replica_id)
            and not self._has_ended(replica, state_of)
        ]
        kernels: list[KernelRow] = []
        for owner_id in {kernel.replica_id for kernel in view.kernels}:
            replica = replicas.get(owner_id)
            gone = replica is not None and self._has_ended(replica, state_of)
            if replica is not None and not gone and (replica.alive or self._is_here(replica)):
                continue
            ids = [
                kernel.kernel_id
                for kernel in view.kernels
                if kernel.replica_id == owner_id
                and kernel.hostname == me.hostname
                and not (me.hostname in lives if kernel.is_local else lives)
            ]
            taken = self.store.take_all(ids, owner_id, gone=replica if gone else None)
            kernels += [each.row for each in taken]
        return Claim(kernels)

    def write(
        self, owner: Owner, rows: Mapping[Key, KernelRow | SessionRow | None]
    ) -> frozenset[str]:
        """Write rows, and delete those that are None; rows of other replicas stay as they are.

        Returns
        -------
        frozenset of str
            The ids of kernels that were not written; see `ClusterStore.write`.

        Raises
        ------
        RegistryError
            If they could not be written.
        """
        del owner
        return self.store.write(rows)

    def reserve(self, row: KernelRow, limit: int) -> bool:
        """Write the row of a kernel; see `ClusterStore.reserve`. Return True.

        Raises
        ------
        RegistryError
            If it could not be written.
        KernelLimitReached
            If the user has too many kernels.
        """
        self.store.reserve(row, limit)
        return True

    def _is_here(self, replica: Replica) -> bool:
        """Return True for another replica of this machine, as it is since its last start."""
        return replica.hostname == self.store.replica.hostname and same_boot(replica.start_id)

    def _has_ended(self, replica: Replica, state_of: Callable[[int, str], ProcessState]) -> bool:
        """Return True if the process of a replica on this machine has certainly ended."""
        me = self.store.replica
        if replica.hostname != me.hostname or replica.replica_id == me.replica_id:
            return False
        # The program before a restart within the process has ended.
        if replica.pid == me.pid and same_process(replica.start_id, me.start_id):
            return True
        # A start of another boot is of another machine with the same name, or of this machine
        # before its restart: the lease decides.
        ended = state_of(replica.pid, replica.start_id) is ProcessState.GONE
        return ended and same_boot(replica.start_id)
