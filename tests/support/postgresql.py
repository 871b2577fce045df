"""A real PostgreSQL server on 127.0.0.1 with a separate directory, ended by its process id.

It refuses to run as root, so root runs it as the user that Debian's package makes. If the process
that started it is killed, a watcher ends the server and removes its files.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from tests.support.require import lack, require
from tests.support.server import free_port
from tests.support.waiting import TIMEOUT, eventually

__all__ = ["PASSWORD", "PostgreSQL", "postgresql"]

PASSWORD = "p@ss word/%"
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
}
# Its input is a pipe that nobody writes to: it ends with the process at the other end. Then the
# server is stopped if its lock file still has its pid, and $2 is removed.
_WATCH = """
trap '' INT TERM HUP
read -r _
if [ "$(head -n 1 "$2/data/postmaster.pid" 2>/dev/null)" = "$1" ]; then
    kill -QUIT "$1"
    while kill -0 "$1" 2>/dev/null; do sleep 0.1; done
fi
rm -rf -- "$2"
"""


def _program(name: str) -> str:
    """Return the path of a program; Debian has those of the server outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = shutil.which(name) or (str(found[-1]) if found else "")
    if not path:
        lack(f"{name} is missing: install Debian's postgresql, whose service need not run")
    return path


def _user() -> dict[str, Any]:
    """Return the arguments for `subprocess` that run a program as another user than root."""
    if os.geteuid():
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


class PostgreSQL:
    """A server with its data, which stays when the server is stopped."""

    def __init__(self) -> None:
        require("psycopg")
        self._postgres = _program("postgres")
        # Not pytest's directory: another user must reach it.
        self.home = Path(tempfile.mkdtemp(prefix="kbridge-postgresql-"))
        self.data = self.home / "data"
        self.log = self.home / "log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._databases = 0
        password = self.home / "password"
        password.write_text(PASSWORD)
        self.home.chmod(0o755)
        if options := _user():
            shutil.chown(self.home, options["user"], options["group"])
        initdb = [_program("initdb"), "--pgdata", str(self.data), "--username=kbridge"]
        initdb += ["--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8"]
        initdb += ["--no-sync", "--locale=C"]
        done = subprocess.run(initdb, cwd="/", capture_output=True, timeout=TIMEOUT, **_user())
        assert done.returncode == 0, done.stderr.decode()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def running(self) -> bool:
        """True between `start` and `stop`."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "PostgreSQL was not started"
        return self._process.pid

    def start(self) -> None:
        """Start the server, on the same port each time, and wait until it answers."""
        command = [self._postgres, "-D", str(self.data), "-p", str(self.port)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **_user(),
            )
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self._process.pid), str(self.home)],
            cwd="/",
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        eventually(self._answers, "PostgreSQL answers")

    def stop(self, *, crash: bool = False) -> None:
        """Stop the server and cut its connections; with `crash`, as if the machine had failed."""
        process, self._process = self._process, None
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # First of all: after the server has ended, its pid may be another process.
            watcher.kill()
            watcher.communicate()
        if process is None:
            return
        # SIGINT is the "fast" shutdown, SIGQUIT the "immediate" one.
        process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        process.wait(TIMEOUT)

    def url(self, database: str, port: int | None = None) -> str:
        """Return the URL of a database for SQLAlchemy; with another port, through a proxy."""
        password = quote(PASSWORD, safe="")
        return f"postgresql+psycopg://kbridge:{password}@127.0.0.1:{port or self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        self._run(f"CREATE DATABASE {name}")
        return self.url(name)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query in the newest database of `new_database`."""
        return self._run(statement, f"test{self._databases}")

    def _run(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="kbridge",
            password=PASSWORD,
            dbname=database,
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            done = connection.execute(statement)  # type: ignore[arg-type]
            return done.fetchall() if done.description else []

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            self._run("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Run a server within a context."""
    with PostgreSQL() as server:
        yield server
