"""The unix socket at which the next bridge finds the holder; its path may have any length.

The bridge makes the socket, and the holder process inherits it: the next bridge can connect from
the moment the process exists, also if this bridge ends before the holder runs.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["connect", "listen"]

_QUEUE: Final = 8


def listen(path: Path) -> tuple[socket.socket, int]:
    """Return a socket that listens at a path, for this user only, and the inode of its file.

    Raises
    ------
    OSError
        If that is not possible.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _folder(path) as folder:
            with suppress(FileNotFoundError):  # of a holder that has ended
                os.unlink(path.name, dir_fd=folder)
            listener.bind(_short(folder, path))
            os.chmod(path.name, 0o600, dir_fd=folder)
            inode = os.stat(path.name, dir_fd=folder).st_ino
        listener.listen(_QUEUE)
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
        sock.connect(_short(folder, path))
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


def _short(folder: int, path: Path) -> str:
    """Return the path in at most the 107 bytes that the address of a unix socket may have."""
    return f"/proc/self/fd/{folder}/{path.name}"
