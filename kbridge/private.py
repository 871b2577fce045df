"""Files and directories that only their owner may read: keys, tokens, logs.

Invariants:

- a file is private before its first byte is written, whatever the umask is;
- symbolic links in the place of a private file are never followed;
- where a file system cannot keep other users out, nothing is written, unless
  `JUPYTER_ALLOW_INSECURE_WRITES` allows it (jupyter_core's variable).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from kbridge.errors import NotPrivate

__all__ = [
    "insecure_writes_allowed",
    "is_private",
    "open_private",
    "prepare_directory",
    "read_private",
    "write_private",
]

# CIFS reports the owner's x for every file; that bit and the sticky bit give nobody access.
_HARMLESS: Final = stat.S_IXUSR | stat.S_ISVTX
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_TEMPORARY: Final = ".kbridge-tmp"
# A write takes milliseconds; an older temporary file was left by a process that was killed.
_LEFTOVER_S: Final = 60.0
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither links of this kind nor modes
_NO_BLOCK: Final = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO would wait for its other end


def insecure_writes_allowed() -> bool:
    """Return True if the operator accepts files that other users may read."""
    return os.environ.get("JUPYTER_ALLOW_INSECURE_WRITES", "").lower() in {"1", "true"}


def open_private(path: Path, flags: int) -> int:
    """Open a file, created if it is missing, that only its owner may read.

    Parameters
    ----------
    path : Path
    flags : int
        `os.O_*`; `O_CREAT` and `O_NOFOLLOW` are added.

    Returns
    -------
    int
        A file descriptor.

    Raises
    ------
    OSError
        If the file cannot be opened; `NotPrivate` if other users could read it.
    """
    descriptor = os.open(path, flags | os.O_CREAT | _NO_FOLLOW, 0o600)
    try:
        _hide(descriptor, path, stacklevel=2)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_private(path: Path, content: bytes, *, stacklevel: int = 2) -> None:
    """Replace a file in one step by a private one with `content`.

    Readers see the whole old file or the whole new one. After an error the old file is there.

    Parameters
    ----------
    path : Path
    content : bytes
    stacklevel : int
        The frame that a warning about the file's mode names; 2 is the caller.

    Raises
    ------
    OSError
        If it cannot be written; `NotPrivate` if other users could read it.
    """
    _sweep(path.parent)
    temporary = path.with_name(f".{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise _renamed(error, path) from error
    with ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _hide(descriptor, path, stacklevel=stacklevel)
                file.write(content)
        except OSError as error:
            if error.filename:
                raise
            raise _renamed(error, path) from error  # the error of a full disk names no file
        temporary.replace(path)
        undo.pop_all()


def read_private(path: Path, limit: int) -> bytes:
    """Return at most `limit` bytes of a file that only this user can have written.

    Raises
    ------
    OSError
        If the file does not exist; `NotPrivate` if it is not a plain file, belongs to another user,
        or can be read or written by other users.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_FOLLOW | _NO_BLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not is_private(descriptor):
            raise NotPrivate(
                "not a private file of this user (a plain file with mode 0600 is needed)",
                str(path),
            )
        return file.read(limit)


def is_private(descriptor: int) -> bool:
    """Return True if an open file is a plain file that only this user may read and write.

    With `JUPYTER_ALLOW_INSECURE_WRITES` the mode does not matter; the owner always does.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return False
    if sys.platform == "win32":
        return True
    if status.st_uid != os.geteuid():
        return False
    return stat.S_IMODE(status.st_mode) & 0o077 == 0 or insecure_writes_allowed()


def prepare_directory(path: Path) -> str:
    """Create a directory for private files, or check one that exists.

    A directory of this user that others may write to is closed to them: they could replace the
    files in it.

    Returns
    -------
    str
        A warning for the log, empty if there is none.

    Raises
    ------
    OSError
        If it cannot be created or written to; `NotPrivate` if other users may write to it and
        that cannot be changed.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    effective = os.access in os.supports_effective_ids
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=effective):
        raise PermissionError(errno.EACCES, "it cannot be written to", str(path))
    if sys.platform == "win32":
        return ""
    status = path.stat()
    shared = bool(status.st_mode & _WRITABLE_BY_OTHERS)
    if status.st_uid != os.geteuid():
        # The owner may be a user without processes (containers with a random user id).
        others = " and may be written to by others" if shared else ""
        return (
            f"{path} belongs to user {status.st_uid}{others}: those users could replace the files"
            " in it. Set JUPYTER_RUNTIME_DIR to a directory that only you can write to."
        )
    if not shared:
        return ""
    with suppress(OSError):
        path.chmod(stat.S_IMODE(status.st_mode) & ~_WRITABLE_BY_OTHERS)
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & _WRITABLE_BY_OTHERS:
        return f"{path} could be written to by other users; its mode is {mode:04o} now"
    if insecure_writes_allowed():
        return f"{path} can be written to by other users (JUPYTER_ALLOW_INSECURE_WRITES is set)"
    raise NotPrivate(
        f"Other users may write to the directory (mode {mode:04o}), and could replace the files in"
        " it: set JUPYTER_RUNTIME_DIR to a directory on another file system, or"
        " JUPYTER_ALLOW_INSECURE_WRITES=1 if you trust all users of this machine",
        str(path),
    )


def _hide(descriptor: int, path: Path, *, stacklevel: int) -> None:
    """Make sure that only its owner can open a file, before anything is written to it."""
    if sys.platform == "win32":
        return  # there are no modes; the directory's permissions protect the file
    if _mode_of(descriptor) != 0o600:  # the file is older, or the umask removed too much
        with suppress(OSError):  # the mode is checked below
            os.fchmod(descriptor, 0o600)
    mode = _mode_of(descriptor)
    if mode & ~_HARMLESS == 0o600:
        return
    if insecure_writes_allowed():
        warnings.warn(
            f"{path} can be read by others (JUPYTER_ALLOW_INSECURE_WRITES is set): a user who"
            " reads it may be able to run code as you",
            stacklevel=stacklevel + 1,
        )
        return
    raise NotPrivate(
        f"The file system does not hide files from other users (mode {mode:#o} instead of 0o600),"
        " and this one may let them run code as you: set JUPYTER_RUNTIME_DIR to a directory"
        " on another one, or JUPYTER_ALLOW_INSECURE_WRITES=1 if you trust everybody here",
        str(path),
    )


def _mode_of(descriptor: int) -> int:
    return stat.S_IMODE(os.fstat(descriptor).st_mode)


def _renamed(error: OSError, path: Path) -> OSError:
    """Return the error with the name of the file that the caller knows."""
    return OSError(error.errno, error.strerror, str(path))


def _sweep(directory: Path) -> None:
    """Remove temporary files of processes that were killed: they hold secrets."""
    with suppress(OSError):  # other processes sweep too
        for leftover in directory.glob(f".*{_TEMPORARY}"):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
                leftover.unlink()
