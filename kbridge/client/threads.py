"""Functions that block, called in threads that nothing waits for at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a new daemon thread, and return its result.

    The end of the program, and of the event loop, does not wait for the thread, unlike those of
    `asyncio.to_thread`: the function may wait for a user who has left.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(value: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # None only if T is

    def work() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = function()
        except BaseException as raised:  # noqa: BLE001  # raised again in the caller
            error = raised
            if isinstance(raised, StopIteration):  # a future cannot have it
                error = RuntimeError(f"the function raised {raised!r}")
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=work, name="kbridge.client.input", daemon=True).start()
    return await future
