"""Socket files that crashed processes left behind.

A process that is killed leaves the files of its unix sockets, and nobody can bind to their paths
until they are removed. A file is removed only if it is a socket that nobody listens on.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

__all__ = ["has_listener", "remove_stale_socket"]


def has_listener(path: str | os.PathLike[str]) -> bool:
    """Return True if a process listens on a unix socket, or if that cannot be determined."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # the backlog is full, or this user may not connect to the socket
            return True
    return True


def remove_stale_socket(
    path: str | os.PathLike[str], *, min_age: float = 0.0, any_owner: bool = False
) -> bool:
    """Remove the socket file of a process that has ended.

    Parameters
    ----------
    path : str or path-like
        Need not exist.
    min_age : float
        Leave a file that is younger than this, in seconds: a socket file exists for a moment before
        its process listens on it.
    any_owner : bool
        True removes the socket of another user, too, if the directory permits that.

    Returns
    -------
    bool
        True if a socket file was removed. False if there is none, if it was left alone, or if the
        system did not let us remove it.
    """
    try:
        status = Path(path).lstat()
        if (
            not stat.S_ISSOCK(status.st_mode)
            or not (any_owner or status.st_uid == os.geteuid())
            or time.time() - status.st_mtime < min_age
            or has_listener(path)
        ):
            return False
        Path(path).unlink()
    except OSError:  # the file was removed, or its directory cannot be written to
        return False
    return True
