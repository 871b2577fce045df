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

from sqlalchemy import Connection, RowMapping, Table, delete, insert, select, update

from kbridge.kernels.lifecycle.processes import ProcessState
from kbridge.kernels.registry.engine import make_engine
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, SessionRow
from kbridge.kernels.registry.schema import (
    KERNELS,
    OWNER_COLUMNS,
    SCHEMA_VERSION,
    SESSIONS,
    check_schema,
)

__all__ = ["SCHEMA_VERSION", "Key", "Store", "columns_of", "fields_of"]

# A row's kind and its id.
Key = tuple[str, str]

_CHUNK: Final = 200
# Fields of the rows whose columns have other names: from the time of version 1, and because `user`
# is a word of SQL.
_COLUMNS: Final = {"role": "standing", "start_id": "birth", "user": "user_name"}
_FIELDS: Final = {column: field for field, column in _COLUMNS.items()}
_TABLES: Final = {"kernel": (KERNELS, "kernel_id"), "session": (SESSIONS, "session_id")}


class Store:
    """An open registry.

    Parameters
    ----------
    url : str or Path
        A URL of SQLAlchemy, or the path of an SQLite file.
    shared : bool
        As for `make_engine`.
    """

    def __init__(self, url: str | Path, *, shared: bool = False) -> None:
        self.engine = make_engine(url, shared=shared)
        try:
            with self.engine.begin() as connection:
                check_schema(connection)
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
            kernels, hidden = self._claim(connection, KERNELS, owner, state_of)
            sessions, _ = self._claim(connection, SESSIONS, owner, state_of)
            elsewhere = connection.execute(
                select(KERNELS.c.address, KERNELS.c.owner_pid, KERNELS.c.owner_birth)
                .where(KERNELS.c.hostname == owner.hostname)
                .where(KERNELS.c.address != owner.address)
            )
            counts: dict[str, int] = {}
            for address, pid, recorded in elsewhere:
                if state_of(pid, recorded) is ProcessState.GONE:
                    counts[address] = counts.get(address, 0) + 1
        return Claim(
            [KernelRow(**fields_of(row)) for row in kernels],
            [SessionRow(**fields_of(row)) for row in sessions],
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
                    {**_of(owner), **columns_of(row)}
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


def _of(owner: Owner) -> dict[str, Any]:
    return {
        "address": owner.address,
        "hostname": owner.hostname,
        "owner_pid": owner.pid,
        "owner_birth": owner.start_id,
    }


def columns_of(row: KernelRow | SessionRow) -> dict[str, Any]:
    """Return the fields of a row by the names of their columns."""
    return {_COLUMNS.get(name, name): value for name, value in asdict(row).items()}


def fields_of(row: RowMapping) -> dict[str, Any]:
    """Return the fields of a row by their names, without those of the owner and the cluster."""
    others: Collection[str] = {*OWNER_COLUMNS, "replica_id", "changed", "state"}
    return {_FIELDS.get(name, name): value for name, value in row.items() if name not in others}
