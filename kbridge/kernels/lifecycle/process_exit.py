"""Notices the end of a process: at once if the operating system reports it, else by polling."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress

from kbridge.kernels.lifecycle.processes import open_pidfd

__all__ = ["exit_checks", "exit_event"]


async def exit_checks(interval: float, pid: int | None = None) -> AsyncGenerator[None]:
    """Yield whenever the caller should check if a process has ended.

    That is every `interval` seconds, first after one interval, and when the process ends. Close the
    generator when no more checks are needed: it holds a descriptor.

    Parameters
    ----------
    interval : float
        Seconds.
    pid : int, optional
        A child of this process. On Linux, its end is noticed at once.
    """
    with exit_event(pid) as ended:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await ended.wait()
            yield
            # A provisioner may notice the end later than the operating system does.
            ended.clear()


@contextmanager
def exit_event(pid: int | None) -> Iterator[asyncio.Event]:
    """Give an event that is set when a process ends.

    Without a `pid`, and on systems without pidfds, the event is never set.
    """
    ended = asyncio.Event()
    fd = open_pidfd(pid) if pid is not None else None
    if fd is None:
        yield ended
        return
    loop = asyncio.get_running_loop()

    def on_exit() -> None:
        loop.remove_reader(fd)
        ended.set()

    try:
        loop.add_reader(fd, on_exit)
        yield ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)
