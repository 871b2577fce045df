"""Runtime files, by which `kbridge list` and `kbridge stop` find running servers.

The file `kbserver-<place>-<pid>.json` is in Jupyter's runtime directory; only its owner can read
it, because it contains the token. The place stands for the machine and the pid namespace, because
containers may share the directory, and each has a process 1. The server holds a lock on its file
until it ends, so the file of a crashed server can be recognized although another process may have
its id. Windows does not have such locks; there, a server counts as running if its address accepts
connections. The name differs from Jupyter Server's files, because its list command needs other
fields.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import platform
import secrets
import socket
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kbridge.kernels.lifecycle.processes import ProcessState, namespace, start_id, state_of
from kbridge.private import open_private, prepare_directory

if sys.platform != "win32":
    import fcntl

__all__ = ["Place", "RuntimeFile", "is_running", "running_servers"]

_PREFIX = "kbserver-"
_CONNECT_TIMEOUT = 1.0
_CHECK_S = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """The machine and namespaces of a process, which give its id and loopback address a meaning.

    Attributes
    ----------
    host : str
        The name of the machine or container.
    pid_namespace, net_namespace : str
        See `kbridge.kernels.lifecycle.processes.namespace`.
    """

    host: str
    pid_namespace: str
    net_namespace: str

    @classmethod
    def here(cls) -> Place:
        """Return the place of this process."""
        return cls(platform.node(), namespace("pid"), namespace("net"))

    @classmethod
    def of(cls, info: dict[str, Any]) -> Place | None:
        """Return the place in a runtime file; None in a file of an old version."""
        try:
            return cls(*(str(info[name]) for name in cls.__slots__))
        except KeyError:
            return None

    def shares_processes(self, other: Place) -> bool:
        """Return True if a process id means the same process in both places."""
        return self._is(self.pid_namespace, other.pid_namespace, other)

    def shares_network(self, other: Place) -> bool:
        """Return True if 127.0.0.1 is the same address in both places."""
        return self._is(self.net_namespace, other.net_namespace, other)

    def _is(self, mine: str, theirs: str, other: Place) -> bool:
        if mine or theirs:
            return mine == theirs  # unique among machines, unlike the host name, which may change
        return self.host == other.host

    def tag(self) -> str:
        """Return a short name for file names."""
        text = self.pid_namespace or self.host
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


class RuntimeFile:
    """The runtime file of this process.

    Parameters
    ----------
    folder : Path
        The runtime directory.
    info : dict
        The content of the file; other programs read `port`, `sock`, `url` and `token`. The process
        id and place are added.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        pid, place = os.getpid(), Place.here()
        self.path = folder / f"{_PREFIX}{place.tag()}-{pid}.json"
        self._info = {**info, "pid": pid, "born": start_id(pid), **asdict(place)}
        self._fd: int | None = None

    def write(self) -> None:
        """Write the file in one step, locked, so that readers see it complete and in use."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.path.with_name(f".{secrets.token_hex(8)}.kbridge-tmp")
        fd = open_private(draft, os.O_WRONLY | os.O_EXCL)
        try:
            os.write(fd, json.dumps(self._info, indent=2, sort_keys=True).encode())
            if sys.platform == "win32":
                os.close(fd)  # an open file cannot be renamed on Windows
            else:
                # On some network file systems locks do not work; readers then check the process.
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.replace(self.path)
        except BaseException:
            draft.unlink(missing_ok=True)
            if sys.platform != "win32":
                os.close(fd)
            raise
        if sys.platform != "win32":
            self._unlock()
            self._fd = fd

    def is_there(self) -> bool:
        """Return False if the file has been removed or replaced."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        if self._fd is None:
            return True
        ours = os.fstat(self._fd)
        return (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino)

    async def keep(self, log: logging.Logger, interval: float = _CHECK_S) -> None:
        """Write the file again whenever it has been removed; run until cancelled.

        Cleaners of temporary directories remove files that have not changed for days.

        Parameters
        ----------
        log : logging.Logger
        interval : float
            Seconds between checks.
        """
        failed = False
        while True:
            await asyncio.sleep(interval)
            if self.is_there():
                continue
            try:
                prepare_directory(self.path.parent)
                self.write()
            except OSError as error:
                if not failed:
                    log.warning("cannot write the runtime file %s again: %s", self.path, error)
                failed = True
            else:
                failed = False
                log.info("the runtime file %s had been removed and was written again", self.path)

    def remove(self) -> None:
        """Remove the file and release the lock; a second call has no effect."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def is_running(path: Path) -> dict[str, Any] | None:
    """Return the content of a runtime file; None if its server may have ended."""
    found = _read(path)
    return found if isinstance(found, dict) else None


def running_servers(folder: Path) -> list[dict[str, Any]]:
    """Return the runtime files of all running servers, sorted by port.

    Files of servers that have certainly ended are removed.
    """
    found = []
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        info = _read(path)
        if isinstance(info, dict):
            found.append(info)
        elif info:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda info: (int(info.get("port") or 0), str(info.get("sock"))))


def _read(path: Path) -> dict[str, Any] | bool:
    """Return the content if the server runs; otherwise True if the file may be removed."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return False  # with a false file, another user could make `stop` end any process
            try:
                info = dict(json.load(file))
                pid, place = int(info["pid"]), Place.of(info)
            except (ValueError, KeyError, TypeError):
                return True
            if sys.platform == "win32":
                return info if answers(info) else True
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return info
            except OSError:  # locks do not work on this file system
                locks = False
            else:
                locks = True
    except OSError:
        return False
    if place is None:  # written by an older version, without the time of the process's start
        return True if locks or not start_id(pid) else info
    state = state_of(pid, str(info.get("born", "")))
    if state is not ProcessState.HIDDEN:
        return True if locks or state is ProcessState.GONE else info
    # The process is not visible. On another machine, locks of a shared directory may be local.
    here = Place.here()
    same_kernel = place.pid_namespace.partition("/")[0] == here.pid_namespace.partition("/")[0]
    return locks and same_kernel and bool(here.pid_namespace)


def _is_ours(status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    return sys.platform == "win32" or status.st_uid == os.geteuid()


def answers(info: dict[str, Any]) -> bool:
    """Return True if the address in a runtime file accepts connections."""
    host = info["hostname"] if info["hostname"] not in ("*", "0.0.0.0", "::") else "localhost"  # noqa: S104
    try:
        socket.create_connection((host, int(info["port"])), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True
