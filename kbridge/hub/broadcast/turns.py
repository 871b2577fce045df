"""A queue for work in short turns, so that no hub blocks the event loop for the others.

All hubs of an event loop share one queue. A turn takes a piece of work from each hub in order,
until about a millisecond has passed; then the loop does everything else that waits.

Requests of clients go first: each passes the loop several times until its reply is out, and a turn
before each pass would multiply the time of a round trip. So after a turn, the loop handles all
messages that arrived during the turn. If one of them is a request, the next turn comes only after a
rest that is twice as long as a turn.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary, ref

__all__ = ["Step", "Turns", "turns"]

Step: TypeAlias = Callable[[], bool]
"""Does a piece of work; returns True if there is more."""

_SECONDS: Final = 0.001
"""The length of a turn."""

_REST: Final = 2
"""The length of the rest after a turn, in turns. It lets several requests pass."""


class Turns:
    """The queue of one event loop.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The event loop.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loop = ref(loop)  # the table of loops keeps this queue for as long as its loop
        self._clock = clock
        self._queue: deque[Step] = deque()
        self._scheduled = False
        self._requested = -math.inf  # the time of the last request
        self._ended = -math.inf  # the end of the last turn
        self._rest = 0.0  # after it, if there are requests

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def gives_way(self) -> bool:
        """True if work that can wait for a turn has to, because clients send requests."""
        return self._clock() - self._requested < _REST * _SECONDS

    def add(self, step: Step) -> None:
        """Call `step` in one of the next turns, and again for as long as it returns True."""
        self._queue.append(step)
        if not self._scheduled:
            self._scheduled = True
            self._begin()

    def on_request(self) -> None:
        """Note that a client has sent a request: the turns give way."""
        self._requested = self._clock()

    def _begin(self) -> None:
        """Let the next turn begin: after the rest if there was a request since the last turn."""
        loop = self._loop()
        assert loop is not None, "a loop that runs is held"
        rest = 0.0
        if self._requested >= self._ended:
            rest = self._ended + self._rest - self._clock()
        if rest > 0:
            loop.call_later(rest, self._take)
        else:
            loop.call_soon(self._take)

    def _take(self) -> None:
        begin = now = self._clock()
        try:
            while self._queue:
                step = self._queue.popleft()
                if step():
                    self._queue.append(step)
                before, now = now, self._clock()
                if now - begin + (now - before) > _SECONDS:  # the next step may be as long
                    break
        finally:  # an error ends this step alone
            self._ended = self._clock()
            self._rest = _REST * max(self._ended - begin, _SECONDS)
            self._scheduled = bool(self._queue)
            if self._scheduled:
                loop = self._loop()
                assert loop is not None, "a loop that runs is held"
                # In its next pass, the loop handles the messages that arrived during this turn.
                loop.call_soon(loop.call_soon, self._begin)


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def turns() -> Turns:
    """Return the queue of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = Turns(loop)
    return found
