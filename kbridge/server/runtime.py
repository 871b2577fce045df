"""Runtime files: how `kbridge list` and `kbridge stop` find the servers that run.

A file `kbserver-<pid>.json` lies in Jupyter's runtime directory, for its owner only (it holds
the token). Its server holds a lock on it for as long as it lives, so a file that a crash left
is told from a live one whoever has got the process id since; Windows knows no such locks, so
there a server lives that takes a connection. The name is not Jupyter Server's,
whose own list would miss fields in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

__all__ = ["RuntimeFile", "is_running", "running_servers"]

_PREFIX = "kbserver-"
_CONNECT_TIMEOUT = 1.0


class RuntimeFile:
    """The file of this process.

    Parameters
    ----------
    folder : Path
        The runtime directory.
    info : dict
        What to tell; `pid`, `port`, `sock`, `url` and `token` are read by others.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self.path = folder / f"{_PREFIX}{os.getpid()}.json"
        self._info = info
        self._fd: int | None = None

    def write(self) -> None:
        """Write it in one step, locked, so that nobody reads half of it or takes it for dead."""
        draft = self.path.with_suffix(".part")
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, json.dumps(self._info, indent=2, sort_keys=True).encode())
        if sys.platform == "win32":
            os.close(fd)  # an open file cannot be renamed there
        else:
            self._fd = fd
            # Where locks do not work (some network file systems) readers go by the process id.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.replace(self.path)

    def remove(self) -> None:
        """Remove it and let go of the lock; may be called twice."""
        self.path.unlink(missing_ok=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def is_running(path: Path) -> dict[str, Any] | None:
    """Return what a runtime file tells, None if its server is gone."""
    try:
        with path.open("rb") as file:
            info = json.load(file)
            if sys.platform == "win32":
                return dict(info) if answers(info) else None
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return dict(info)
            except OSError:
                os.kill(int(info["pid"]), 0)
                return dict(info)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def answers(info: dict[str, Any]) -> bool:
    """Say whether anybody takes connections where a runtime file says."""
    host = info["hostname"] if info["hostname"] not in ("*", "0.0.0.0", "::") else "localhost"  # noqa: S104
    try:
        socket.create_connection((host, int(info["port"])), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


def running_servers(folder: Path) -> list[dict[str, Any]]:
    """Return what each running server tells, by port; files of dead servers are removed."""
    found = []
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        info = is_running(path)
        if info is None:
            path.unlink(missing_ok=True)
        else:
            found.append(info)
    return sorted(found, key=lambda info: (int(info.get("port") or 0), str(info.get("sock"))))
