"""The database of a cluster: replicas with their leases, and the kernels and sessions they share.

Its methods block, as long as the database does: use `asyncio.to_thread` on an event loop. Each
method is one transaction, and raises `RegistryError` if the database cannot be used.

Invariants:

- leases begin and end by the clock of the database alone;
- a replica changes a kernel only while it is the owner, and becomes the owner only by `take`, or by
  `give` of the owner;
- of several replicas that take a kernel at the same time, one gets it;
- a replica that renews its lease keeps its kernels, or learns in that transaction who has them:
  `take` and `renew` lock the row of the replica, or that of the cluster if there is none;
- the row of a replica is locked before that of the cluster, and that before all others. Rows that
  are locked in another order are skipped if they are locked.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from sqlalchemy import (
    bindparam,
    delete,
    insert,
    select,
    update,
)

from kbridge.errors import InvalidRequest, RegistryError
from kbridge.kernels.lifecycle.start_limits import check_user
from kbridge.kernels.registry.cluster_rows import (
    ClusterRows,
    insert_once,
    keep_only,
    read_sessions,
    replace_rows,
)
from kbridge.kernels.registry.models import (
    ClusterKernel,
    ExecutionRow,
    KeptRows,
    KernelRole,
    KernelRow,
    Place,
    Replica,
    SessionRow,
    View,
)
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.schema import (
    CLUSTERS,
    ENDED,
    EXECUTIONS,
    KERNELS,
    PLACES,
    REPLICAS,
    SESSIONS,
)
from kbridge.kernels.registry.store import Key, columns_of

__all__ = ["ClusterStore"]

_FORGET_EVERY: Final = 20  # renewals
_READ: Final = "read"
_WRITTEN: Final = "written to"


class ClusterStore:
    """The rows of one cluster, as one replica uses them.

    Parameters
    ----------
    registry : Registry
        The database.
    replica : Replica
        This server.
    """

    def __init__(self, registry: Registry, replica: Replica) -> None:
        self.registry = registry
        self._rows = ClusterRows(registry.name, replica)
        self._me = replica.replica_id
        self._cluster = replica.cluster
        self._renewals = 0
        # A renewal that waits for the database must not add the row again after `leave`.
        self._own_row = threading.Lock()
        self._left = False

    @property
    def replica(self) -> Replica:
        """The server whose rows these are."""
        return self._rows.replica

    @replica.setter
    def replica(self, replica: Replica) -> None:
        self._rows.replica = replica

    # -- replicas -----------------------------------------------------------------------------

    def join(self, seconds: float) -> str:
        """Add this replica with a lease of some seconds; return the secret of the cluster."""
        with self._own_row, self.registry.transaction(_WRITTEN) as connection:
            self._left = False
            self._rows.check(connection)
            known = select(CLUSTERS.c.secret).where(CLUSTERS.c.name == self._cluster)
            secret = connection.execute(known).scalar()
            if secret is None:
                made = {"name": self._cluster, "secret": secrets.token_urlsafe(32), "revision": 0}
                insert_once(connection, CLUSTERS, [made])
                secret = connection.execute(known).scalar()
            self._rows.renew_lease(connection, seconds)
        return str(secret)

    def renew(
        self, seconds: float, states: Mapping[str, str] | None = None, since: int | None = None
    ) -> View:
        """Renew the lease of this replica, and return the changes in the cluster.

        Parameters
        ----------
        seconds : float
            The duration of the lease, from now on.
        states : mapping of str to str, optional
            The states (see `ClusterKernel`) of kernels of this replica that have changed.
        since : int, optional
            The revision of the last view; without it, the view has all kernels. A replica must not
            give a revision that is older than `ENDED_SECONDS`.
        """
        with self._own_row, self.registry.transaction(_WRITTEN) as connection:
            if self._left:
                raise RegistryError("This replica has left its cluster")
            self._rows.renew_lease(connection, seconds)
            if states:
                revision = self._rows.change(connection)
                connection.execute(
                    update(KERNELS)
                    .where(KERNELS.c.kernel_id == bindparam("kernel"))
                    .where(KERNELS.c.replica_id == self._me)
                    .values(state=bindparam("text"), changed=revision),
                    [{"kernel": name, "text": text} for name, text in states.items()],
                )
            if self._renewals % _FORGET_EVERY == 0:
                self._rows.forget(connection)
            self._renewals += 1
            return self._rows.view(connection, since)

    def view(self, since: int | None = None) -> View:
        """Return the changes in the cluster, and renew nothing."""
        with self.registry.transaction(_READ) as connection:
            return self._rows.view(connection, since)

    def drain(self) -> None:
        """Note that this replica is about to end: it must not be given kernels any longer."""
        with self.registry.transaction(_WRITTEN) as connection:
            connection.execute(
                update(REPLICAS).where(REPLICAS.c.replica_id == self._me).values(draining=1)
            )

    def leave(self) -> None:
        """Remove this replica. The others may take its kernels at once."""
        with self._own_row:
            self._left = True
            with self.registry.transaction(_WRITTEN) as connection:
                connection.execute(delete(REPLICAS).where(REPLICAS.c.replica_id == self._me))

    # -- kernels ------------------------------------------------------------------------------

    def kernel(self, kernel_id: str) -> ClusterKernel | None:
        """Return a kernel of the cluster, or None."""
        with self.registry.transaction(_READ) as connection:
            row = self._rows.kernels(connection, KERNELS.c.kernel_id == kernel_id)
            return row[0] if row else None

    def kernels(self) -> list[ClusterKernel]:
        """Return all kernels of the cluster."""
        with self.registry.transaction(_READ) as connection:
            return self._rows.kernels(connection)

    def take(
        self, kernel_id: str, old: str, *, gone: Replica | None = None
    ) -> ClusterKernel | None:
        """Take a kernel of a replica whose lease is over; return None if that is not possible.

        Parameters
        ----------
        kernel_id : str
            The kernel.
        old : str
            The replica that owns it as far as the caller knows. The own id is allowed: then the
            kernel is returned if this replica still owns it.
        gone : Replica, optional
            The row of that replica, if its process has certainly ended: then its lease does not
            matter, unless it was renewed after the row was read.
        """
        taken = self.take_all([kernel_id], old, gone=gone)
        return taken[0] if taken else None

    def take_all(
        self, kernel_ids: Sequence[str], old: str, *, gone: Replica | None = None
    ) -> list[ClusterKernel]:
        """Take several kernels of one replica; return those that this replica owns now."""
        with self.registry.transaction(_WRITTEN) as connection:
            if old != self._me and self._rows.holds(connection, old, gone=gone):
                return []
            return self._rows.pass_on(connection, kernel_ids, old, self._me)

    def give(self, kernel_id: str, new: str) -> bool:
        """Give a kernel of this replica to another one.

        Returns
        -------
        bool
            False if this replica is not the owner, or if the other one has no lease or is about to
            end: nobody would serve the kernel.
        """
        with self.registry.transaction(_WRITTEN) as connection:
            if not self._rows.holds(connection, new, drains=False):
                return False
            return bool(self._rows.pass_on(connection, [kernel_id], self._me, new))

    def write(self, rows: Mapping[Key, KernelRow | SessionRow | None]) -> frozenset[str]:
        """Write rows of this replica, and delete those that are None.

        Returns
        -------
        frozenset of str
            The ids of the kernels that were not written, because another replica owns them or they
            have ended.
        """
        kernels = {key[1]: row for key, row in rows.items() if key[0] == "kernel"}
        sessions = {key[1]: row for key, row in rows.items() if key[0] == "session"}
        refused: set[str] = set()
        with self.registry.transaction(_WRITTEN) as connection:
            revision = self._rows.change(connection)
            running = self._rows.owners(connection, kernels, KERNELS)
            ended = self._rows.owners(connection, kernels, ENDED)
            for kernel_id, row in kernels.items():
                owner = running.get(kernel_id, ended.get(kernel_id))
                if isinstance(row, KernelRow):
                    # The id of a kernel that has ended may be used again.
                    new = row.role == KernelRole.STARTING and kernel_id not in running
                    if owner in (None, self._me) or new:
                        self._rows.write_kernel(connection, row, revision)
                    else:
                        refused.add(kernel_id)
                elif running.get(kernel_id) == self._me:  # not if it has ended already
                    self._rows.end_kernel(connection, kernel_id, revision)
            for session_id, session in sessions.items():
                self._rows.drop_session(connection, session_id)
                if session is not None:
                    connection.execute(
                        insert(SESSIONS), [{**self._rows.owned(), **columns_of(session)}]
                    )
        return frozenset(refused)

    def reserve(self, row: KernelRow, limit: int) -> None:
        """Write the row of a kernel, unless its user has `limit` other kernels in the cluster.

        Raises
        ------
        KernelLimitReached
            If that is so.
        InvalidRequest
            If another replica has a kernel with that id.
        """
        with self.registry.transaction(_WRITTEN) as connection:
            revision = self._rows.change(connection)  # so that replicas count one after the other
            running = self._rows.owners(connection, [row.kernel_id], KERNELS)
            if running.get(row.kernel_id, self._me) != self._me:
                raise InvalidRequest(f"The id {row.kernel_id} is taken")
            others = self._rows.count_of(connection, row.user, besides=row.kernel_id)
            check_user(row.user, others, limit)
            self._rows.write_kernel(connection, row, revision)

    # -- what a takeover needs ----------------------------------------------------------------

    def put_changes(
        self,
        places: Sequence[Place],
        executions: Sequence[ExecutionRow],
        kept: Mapping[str, KeptRows] | None = None,
    ) -> frozenset[str]:
        """Write acknowledged places and executions of kernels that this replica owns.

        Places without a message and executions with an empty entry are deleted. Rows of kernels
        that have ended, or that other replicas own, are ignored.

        Parameters
        ----------
        places, executions
            The rows.
        kept : mapping of str to KeptRows, optional
            By kernel, the ids of the rows that stay; all other rows of the kernel are deleted.

        Returns
        -------
        frozenset of str
            The ids of kernels that have no row yet, so that nothing was written for them.
        """
        ids = {row.kernel_id for row in places} | {row.kernel_id for row in executions}
        ids |= set(kept or ())
        with self.registry.transaction(_WRITTEN) as connection:
            self._rows.change(
                connection
            )  # no kernel changes its owner until the end of the transaction
            ended = self._rows.owners(connection, ids, ENDED)
            running = self._rows.owners(connection, ids, KERNELS)
            own = {kernel_id for kernel_id, owner in running.items() if owner == self._me}
            replace_rows(connection, PLACES, [asdict(p) for p in places if p.kernel_id in own])
            replace_rows(
                connection, EXECUTIONS, [asdict(e) for e in executions if e.kernel_id in own]
            )
            for kernel_id, stay in (kept or {}).items():
                if kernel_id in own:
                    keep_only(connection, PLACES, kernel_id, stay.sessions)
                    keep_only(connection, EXECUTIONS, kernel_id, stay.executions)
        return frozenset(ids - ended.keys() - running.keys())

    def places(self, *kernel_ids: str) -> list[Place]:
        """Return the acknowledged places of the sessions of kernels."""
        with self.registry.transaction(_READ) as connection:
            found = connection.execute(select(PLACES).where(PLACES.c.kernel_id.in_(kernel_ids)))
            return [Place(**row) for row in found.mappings()]

    def executions(self, *kernel_ids: str) -> list[ExecutionRow]:
        """Return the executions of kernels."""
        with self.registry.transaction(_READ) as connection:
            found = connection.execute(
                select(EXECUTIONS).where(EXECUTIONS.c.kernel_id.in_(kernel_ids))
            )
            return [ExecutionRow(**row) for row in found.mappings()]

    # -- sessions -----------------------------------------------------------------------------

    def sessions(self) -> list[SessionRow]:
        """Return all sessions of the cluster."""
        with self.registry.transaction(_READ) as connection:
            return read_sessions(connection, self._rows.sessions())

    def session(self, session_id: str) -> SessionRow | None:
        """Return a session, or None."""
        with self.registry.transaction(_READ) as connection:
            query = self._rows.sessions().where(SESSIONS.c.session_id == session_id)
            return next(iter(read_sessions(connection, query)), None)

    def session_for_path(self, path: str, user: str = "") -> SessionRow | None:
        """Return the session of a user for a document, or None."""
        with self.registry.transaction(_READ) as connection:
            query = self._rows.sessions_for(path, user)
            return next(iter(read_sessions(connection, query)), None)

    def create_session(self, row: SessionRow) -> SessionRow:
        """Add a session, unless its user has one for the path; return the session of the path."""
        with self.registry.transaction(_WRITTEN) as connection:
            self._rows.change(connection)  # so that two replicas do this one after the other
            query = self._rows.sessions_for(row.path, row.user)
            found = next(iter(read_sessions(connection, query)), None)
            if found is None:
                connection.execute(insert(SESSIONS), [{**self._rows.owned(), **columns_of(row)}])
            return found or row

    def change_session(self, row: SessionRow) -> bool:
        """Change a session; return False if there is none with that id."""
        with self.registry.transaction(_WRITTEN) as connection:
            done = connection.execute(
                update(SESSIONS)
                .where(SESSIONS.c.session_id == row.session_id)
                .where(SESSIONS.c.address == self._cluster)
                .values(**columns_of(row))
            )
            return bool(done.rowcount)

    def drop_session(self, session_id: str) -> bool:
        """Delete a session; return False if there was none."""
        with self.registry.transaction(_WRITTEN) as connection:
            return self._rows.drop_session(connection, session_id)
