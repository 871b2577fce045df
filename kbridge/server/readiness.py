"""Checks whether a server can do its work: start kernels, and write files.

Anybody may ask, so that

- the texts name no path, and the answer of a second ago is given again;
- kernelspecs are looked at every 30 s, because a manager of another package may take seconds;
- each check has a thread that is a daemon. A disk or a kernelspec directory that does not answer
  holds this thread, neither the answer nor the end of the server.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kbridge.errors import KbridgeError
from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.specs import Specs
from kbridge.storage.workers import Workers

if TYPE_CHECKING:  # importing it takes SQLAlchemy's time
    from kbridge.cluster.membership import Membership

__all__ = ["OK", "Directories", "Readiness"]

OK: Final = "ok"
_FRESH: Final = 1.0
_TIMEOUT: Final = 2.0
_BLOCK: Final = 4096
_CANCEL_TIMEOUT: Final = 0.1
_LOOK_INTERVAL: Final = 30.0
# A manager of kernelspecs that takes 5 s must not make a server unready every 30 s.
_LOOK_VALID: Final = 60.0
_ENDING: Final = "the server is shutting down"
_NO_SPEC: Final = "no kernelspec is installed"


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

    Attributes
    ----------
    membership : Membership or None
        The cluster, whose lease and database are checked, too.
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
        self._closed = False
        self._specs = _SpecCheck(kernels.specs, log, clock)
        self.membership: Membership | None = None
        self._threads = threads = Workers(3, "kbridge-readiness")
        self._runtime = _disk_check(threads, directories.runtime, "the runtime directory")
        self._registry = _disk_check(threads, directories.registry, "the directory of the registry")
        self._journal = _disk_check(threads, directories.journal, "the directory of the journals")

    async def check(self) -> dict[str, str]:
        """Return the result of each check: `ok`, or the reason of the failure.

        All requests of one second share one answer. It takes 2 s at most.
        """
        if self._closed:
            return {"kernels": _ENDING}
        if self._clock() >= self._until and self._checking is None:
            self._checking = asyncio.create_task(self._check())
            self._checking.add_done_callback(self._on_checked)
        if self._checking is not None:
            await asyncio.wait({self._checking})
        return self._answer

    async def aclose(self) -> None:
        """Stop checking. Checks that hang are not waited for. May be called twice."""
        self._closed = True
        self._answer = {"kernels": _ENDING}
        self._threads.close()
        checks = (self._specs, self._runtime, self._registry, self._journal)
        running: set[asyncio.Task[Any]] = {task for check in checks for task in check.cancel()}
        if self._checking is not None:
            self._checking.cancel()
            running.add(self._checking)
        if running:  # a manager of another package need not heed the cancellation
            await asyncio.wait(running, timeout=_CANCEL_TIMEOUT)

    def _on_checked(self, checking: asyncio.Task[dict[str, str]]) -> None:
        self._checking = None
        if self._closed or checking.cancelled():
            return
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
        kernels, registry, runtime, journal = await asyncio.gather(
            self._can_start(),
            self._registry.result(),
            self._runtime.result(),
            self._journal.result(),
        )
        writer = self._kernels.writer
        if registry == OK and writer.enabled and writer.failing:
            registry = "the registry of kernels cannot be written"
        disk = journal if runtime == OK else runtime
        failing = self._hubs.journal_statistics().get("failing_kernels", 0)
        if disk == OK and failing:
            disk = f"the journals of {failing} kernel(s) cannot be written"
        checks = {"kernels": kernels, "registry": registry, "disk": disk}
        if self.membership is not None:
            checks["cluster"] = _cluster(self.membership)
        return checks

    async def _can_start(self) -> str:
        try:
            self._kernels.check_start()
        except KbridgeError as error:
            return str(error)
        found = await self._specs.result()
        return OK if found == _NO_SPEC and len(self._kernels) else found


def _cluster(membership: Membership) -> str:
    """Return `OK`, or why a replica cannot act for its kernels or serve those of others."""
    if membership.me.draining:
        return "this replica is about to end"
    if not membership.lease.held:
        return (
            "the lease of this replica is over, because it could not renew it in the database of"
            " the cluster (KbridgeApp.registry_url) for KbridgeApp.lease_seconds"
        )
    return "the database of the cluster cannot be reached" if membership.problem else OK


class _Check:
    """A check that may hang: one call at a time, and a bounded wait for its result.

    Parameters
    ----------
    work : callable
        Returns `OK` or a reason; it handles its errors.
    silent : str
        The result while `work` does not end.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, str]], silent: str) -> None:
        self._work = work
        self._silent = f"{silent} for {_TIMEOUT:g} s"
        self._running: asyncio.Task[str] | None = None

    async def result(self) -> str:
        """Wait at most 2 s for a call, which runs on after that, and return its result."""
        if self._running is None:
            self._running = asyncio.create_task(self._work())
        done, _ = await asyncio.wait({self._running}, timeout=_TIMEOUT)
        if not done:
            return self._silent
        ended, self._running = self._running, None
        return ended.result()

    @property
    def running(self) -> bool:
        """True if a call has no result that was returned."""
        return self._running is not None

    def cancel(self) -> list[asyncio.Task[str]]:
        """Cancel the call, if there is one, and return its task."""
        if self._running is None:
            return []
        self._running.cancel()
        return [self._running]


class _SpecCheck:
    """Looks at kernelspecs at most every 30 s; a good result is valid for 60 s."""

    def __init__(self, specs: Specs, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._specs = specs
        self._log = log
        self._clock = clock
        self._check = _Check(self._look, "the kernelspecs have not been read")
        self._result = ""
        self._next = self._valid_until = float("-inf")

    async def result(self) -> str:
        """Return `OK` or the reason of the failure."""
        if not self._check.running and self._clock() < self._next:
            return self._result
        found = await self._check.result()
        now = self._clock()
        if not self._check.running:
            self._result = found
            # Counted from the end of a look: one that takes longer must not follow the last.
            self._next, self._valid_until = now + _LOOK_INTERVAL, now + _LOOK_VALID
        return self._result if self._result == OK and now < self._valid_until else found

    def cancel(self) -> list[asyncio.Task[str]]:
        """Cancel a look, and return its task."""
        return self._check.cancel()

    async def _look(self) -> str:
        try:
            installed = await self._specs.any_installed()
        except Exception as error:  # noqa: BLE001 - any error of a manager of other packages
            self._log.debug("kernelspecs cannot be read: %r", error)
            return "kernelspecs cannot be read"
        return OK if installed else _NO_SPEC


def _disk_check(threads: Workers, directory: Path | None, name: str) -> _Check:
    async def check() -> str:
        return OK if directory is None else await threads.call(lambda: _write(directory, name))

    return _Check(check, f"{name} has not answered")


def _write(directory: Path, name: str) -> str:
    """Write a block to a file without a name, which leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(bytes(_BLOCK))
    except OSError as error:
        return f"{name} cannot be written: {error.strerror or type(error).__name__}"
    return OK
