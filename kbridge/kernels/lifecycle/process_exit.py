"""The end of a process, told by the operating system where it can."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["exit_event", "wait_exit"]


async def wait_exit(
    is_alive: Callable[[], Awaitable[bool]], interval: float, pid: int | None = None
) -> None:
    """Return when `is_alive` is false.

    It is asked every `interval` seconds, first after one, and at once when the process ends.

    Parameters
    ----------
    is_alive : callable
        Whether there is a process.
    interval : float
        Seconds.
    pid : int, optional
        A child of this process's. On Linux, its end is noticed when it comes (pidfd_open(2)).
    """
    with exit_event(pid) as ended:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await ended.wait()
            if not await is_alive():
                return
            # A provisioner may be slower to believe it than we are.
            ended.clear()


@contextmanager
def exit_event(pid: int | None) -> Iterator[asyncio.Event]:
    """Give an event that is set when a process ends; never, where nobody tells.

    Linux does, by pidfd_open(2); without a `pid` nobody does.
    """
    ended = asyncio.Event()
    fd = _open(pid)
    if fd is None:
        yield ended
        return
    loop = asyncio.get_running_loop()

    def on_end() -> None:
        loop.remove_reader(fd)
        ended.set()

    try:
        loop.add_reader(fd, on_end)
        yield ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _open(pid: int | None) -> int | None:
    open_pidfd = getattr(os, "pidfd_open", None)  # Linux alone
    if pid is None or open_pidfd is None:
        return None
    try:
        return int(open_pidfd(pid))
    except OSError:  # gone already, or an old kernel: `is_alive` will tell
        return None
