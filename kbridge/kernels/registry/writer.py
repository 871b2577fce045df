"""What the registry is to hold, and the task that sees to it.

The rows that ought to be there are kept here; those that changed are written in the background,
one transaction at a time. So nobody waits for a registry that fails, nothing is written out of
order, and once it works again all rows are there. Bounded by the number of kernels and sessions.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from kbridge.errors import RegistryError
from kbridge.kernels.lifecycle.processes import state_of
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, SessionRow
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.tasks import spawn

__all__ = ["RegistryWriter"]

_Row = KernelRow | SessionRow
_PATIENCE: Final = 5.0  # a locked SQLite file is waited for 2 s; other databases may never answer


class RegistryWriter:
    """The rows of one server.

    Parameters
    ----------
    registry : Registry, optional
        Where they are written; without one, nothing happens here.
    owner : Owner, optional
        Whose they are.
    log : logging.Logger
        Where it is said that they cannot be written.
    retry : float
        Seconds between two attempts to write what could not be written.
    patience : float
        Seconds that anybody waits for a write.
    """

    def __init__(
        self,
        registry: Registry | None = None,
        owner: Owner | None = None,
        *,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
        retry: float = 1.0,
        patience: float = _PATIENCE,
    ) -> None:
        self._registry = registry
        self._owner = owner or Owner("", "", 0, "")
        self._log: Any = log or logging.getLogger("kbridge.kernels")
        self._retry = retry
        self._patience = patience
        self._rows: dict[tuple[str, str], _Row] = {}
        self._dirty: set[tuple[str, str]] = set()
        self._batch: set[tuple[str, str]] = set()  # being written now
        self._writer: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._failing = False
        self._closing = asyncio.Event()

    @property
    def enabled(self) -> bool:
        """Whether there is a registry."""
        return self._registry is not None

    async def open(self) -> Claim:
        """Take over what the server before this one left.

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
                "%d kernel(s) of a server that has gone wait in %s for the next one on %s",
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
        """Have a kernel stand there as this says."""
        self._put(("kernel", record.kernel_id), record)

    def drop_kernel(self, kernel_id: str) -> None:
        """Have it stand there no more; no error where it does not."""
        self._drop(("kernel", kernel_id))

    def has_kernel(self, kernel_id: str) -> bool:
        """Whether it stands there, or is to."""
        return ("kernel", kernel_id) in self._rows

    def put_session(self, record: SessionRow) -> None:
        """Have a session stand there as this says."""
        self._put(("session", record.session_id), record)

    def drop_session(self, session_id: str) -> None:
        """Have it stand there no more; no error where it does not."""
        self._drop(("session", session_id))

    async def settled(self) -> bool:
        """Wait until everything is written; False if it cannot be now."""
        try:
            async with asyncio.timeout(self._patience):
                while self._writer is not None and not self._failing:
                    await self._news.wait()
        except TimeoutError:
            self._fails(f"The registry has not answered for {self._patience:g} s")
        return not (self._dirty or self._batch)

    async def aclose(self) -> None:
        """Write what there is to write, or say what could not be; may be called twice."""
        self._closing.set()
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=self._patience)
        if unwritten := self._dirty | self._batch:
            self._log.error(
                "%d change(s) could not be written to the registry in the end", len(unwritten)
            )
            self._dirty.clear()
        if self._registry is not None:
            self._registry.close()

    def statistics(self) -> dict[str, Any]:
        """Rows, those yet to be written, and whether writing fails."""
        return {
            "rows": len(self._rows),
            "unwritten": len(self._dirty | self._batch),
            "failing": self._failing,
        }

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
                    await asyncio.to_thread(self._registry.write, self._owner, rows)
                except RegistryError as error:
                    # All of it: the file may have been put away, and another be in its place.
                    self._dirty |= self._batch | self._rows.keys()
                    self._batch = set()
                    if not await self._wait_after(error):
                        return
                else:
                    self._batch = set()
                    if self._failing:
                        self._log.warning("The registry is written to again, nothing is missing")
                    self._failing = False
                    self._tell()
        finally:
            self._dirty |= self._batch
            self._batch = set()
            self._writer = None
            self._tell()

    async def _wait_after(self, error: RegistryError) -> bool:
        """Wait after a failure; False if there is no time to try again."""
        self._fails(str(error))
        if self._closing.is_set():
            return False
        try:
            async with asyncio.timeout(self._retry):
                await self._closing.wait()
        except TimeoutError:
            return True
        return True

    def _fails(self, reason: str) -> None:
        """Say, once, that writing fails; nobody waits for it from now on."""
        if not self._failing:
            self._log.error(
                "%s\nKernels are served all the same; those of them that are not written down"
                " would not be found again after a crash. It is tried again every %g s",
                reason,
                self._retry,
            )
        self._failing = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
