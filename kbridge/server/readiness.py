"""Checks whether a server can do its work: start kernels, and write files.

Anybody may ask, so that the texts name no path, and the answer of a second ago is given again. The
checks of disks run in one thread; a disk that does not answer holds that thread, and no others.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kbridge.errors import KbridgeError
from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager

__all__ = ["OK", "Directories", "Readiness"]

OK: Final = "ok"
_FRESH: Final = 1.0
_TIMEOUT: Final = 2.0
_SILENT: Final = f"a disk has not answered for {_TIMEOUT:g} s"
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Directories:
    """The directories that the server must be able to write to.

    Attributes
    ----------
    runtime : Path
        Connection files and the runtime file.
    registry : Path or None
        The registry of kernels; None without one, or if it is not a file.
    journal : Path or None
        The journals; None if they are in memory only.
    """

    runtime: Path
    registry: Path | None = None
    journal: Path | None = None


class Readiness:
    """Answers whether the server is ready.

    Parameters
    ----------
    kernels : BridgeKernelManager
    hubs : HubTable
    directories : Directories
    log : logging.Logger
        Told when the answer changes.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        kernels: BridgeKernelManager,
        hubs: HubTable,
        directories: Directories,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kernels = kernels
        self._hubs = hubs
        self._directories = directories
        self._log = log
        self._clock = clock
        self._answer: dict[str, str] = {}
        self._until = float("-inf")
        self._checking: asyncio.Task[dict[str, str]] | None = None
        self._probing: asyncio.Task[dict[str, str]] | None = None

    async def check(self) -> dict[str, str]:
        """Return the result of each check: `ok`, or the reason of the failure.

        All requests of one second share one answer.
        """
        if self._clock() >= self._until and self._checking is None:
            self._checking = asyncio.create_task(self._check())
            self._checking.add_done_callback(self._on_checked)
        if self._checking is not None:
            return await asyncio.shield(self._checking)
        return self._answer

    async def aclose(self) -> None:
        """Wait for the checks, but not for a disk that does not answer; may be called twice."""
        if self._checking is not None:
            await asyncio.wait({self._checking})

    def _on_checked(self, checking: asyncio.Task[dict[str, str]]) -> None:
        self._checking = None
        answer = checking.result()
        if answer != self._answer:
            wrong = [f"{name}: {text}" for name, text in answer.items() if text != OK]
            if wrong:
                self._log.warning("The server is not ready: %s", "; ".join(wrong))
            elif self._answer:
                self._log.info("The server is ready again")
        self._answer = answer
        self._until = self._clock() + _FRESH

    async def _check(self) -> dict[str, str]:
        disks = await self._probe()
        writer = self._kernels.writer
        if disks["registry"] == OK and writer.enabled and writer.failing:
            disks["registry"] = "the registry of kernels cannot be written"
        failing = self._hubs.journal_statistics().get("failing_kernels", 0)
        if disks["disk"] == OK and failing:
            disks["disk"] = f"the journals of {failing} kernel(s) cannot be written"
        return {"kernels": await self._can_start(), **disks}

    async def _can_start(self) -> str:
        kernels = self._kernels
        try:
            kernels.check_start()
        except KbridgeError as error:
            return str(error)
        try:
            installed = await kernels.specs.get_all_specs()
        except Exception as error:  # noqa: BLE001 - any error of a manager of other packages
            self._log.debug("kernelspecs cannot be read: %r", error)
            return "kernelspecs cannot be read"
        return OK if installed or len(kernels) else "no kernelspec is installed"

    async def _probe(self) -> dict[str, str]:
        if self._probing is None:
            self._probing = asyncio.create_task(asyncio.to_thread(_probe, self._directories))
        done, _ = await asyncio.wait({self._probing}, timeout=_TIMEOUT)
        if not done:
            return {"registry": _SILENT, "disk": _SILENT}
        probed, self._probing = self._probing, None
        return probed.result()


def _probe(directories: Directories) -> dict[str, str]:
    """Write to each directory, in a thread."""
    disk = _write(directories.runtime, "the runtime directory")
    if disk == OK:
        disk = _write(directories.journal, "the directory of the journals")
    return {"registry": _write(directories.registry, "the directory of the registry"), "disk": disk}


def _write(directory: Path | None, name: str) -> str:
    """Write a block to a file without a name, which leaves nothing behind."""
    if directory is None:
        return OK
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(bytes(_BLOCK))
    except OSError as error:
        return f"{name} cannot be written: {error.strerror or type(error).__name__}"
    return OK
