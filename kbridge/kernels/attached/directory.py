"""Attaches the kernels whose connection files are in a directory, while the files are there."""

from __future__ import annotations

import asyncio
import logging
import stat
from contextlib import suppress
from pathlib import Path

from kbridge.errors import Busy, KbridgeError
from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.attached.attacher import Attacher
from kbridge.kernels.attached.connection_file import kernel_id_for
from kbridge.kernels.tasks import in_thread, spawn, stop

__all__ = ["AttachDirectory", "ids_in"]

# Seconds between two checks: a kernel appears and disappears within two seconds of its file.
_LOOK_SECONDS = 1.0

_Stamp = tuple[int, int, int]  # inode, size and time (ns): they differ after a change


class AttachDirectory:
    """Reads a directory at regular intervals; attaches new files, detaches missing ones.

    A file that cannot be used is logged once, and read again after it has changed. A file whose
    kernel cannot be attached for lack of descriptors is logged once, and tried again.

    Parameters
    ----------
    path : str
        The directory; it need not exist yet.
    attacher : Attacher
        Attaches and detaches the kernels.
    log : logging.Logger
        The logger for files that cannot be used.
    """

    def __init__(self, path: str, attacher: Attacher, log: logging.Logger) -> None:
        self._path = Path(path).expanduser()
        self._attacher = attacher
        self._log = log
        self._unreadable = False
        self._known: dict[Path, tuple[_Stamp, AttachedKernel | None]] = {}
        self._postponed: set[Path] = set()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start to look, once per second."""
        self._task = spawn(self._run(), self._log)

    async def look(self) -> None:
        """Check the directory once."""
        files = await in_thread(self._scan)
        if files is None:
            return  # the kernels that are attached may still be there
        for path in list(self._known):
            stamp, kernel = self._known[path]
            if files.get(path) != stamp:
                del self._known[path]
                if kernel is not None:
                    await self._detach(path, kernel)
        for path, stamp in files.items():
            if path in self._known:
                continue
            try:
                self._known[path] = (stamp, await self._attach(path))
            except Busy as error:  # tried again at the next check
                if path not in self._postponed:
                    self._log.warning("%s is attached later: %s", path, error.reason)
                self._postponed.add(path)
        self._postponed &= files.keys() - self._known.keys()

    async def aclose(self) -> None:
        """Stop watching. May be called twice."""
        await stop(self._task)

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _attach(self, path: Path) -> AttachedKernel | None:
        """Attach the kernel of a file; return it, or None if the file cannot be used."""
        try:
            return await self._attacher.attach_file(path)
        except Busy:
            raise
        except KbridgeError as error:
            self._log.warning("%s", error.reason)
        except Exception:  # noqa: BLE001 - one file must not prevent others from being attached
            self._log.exception("%s cannot be attached", path)
        return None

    async def _detach(self, path: Path, kernel: AttachedKernel) -> None:
        """Detach the kernel of a file."""
        try:
            await self._attacher.detach(kernel)
        except Exception:  # noqa: BLE001 - one kernel must not end the watching of the directory
            self._log.exception("The kernel of %s was not detached properly", path)

    def _scan(self) -> dict[Path, _Stamp] | None:
        """Return the connection files in the directory; None if it cannot be read."""
        try:
            paths = sorted(path for path in self._path.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return {}
        except OSError as error:
            if not self._unreadable:
                self._log.warning("The directory %s cannot be read: %s", self._path, error.strerror)
            self._unreadable = True
            return None
        self._unreadable = False
        files: dict[Path, _Stamp] = {}
        for path in paths:
            with suppress(OSError):  # removed in the meantime, or not accessible
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    files[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return files


def ids_in(path: str) -> set[str]:
    """Return the ids of the kernels whose connection files are in a directory now."""
    with suppress(OSError):  # it need not exist yet
        files = Path(path).expanduser().iterdir()
        return {kernel_id_for(file) for file in files if file.suffix == ".json"}
    return set()
