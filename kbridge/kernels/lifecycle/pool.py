"""Kernels started in advance, which a client gets without waiting for an interpreter to start.

Invariants:

- per kernelspec at most `size` kernels wait, and one is being started;
- a kernel either waits here or belongs to the caller that took it, never both;
- the delay after failed starts, and after kernels that die soon, doubles up to a limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from kbridge.errors import KbridgeError
from kbridge.kernels.lifecycle.factory import KernelFactory
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.tasks import spawn, stop

__all__ = ["Pool", "backoff_delay"]

# The death of a kernel that has waited this many seconds says nothing about the next kernel.
_STABLE_TIME = 10.0


def backoff_delay(failures: int, first: float, limit: float) -> float:
    """Return the delay in seconds after `failures` consecutive failures, at least one."""
    return min(first * 2.0 ** min(failures - 1, 16), limit)


@dataclass(slots=True)
class _Waiting:
    kernel: StartedKernel
    since: float
    watch: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Slot:
    """The pool of one kernelspec."""

    name: str
    size: int
    waiting: deque[_Waiting] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0


class Pool:
    """Waiting kernels, by the name of their kernelspec.

    Parameters
    ----------
    factory : KernelFactory
        Starts the kernels.
    log : logging.Logger
        The logger for starts that fail and kernels that die.
    backoff, backoff_limit : float
        Seconds between a first failure and the next start, and the maximum of that delay.
    lease : Lease, optional
        No kernel is started while it is not held.
    """

    def __init__(
        self,
        factory: KernelFactory,
        log: logging.Logger,
        *,
        backoff: float = 1.0,
        backoff_limit: float = 60.0,
        lease: Lease | None = None,
    ) -> None:
        self._factory = factory
        self._log = log
        self._backoff = backoff
        self._backoff_limit = backoff_limit
        self._lease = lease or Lease()
        self._slots: dict[str, _Slot] = {}
        self._readopted: list[StartedKernel] = []
        self._fillers: list[asyncio.Task[None]] = []
        self._watches: set[asyncio.Task[None]] = set()

    def readopt(self, kernel: StartedKernel) -> None:
        """Keep a kernel that waited in the pool of an earlier server; `open` decides about it."""
        self._readopted.append(kernel)

    def open(self, plan: Mapping[str, tuple[int, str]]) -> list[StartedKernel]:
        """Begin to start kernels, in the background.

        Parameters
        ----------
        plan : mapping of str to (int, str)
            The number of waiting kernels, and their fingerprint, by the name of the kernelspec.

        Returns
        -------
        list of StartedKernel
            Kernels of an earlier server that do not fit; they belong to the caller.
        """
        self._slots = {name: _Slot(name, size) for name, (size, _) in plan.items() if size > 0}
        readopted, self._readopted = self._readopted, []
        surplus = []
        for kernel in readopted:
            slot = self._slots.get(kernel.kernel_name)
            fits = slot is not None and kernel.pool_fingerprint == plan[slot.name][1]
            if slot is not None and fits and len(slot.waiting) < slot.size:
                self._put(slot, kernel)
            else:
                surplus.append(kernel)
        self._fillers = [spawn(self._fill(slot), self._log) for slot in self._slots.values()]
        return surplus

    def waiting(self, name: str) -> int:
        """Return how many kernels of a kernelspec wait."""
        slot = self._slots.get(name)
        return len(slot.waiting) if slot is not None else 0

    def failures(self, name: str) -> int:
        """Return how many consecutive kernels of a kernelspec did not start or died soon."""
        slot = self._slots.get(name)
        return slot.failures if slot is not None else 0

    async def take(self, name: str) -> StartedKernel | None:
        """Take the kernel that has waited longest, or None; another one is started at once."""
        slot = self._slots.get(name)
        while slot is not None and slot.waiting:
            entry = slot.waiting.popleft()
            slot.changed.set()
            await stop(entry.watch)
            if await entry.kernel.is_alive() and not entry.kernel.ended:
                slot.failures = 0
                return entry.kernel
            await self._died(slot, entry)
        return None

    async def drain(self) -> list[StartedKernel]:
        """Start no more kernels, and return those that nobody uses: they belong to the caller."""
        await stop(*self._fillers)
        entries = [entry for slot in self._slots.values() for entry in slot.waiting]
        for slot in self._slots.values():
            slot.waiting.clear()
        await stop(*(entry.watch for entry in entries))
        # The remaining tasks discard dead kernels; their errors have been logged.
        await asyncio.gather(*self._watches, return_exceptions=True)
        readopted, self._readopted = self._readopted, []
        return [*readopted, *(entry.kernel for entry in entries)]

    async def _fill(self, slot: _Slot) -> None:
        while True:
            slot.changed.clear()
            if len(slot.waiting) >= slot.size:
                await slot.changed.wait()
                continue
            if slot.failures:
                delay = backoff_delay(slot.failures, self._backoff, self._backoff_limit)
                await asyncio.sleep(delay)
            await self._lease.wait()
            try:
                kernel = await self._factory.launch_for_pool(slot.name)
            except KbridgeError as error:
                slot.failures += 1
                self._log.warning("A kernel for the pool of %s did not start: %s", slot.name, error)
                continue
            self._put(slot, kernel)

    def _put(self, slot: _Slot, kernel: StartedKernel) -> None:
        entry = _Waiting(kernel, time.monotonic())
        entry.watch = spawn(self._watch(slot, entry), self._log)
        self._watches.add(entry.watch)
        entry.watch.add_done_callback(self._watches.discard)
        slot.waiting.append(entry)

    async def _watch(self, slot: _Slot, entry: _Waiting) -> None:
        await entry.kernel.wait_exit()
        slot.waiting.remove(entry)
        await self._died(slot, entry)

    async def _died(self, slot: _Slot, entry: _Waiting) -> None:
        if entry.kernel.ended:  # another replica has taken it
            slot.changed.set()
            return
        soon = time.monotonic() - entry.since < _STABLE_TIME
        slot.failures = slot.failures + 1 if soon else 0
        slot.changed.set()
        self._log.warning("A kernel that waited in the pool of %s died", slot.name)
        await entry.kernel.discard(keep_log=True)
