"""The private directory of one `kbridge mcp`, and the removal of those that others left behind.

A process that is killed leaves its directory. Each directory has a file that its processes keep
locked, so the next `kbridge mcp` knows which ones are not in use. The operating system releases the
lock when the last of them has ended, however it ended.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

__all__ = ["PREFIX", "private_folder", "remove_unused"]

PREFIX: Final = "kbridge-mcp-"
"""The beginning of the names of these directories."""

_LOCK: Final = "lock"


@contextmanager
def private_folder() -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Give a new directory that only this user may enter; remove it afterwards.

    Also removes the directories of this user that are not in use. On Windows these stay.

    Returns
    -------
    context manager of (Path, tuple of int)
        The directory, and the descriptors that a child process must inherit if it uses the
        directory: the directory is in use while one of the processes runs.
    """
    remove_unused(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if sys.platform == "win32":
            yield folder, ()
            return
        # The file has its name only once it is locked: others never find it without the lock.
        new = folder / f"{_LOCK}.new"
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            new.rename(folder / _LOCK)
            yield folder, (descriptor,)
        finally:
            os.close(descriptor)


def remove_unused(parent: Path) -> None:
    """Remove the directories of this user whose processes have ended.

    Parameters
    ----------
    parent : Path
        The directory that they are in.
    """
    if sys.platform == "win32":
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # other users' directories, or no lock: an earlier version made it
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
