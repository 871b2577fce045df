"""Ends jobs that Slurm could not end when the server wanted it.

Slurm may be down for minutes. A job that a server has given up must not hold its node until its
time limit, so scancel is tried again, and the job is told to end when it calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from kbridge.errors import KernelError

__all__ = ["keep_trying"]

_INTERVAL: Final = 10.0  # seconds
_ATTEMPTS: Final = 8640  # a day
_tasks: set[asyncio.Task[None]] = set()  # each ends by itself, or with its loop


def keep_trying(
    attempt: Callable[[], Awaitable[object]],
    name: str,
    log: logging.Logger | logging.LoggerAdapter[Any],
) -> None:
    """Call `attempt` until it does not raise KernelError, in the background.

    Parameters
    ----------
    attempt : callable
        Ends something.
    name : str
        The name of the thing, for the log.
    log : logging.Logger
    """

    async def run() -> None:
        for number in range(_ATTEMPTS):
            try:
                await attempt()
            except KernelError as error:
                if number == 0:
                    log.error("%s was not ended; it is tried again: %s", name, error)
            else:
                if number:
                    log.info("%s was ended", name)
                return
            await asyncio.sleep(_INTERVAL)

    task = asyncio.create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
