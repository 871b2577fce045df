"""The tables of a registry, their versions, and the steps from one version to the next.

A registry of an older version is changed when a server opens it, in one transaction. Of servers
that open it at the same time, one does so and the others wait.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    insert,
    select,
    text,
    update,
)

from kbridge.errors import UnknownSchema

__all__ = [
    "CLUSTERS",
    "ENDED",
    "EXECUTIONS",
    "KERNELS",
    "OWNER_COLUMNS",
    "PLACES",
    "REPLICAS",
    "SCHEMA_VERSION",
    "SESSIONS",
    "check_schema",
]

# Version 2 has the tables of version 1, with the pid namespace in each `birth`. Programs that know
# only version 1 would take the process of such a row for one that has ended. Version 3 adds
# clusters, version 4 the duration of each lease, and version 5 the users of kernels and sessions.
SCHEMA_VERSION: Final = 5
# An arbitrary number that PostgreSQL locks while the tables are made or changed.
_LOCK: Final = 0x6B627269646765

_META: Final = MetaData()
_SCHEMA: Final = Table("kbridge_schema", _META, Column("version", Integer, nullable=False))
# Text: addresses and paths may be longer than some databases allow for strings. In a cluster,
# `address` names the cluster, and `hostname` is the machine of the kernel's process.
_OWNER: Final = (
    ("address", Text),
    ("hostname", Text),
    ("owner_pid", Integer),
    ("owner_birth", String(80)),
)
OWNER_COLUMNS: Final = tuple(name for name, _ in _OWNER)
# The columns of a kernel that version 3 has added: the replica that owns the kernel, the cluster's
# revision at the last change, and what the owner tells the others (JSON).
_CLUSTER_COLUMNS: Final = {
    "replica_id": "VARCHAR(80) NOT NULL DEFAULT ''",
    "changed": "BIGINT NOT NULL DEFAULT 0",
    "state": "TEXT NOT NULL DEFAULT ''",
}
_LEASE_SECONDS: Final = "DOUBLE PRECISION NOT NULL DEFAULT 0"
_USER_NAME: Final = "TEXT NOT NULL DEFAULT ''"
KERNELS: Final = Table(
    "kbridge_kernels",
    _META,
    Column("kernel_id", String(80), primary_key=True),
    *(Column(name, kind, nullable=False) for name, kind in _OWNER),
    Column("kernel_name", Text, nullable=False),
    Column("standing", String(20), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("birth", String(80), nullable=False),
    Column("log_path", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("replica_id", String(80), nullable=False, server_default=""),
    Column("changed", BigInteger, nullable=False, server_default="0"),
    Column("state", Text, nullable=False, server_default=""),
    Column("user_name", Text, nullable=False, server_default=""),
)
SESSIONS: Final = Table(
    "kbridge_sessions",
    _META,
    Column("session_id", String(80), primary_key=True),
    *(Column(name, kind, nullable=False) for name, kind in _OWNER),
    Column("kernel_id", String(80), nullable=False),
    Column("path", Text, nullable=False),
    Column("name", Text),
    Column("type", Text, nullable=False),
    Column("user_name", Text, nullable=False, server_default=""),
)
# `revision` counts the changes of a cluster. A transaction that changes a kernel raises it, which
# locks the row: so changes become visible in the order of their revisions.
CLUSTERS: Final = Table(
    "kbridge_clusters",
    _META,
    Column("name", String(200), primary_key=True),
    Column("secret", String(200), nullable=False),
    Column("revision", BigInteger, nullable=False),
)
# `lease_until` is in seconds of the database's clock. `lease_seconds` is the duration that the
# replica gives its lease; 0 if its version knows only version 3 of the tables.
REPLICAS: Final = Table(
    "kbridge_replicas",
    _META,
    Column("replica_id", String(80), primary_key=True),
    Column("cluster", String(200), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("start_id", String(80), nullable=False),
    Column("version", String(80), nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("draining", Integer, nullable=False),
    Column("lease_seconds", Double, nullable=False, server_default="0"),
)
# Kernels that have ended, for as long as a replica may not have heard of it.
ENDED: Final = Table(
    "kbridge_ended",
    _META,
    Column("kernel_id", String(80), primary_key=True),
    Column("cluster", String(200), nullable=False, index=True),
    Column("replica_id", String(80), nullable=False),  # the last owner
    Column("changed", BigInteger, nullable=False),
    Column("until", Double, nullable=False),
)
PLACES: Final = Table(
    "kbridge_places",
    _META,
    Column("kernel_id", String(80), primary_key=True),
    Column("session_id", String(200), primary_key=True),
    Column("msg_id", Text, nullable=False),
)
EXECUTIONS: Final = Table(
    "kbridge_executions",
    _META,
    Column("kernel_id", String(80), primary_key=True),
    Column("msg_id", String(200), primary_key=True),
    Column("entry", Text, nullable=False),
)


def check_schema(connection: Connection) -> None:
    """Make the tables if there are none, and change those of an older version.

    Raises
    ------
    UnknownSchema
        If the tables are of a version that this program does not know.
    """
    if connection.dialect.name == "postgresql":
        # IF NOT EXISTS does not protect two transactions that make a table at the same time.
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    _SCHEMA.create(connection, checkfirst=True)
    found = connection.execute(select(func.max(_SCHEMA.c.version))).scalar()
    if found is not None and found not in range(1, SCHEMA_VERSION + 1):
        raise UnknownSchema(
            f"its tables are of version {found}, and this kbridge knows {SCHEMA_VERSION}"
        )
    if found == SCHEMA_VERSION:
        return
    if found is not None and found < 3:
        for name, kind in _CLUSTER_COLUMNS.items():
            connection.execute(text(f"ALTER TABLE {KERNELS.name} ADD COLUMN {name} {kind}"))
    if found == 3:  # before, there were no replicas
        column = f"lease_seconds {_LEASE_SECONDS}"
        connection.execute(text(f"ALTER TABLE {REPLICAS.name} ADD COLUMN {column}"))
    if found is not None and found < 5:
        for table in (KERNELS, SESSIONS):
            column = f"user_name {_USER_NAME}"
            connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {column}"))
    _META.create_all(connection)
    if found is None:
        connection.execute(insert(_SCHEMA), [{"version": SCHEMA_VERSION}])
    else:
        connection.execute(update(_SCHEMA).values(version=SCHEMA_VERSION))
