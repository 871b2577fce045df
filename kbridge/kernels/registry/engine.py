"""The engines of SQLAlchemy for a registry."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url

from kbridge.kernels.registry.file_system import shares_memory

__all__ = ["READ_ONLY", "end_stuck_writers", "make_engine", "was_cancelled"]

READ_ONLY: Final = "kbridge_read_only"
"""The execution option of transactions that only read."""

_BUSY_SECONDS: Final = 2.0  # other servers hold the file for milliseconds
# For PostgreSQL. The driver's own limits are minutes, and none for a connection that is cut off.
_CONNECT_SECONDS: Final = 3
_SILENCE_MS: Final = 4000
# The same for a server that has acknowledged a query and is silent from then on: about 5 s.
_KEEPALIVES: Final = {"keepalives_idle": 2, "keepalives_interval": 1, "keepalives_count": 3}
_STATEMENT_MS: Final = 4000
# A server that is stopped within a transaction must not hold its locks.
_IDLE_MS: Final = 2000
# Longer than a statement and a pause together.
_STUCK_SECONDS: Final = 6.0
_CANCELLED: Final = "57014"  # the SQLSTATE of a statement that took too long
# A backup by the same user only reads, and a writer that waits for the lock is canceled earlier.
_END_STUCK: Final = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity AS session
WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
AND clock_timestamp() - xact_start > make_interval(secs => %(seconds)s) AND EXISTS (
  SELECT FROM pg_locks AS held WHERE held.pid = session.pid AND granted
  AND relation = to_regclass(%(table)s) AND mode = 'RowExclusiveLock'
)
"""


def make_engine(url: str | Path, *, shared: bool = False) -> Engine:
    """Return an engine whose transactions end after a bounded time.

    With the execution option `READ_ONLY`, a transaction on an SQLite file does not wait for others.

    Parameters
    ----------
    url : str or Path
        A URL of SQLAlchemy, or the path of an SQLite file, which must exist.
    shared : bool
        True if several programs write to an SQLite file all the time.
    """
    # Parameters contain keys: no error may show them.
    if isinstance(url, Path):
        return _sqlite(url, shared=shared)
    arguments: dict[str, Any] = {}
    parsed = make_url(url)
    psycopg = parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() == "psycopg"
    if psycopg:
        arguments = {
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _SILENCE_MS,
            **_KEEPALIVES,
        }
        arguments = {k: v for k, v in arguments.items() if k not in parsed.query}
    # The connection may have been cut after hours without use.
    engine = create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
    if psycopg:
        event.listen(engine, "begin", _limit)
    return engine


def _limit(connection: Connection) -> None:
    """Limit a transaction on PostgreSQL; for this transaction only, as poolers demand."""
    connection.exec_driver_sql(
        f"SELECT set_config('statement_timeout', '{_STATEMENT_MS}', true),"
        f" set_config('idle_in_transaction_session_timeout', '{_IDLE_MS}', true)"
    )


def was_cancelled(error: Exception) -> bool:
    """Return True if PostgreSQL has canceled a statement, which may have waited for a lock."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _CANCELLED


def end_stuck_writers(engine: Engine, table: str) -> int:
    """End transactions on PostgreSQL that write to a table, and have lasted for too long.

    The server ends a transaction whose program is stopped, but not if that program was sending
    several statements together: then the server waits for the next one without a limit. (Version 17
    has `transaction_timeout` for that.)

    Returns
    -------
    int
        The number of sessions that were ended. Their programs connect again.
    """
    values = {"seconds": _STUCK_SECONDS, "table": table}
    with engine.begin() as connection:
        return int(connection.exec_driver_sql(_END_STUCK, values).scalar_one())


def _sqlite(path: Path, *, shared: bool) -> Engine:
    local = shares_memory(path)

    def connect() -> sqlite3.Connection:
        # SQLite would make a file that others can read if there is none. It begins transactions
        # when it is told to: the driver does that too late.
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
        )
        try:
            _set_journal(connection, shared=shared, local=local)
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine(
        "sqlite://",
        creator=connect,
        hide_parameters=True,
        # One connection per transaction: so it is noticed if the file was replaced. The last one
        # that is closed also removes the write-ahead log, so a copy of the file is complete.
        poolclass=NullPool,
    )

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _set_journal(connection: sqlite3.Connection, *, shared: bool, local: bool) -> None:
    """Choose between SQLite's write-ahead log and its rollback journal, which the file records.

    With the log, a transaction does not wait for the disk, and readers do not wait for writers. If
    the machine fails, the latest transactions may be lost, and their kernels with them.
    """
    if shared and local:
        with suppress(sqlite3.OperationalError):  # another program is changing it: the next time
            [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode == "wal":
                connection.execute("PRAGMA synchronous=NORMAL")
    elif not local and connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        connection.execute("PRAGMA journal_mode=DELETE")  # it was copied from a local disk
