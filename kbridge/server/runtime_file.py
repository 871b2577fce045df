"""Runtime files: how `kbridge list` and `kbridge stop` find the servers that run.

A file `kbserver-<place>-<pid>.json` lies in Jupyter's runtime directory, for its owner only (it
holds the token). The place stands for the machine and the pid namespace, because containers share
directories and all have a process 1. The server holds a lock on its file for as long as it lives,
so a file that a crash left is told from a live one whatever process has the id now; Windows has
no such locks, so there a server lives that takes a connection. The name is not Jupyter Server's,
whose own list would miss fields in it.
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

from kbridge.kernels.lifecycle.processes import ProcessState, birth, namespace, state_of
from kbridge.private import open_private, prepare_directory

if sys.platform != "win32":
    import fcntl

__all__ = ["Place", "RuntimeFile", "is_running", "running_servers"]

_PREFIX = "kbserver-"
_CONNECT_TIMEOUT = 1.0
_CHECK_S = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs: what its process id and its loopback address mean.

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
        """Return what a runtime file says of it, None where it is from before it did."""
        try:
            return cls(*(str(info[name]) for name in cls.__slots__))
        except KeyError:
            return None

    def shares_processes(self, other: Place) -> bool:
        """Return True if a process id means the same at both."""
        return self._is(self.pid_namespace, other.pid_namespace, other)

    def shares_network(self, other: Place) -> bool:
        """Return True if 127.0.0.1 is the same at both."""
        return self._is(self.net_namespace, other.net_namespace, other)

    def _is(self, mine: str, theirs: str, other: Place) -> bool:
        if mine or theirs:
            return mine == theirs  # no two machines share these; the host may be renamed
        return self.host == other.host

    def tag(self) -> str:
        """Return a short name for files."""
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
        and its place are added.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        pid, place = os.getpid(), Place.here()
        self.path = folder / f"{_PREFIX}{place.tag()}-{pid}.json"
        self._info = {**info, "pid": pid, "born": birth(pid), **asdict(place)}
        self._fd: int | None = None

    def write(self) -> None:
        """Write the file atomically and locked: readers see it whole, and the server alive."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.path.with_name(f".{secrets.token_hex(8)}.kbridge-tmp")
        fd = open_private(draft, os.O_WRONLY | os.O_EXCL)
        try:
            os.write(fd, json.dumps(self._info, indent=2, sort_keys=True).encode())
            if sys.platform == "win32":
                os.close(fd)  # an open file cannot be renamed there
            else:
                # Where locks do not work (some network file systems) readers go by the process.
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.replace(self.path)
        except BaseException:
            draft.unlink(missing_ok=True)
            if sys.platform != "win32":
                os.close(fd)
            raise
        if sys.platform != "win32":
            self._let_go()
            self._fd = fd

    def is_there(self) -> bool:
        """Return False if the file has been removed, or another is in its place."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        if self._fd is None:
            return True
        ours = os.fstat(self._fd)
        return (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino)

    async def keep(self, log: logging.Logger, interval: float = _CHECK_S) -> None:
        """Write the file again whenever it has gone; ends when it is cancelled.

        Cleaners of temporary directories remove files that have not changed for days.

        Parameters
        ----------
        log : logging.Logger
        interval : float
            Seconds between looks.
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
                log.info("the runtime file %s had been removed, and was written again", self.path)

    def remove(self) -> None:
        """Remove it and let go of the lock; may be called twice."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._let_go()

    def _let_go(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def is_running(path: Path) -> dict[str, Any] | None:
    """Return what a runtime file tells, None if its server has gone or may have gone."""
    found = _look(path)
    return found if isinstance(found, dict) else None


def running_servers(folder: Path) -> list[dict[str, Any]]:
    """Return what each running server tells, by port.

    Files of servers that have certainly gone are removed.
    """
    found = []
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        info = _look(path)
        if isinstance(info, dict):
            found.append(info)
        elif info:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda info: (int(info.get("port") or 0), str(info.get("sock"))))


def _look(path: Path) -> dict[str, Any] | bool:
    """Return what a live server tells; for others whether the file may be removed."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return False  # another user could make `stop` end any process, or read the token
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
            except OSError:  # locks do not work here
                locks = False
            else:
                locks = True
    except OSError:
        return False
    if place is None:  # written by an older kbridge, which had no births
        return True if locks or not birth(pid) else info
    state = state_of(pid, str(info.get("born", "")))
    if state is not ProcessState.HIDDEN:
        return True if locks or state is ProcessState.GONE else info
    # A process that cannot be seen. On another machine, locks of a shared directory may be local.
    here = Place.here()
    same_kernel = place.pid_namespace.partition("/")[0] == here.pid_namespace.partition("/")[0]
    return locks and same_kernel and bool(here.pid_namespace)


def _is_ours(status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    return sys.platform == "win32" or status.st_uid == os.geteuid()


def answers(info: dict[str, Any]) -> bool:
    """Return True if something takes connections where a runtime file says."""
    host = info["hostname"] if info["hostname"] not in ("*", "0.0.0.0", "::") else "localhost"  # noqa: S104
    try:
        socket.create_connection((host, int(info["port"])), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True
