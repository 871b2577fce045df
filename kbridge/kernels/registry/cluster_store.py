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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    bindparam,
    delete,
    insert,
    literal_column,
    select,
    update,
)

from kbridge.errors import RegistryError
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
from kbridge.kernels.registry.store import Key, columns_of, fields_of

__all__ = ["ENDED_SECONDS", "ClusterStore"]

# The rows of ended kernels, and of replicas that did not leave, are kept for so long.
ENDED_SECONDS: Final = 300.0
_FORGET_EVERY: Final = 20  # renewals
_CHUNK: Final = 200
_READ: Final = "read"
_WRITTEN: Final = "written to"
# Seconds since 1970 by the clock of the database. The transaction's beginning in PostgreSQL: a
# replica that waited for a lock gets a shorter lease, and one that takes a kernel waits longer.
_NOW: Final[dict[str, ColumnElement[float]]] = {
    "postgresql": literal_column("CAST(EXTRACT(EPOCH FROM now()) AS DOUBLE PRECISION)"),
    "sqlite": literal_column("((julianday('now') - 2440587.5) * 86400.0)"),
}


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
        self.replica = replica
        self._me = replica.replica_id
        self._cluster = replica.cluster
        self._renewals = 0
        # A renewal that waits for the database must not add the row again after `leave`.
        self._own_row = threading.Lock()
        self._left = False

    # -- replicas -----------------------------------------------------------------------------

    def join(self, seconds: float) -> str:
        """Add this replica with a lease of some seconds; return the secret of the cluster."""
        with self._own_row, self.registry.transaction(_WRITTEN) as connection:
            self._left = False
            self._check(connection)
            known = select(CLUSTERS.c.secret).where(CLUSTERS.c.name == self._cluster)
            secret = connection.execute(known).scalar()
            if secret is None:
                made = {"name": self._cluster, "secret": secrets.token_urlsafe(32), "revision": 0}
                _insert_once(connection, CLUSTERS, [made])
                secret = connection.execute(known).scalar()
            self._lease(connection, seconds)
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
            self._lease(connection, seconds)
            if states:
                revision = self._change(connection)
                connection.execute(
                    update(KERNELS)
                    .where(KERNELS.c.kernel_id == bindparam("kernel"))
                    .where(KERNELS.c.replica_id == self._me)
                    .values(state=bindparam("text"), changed=revision),
                    [{"kernel": name, "text": text} for name, text in states.items()],
                )
            if self._renewals % _FORGET_EVERY == 0:
                self._forget(connection)
            self._renewals += 1
            return self._view(connection, since)

    def view(self, since: int | None = None) -> View:
        """Return the changes in the cluster, and renew nothing."""
        with self.registry.transaction(_READ) as connection:
            return self._view(connection, since)

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
            row = self._rows(connection, KERNELS.c.kernel_id == kernel_id)
            return row[0] if row else None

    def kernels(self) -> list[ClusterKernel]:
        """Return all kernels of the cluster."""
        with self.registry.transaction(_READ) as connection:
            return self._rows(connection)

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
            if old != self._me and self._holds(connection, old, gone=gone):
                return []
            return self._pass(connection, kernel_ids, old, self._me)

    def give(self, kernel_id: str, new: str) -> bool:
        """Give a kernel of this replica to another one.

        Returns
        -------
        bool
            False if this replica is not the owner, or if the other one has no lease or is about to
            end: nobody would serve the kernel.
        """
        with self.registry.transaction(_WRITTEN) as connection:
            if not self._holds(connection, new, drains=False):
                return False
            return bool(self._pass(connection, [kernel_id], self._me, new))

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
            revision = self._change(connection)
            running = self._owners(connection, kernels, KERNELS)
            ended = self._owners(connection, kernels, ENDED)
            for kernel_id, row in kernels.items():
                owner = running.get(kernel_id, ended.get(kernel_id))
                if isinstance(row, KernelRow):
                    # The id of a kernel that has ended may be used again.
                    new = row.role == KernelRole.STARTING and kernel_id not in running
                    if owner in (None, self._me) or new:
                        self._write_kernel(connection, row, revision)
                    else:
                        refused.add(kernel_id)
                elif running.get(kernel_id) == self._me:  # not if it has ended already
                    self._end(connection, kernel_id, revision)
            for session_id, session in sessions.items():
                self._drop_session(connection, session_id)
                if session is not None:
                    connection.execute(insert(SESSIONS), [{**self._owned(), **columns_of(session)}])
        return frozenset(refused)

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
            self._change(connection)  # no kernel changes its owner until the end of the transaction
            ended = self._owners(connection, ids, ENDED)
            running = self._owners(connection, ids, KERNELS)
            own = {kernel_id for kernel_id, owner in running.items() if owner == self._me}
            _replace(connection, PLACES, [asdict(p) for p in places if p.kernel_id in own])
            _replace(connection, EXECUTIONS, [asdict(e) for e in executions if e.kernel_id in own])
            for kernel_id, rows in (kept or {}).items():
                if kernel_id in own:
                    _keep_only(connection, PLACES, kernel_id, rows.sessions)
                    _keep_only(connection, EXECUTIONS, kernel_id, rows.executions)
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
            return _sessions(connection, self._sessions())

    def session(self, session_id: str) -> SessionRow | None:
        """Return a session, or None."""
        with self.registry.transaction(_READ) as connection:
            query = self._sessions().where(SESSIONS.c.session_id == session_id)
            return next(iter(_sessions(connection, query)), None)

    def session_for_path(self, path: str, user: str = "") -> SessionRow | None:
        """Return the session of a user for a document, or None."""
        with self.registry.transaction(_READ) as connection:
            query = self._sessions_for(path, user)
            return next(iter(_sessions(connection, query)), None)

    def create_session(self, row: SessionRow) -> SessionRow:
        """Add a session, unless its user has one for the path; return the session of the path."""
        with self.registry.transaction(_WRITTEN) as connection:
            self._change(connection)  # so that two replicas do this one after the other
            query = self._sessions_for(row.path, row.user)
            found = next(iter(_sessions(connection, query)), None)
            if found is None:
                connection.execute(insert(SESSIONS), [{**self._owned(), **columns_of(row)}])
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
            return self._drop_session(connection, session_id)

    # -- parts of transactions ----------------------------------------------------------------

    def _check(self, connection: Connection) -> None:
        if connection.dialect.name not in _NOW:
            raise RegistryError(
                f"The registry {self.registry.name} cannot be that of a cluster: use PostgreSQL, or"
                " an SQLite file for the servers of one machine"
            )

    def _lease(self, connection: Connection, seconds: float) -> None:
        """Renew the lease; add the replica if another one has removed it."""
        lease = {"lease_until": _NOW[connection.dialect.name] + seconds, "lease_seconds": seconds}
        own = REPLICAS.c.replica_id == self._me
        done = connection.execute(update(REPLICAS).where(own).values(**lease))
        if not done.rowcount:
            self._change(connection)  # see `_holds`
            me = self.replica
            connection.execute(
                insert(REPLICAS).values(
                    replica_id=self._me,
                    cluster=self._cluster,
                    url=me.url,
                    hostname=me.hostname,
                    pid=me.pid,
                    start_id=me.start_id,
                    version=me.version,
                    draining=int(me.draining),
                    **lease,
                )
            )

    def _holds(
        self,
        connection: Connection,
        replica_id: str,
        *,
        drains: bool = True,
        gone: Replica | None = None,
    ) -> bool:
        """Return True if a replica has a lease; its row is locked until the transaction ends.

        If it has no row, that of the cluster is locked, because a replica that adds its row locks
        that, too.

        Parameters
        ----------
        connection : Connection
        replica_id : str
        drains : bool
            False to return False for a replica that is about to end.
        gone : Replica, optional
            Return False for a replica whose row is still this one.
        """
        left = REPLICAS.c.lease_until - _NOW[connection.dialect.name]
        query = select(left.label("left"), REPLICAS.c.lease_until, REPLICAS.c.draining).where(
            REPLICAS.c.replica_id == replica_id
        )
        row = connection.execute(query.with_for_update()).first()
        if row is None:
            self._change(connection)
            row = connection.execute(query).first()
        if row is None or row.left <= 0 or (row.draining and not drains):
            return False
        return gone is None or bool(row.lease_until != gone.lease_until)

    def _change(self, connection: Connection) -> int:
        """Raise the revision of the cluster and return it; other changes wait for this one."""
        same = CLUSTERS.c.name == self._cluster
        connection.execute(update(CLUSTERS).where(same).values(revision=CLUSTERS.c.revision + 1))
        return self._revision(connection)

    def _revision(self, connection: Connection) -> int:
        same = CLUSTERS.c.name == self._cluster
        found = connection.execute(select(CLUSTERS.c.revision).where(same)).scalar()
        if found is None:
            raise RegistryError(f"The registry {self.registry.name} has lost the cluster's rows")
        return int(found)

    def _view(self, connection: Connection, since: int | None) -> View:
        # Before the rows: changes that are committed in between are read again the next time.
        revision = self._revision(connection)
        if since is not None and since > revision:
            since = None  # the database was replaced by an older one
        new = () if since is None else (KERNELS.c.changed > since,)
        kernels = self._rows(connection, *new)
        left = REPLICAS.c.lease_until - _NOW[connection.dialect.name]
        replicas = connection.execute(
            select(REPLICAS, left.label("lease_left")).where(REPLICAS.c.cluster == self._cluster)
        ).mappings()
        ended: Collection[str] = ()
        if since is not None:
            ended = connection.execute(
                select(ENDED.c.kernel_id)
                .where(ENDED.c.cluster == self._cluster)
                .where(ENDED.c.changed > since)
            ).scalars()  # type: ignore[assignment]
        return View(
            revision,
            tuple(Replica(**{**row, "draining": bool(row["draining"])}) for row in replicas),
            tuple(kernels),
            frozenset(ended),
            whole=since is None,
        )

    def _rows(
        self, connection: Connection, *conditions: ColumnElement[bool]
    ) -> list[ClusterKernel]:
        query = select(KERNELS).where(KERNELS.c.address == self._cluster, *conditions)
        return [_kernel(row) for row in connection.execute(query).mappings()]

    def _pass(
        self, connection: Connection, kernel_ids: Sequence[str], old: str, new: str
    ) -> list[ClusterKernel]:
        """Change the owner of kernels from `old` to `new`; return those that had the owner."""
        revision = self._change(connection)
        passed: list[ClusterKernel] = []
        for start in range(0, len(kernel_ids), _CHUNK):
            chosen = KERNELS.c.kernel_id.in_(kernel_ids[start : start + _CHUNK])
            connection.execute(
                update(KERNELS)
                .where(chosen, KERNELS.c.address == self._cluster, KERNELS.c.replica_id == old)
                .values(replica_id=new, changed=revision)
            )
            passed += self._rows(connection, chosen, KERNELS.c.changed == revision)
        return passed

    def _owners(
        self, connection: Connection, kernels: Iterable[str], *tables: Table
    ) -> dict[str, str]:
        """Return the owners in some tables, of which the last one counts; ENDED has the former."""
        ids = list(kernels)
        owners: dict[str, str] = {}
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            for table in tables:
                query = select(table.c.kernel_id, table.c.replica_id)
                found = connection.execute(query.where(table.c.kernel_id.in_(chunk)))
                owners |= {row.kernel_id: row.replica_id for row in found}
        return owners

    def _write_kernel(self, connection: Connection, row: KernelRow, revision: int) -> None:
        """Write the row of a kernel; the machine of a kernel's process stays as it was."""
        values = {**columns_of(row), "replica_id": self._me, "changed": revision}
        same = KERNELS.c.kernel_id == row.kernel_id
        done = connection.execute(update(KERNELS).where(same).values(**values))
        if not done.rowcount:
            connection.execute(delete(ENDED).where(ENDED.c.kernel_id == row.kernel_id))
            connection.execute(insert(KERNELS), [{**self._owned(), **values}])

    def _end(self, connection: Connection, kernel_id: str, revision: int) -> None:
        for table in (KERNELS, PLACES, EXECUTIONS, ENDED):
            connection.execute(delete(table).where(table.c.kernel_id == kernel_id))
        until = _NOW[connection.dialect.name] + ENDED_SECONDS
        connection.execute(
            insert(ENDED).values(
                kernel_id=kernel_id,
                cluster=self._cluster,
                replica_id=self._me,
                changed=revision,
                until=until,
            )
        )

    def _forget(self, connection: Connection) -> None:
        """Delete the rows that no replica needs any longer; those that are locked stay."""
        now = _NOW[connection.dialect.name]
        silent = REPLICAS.c.lease_until < now - ENDED_SECONDS
        for key, *old in (
            (ENDED.c.kernel_id, ENDED.c.until < now),
            (REPLICAS.c.replica_id, REPLICAS.c.cluster == self._cluster, silent),
        ):
            # The transaction may have locked the row of the cluster.
            query = select(key).where(*old).with_for_update(skip_locked=True)
            ids = list(connection.execute(query).scalars())
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                connection.execute(delete(key.table).where(key.in_(chunk)))

    def _sessions(self) -> Select[Any]:
        return select(SESSIONS).where(SESSIONS.c.address == self._cluster)

    def _sessions_for(self, path: str, user: str) -> Select[Any]:
        return self._sessions().where(SESSIONS.c.path == path, SESSIONS.c.user_name == user)

    def _drop_session(self, connection: Connection, session_id: str) -> bool:
        done = connection.execute(
            delete(SESSIONS)
            .where(SESSIONS.c.session_id == session_id)
            .where(SESSIONS.c.address == self._cluster)
        )
        return bool(done.rowcount)

    def _owned(self) -> dict[str, Any]:
        me = self.replica
        return {
            "address": self._cluster,
            "hostname": me.hostname,
            "owner_pid": me.pid,
            "owner_birth": me.start_id,
        }


