"""The lowest of many numbers that only rise, such as the positions of readers.

Invariants:

- `lowest` takes logarithmic time for each item that was the lowest and has risen since, and no time
  for the other items;
- the memory is at most a few times the number of items.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Generic, TypeVar

__all__ = ["Lowest"]

T = TypeVar("T")

_SLACK: Final = 2  # entries of removed items to tolerate; they keep websockets alive


class Lowest(Generic[T]):
    """Items, each with a number that its owner may change at any time.

    Parameters
    ----------
    read : callable
        Returns the number of an item. A number may only rise; add the item again after it fell.
    """

    __slots__ = ("_entries", "_heap", "_read", "_tickets")

    def __init__(self, read: Callable[[T], int]) -> None:
        self._read = read
        # Each item has one valid entry, which has its ticket. The number in an entry is the one at
        # the time of its creation; it may have risen since.
        self._heap: list[tuple[int, int, T]] = []
        self._tickets: dict[T, int] = {}
        self._entries = 0  # total number of entries created

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, item: T) -> None:
        """Add an item, or note that its number has fallen."""
        self._entries += 1
        self._tickets[item] = self._entries
        heappush(self._heap, (self._read(item), self._entries, item))
        self._sweep()

    def discard(self, item: T) -> None:
        """Remove an item, if it is there."""
        if self._tickets.pop(item, None) is not None:
            self._sweep()

    def lowest(self) -> int | None:
        """Return the lowest number; None if there are no items."""
        heap, tickets = self._heap, self._tickets
        while heap:
            number, ticket, item = heap[0]
            if tickets.get(item) != ticket:
                heappop(heap)
                continue
            now = self._read(item)
            if now <= number:
                return now
            heapreplace(heap, (now, ticket, item))
        return None

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._tickets) + _SLACK:
            self._heap = [e for e in self._heap if self._tickets.get(e[2]) == e[1]]
            heapify(self._heap)
