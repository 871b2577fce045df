"""The tables of a registry and the queries, in SQLAlchemy Core.

Importing SQLAlchemy takes 0.15 s and 13 MB, so only `Registry` imports this module, and only when
there is something to read or write. Errors of SQLAlchemy leave this module; `Registry` translates
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    RowMapping,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)

from kbridge.errors import UnknownSchema
from kbridge.kernels.lifecycle.processes import ProcessState
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, SessionRow

__all__ = ["SCHEMA_VERSION", "Key", "Store"]

# A row's kind and its id.
Key = tuple[str, str]

# Version 2 has the tables of version 1, with the pid namespace in each `birth`. Programs that know
# only version 1 would take the process of such a row for one that has ended.
SCHEMA_VERSION: Final = 2
_READABLE: Final = {1, 2}
_BUSY_SECONDS: Final = 2.0  # other servers hold the file for milliseconds
_CHUNK: Final = 200

_META: Final = MetaData()
_SCHEMA: Final = Table("kbridge_schema", _META, Column("version", Integer, nullable=False))
# Text: addresses and paths may be longer than some databases allow for strings.
_OWNER: Final = (
    ("address", Text),
    ("hostname", Text),
    ("owner_pid", Integer),
    ("owner_birth", String(80)),
)
_KERNELS: Final = Table(
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
)
_SESSIONS: Final = Table(
    "kbridge_sessions",
    _META,
    Column("session_id", String(80), primary_key=True),
    *(Column(name, kind, nullable=False) for name, kind in _OWNER),
    Column("kernel_id", String(80), nullable=False),
    Column("path", Text, nullable=False),
    Column("name", Text),
    Column("type", Text, nullable=False),
)
# Fields of the rows whose columns have other names, from the time of version 1.
_COLUMNS: Final = {"role": "standing", "start_id": "birth"}
_FIELDS: Final = {column: field for field, column in _COLUMNS.items()}
_TABLES: Final = {"kernel": (_KERNELS, "kernel_id"), "session": (_SESSIONS, "session_id")}


class Store:
    """An open registry.

    Parameters
    ----------
    url : str or Path
        A URL of SQLAlchemy, or the path of an SQLite file.
    """

    def __init__(self, url: str | Path) -> None:
        self.engine = _engine(url)
        try:
            with self.engine.begin() as connection:
                _check_schema(connection)
        except BaseException:
            self.engine.dispose()
            raise

    def claim(self, owner: Owner, state_of: Callable[[int, str], ProcessState]) -> Claim:
        """Take over the rows of ended servers on the same address, in one transaction.

        The server before a `kbridge restart` ran in the process of its successor. It has ended.

        Rows are not touched if their server runs (`state_of` its pid and start), if it cannot be
        seen from here (another pid namespace), or if it belongs to another machine.
        """
        with self.engine.begin() as connection:
            kernels, hidden = self._claim(connection, _KERNELS, owner, state_of)
            sessions, _ = self._claim(connection, _SESSIONS, owner, state_of)
            elsewhere = connection.execute(
                select(_KERNELS.c.address, _KERNELS.c.owner_pid, _KERNELS.c.owner_birth)
                .where(_KERNELS.c.hostname == owner.hostname)
                .where(_KERNELS.c.address != owner.address)
            )
            counts: dict[str, int] = {}
            for address, pid, recorded in elsewhere:
                if state_of(pid, recorded) is ProcessState.GONE:
                    counts[address] = counts.get(address, 0) + 1
        return Claim(
            [KernelRow(**_own(row)) for row in kernels],
            [SessionRow(**_own(row)) for row in sessions],
            counts,
            hidden,
        )

    def write(self, owner: Owner, rows: Mapping[Key, KernelRow | SessionRow | None]) -> None:
        """Write rows, and delete those that are None, in one transaction."""
        with self.engine.begin() as connection:
            for kind, (table, id_name) in _TABLES.items():
                ids = [key[1] for key in rows if key[0] == kind]
                for start in range(0, len(ids), _CHUNK):
                    chunk = ids[start : start + _CHUNK]
                    connection.execute(delete(table).where(table.c[id_name].in_(chunk)))
                new = [
                    {**_of(owner), **_columns(row)}
                    for key, row in rows.items()
                    if key[0] == kind and row is not None
                ]
                if new:
                    connection.execute(insert(table), new)

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    @staticmethod
    def _claim(
        connection: Connection,
        table: Table,
        owner: Owner,
        state_of: Callable[[int, str], ProcessState],
    ) -> tuple[list[RowMapping], int]:
        """Return the rows that were taken over, and the number of rows with a hidden owner."""
        ours = select(table).where(
            table.c.address == owner.address, table.c.hostname == owner.hostname
        )
        [id_column] = table.primary_key.columns
        claimed: list[RowMapping] = []
        hidden = 0
        for row in connection.execute(ours).mappings().all():
            pid, recorded = row["owner_pid"], row["owner_birth"]
            own = (pid, recorded) == (owner.pid, owner.start_id)
            state = ProcessState.GONE if own else state_of(pid, recorded)
            if state is not ProcessState.GONE:
                hidden += state is ProcessState.HIDDEN
                continue
            # If two servers start at once, one of them finds that the owner has changed.
            taken = connection.execute(
                update(table)
                .where(id_column == row[id_column.name])
                .where(table.c.owner_pid == pid, table.c.owner_birth == recorded)
                .values(owner_pid=owner.pid, owner_birth=owner.start_id)
            )
            if taken.rowcount:
                claimed.append(row)
        return claimed, hidden


def _engine(url: str | Path) -> Engine:
    # Parameters contain keys: no error may show them.
    if not isinstance(url, Path):
        # The connection may have been cut after hours without use.
        return create_engine(url, hide_parameters=True, pool_pre_ping=True)
    engine = create_engine(
        URL.create("sqlite", database=str(url)),
        hide_parameters=True,
        # One connection per transaction: so it is noticed if the file was replaced.
        poolclass=NullPool,
        connect_args={"timeout": _BUSY_SECONDS},
    )

    # As in SQLAlchemy's documentation: the driver begins transactions too late.
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _check_schema(connection: Connection) -> None:
    _META.create_all(connection)
    found = connection.execute(select(func.max(_SCHEMA.c.version))).scalar()
    if found is None:
        connection.execute(insert(_SCHEMA), [{"version": SCHEMA_VERSION}])
    elif found not in _READABLE:
        raise UnknownSchema(
            f"its tables are of version {found}, and this kbridge knows {SCHEMA_VERSION}"
        )
    elif found != SCHEMA_VERSION:
        connection.execute(update(_SCHEMA).values(version=SCHEMA_VERSION))


def _of(owner: Owner) -> dict[str, Any]:
    return {
        "address": owner.address,
        "hostname": owner.hostname,
        "owner_pid": owner.pid,
        "owner_birth": owner.start_id,
    }


def _columns(row: KernelRow | SessionRow) -> dict[str, Any]:
    """Return the fields of a row by the names of their columns."""
    return {_COLUMNS.get(name, name): value for name, value in asdict(row).items()}


def _own(row: RowMapping) -> dict[str, Any]:
    """Return the fields of a row by their names, without those of the owner."""
    owner: Collection[str] = {name for name, _ in _OWNER}
    return {_FIELDS.get(name, name): value for name, value in row.items() if name not in owner}
