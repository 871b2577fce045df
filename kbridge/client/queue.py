"""A queue that is bounded in bytes: a producer waits while the consumer does not read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["BoundedQueue", "Demand"]

T = TypeVar("T")

_STALLED_S = 1.0


class Demand:
    """Counts the callers that wait for something that a producer has not given yet.

    The producer of several queues shares one with all of them, so that it does not wait for the
    reader of one queue while that reader waits for another.

    Parameters
    ----------
    patience : float
        Seconds for which the producer waits although somebody waits for it.
    """

    def __init__(self, patience: float = _STALLED_S) -> None:
        self.patience = patience
        self.waiting = 0
        self.changed = asyncio.Event()  # for the producer

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count one more caller that waits."""
        self.waiting += 1
        self.changed.set()
        try:
            yield
        finally:
            self.waiting -= 1


class BoundedQueue(Generic[T]):
    """A queue with one producer and one consumer.

    Parameters
    ----------
    limit : int
        Bytes above which `put` waits. One item may be larger.
    demand : Demand, optional
        That of all queues of the producer. While somebody waits for the producer and this queue is
        not read, the queue exceeds the limit.
    """

    def __init__(self, limit: int, demand: Demand | None = None) -> None:
        self._limit = limit
        self._demand = demand or Demand()
        self._exceeds = False  # True until there is room again
        self._items: deque[tuple[T, int]] = deque()
        self._nbytes = 0
        self._closed = False
        self._changed = asyncio.Event()

    async def put(self, item: T, nbytes: int) -> None:
        """Append an item as soon as there is room; ignore it after `discard` and `end`."""
        while self._nbytes >= self._limit and not self._closed:
            if self._exceeds and self._demand.waiting:
                break
            await self._wait_for_room()
        else:
            self._exceeds = False
        if not self._closed:
            self._items.append((item, nbytes))
            self._nbytes += nbytes
            self._changed.set()

    async def get(self) -> T | None:
        """Remove and return the first item; None after the end."""
        while not self._items:
            if self._closed:
                return None
            self._changed.clear()
            with self._demand.wait():
                await self._changed.wait()
        item, nbytes = self._items.popleft()
        self._nbytes -= nbytes
        self._demand.changed.set()
        return item

    def put_back(self, items: Iterable[T]) -> None:
        """Insert items that were taken and not used before the others; without a limit."""
        self._items.extendleft((item, 0) for item in reversed(list(items)))

    def discard(self) -> None:
        """Drop all items, and those that will be put."""
        self._closed = True
        self._items.clear()
        self._nbytes = 0
        self._wake()

    def end(self) -> None:
        """Ignore further items; those in the queue can be read."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._demand.changed.set()

    async def _wait_for_room(self) -> None:
        demand = self._demand
        demand.changed.clear()
        if not demand.waiting:
            await demand.changed.wait()
            return
        try:
            async with asyncio.timeout(demand.patience):
                await demand.changed.wait()
        except TimeoutError:
            self._exceeds = True
