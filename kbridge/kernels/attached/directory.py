"""Kernels come and go with the connection files in a directory."""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from kbridge.errors import Busy, KbridgeError
from kbridge.kernels.tasks import in_thread, spawn, stop

__all__ = ["AttachDir"]

_Stamp = tuple[int, int, int]  # what changes with a file: inode, size, time (ns)


class AttachDir:
    """Look into a directory every `interval` seconds, and tell what is new and what has gone.

    A file that cannot be used is complained of once, and looked at again when it has changed; one
    that there is no room for is complained of once, and tried again.

    Parameters
    ----------
    path : Path
        The directory; it may come into being later.
    attach : callable
        Takes a new or changed connection file. Returns the kernel's id, or None if it is to be
        left alone.
    detach : callable
        Takes the id of a kernel whose file is no longer there, or has changed.
    interval : float
        Seconds.
    log : logging.Logger
        Where files that are of no use are told.
    """

    def __init__(
        self,
        path: Path,
        attach: Callable[[Path], Awaitable[str | None]],
        detach: Callable[[str], Awaitable[None]],
        *,
        interval: float,
        log: logging.Logger,
    ) -> None:
        self._path = path
        self._attach = attach
        self._detach = detach
        self._interval = interval
        self._log = log
        self._blind = False
        self._known: dict[Path, tuple[_Stamp, str | None]] = {}
        self._put_off: set[Path] = set()
        self._task = spawn(self._run(), log)

    async def look(self) -> None:
        """Look once."""
        there = await in_thread(self._scan)
        if there is None:
            return  # what was there is there still, for all that one can see
        for path in list(self._known):
            stamp, kernel_id = self._known[path]
            if there.get(path) != stamp:
                del self._known[path]
                if kernel_id is not None:
                    await self._detach(kernel_id)
        for path, stamp in there.items():
            if path in self._known:
                continue
            try:
                self._known[path] = (stamp, await self._take(path))
            except Busy as error:  # tried again at the next look
                if path not in self._put_off:
                    self._log.warning("%s is attached later: %s", path, error.reason)
                self._put_off.add(path)
        self._put_off &= there.keys() - self._known.keys()

    async def aclose(self) -> None:
        """Look no more; may be called twice."""
        await stop(self._task)

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def _take(self, path: Path) -> str | None:
        try:
            return await self._attach(path)
        except Busy:
            raise
        except KbridgeError as error:
            self._log.warning("%s", error.reason)
        except Exception:  # noqa: BLE001 - one file must not keep the others out
            self._log.exception("%s cannot be attached", path)
        return None

    def _scan(self) -> dict[Path, _Stamp] | None:
        """The connection files that are there; None where nobody can tell."""
        try:
            there = sorted(path for path in self._path.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return {}
        except OSError as error:
            if not self._blind:
                self._log.warning("%s cannot be looked into: %s", self._path, error.strerror)
            self._blind = True
            return None
        self._blind = False
        found: dict[Path, _Stamp] = {}
        for path in there:
            with suppress(OSError):  # gone meanwhile, or not to be seen
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return found
