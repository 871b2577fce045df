"""The unix sockets of kernels whose transport is ipc: `<ip>-<port>`, where `ip` is a path.

A kernel creates its sockets with the mode that its umask leaves; with an umask of 0, every user
could connect to them. So each kernel that kbridge starts has a directory that only its user may
enter: `<connection file>-ipc/s-<port>`.

Invariants:

- a path that is too long for the platform is refused before anything is written;
- only sockets of this user that nobody listens on are removed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import zmq

from kbridge.errors import NotPrivate, SocketPathTooLong
from kbridge.private import insecure_writes_allowed
from kbridge.unix_sockets import remove_stale_socket

__all__ = [
    "LIMIT",
    "absolute",
    "beside",
    "checked",
    "make_private",
    "pick_numbers",
    "private_beside",
    "remove_private",
    "sweep",
]

LIMIT: Final = zmq.IPC_PATH_MAX_LEN or 103
"""Bytes that a path may have: 107 on Linux, 103 on macOS."""

_PRIVATE: Final = "s"
# A socket file exists for a moment before its kernel listens on it.
_SETTLED_S = 10.0


def absolute(ip: str) -> str:
    """Return the absolute form of a path; an abstract name (``@name``) is returned unchanged."""
    return ip if ip.startswith("@") else os.path.normpath(Path(ip).absolute())


def beside(connection_file: str) -> str:
    """Return the default prefix of a kernel's socket paths, after its connection file's name."""
    return absolute(f"{Path(connection_file).with_suffix('')}-ipc")


def private_beside(connection_file: str) -> str:
    """Return the prefix of the socket paths of a kernel that has a private socket directory."""
    return f"{beside(connection_file)}/{_PRIVATE}"


def make_private(ip: str) -> None:
    """Make the private directory named by a prefix from `private_beside`; ignore other values.

    Raises
    ------
    OSError
        If the directory cannot be made; `NotPrivate` if the path belongs to another user or is
        not a directory.
    """
    directory = _private_directory(ip)
    if directory is None:
        return
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise NotPrivate(
            "it is not a directory of this user, so no sockets go there",
            str(directory),
        )
    if stat.S_IMODE(found.st_mode) != 0o700:  # the umask, or another program
        with suppress(OSError):
            directory.chmod(0o700)
        if stat.S_IMODE(directory.lstat().st_mode) & 0o077 and not insecure_writes_allowed():
            raise NotPrivate("the file system does not close it to other users", str(directory))


def remove_private(ip: str) -> None:
    """Remove a private directory if it is empty; no error when there is none."""
    directory = _private_directory(ip)
    if directory is not None:
        with suppress(OSError):
            directory.rmdir()


def _private_directory(ip: str) -> Path | None:
    path = Path(ip)
    private = path.name == _PRIVATE and path.parent.name.endswith("-ipc")
    return path.parent if private and path.is_absolute() else None


def checked(ip: str, port: int) -> str:
    """Return the path of a socket, if it is not too long.

    Raises
    ------
    SocketPathTooLong
        If it has more than `LIMIT` bytes. The message names the settings that shorten it.
    """
    path = f"{ip}-{port}"
    length = len(os.fsencode(path))
    if length > LIMIT:
        raise SocketPathTooLong(
            f"The path of a unix socket may have {LIMIT} bytes here, and {path!r} has {length}:"
            " set JUPYTER_RUNTIME_DIR (or connection_file, or ip) to something shorter,"
            " or use the transport tcp"
        )
    return path


def sweep(directory: str) -> list[str]:
    """Remove the sockets of kernels that have ended (``*-ipc-<number>``, ``*-ipc/s-<number>``).

    Returns
    -------
    list of str
        The paths that were removed.
    """
    paths: list[str] = []
    folders: list[Path] = []
    with suppress(OSError):  # the directory does not exist
        paths = [str(path) for path in Path(directory).glob("*-ipc-[0-9]*")]
        folders = list(Path(directory).glob("*-ipc"))
        paths += [str(path) for folder in folders for path in folder.glob(f"{_PRIVATE}-[0-9]*")]
    removed = [path for path in paths if remove_stale_socket(path, min_age=_SETTLED_S)]
    for folder in folders:
        # An empty directory may belong to a kernel that is starting.
        if not folder.with_name(f"{folder.name.removesuffix('-ipc')}.json").exists():
            remove_private(str(folder / _PRIVATE))
    return removed


def pick_numbers(ip: str, count: int, taken: Iterable[int] = ()) -> list[int]:
    """Return the smallest suffixes whose paths are free; removes the sockets of dead kernels."""
    used = set(taken)
    numbers: list[int] = []
    number = 0
    while len(numbers) < count:
        number += 1
        path = f"{ip}-{number}"
        if number not in used and (not os.path.lexists(path) or remove_stale_socket(path)):
            numbers.append(number)
    return numbers
