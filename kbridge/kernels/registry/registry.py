"""The registry: a database that records which kernels run, so that the next server finds them.

Its methods block, as long as the database does: use `asyncio.to_thread` on an event loop.

Invariants:

- each error is a `RegistryError` that names the registry, and never contains a password or a key;
- only the owner can read the file (mode 0600), and the files that SQLite makes beside it;
- SQLAlchemy is imported only when there is something to read or write.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, unquote_plus

from kbridge.errors import KbridgeError, RegistryError, UnknownSchema
from kbridge.kernels.lifecycle.processes import ProcessState
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, SessionRow
from kbridge.private import open_private

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from kbridge.kernels.registry.store import Key, Store

__all__ = ["Registry", "secrets_of"]

_FILE: Final = re.compile(r"sqlite(\+pysqlite)?:///(?!file:|:memory:)(?P<path>[^?]+)")
_PASSWORD: Final = re.compile(r"^[^:/]+://[^/@]*?:(?P<password>.*)@")
_SECRET: Final = re.compile("pass|pwd|secret|token|key", re.IGNORECASE)
# Messages of SQLite and the operating system, with a clearer text for each.
_MEANINGS: Final = {
    "database is locked": "another program keeps it locked",
    "file is not a database": "it is damaged, or not a registry",
    "malformed": "it is damaged",
    "unable to open database file": "it cannot be opened",
    "readonly database": "it may not be written to",
    "is full": "there is no room left on its disk",
    "disk I/O error": "its disk gives an error, or has no room left",
}
# Schema version, kernels and sessions of a registry without rows, see `schema.SCHEMA_VERSION`.
_BARE: Final = {(version, 0, 0) for version in range(1, 6)}


def secrets_of(url: str) -> set[str]:
    """Return the passwords in a URL, as written and decoded, to hide them in logs."""
    # A password may contain a question mark, and a parameter may look like the end of a password.
    found = [_PASSWORD.match(url), _PASSWORD.match(url.partition("?")[0])]
    written = [match["password"] for match in found if match]
    pairs = [pair for pair in url.partition("?")[2].split("&") if _SECRET.search(pair)]
    written += [pair.partition("=")[2] for pair in pairs]
    return {text for each in written for text in (each, unquote(each), unquote_plus(each)) if text}


class Registry:
    """A registry, which need not exist yet.

    Parameters
    ----------
    url : str
        A URL of SQLAlchemy (``sqlite:////path`` for a file), or a path.

    Attributes
    ----------
    name : str
        The name in messages: the file, or the URL without its password.
    shared : bool
        True if several servers write to it all the time.
    secret_variables : frozenset of str
        The environment variables from which its driver takes a password.
    advice : str
        The end of the message of each error, for the operator.

    Raises
    ------
    RegistryError
        If the path begins with the home directory of a user who does not exist.
    """

    advice = "--registry-url=none starts without it; kernels then end with the server"

    def __init__(self, url: str) -> None:
        self._url = url
        file = _FILE.fullmatch(url.partition("?")[0])
        path = file["path"] if file is not None else "" if "://" in url else url
        try:
            self.path = Path(path).expanduser().absolute() if path else None
        except RuntimeError:
            raise RegistryError(f"The registry {path} is in the home of an unknown user") from None
        self._secrets = sorted(secrets_of(url), key=len, reverse=True)
        shown = url
        for secret in self._secrets:
            shown = shown.replace(f":{secret}@", ":***@")
        self.name = str(self.path or shown.partition("?")[0])
        # The client library of PostgreSQL reads it if the URL has no password.
        names = ["PGPASSWORD"] if url.startswith("postgresql") else []
        self.secret_variables = frozenset(names)
        self._opened: Store | None = None
        self._one = threading.Lock()
        self._in_use = False  # True once this server has written a row
        self.shared = False

    def prepare(self) -> None:
        """Check that the registry can be written to; make the file if there is none.

        Raises
        ------
        RegistryError
            If it cannot be written to.
        """
        if self.path is None:
            if self._url.startswith("sqlite"):
                raise RegistryError(
                    f"The registry {self.name} would be in memory, and lost with the server;"
                    f" name a file. {self.advice}"
                )
            return
        with self._translated("opened"):
            self._make_file(self.path)

    def claim(self, owner: Owner, state_of: Callable[[int, str], ProcessState]) -> Claim:
        """Take over the rows of ended servers on this address; see `Store.claim`.

        Raises
        ------
        RegistryError
            If it cannot be read or written, or is of an unknown version.
        """
        with self._translated("read"):
            if self.path is not None and _is_bare(self.path):
                return Claim()
            self._in_use = True
            return self._store().claim(owner, state_of)

    def write(
        self, owner: Owner, rows: Mapping[Key, KernelRow | SessionRow | None]
    ) -> frozenset[str]:
        """Write rows, and delete those that are None.

        Returns
        -------
        frozenset of str
            The ids of kernels that were not written, because another server owns them. Empty
            without a cluster.

        Raises
        ------
        RegistryError
            If they could not be written. If the file was removed, there is a new one afterwards,
            and the caller must write all rows again.
        """
        with self._translated("written to"):
            if self.path is not None and not self.path.exists():
                self.close()
                self._make_file(self.path)
                if self._in_use:
                    raise RegistryError(f"The registry {self.name} has been removed")
            self._store().write(owner, rows)
            self._in_use = True
        return frozenset()

    def reserve(self, row: KernelRow, limit: int) -> bool:
        """Return False: without a cluster, no other server has kernels of the user."""
        del row, limit
        return False

    @contextmanager
    def transaction(self, done: str) -> Iterator[Connection]:
        """Return a context in which a connection is in a transaction; used by `ClusterStore`.

        Parameters
        ----------
        done : str
            The participle for the message of an error: `read` or `written to`.

        Raises
        ------
        RegistryError
            If the database cannot be used.
        """
        with self._translated(done):
            engine = self._store().engine
            if done == "read":
                from kbridge.kernels.registry.engine import READ_ONLY

                engine = engine.execution_options(**{READ_ONLY: True})
            try:
                with engine.begin() as connection:
                    yield connection
            except Exception as error:
                self._end_stuck_writers(engine, error)
                raise

    @staticmethod
    def _end_stuck_writers(engine: Engine, error: Exception) -> None:
        """End the transactions that keep the others waiting, if that may be why one has failed."""
        from kbridge.kernels.registry.engine import end_stuck_writers, was_cancelled
        from kbridge.kernels.registry.schema import CLUSTERS

        if was_cancelled(error):
            with suppress(Exception):  # the first error is the one to report
                end_stuck_writers(engine, CLUSTERS.name)

    def close(self) -> None:
        """Close the database. May be called twice; the registry can be used again."""
        store, self._opened = self._opened, None
        if store is not None:
            store.close()

    def _store(self) -> Store:
        from kbridge.kernels.registry.store import Store

        with self._one:
            if self._opened is None:
                self._opened = Store(self.path or self._url, shared=self.shared)
            return self._opened

    @staticmethod
    def _make_file(path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(open_private(path, os.O_RDWR))
        effective = os.access in os.supports_effective_ids
        if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=effective):
            # SQLite keeps its journal there.
            raise PermissionError(0, f"its directory {path.parent} may not be written to")

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        """Translate other errors to RegistryError, without passwords."""
        try:
            yield
        except UnknownSchema as error:
            reason = error.reason
        except KbridgeError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
        except ImportError as error:
            reason = f"the Python module {error.name} is missing"
        except Exception as error:  # noqa: BLE001 - SQLAlchemy and its drivers raise many kinds
            reason = self._reason(error)
        else:
            return
        raise RegistryError(f"The registry {self.name} cannot be {done}: {reason}. {self.advice}")

    def _reason(self, error: Exception) -> str:
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        if isinstance(error, ArgumentError) and not isinstance(error, NoSuchModuleError):
            return "that is not a URL of SQLAlchemy"  # its own message contains the URL
        words = str(getattr(error, "orig", None) or error)
        for secret in self._secrets:
            words = words.replace(secret, "***")
        meaning = next((said for word, said in _MEANINGS.items() if word in words), "")
        return f"{meaning} ({words})" if meaning else words


def _is_bare(path: Path) -> bool:
    """Return True if an SQLite file contains no rows; reading it needs no SQLAlchemy then."""
    if path.stat().st_size == 0:
        return True
    import sqlite3

    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=0)
        ) as connection:
            found = connection.execute(
                "SELECT (SELECT max(version) FROM kbridge_schema),"
                " (SELECT count(*) FROM kbridge_kernels), (SELECT count(*) FROM kbridge_sessions)"
            ).fetchone()
    except sqlite3.Error:
        return False  # `Store` reports the error
    return bool(found in _BARE)
