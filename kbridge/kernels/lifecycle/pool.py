"""Kernels started ahead, handed out without the wait for an interpreter to come up.

Invariants: per kernelspec at most `size` kernels wait and one is being started; a kernel is
either waiting here or belongs to whoever took it, never both; starts that fail in a row, and
kernels that die young, are spaced by a delay that doubles up to a limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kbridge.errors import KbridgeError
from kbridge.kernels.tasks import spawn, stop

__all__ = ["Pool"]

K = TypeVar("K")

# A kernel that waited this long before it died tells nothing against the next one.
_STABLE_TIME = 10.0


@dataclass(slots=True)
class _Waiting(Generic[K]):
    kernel: K
    since: float
    watch: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Shelf(Generic[K]):
    name: str
    size: int
    waiting: deque[_Waiting[K]] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0


class Pool(Generic[K]):
    """Waiting kernels by kernelspec name.

    Parameters
    ----------
    sizes : mapping of str to int
        How many kernels wait per kernelspec.
    start : callable
        Starts a kernel of the named spec and returns it when it can be used.
    until_dead : callable
        Returns, awaited, when the kernel's process has ended.
    is_alive : callable
        Whether the kernel's process runs.
    discard : callable
        Clears away a kernel that has died.
    backoff, backoff_limit : float
        Seconds before the start that follows one failure, and the most it grows to.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        start: Callable[[str], Awaitable[K]],
        until_dead: Callable[[K], Awaitable[None]],
        is_alive: Callable[[K], Awaitable[bool]],
        discard: Callable[[K], Awaitable[None]],
        log: logging.Logger,
        backoff: float = 1.0,
        backoff_limit: float = 60.0,
    ) -> None:
        self._start = start
        self._until_dead = until_dead
        self._is_alive = is_alive
        self._discard = discard
        self._log = log
        self._backoff = backoff
        self._backoff_limit = backoff_limit
        self._shelves = {name: _Shelf[K](name, size) for name, size in sizes.items() if size > 0}
        self._fillers: list[asyncio.Task[None]] = []
        self._watches: set[asyncio.Task[None]] = set()

    def open(self, waiting: Iterable[tuple[str, K]] = ()) -> list[K]:
        """Begin to start kernels, in the background.

        Parameters
        ----------
        waiting : iterable of (str, kernel)
            Kernels that wait already, and their kernelspecs' names.

        Returns
        -------
        list
            Those of them that there is no room for: they are the caller's.
        """
        surplus = []
        for name, kernel in waiting:
            shelf = self._shelves.get(name)
            if shelf is not None and len(shelf.waiting) < shelf.size:
                self._put(shelf, kernel)
            else:
                surplus.append(kernel)
        self._fillers = [spawn(self._fill(shelf), self._log) for shelf in self._shelves.values()]
        return surplus

    async def take(self, name: str) -> K | None:
        """Take the kernel that has waited longest, or None; the next one is started at once."""
        shelf = self._shelves.get(name)
        while shelf is not None and shelf.waiting:
            entry = shelf.waiting.popleft()
            shelf.changed.set()
            await stop(entry.watch)
            if await self._is_alive(entry.kernel):
                shelf.failures = 0
                return entry.kernel
            await self._lost(shelf, entry)
        return None

    async def drain(self) -> list[K]:
        """Start no more, and give up the kernels that wait: they are the caller's now."""
        await stop(*self._fillers)
        entries = [entry for shelf in self._shelves.values() for entry in shelf.waiting]
        for shelf in self._shelves.values():
            shelf.waiting.clear()
        await stop(*(entry.watch for entry in entries))
        # Those that are clearing a dead kernel away; what fails of it has been logged.
        await asyncio.gather(*self._watches, return_exceptions=True)
        return [entry.kernel for entry in entries]

    def statistics(self) -> dict[str, dict[str, int]]:
        """Size, waiting kernels and failures in a row, by kernelspec name."""
        return {
            name: {"size": s.size, "waiting": len(s.waiting), "failures": s.failures}
            for name, s in self._shelves.items()
        }

    async def _fill(self, shelf: _Shelf[K]) -> None:
        while True:
            shelf.changed.clear()
            if len(shelf.waiting) >= shelf.size:
                await shelf.changed.wait()
                continue
            if shelf.failures:
                delay = self._backoff * 2 ** min(shelf.failures - 1, 16)
                await asyncio.sleep(min(delay, self._backoff_limit))
            try:
                kernel = await self._start(shelf.name)
            except KbridgeError as error:
                shelf.failures += 1
                self._log.warning("The pool of %s: %s", shelf.name, error)
                continue
            self._put(shelf, kernel)

    def _put(self, shelf: _Shelf[K], kernel: K) -> None:
        entry = _Waiting(kernel, time.monotonic())
        entry.watch = spawn(self._watch(shelf, entry), self._log)
        self._watches.add(entry.watch)
        entry.watch.add_done_callback(self._watches.discard)
        shelf.waiting.append(entry)

    async def _watch(self, shelf: _Shelf[K], entry: _Waiting[K]) -> None:
        await self._until_dead(entry.kernel)
        shelf.waiting.remove(entry)
        await self._lost(shelf, entry)

    async def _lost(self, shelf: _Shelf[K], entry: _Waiting[K]) -> None:
        young = time.monotonic() - entry.since < _STABLE_TIME
        shelf.failures = shelf.failures + 1 if young else 0
        shelf.changed.set()
        self._log.warning("The pool of %s: a waiting kernel died", shelf.name)
        await self._discard(entry.kernel)
