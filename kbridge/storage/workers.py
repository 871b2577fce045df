"""Threads that work on files, and give their results to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """A few threads, started by the first call.

    They are daemons, unlike the threads of `concurrent.futures`: Python would wait at its end for a
    thread that hangs in a system call of a dead network file system.

    Parameters
    ----------
    count : int
        The number of threads.
    name : str
        Of the threads.

    Attributes
    ----------
    answered : int
        The number of `call`s that have ended.
    """

    __slots__ = ("_count", "_name", "_queue", "_threads", "answered")

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0
        self.answered = 0

    def submit(
        self, work: Callable[[], None], done: Callable[[BaseException | None], None]
    ) -> None:
        """Call `work` in a thread, then `done` with its error on the running event loop."""
        loop = asyncio.get_running_loop()

        def job() -> None:
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:  # noqa: BLE001 - the loop decides about it
                error = raised
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(done, error)

        while self._threads < self._count:
            self._threads += 1
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._queue.put(job)

    async def call(self, work: Callable[[], T]) -> T:
        """Call `work` in a thread; return its result, or raise its error."""
        results: list[T] = []
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            self.answered += 1
            if future.done():  # the caller was cancelled
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.submit(lambda: results.append(work()), done)
        await future
        return results[0]

    def close(self) -> None:
        """End the threads after the calls that were submitted; may be called twice."""
        for _ in range(self._threads):
            self._queue.put(None)
        self._threads = 0

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
            del job  # while this thread waits, it keeps no object alive
