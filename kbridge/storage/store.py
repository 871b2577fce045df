"""The journals of all kernels of a server on disk: limits, failures, begin and end.

All work on files is done by one thread that writes and two that read. Everything here runs on the
event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Final, Self

from kbridge.storage.context import RETRY_INTERVAL, FailureLog, StoreContext, Usage
from kbridge.storage.disk import Disk, Space
from kbridge.storage.files import KernelFiles, OpenFiles, directory_name
from kbridge.storage.flush import FlushQueue, Overseer, Task
from kbridge.storage.history import History
from kbridge.storage.opening import Opening
from kbridge.storage.reserve import Reserve
from kbridge.storage.workers import Workers

__all__ = ["JournalStore", "StoreSettings"]

_MEASURE_INTERVAL: Final = 1.0  # seconds between two looks at the free space
_MEASURE_BYTES: Final = 16 * 1024 * 1024  # written between two looks
_HUNG_AFTER: Final = 10.0  # seconds that a job may take
_CLOSE_TIMEOUT: Final = 5.0
_OPEN_SECONDS: Final = 0.2  # that a file stays open after the last write to it


@dataclass(frozen=True)
class StoreSettings:
    """Where the journals are, and how large they may become.

    Attributes
    ----------
    directory : Path
        Created when it is missing, with mode 0700.
    limit : int
        Bytes per kernel.
    total_limit : int
        Bytes of all kernels together.
    reserve : float
        The share of the file system that stays free.
    """

    directory: Path
    limit: int
    total_limit: int
    reserve: float


class _Measure(Task):
    """Measures the free space."""

    __slots__ = ("_directory", "_store", "space")

    def __init__(self, store: JournalStore, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self.space: Space | None = None

    def run(self, disk: Disk) -> None:
        self.space = disk.space(self._directory)

    def done(self, error: BaseException | None) -> None:  # noqa: ARG002
        self._store.measured(self.space)


class _CloseUnused(Task):
    """Closes files to which nothing was written for a while: a quiet kernel needs only its lock."""

    __slots__ = ("_opened",)

    def __init__(self, opened: OpenFiles) -> None:
        self._opened = opened

    def run(self, disk: Disk) -> None:  # noqa: ARG002
        self._opened.close_unused(_OPEN_SECONDS)

    def done(self, error: BaseException | None) -> None:
        """Take no result: errors of closing were suppressed."""


class JournalStore(Overseer):
    """The journals of all kernels of a server on disk.

    Parameters
    ----------
    settings : StoreSettings
    owner : str
    log : logging.Logger or logging.LoggerAdapter
    disk : Disk or None
        None: the disk of this machine.

    See Also
    --------
    JournalStore.open : makes a store from the files of an earlier process.
    """

    def __init__(
        self,
        settings: StoreSettings,
        owner: str,
        log: Logger | LoggerAdapter[Logger],
        disk: Disk | None = None,
    ) -> None:
        disk = disk or Disk()
        self._settings = settings
        self._owner = owner
        self._log = log
        self._usage = Usage(settings.total_limit)
        self._failures = FailureLog(settings.directory, log)
        self._queue = FlushQueue(disk, self)
        self._context = StoreContext(
            disk,
            self._queue,
            OpenFiles(disk),
            Workers(2, "kbridge-journal-reader"),
            *(self._usage, self._failures, settings.limit),
        )
        self._histories: dict[str, History] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._unused_timer: asyncio.TimerHandle | None = None
        self._measured_at = float("-inf")
        self._measured_bytes = 0
        self._gives_up: History | None = None  # because too little of the disk is free
        self._reserve = Reserve(settings.reserve)
        self._hung = False
        self._closed = False
        self._opening: Opening | None = None

    @classmethod
    async def open(
        cls,
        settings: StoreSettings,
        *,
        owner: str,
        keep: Collection[str],
        log: Logger | LoggerAdapter[Logger],
        disk: Disk | None = None,
    ) -> Self:
        """Remove the files of kernels that have ended, and read those of the kernels in `keep`.

        A directory that cannot be used, does not answer for 10 s or needs more than 30 s is logged;
        the other kernels then begin new journals, in memory until the disk works. The files of a
        kernel that another process still writes are waited for, for at most 5 s.

        Parameters
        ----------
        settings : StoreSettings
        owner : str
            Names this server, also after a restart. Several servers may use one directory.
        keep : collection of str
            Ids of the kernels that run and that this server serves.
        log : logging.Logger or logging.LoggerAdapter
        disk : Disk or None
            None: the disk of this machine.
        """
        store = cls(settings, owner, log, disk)
        context = store._context
        store._opening = opening = Opening(context, settings.directory, owner, log)
        for kernel_id, found in (await opening.read(keep)).items():
            store._histories[kernel_id] = History(kernel_id, found.files, context, found)
        if opening.rest is not None:
            store._close_later(opening.rest)
        store._tick()
        return store

    def history(self, kernel_id: str) -> History:
        """Return the journal of a kernel; its files are made by the first write."""
        history = self._histories.get(kernel_id)
        if history is not None and not history.closed:
            history.renew()
            return history
        history = History(kernel_id, self._files(kernel_id), self._context)
        self._histories[kernel_id] = history
        history.stop(self._reserve.full or self._hung or self._closed)
        return history

    def discard(self, kernel_id: str) -> None:
        """Remove the files of a kernel in the background; `history` then returns a new one."""
        history = self._histories.pop(kernel_id, None)
        if history is not None:
            self._close_later(history.close(keep=False))

    def statistics(self) -> dict[str, int]:
        """Return the number of kernels, of those whose disk fails, and of the bytes on disk."""
        histories = [each for each in self._histories.values() if not each.closed]
        return {
            "kernels": len(histories),
            "failing_kernels": sum(not history.active for history in histories),
            "bytes": self._usage.nbytes,
            "limit": self._settings.total_limit,
            "written_bytes": self._usage.written,
            "damages": self._failures.damages,
        }

    def retry(self) -> None:
        """Try to write again for the kernels whose disk fails; a timer does so every 10 s."""
        if self._queue.age() > _HUNG_AFTER:
            if not self._hung:
                self._hung = True
                self._failures.stopped(f"the disk did not answer for {_HUNG_AFTER:.0f} s")
                self._stop()
                self._queue.wake()  # nobody waits for a disk that does not answer
            return
        if self._reserve.full:
            self.measure()
        for history in [*self._histories.values()]:
            history.retry()

    async def flush(self) -> None:
        """Write the frames of all kernels, and wait until that is done or fails."""
        for history in self._histories.values():
            history.changed()
        while self._queue.has_work:
            self._queue.hurry()
            await self._queue.job_done()

    async def aclose(self, *, keep: bool) -> None:
        """Write the remaining frames, for at most 5 s, and stop the threads; may be called twice.

        The directory of the journals is removed if nothing is left in it.
        If the disk does not answer, or the call is cancelled, the files are removed or released as
        soon as possible, if this process still runs then.

        Parameters
        ----------
        keep : bool
            True leaves the files for the next server, False removes them.
        """
        if self._closed:
            return
        self._closed = True
        if self._opening is not None:
            self._opening.close()
        for timer in (self._timer, self._unused_timer):
            if timer is not None:
                timer.cancel()
        complete = False
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                if keep:
                    await self.flush()
                await asyncio.gather(
                    *self._closing,
                    *(history.close(keep=keep) for history in self._histories.values()),
                )
                remove = partial(self._context.disk.remove_directory, self._settings.directory)
                await self._context.readers.call(remove)
                complete = True
        except TimeoutError:
            self._log.warning(
                "The journals in %s (journal_dir) are not complete: the disk did not answer for"
                " %d s",
                *(self._settings.directory, _CLOSE_TIMEOUT),
            )
        finally:
            if not complete:
                for history in self._histories.values():
                    history.close(keep=keep)
            self._queue.close()
            self._context.readers.close()

    @property
    def waits(self) -> bool:
        """True if the free space must be measured now, because a file was removed for it."""
        return self._gives_up is not None and not self._gives_up.gives_up

    def next_task(self) -> Task | None:
        """Return the work that concerns all kernels, at the beginning of a job."""
        if self._usage.over:
            self._give_up(lambda history: history.nbytes)
        if self._gives_up is not None and self._gives_up.gives_up:
            return None
        now = asyncio.get_running_loop().time()
        if (
            self._gives_up is None
            and now - self._measured_at < _MEASURE_INTERVAL
            and self._usage.written - self._measured_bytes < _MEASURE_BYTES
        ):
            return None
        self._measured_at, self._measured_bytes = now, self._usage.written
        return _Measure(self, self._settings.directory)

    def failed(self, error: Exception) -> None:
        """Report a mistake of this class."""
        self._gives_up = None
        text = "The free space of the journals on disk could not be measured"
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": text, "exception": error})

    def on_job_done(self) -> None:
        """Write again if the disk did not answer before; close unused files later."""
        if self._hung:
            self._hung = False
            self._failures.resumed()
            self._stop()
        if self._unused_timer is None and len(self._context.opened) and not self._closed:
            loop = asyncio.get_running_loop()
            self._unused_timer = loop.call_later(_OPEN_SECONDS, self._close_unused)

    def _close_unused(self) -> None:
        self._unused_timer = None
        self._queue.put(_CloseUnused(self._context.opened))

    def measure(self) -> None:
        """Look at the free space with the next job, which begins now."""
        self._measured_at = float("-inf")
        self._queue.hurry()

    def measured(self, space: Space | None) -> None:
        """Give up the oldest output if too little of the file system is free.

        Parameters
        ----------
        space : Space or None
            None if it could not be measured; the next write fails too, and says why.
        """
        self._gives_up = None
        if space is None:
            return
        reserve, now = self._reserve, asyncio.get_running_loop().time()
        missing = reserve.measured(space, self._usage, now)
        if missing:
            self._gives_up = self._give_up(lambda history: history.surplus)
        if self._gives_up is None and reserve.settle(missing):
            if reserve.full:
                share = reserve.share * 100
                self._failures.stopped(
                    f"less than {share:g} % of the file system is free (journal_disk_reserve)"
                )
            else:
                self._failures.resumed()
            self._stop()

    def _close_later(self, future: asyncio.Future[None]) -> None:
        """Let `aclose` wait for some work."""
        self._closing.add(future)
        future.add_done_callback(self._closing.discard)

    def _stop(self) -> None:
        for history in self._histories.values():
            history.stop(self._reserve.full or self._hung)

    def _give_up(self, size: Callable[[History], int]) -> History | None:
        """Let the largest journal that works give up its oldest segment; return it, if any."""
        histories = [each for each in self._histories.values() if each.active]
        largest = max(histories, key=size, default=None)
        if largest is None or size(largest) <= 0:
            return None
        largest.give_up()
        return largest

    def _files(self, kernel_id: str) -> KernelFiles:
        return KernelFiles(self._settings.directory / directory_name(kernel_id), self._owner)

    def _tick(self) -> None:
        """Retry at regular intervals."""
        if self._timer is not None:
            self.retry()
        self._timer = asyncio.get_running_loop().call_later(RETRY_INTERVAL, self._tick)