def _insert_once(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, but those whose key is there already."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as upsert
    else:
        from sqlalchemy.dialects.sqlite import insert as upsert  # type: ignore[assignment]
    connection.execute(upsert(table).on_conflict_do_nothing(), rows)


def _replace(connection: Connection, table: Table, rows: list[dict[str, str]]) -> None:
    """Replace rows; those with an empty value are deleted only."""
    if not rows:
        return
    first, second = table.primary_key.columns
    connection.execute(
        delete(table).where(first == bindparam("one"), second == bindparam("two")),
        [{"one": row[first.name], "two": row[second.name]} for row in rows],
    )
    if new := [row for row in rows if all(row.values())]:
        connection.execute(insert(table), new)


def _keep_only(connection: Connection, table: Table, kernel_id: str, kept: Collection[str]) -> None:
    """Delete the rows of a kernel whose second key is not among those that are kept."""
    first, second = table.primary_key.columns
    found = connection.execute(select(second).where(first == kernel_id)).scalars()
    old = [{"one": kernel_id, "two": name} for name in found if name not in kept]
    if old:
        same = (first == bindparam("one"), second == bindparam("two"))
        connection.execute(delete(table).where(*same), old)


def _sessions(connection: Connection, query: Select[Any]) -> list[SessionRow]:
    return [SessionRow(**fields_of(row)) for row in connection.execute(query).mappings()]


def _kernel(row: RowMapping) -> ClusterKernel:
    return ClusterKernel(
        KernelRow(**fields_of(row)),
        row["replica_id"],
        row["hostname"],
        row["changed"],
        row["state"],
    )
