"""The rows of a cluster: the parts of the transactions of `ClusterStore`.

Each method works in the transaction of its caller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)

from kbridge.errors import RegistryError
from kbridge.kernels.registry.models import (
    ClusterKernel,
    KernelRow,
    Replica,
    SessionRow,
    View,
)
from kbridge.kernels.registry.schema import (
    CLUSTERS,
    ENDED,
    EXECUTIONS,
    KERNELS,
    PLACES,
    REPLICAS,
    SESSIONS,
)
from kbridge.kernels.registry.store import columns_of, fields_of

__all__ = [
    "ENDED_SECONDS",
    "ClusterRows",
    "insert_once",
    "keep_only",
    "read_sessions",
    "replace_rows",
]

# The rows of ended kernels, and of replicas that did not leave, are kept for so long.
ENDED_SECONDS: Final = 300.0
_CHUNK: Final = 200
# Seconds since 1970 by the clock of the database. The transaction's beginning in PostgreSQL: a
# replica that waited for a lock gets a shorter lease, and one that takes a kernel waits longer.
_NOW: Final[dict[str, ColumnElement[float]]] = {
    "postgresql": literal_column("CAST(EXTRACT(EPOCH FROM now()) AS DOUBLE PRECISION)"),
    "sqlite": literal_column("((julianday('now') - 2440587.5) * 86400.0)"),
}


class ClusterRows:
    """The rows of one cluster, as one replica reads and writes them.

    Parameters
    ----------
    name : str
        The name of the registry, for errors.
    replica : Replica
        This server.
    """

    def __init__(self, name: str, replica: Replica) -> None:
        self.replica = replica
        self._name = name
        self._me = replica.replica_id
        self._cluster = replica.cluster

    def check(self, connection: Connection) -> None:
        """Raise RegistryError if the database cannot be that of a cluster."""
        if connection.dialect.name not in _NOW:
            raise RegistryError(
                f"The registry {self._name} cannot be that of a cluster: use PostgreSQL, or"
                " an SQLite file for the servers of one machine"
            )

    def renew_lease(self, connection: Connection, seconds: float) -> None:
        """Renew the lease; add the replica if another one has removed it."""
        lease = {"lease_until": _NOW[connection.dialect.name] + seconds, "lease_seconds": seconds}
        own = REPLICAS.c.replica_id == self._me
        done = connection.execute(update(REPLICAS).where(own).values(**lease))
        if not done.rowcount:
            self.change(connection)  # see `holds`
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

    def holds(
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
            self.change(connection)
            row = connection.execute(query).first()
        if row is None or row.left <= 0 or (row.draining and not drains):
            return False
        return gone is None or bool(row.lease_until != gone.lease_until)

    def change(self, connection: Connection) -> int:
        """Raise the revision of the cluster and return it; other changes wait for this one."""
        same = CLUSTERS.c.name == self._cluster
        connection.execute(update(CLUSTERS).where(same).values(revision=CLUSTERS.c.revision + 1))
        return self.revision(connection)

    def revision(self, connection: Connection) -> int:
        """Return the revision of the cluster."""
        same = CLUSTERS.c.name == self._cluster
        found = connection.execute(select(CLUSTERS.c.revision).where(same)).scalar()
        if found is None:
            raise RegistryError(f"The registry {self._name} has lost the cluster's rows")
        return int(found)

    def view(self, connection: Connection, since: int | None) -> View:
        """Return the changes since a revision; without a revision, all rows."""
        # Before the rows: changes that are committed in between are read again the next time.
        revision = self.revision(connection)
        if since is not None and since > revision:
            since = None  # the database was replaced by an older one
        new = () if since is None else (KERNELS.c.changed > since,)
        kernels = self.kernels(connection, *new)
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

    def kernels(
        self, connection: Connection, *conditions: ColumnElement[bool]
    ) -> list[ClusterKernel]:
        """Return the kernels that meet some conditions."""
        query = select(KERNELS).where(KERNELS.c.address == self._cluster, *conditions)
        return [_kernel(row) for row in connection.execute(query).mappings()]

    def pass_on(
        self, connection: Connection, kernel_ids: Sequence[str], old: str, new: str
    ) -> list[ClusterKernel]:
        """Change the owner of kernels from `old` to `new`; return those that had the owner."""
        revision = self.change(connection)
        passed: list[ClusterKernel] = []
        for start in range(0, len(kernel_ids), _CHUNK):
            chosen = KERNELS.c.kernel_id.in_(kernel_ids[start : start + _CHUNK])
            connection.execute(
                update(KERNELS)
                .where(chosen, KERNELS.c.address == self._cluster, KERNELS.c.replica_id == old)
                .values(replica_id=new, changed=revision)
            )
            passed += self.kernels(connection, chosen, KERNELS.c.changed == revision)
        return passed

    def owners(
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

    def count_of(self, connection: Connection, user: str, *, besides: str) -> int:
        """Return the number of kernels of a user, without that of one id."""
        found = connection.execute(
            select(func.count())
            .select_from(KERNELS)
            .where(KERNELS.c.address == self._cluster)
            .where(KERNELS.c.user_name == user)
            .where(KERNELS.c.kernel_id != besides)
        )
        return int(found.scalar_one())

    def write_kernel(self, connection: Connection, row: KernelRow, revision: int) -> None:
        """Write the row of a kernel; the machine of a kernel's process stays as it was."""
        values = {**columns_of(row), "replica_id": self._me, "changed": revision}
        same = KERNELS.c.kernel_id == row.kernel_id
        done = connection.execute(update(KERNELS).where(same).values(**values))
        if not done.rowcount:
            connection.execute(delete(ENDED).where(ENDED.c.kernel_id == row.kernel_id))
            connection.execute(insert(KERNELS), [{**self.owned(), **values}])

    def end_kernel(self, connection: Connection, kernel_id: str, revision: int) -> None:
        """Delete the rows of a kernel, and note that it has ended."""
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

    def forget(self, connection: Connection) -> None:
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

    def sessions(self) -> Select[Any]:
        """Return the query for all sessions."""
        return select(SESSIONS).where(SESSIONS.c.address == self._cluster)

    def sessions_for(self, path: str, user: str) -> Select[Any]:
        """Return the query for the session of a user for a document."""
        return self.sessions().where(SESSIONS.c.path == path, SESSIONS.c.user_name == user)

    def drop_session(self, connection: Connection, session_id: str) -> bool:
        """Delete a session; return False if there was none."""
        done = connection.execute(
            delete(SESSIONS)
            .where(SESSIONS.c.session_id == session_id)
            .where(SESSIONS.c.address == self._cluster)
        )
        return bool(done.rowcount)

    def owned(self) -> dict[str, Any]:
        """Return the columns that say whose a row is."""
        me = self.replica
        return {
            "address": self._cluster,
            "hostname": me.hostname,
            "owner_pid": me.pid,
            "owner_birth": me.start_id,
        }


def insert_once(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, but those whose key is there already."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as upsert
    else:
        from sqlalchemy.dialects.sqlite import insert as upsert  # type: ignore[assignment]
    connection.execute(upsert(table).on_conflict_do_nothing(), rows)


def replace_rows(connection: Connection, table: Table, rows: list[dict[str, str]]) -> None:
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


def keep_only(connection: Connection, table: Table, kernel_id: str, kept: Collection[str]) -> None:
    """Delete the rows of a kernel whose second key is not among those that are kept."""
    first, second = table.primary_key.columns
    found = connection.execute(select(second).where(first == kernel_id)).scalars()
    old = [{"one": kernel_id, "two": name} for name in found if name not in kept]
    if old:
        same = (first == bindparam("one"), second == bindparam("two"))
        connection.execute(delete(table).where(*same), old)


def read_sessions(connection: Connection, query: Select[Any]) -> list[SessionRow]:
    """Return the sessions that a query finds."""
    return [SessionRow(**fields_of(row)) for row in connection.execute(query).mappings()]


def _kernel(row: RowMapping) -> ClusterKernel:
    return ClusterKernel(
        KernelRow(**fields_of(row)),
        row["replica_id"],
        row["hostname"],
        row["changed"],
        row["state"],
    )
