"""A queue that is bounded in bytes: a producer waits while the consumer does not read."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

__all__ = ["BoundedQueue"]

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """A queue with one producer and one consumer.

    Parameters
    ----------
    limit : int
        Bytes above which `put` waits. One item may be larger.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[T, int]] = deque()
        self._nbytes = 0
        self._closed = False
        self._changed = asyncio.Event()

    async def put(self, item: T, nbytes: int) -> None:
        """Append an item as soon as there is room; ignore it after `discard` and `end`."""
        while self._nbytes >= self._limit and not self._closed:
            await self._wait()
        if not self._closed:
            self._items.append((item, nbytes))
            self._nbytes += nbytes
            self._changed.set()

    async def get(self) -> T | None:
        """Remove and return the first item; None after the end."""
        while not self._items:
            if self._closed:
                return None
            await self._wait()
        item, nbytes = self._items.popleft()
        self._nbytes -= nbytes
        self._changed.set()
        return item

    def discard(self) -> None:
        """Drop all items, and those that will be put."""
        self._closed = True
        self._items.clear()
        self._nbytes = 0
        self._changed.set()

    def end(self) -> None:
        """Ignore further items; those in the queue can be read."""
        self._closed = True
        self._changed.set()

    async def _wait(self) -> None:
        # One event is enough: producer and consumer never wait at the same time.
        self._changed.clear()
        await self._changed.wait()
