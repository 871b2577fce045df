"""A queue for work in short turns, so that no hub blocks the event loop for the others.

All hubs of an event loop share one queue. A turn takes a piece of work from each hub in order,
until about a millisecond has passed; then the loop does everything else that waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary, ref

__all__ = ["Step", "Turns", "turns"]

Step: TypeAlias = Callable[[], bool]
"""Does a piece of work; returns True if there is more."""

_SECONDS: Final = 0.001


class Turns:
    """The queue of one event loop.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # the table of loops keeps this queue for as long as its loop
        self._queue: deque[Step] = deque()
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, step: Step) -> None:
        """Call `step` in one of the next turns, and again for as long as it returns True."""
        self._queue.append(step)
        self._schedule()

    def _schedule(self) -> None:
        if self._queue and not self._scheduled:
            loop = self._loop()
            assert loop is not None, "a loop that runs is held"
            self._scheduled = True
            loop.call_soon(self._take)

    def _take(self) -> None:
        self._scheduled = False
        end = time.monotonic() + _SECONDS
        try:
            while self._queue:
                step = self._queue.popleft()
                if step():
                    self._queue.append(step)
                if time.monotonic() >= end:
                    break
        finally:  # an error ends this step alone
            self._schedule()


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def turns() -> Turns:
    """Return the queue of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = Turns(loop)
    return found
