"""Read the journals that an earlier process left, while a server starts.

A start does not wait for a disk that hangs: it goes on with the journals that were read in time.
They are read one by one, so that a disk that hangs can be told from one that has much to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Final

from kbridge.errors import NotPrivate
from kbridge.storage.context import StoreContext
from kbridge.storage.recovery import RecoveredFiles, prepare, remove_orphan, survey

__all__ = ["Opening"]

_LOOK: Final = 1.0  # seconds between two looks at the disk
_SILENCE: Final = 10  # looks; a pause of the process counts as one, however long it is
_TIMEOUT: Final = 30  # looks
_HANDOVER: Final = 5.0  # seconds in which an earlier process of this server may end
_HANDOVER_INTERVAL: Final = 0.1


class Opening:
    """Reads the journals of some kernels, and removes those of kernels that have ended.

    Parameters
    ----------
    context : StoreContext
    directory : Path
    owner : str
    log : logging.Logger or logging.LoggerAdapter

    Attributes
    ----------
    rest : asyncio.Task or None
        The work that is still under way after `read`.
    """

    def __init__(
        self,
        context: StoreContext,
        directory: Path,
        owner: str,
        log: Logger | LoggerAdapter[Logger],
    ) -> None:
        self._context = context
        self._directory = directory
        self._owner = owner
        self._log = log
        self._recovered: dict[str, RecoveredFiles] = {}
        self._complete = self._late = self._closed = False
        self.rest: asyncio.Task[None] | None = None

    async def read(self, keep: Collection[str]) -> dict[str, RecoveredFiles]:
        """Return the files of the kernels in `keep`, as far as there are some.

        The call ends when the disk does not answer for 10 s, and after 30 s. It waits at most 5 s
        for the files of a kernel that another process still writes.
        """
        readers = self._context.readers
        task = asyncio.ensure_future(self._run(keep))
        answered = silent = 0
        try:
            for _ in range(_TIMEOUT):
                await asyncio.wait({task}, timeout=_LOOK)
                silent = silent + 1 if readers.answered == answered else 0
                answered = readers.answered
                if task.done() or silent == _SILENCE:
                    break
        finally:
            self._late = True
        if task.done():
            await task
            return self._recovered
        self.rest = task
        if not self._complete:
            reason = f"the disk did not answer for {_SILENCE} s"
            if silent < _SILENCE:
                reason = f"that takes more than {_TIMEOUT} s"
            self._log.warning(
                "Not all journals in %s (journal_dir) are read: %s", self._directory, reason
            )
        return self._recovered

    def close(self) -> None:
        """End `rest` soon; may be called twice."""
        self._closed = True

    async def _run(self, keep: Collection[str]) -> None:
        call = self._context.readers.call
        problems: list[str] = []
        entries: list[Path] = []
        try:
            entries, problems = await call(partial(prepare, self._directory, keep))
        except OSError as error:
            self._context.failures.unusable(error)
            if isinstance(error, NotPrivate):  # others may have written the files
                return
            # A disk that cannot be written can perhaps be read.
        for problem in problems + await self._read_all(keep):
            self._log.warning("%s", problem)
        removed = 0
        for entry in entries:
            if self._closed:
                return
            removed += await call(partial(remove_orphan, self._context.disk, entry, self._owner))
        if removed:
            self._log.info("Removed the journals of %d kernels that have ended", removed)

    async def _read_all(self, keep: Collection[str]) -> list[str]:
        """Read the journals in `keep`; return problems for the log."""
        call, disk = self._context.readers.call, self._context.disk
        loop = asyncio.get_running_loop()
        patience = loop.time() + _HANDOVER
        problems: list[str] = []
        while True:
            locked: dict[str, str] = {}
            for kernel_id in keep:
                found = await call(partial(survey, disk, self._directory, self._owner, [kernel_id]))
                if self._late:  # the kernel has begun a new journal
                    await call(found.release)
                    return problems
                self._recovered |= found.recovered
                problems += found.problems
                locked |= found.locked
            keep = locked
            if not keep or loop.time() >= patience:
                break
            await asyncio.sleep(_HANDOVER_INTERVAL)
        self._complete = True
        for kernel_id, reason in locked.items():
            problems.append(f"The journal of kernel {kernel_id} is not read: {reason}")
        return problems
