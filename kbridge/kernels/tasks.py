"""Background tasks with an owner: errors are logged at once, and stopped tasks are awaited.

`in_thread` is for work that would block the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["finished", "in_thread", "spawn", "stop"]

T = TypeVar("T")


def spawn(work: Coroutine[Any, Any, None], log: logging.Logger) -> asyncio.Task[None]:
    """Run `work` in the background, and log the error that ends it, if any.

    The caller keeps the task and passes it to `stop` at the end.
    """

    def report(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()):
            log.error("%s failed", done.get_name(), exc_info=error)

    task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
    task.add_done_callback(report)
    return task


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended; ignore their results and errors."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run `work` in a thread and return its result.

    Unlike with `asyncio.to_thread`, a caller that is cancelled waits until the thread is done: a
    thread cannot be cancelled, and must not work on after the caller has cleaned up.
    """
    return await finished(asyncio.to_thread(work, *arguments))


async def finished(work: Awaitable[T]) -> T:
    """Return the result of work in a thread; a caller that is cancelled waits until it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not report it
        raise
