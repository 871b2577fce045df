"""The engines of SQLAlchemy for a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url

__all__ = ["make_engine"]

_BUSY_SECONDS: Final = 2.0  # other servers hold the file for milliseconds
# For PostgreSQL. The driver's own limits are minutes, and none for a connection that is cut off.
_CONNECT_SECONDS: Final = 3
_SILENCE_MS: Final = 4000
# The same for a server that has acknowledged a query and is silent from then on: about 5 s.
_KEEPALIVES: Final = {"keepalives_idle": 2, "keepalives_interval": 1, "keepalives_count": 3}
_STATEMENT_MS: Final = 4000
# A server that is stopped within a transaction must not hold its locks.
_IDLE_MS: Final = 2000


def make_engine(url: str | Path) -> Engine:
    """Return an engine whose transactions end after a bounded time.

    Parameters
    ----------
    url : str or Path
        A URL of SQLAlchemy, or the path of an SQLite file.
    """
    # Parameters contain keys: no error may show them.
    if isinstance(url, Path):
        return _sqlite(url)
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


def _sqlite(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
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
