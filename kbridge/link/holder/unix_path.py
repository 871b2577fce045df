"""The unix socket at which the next bridge finds the holder; its path may have any length.

Servers with the same settings run side by side if they listen on different ports: each has a
holder, and each holder a socket. Their names begin with the same stem.

The bridge makes the socket, and the holder process inherits it: the next bridge can connect from
the moment the process exists, also if this bridge ends before the holder runs.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["connect", "find", "listen", "remove", "separate"]

_QUEUE: Final = 8
_NEW: Final = ".new"


def separate(path: Path) -> Path:
    """Return a path for one more holder, which `find` finds by the given path."""
    return path.with_name(f"{path.stem}-{secrets.token_hex(6)}{path.suffix}")


def find(path: Path) -> list[Path]:
    """Return the sockets of all holders of one name, the oldest first."""
    found = []
    with suppress(FileNotFoundError):
        for each in path.parent.iterdir():
            same = each.stem == path.stem or each.stem.startswith(f"{path.stem}-")
            if same and each.suffix == path.suffix:
                with suppress(FileNotFoundError):
                    found.append((each.stat().st_mtime_ns, each))
    return [each for _, each in sorted(found)]


def remove(path: Path) -> None:
    """Remove the socket of a holder that has ended.

    Not that of one that is being started: a socket has this name only while it listens.
    """
    path.unlink(missing_ok=True)


def listen(path: Path) -> tuple[socket.socket, int]:
    """Return a socket that listens at a path, for this user only, and the inode of its file.

    The path is one of `separate`: no other process uses it.

    Raises
    ------
    OSError
        If that is not possible.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _folder(path) as folder:
            made = path.name + _NEW
            listener.bind(_short(folder, made))
            os.chmod(made, 0o600, dir_fd=folder)
            inode = os.stat(made, dir_fd=folder).st_ino
            listener.listen(_QUEUE)
            os.rename(made, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        listener.close()
        raise
    return listener, inode


def connect(sock: socket.socket, path: Path) -> None:
    """Connect to the holder that listens at a path.

    Raises
    ------
    OSError
        If no holder of this user listens there.
    """
    with _folder(path) as folder:
        sock.connect(_short(folder, path.name))
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if int.from_bytes(credentials[4:8], sys.byteorder) != os.geteuid():
        raise PermissionError(f"another user listens on {path}")


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def _short(folder: int, name: str) -> str:
    """Return the path in at most the 107 bytes that the address of a unix socket may have."""
    return f"/proc/self/fd/{folder}/{name}"
