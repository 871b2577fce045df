"""Writes the rows of one server to the registry, in the background.

The rows that the registry should contain are kept in memory; changed rows are written one
transaction at a time. So nobody waits for a registry that fails, nothing is written out of order,
and all rows are there once the registry works again. Memory is bounded by the number of kernels
and sessions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, Final, Protocol

from kbridge.errors import Busy, RegistryError
from kbridge.kernels.lifecycle.processes import state_of
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, SessionRow
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.tasks import spawn

__all__ = ["RefusalObserver", "RegistryWriter"]

_Row = KernelRow | SessionRow
_ENDED_SECONDS: Final = 300.0  # for so long, ends of kernels are remembered
_TIMEOUT: Final = 5.0  # SQLite waits 2 s for a locked file; other databases may never answer


class RefusalObserver(Protocol):
    """Acts on kernels that another server owns."""

    def on_refused(self, kernel_ids: frozenset[str]) -> None:
        """Act on kernels whose rows were not written; it must not wait."""


class RegistryWriter:
    """The rows of one server.

    Parameters
    ----------
    registry : Registry, optional
        The registry to write to. Without one, nothing is written.
    owner : Owner, optional
        The server that the rows belong to.
    log : logging.Logger
        The logger for errors of the registry.
    retry : float
        Seconds between two attempts after an error.
    timeout : float
        Maximum number of seconds that a caller waits for a write.
    """

    def __init__(
        self,
        registry: Registry | None = None,
        owner: Owner | None = None,
        *,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
        retry: float = 1.0,
        timeout: float = _TIMEOUT,
    ) -> None:
        self._registry = registry
        self._owner = owner or Owner("", "", 0, "")
        self._log: Any = log or logging.getLogger("kbridge.kernels")
        self._retry = retry
        self._timeout = timeout
        self._rows: dict[tuple[str, str], _Row] = {}
        self._dirty: set[tuple[str, str]] = set()
        self._batch: set[tuple[str, str]] = set()  # being written now
        self._ended: dict[str, float] = {}  # kernels whose row was deleted, and when
        self._writer: asyncio.Task[None] | None = None
        self._progress = asyncio.Event()
        self._failing = False
        self._closing = asyncio.Event()
        self._observer: RefusalObserver | None = None

    def observe(self, observer: RefusalObserver) -> None:
        """Report the kernels that another server owns, once that is known."""
        self._observer = observer

    @property
    def enabled(self) -> bool:
        """True if there is a registry."""
        return self._registry is not None

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables from which the registry's driver takes a password."""
        return frozenset() if self._registry is None else self._registry.secret_variables

    @property
    def directory(self) -> Path | None:
        """The directory of the registry's file; None if there is no file."""
        path = None if self._registry is None else self._registry.path
        return None if path is None else path.parent

    async def open(self) -> Claim:
        """Take over the rows of the server that ran before this one.

        Raises
        ------
        RegistryError
            If the registry cannot be used.
        """
        if self._registry is None:
            return Claim()
        await asyncio.to_thread(self._registry.prepare)
        claim = await asyncio.to_thread(self._registry.claim, self._owner, state_of)
        self._rows = {("kernel", row.kernel_id): row for row in claim.kernels}
        self._rows |= {("session", row.session_id): row for row in claim.sessions}
        for address, count in claim.elsewhere.items():
            self._log.info(
                "%d kernel(s) of an ended server wait in %s for the next server on %s",
                count,
                self._registry.name,
                address,
            )
        if claim.hidden:
            self._log.warning(
                "%d kernel(s) in %s belong to a server on this address that cannot be seen from"
                " here: it runs, or ran, in another container or pid namespace. They are left"
                " alone. If that server is gone for good, remove the registry while no server uses"
                " it, or set KbridgeApp.registry_url",
                claim.hidden,
                self._registry.name,
            )
        return claim

    def put_kernel(self, record: KernelRow) -> None:
        """Write the row of a kernel."""
        self._ended.pop(record.kernel_id, None)
        self._put(("kernel", record.kernel_id), record)

    async def reserve(self, record: KernelRow, limit: int) -> None:
        """Write the row of a kernel now, if its user may have one more kernel in the cluster.

        Without a cluster, nothing is written: the caller knows all kernels of the user.

        Raises
        ------
        KernelLimitReached
            If the user has `limit` kernels already.
        Busy
            If that cannot be found out.
        """
        if self._registry is None:
            return
        await self.settled()  # kernels that have just ended do not count
        try:
            async with asyncio.timeout(self._timeout):
                if await asyncio.to_thread(self._registry.reserve, record, limit):
                    self.take_kernel(record)
        except (RegistryError, TimeoutError) as error:
            self.take_kernel(record)  # if it was written nevertheless, its end will be, too
            raise Busy(
                f"The kernels of {record.user} cannot be counted for max_kernels_per_user:"
                f" {error or 'the database does not answer'}"
            ) from error
        except asyncio.CancelledError:
            self.take_kernel(record)
            raise

    def drop_kernel(self, kernel_id: str) -> None:
        """Delete the row of a kernel, if there is one."""
        key = ("kernel", kernel_id)
        if key not in self._rows:
            return
        self._drop(key)
        now = time.monotonic()
        self._ended.pop(kernel_id, None)
        self._ended[kernel_id] = now
        while self._ended[oldest := next(iter(self._ended))] < now - _ENDED_SECONDS:
            del self._ended[oldest]

    def take_kernel(self, record: KernelRow) -> None:
        """Note the row of a kernel that this server has taken over, as the registry has it."""
        self._rows[("kernel", record.kernel_id)] = record
        self._ended.pop(record.kernel_id, None)

    def forget_kernel(self, kernel_id: str) -> None:
        """Write nothing about a kernel from now on, because another server owns it."""
        key = ("kernel", kernel_id)
        self._rows.pop(key, None)
        self._ended.pop(kernel_id, None)
        self._dirty.discard(key)
        self._batch.discard(key)  # if it fails, the next one must not delete the row

    def has_kernel(self, kernel_id: str) -> bool:
        """Return True if there is a row of the kernel, written or not."""
        return ("kernel", kernel_id) in self._rows

    def knows_kernel(self, kernel_id: str) -> bool:
        """Return True if there is a row of the kernel, or its end is not written yet."""
        key = ("kernel", kernel_id)
        return key in self._rows or key in self._dirty or key in self._batch

    def has_ended(self, kernel_id: str) -> bool:
        """Return True if the row was deleted in the last 300 s, or that is not written yet."""
        unwritten = self.knows_kernel(kernel_id) and not self.has_kernel(kernel_id)
        return unwritten or kernel_id in self._ended

    def put_session(self, record: SessionRow) -> None:
        """Write the row of a session."""
        self._put(("session", record.session_id), record)

    def drop_session(self, session_id: str) -> None:
        """Delete the row of a session, if there is one."""
        self._drop(("session", session_id))

    def rewrite(self) -> None:
        """Write all rows again, and the latest ends: the registry may have lost some."""
        for kernel_id in self._ended:
            self._changed(("kernel", kernel_id))
        for key in self._rows:
            self._changed(key)

    async def settled(self) -> bool:
        """Wait until all rows are written; return False if they cannot be written now."""
        try:
            async with asyncio.timeout(self._timeout):
                while self._writer is not None and not self._failing:
                    await self._progress.wait()
        except TimeoutError:
            self._report(f"The registry has not answered for {self._timeout:g} s")
        return not (self._dirty or self._batch)

    async def aclose(self) -> None:
        """Write the remaining rows, or log that they could not be written. May be called twice."""
        self._closing.set()
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=self._timeout)
        if unwritten := self._dirty | self._batch:
            self._log.error(
                "%d change(s) could not be written to the registry before the server ended",
                len(unwritten),
            )
            self._dirty.clear()
        if self._registry is not None:
            self._registry.close()

    @property
    def unwritten(self) -> int:
        """The number of changed rows that are not written yet."""
        return len(self._dirty | self._batch)

    @property
    def failing(self) -> bool:
        """True if the last attempt to write failed."""
        return self._failing

    def _put(self, key: tuple[str, str], row: _Row) -> None:
        if self._registry is not None and self._rows.get(key) != row:
            self._rows[key] = row
            self._changed(key)

    def _drop(self, key: tuple[str, str]) -> None:
        if self._rows.pop(key, None) is not None:
            self._changed(key)

    def _changed(self, key: tuple[str, str]) -> None:
        self._dirty.add(key)
        if self._writer is None:
            self._writer = spawn(self._write(), self._log)

    async def _write(self) -> None:
        assert self._registry is not None
        try:
            while self._dirty:
                self._batch, self._dirty = self._dirty, set()
                rows = {key: self._rows.get(key) for key in self._batch}
                try:
                    refused = await asyncio.to_thread(self._registry.write, self._owner, rows)
                except RegistryError as error:
                    # All rows: the file may have been replaced by another one.
                    self._dirty |= self._batch | self._rows.keys()
                    self._batch = set()
                    if not await self._wait_after(error):
                        return
                else:
                    self._batch = set()
                    if self._failing:
                        self._log.warning("The registry can be written again; nothing is missing")
                    self._failing = False
                    if refused and self._observer is not None:
                        self._observer.on_refused(refused)
                    self._notify()
        finally:
            self._dirty |= self._batch
            self._batch = set()
            self._writer = None
            self._notify()

    async def _wait_after(self, error: RegistryError) -> bool:
        """Wait after an error; return False if there is no time for another attempt."""
        self._report(str(error))
        if self._closing.is_set():
            return False
        try:
            async with asyncio.timeout(self._retry):
                await self._closing.wait()
        except TimeoutError:
            return True
        return True

    def _report(self, reason: str) -> None:
        """Log, once, that writing fails; callers do not wait for it from now on."""
        if not self._failing:
            self._log.error(
                "%s\nKernels are served all the same, but kernels that are not recorded will not be"
                " found after a crash. Trying again every %g s",
                reason,
                self._retry,
            )
        self._failing = True
        self._notify()

    def _notify(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()
