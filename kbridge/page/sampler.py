"""One sampler for all browsers that watch a server.

Invariants:

- the sampler runs while at least one watcher is there, and only then;
- a sample is rendered once, however many watchers there are, and other work of the event loop comes
  between two kernels;
- a watcher receives the newest sample: the changes if it has the sample before, and all of it
  otherwise. Nothing is queued for a watcher that reads slowly: it skips the samples that were made
  in the meantime.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from tornado.log import app_log

from kbridge._version import __version__
from kbridge.hub.clock import Clock
from kbridge.hub.table import HubTable
from kbridge.kernels.users import OPERATOR, User
from kbridge.page.processes import ProcessMeter, Usage
from kbridge.page.readings import read_hub
from kbridge.page.sample import Sample, SampleBuilder

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["INTERVAL", "Sampler", "Source", "Watcher"]

INTERVAL: Final = 1.0
"""Seconds between two samples."""

_SERVER: Final = ""  # the name of this process; kernels have ids


class Source(ABC):
    """The kernels that a sampler reads; each server implements it."""

    @property
    @abstractmethod
    def table(self) -> HubTable | None:
        """The hubs; None if there are none yet."""

    @abstractmethod
    def kernels(self) -> list[tuple[str, str, str]]:
        """Return id, kernelspec and state of each kernel, starting and pooled ones included."""

    @abstractmethod
    def pids(self) -> Mapping[str, int]:
        """Return the process ids of the kernels on this machine, by kernel id."""

    def owners(self) -> Mapping[str, str]:
        """Return the URL of the replica that owns each kernel, by kernel id; empty without one."""
        return {}

    def users(self) -> Mapping[str, str]:
        """Return the names of the users who started kernels, by kernel id; empty without users."""
        return {}

    def reasons(self) -> Mapping[str, str]:
        """Return why kernels wait in a queue, or are dead, by kernel id, where that is known."""
        return {}

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return more figures of the server."""


class Watcher:
    """One browser; see `Sampler.watch`."""

    def __init__(self, sampler: Sampler, user: User) -> None:
        self._sampler = sampler
        self._user = user
        self._seen = 0
        self._ended = False

    async def next(self) -> bytes | None:
        """Wait for a sample that this watcher has not received; None if there will be no more.

        Returns
        -------
        bytes or None
            JSON in one line; docs/page.md describes it.
        """
        found = await self._sampler.newer(self._seen)
        if found is None or self._ended:
            return None
        before, (self._seen, sample) = self._seen, found
        sample = sample.of(self._user)
        return sample.changes if before and self._seen == before + 1 else sample.whole

    def end(self) -> None:
        """Let `next` return None, in place of the next sample."""
        self._ended = True

    def leave(self) -> None:
        """Watch no longer; may be called twice."""
        self._sampler.remove(self)


class Sampler:
    """Samples a server once per second while somebody watches.

    Parameters
    ----------
    source : Source
        The server.
    clock : Clock
        The source of the time.
    pause : callable
        Waits for a number of seconds.
    """

    def __init__(
        self,
        source: Source,
        clock: Clock | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._clock = clock or Clock()
        self._pause = pause
        self._meter = ProcessMeter()
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._number = 0
        self._content: Sample | None = None
        self._builder = SampleBuilder()
        self._news = asyncio.Event()
        self._closed = False
        self._unreadable: set[str] = set()  # kernels without figures, which the log names once
        # When each kernel was read last, and its messages and bytes at that time.
        self._before: dict[str, tuple[float, int, int]] = {}

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return len(self._watchers)

    @property
    def running(self) -> bool:
        """True if samples are made."""
        return self._task is not None

    @property
    def number(self) -> int:
        """The number of samples so far."""
        return self._number

    def watch(self, user: User = OPERATOR) -> Watcher:
        """Return a new watcher, which must `leave`; the first one starts the sampler."""
        watcher = Watcher(self, user)
        self._watchers.add(watcher)
        if self._task is None and not self._closed:
            # Rates are of the time in which somebody watches. The thread of the former meter may
            # still run.
            self._before = {}
            self._meter = ProcessMeter(self._clock.monotonic)
            self._unreadable.clear()
            self._builder = SampleBuilder()
            self._content = None  # nobody receives the sample of an earlier time
            # In an empty context, the task keeps no request alive.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), context=contextvars.Context())
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Remove a watcher; the last one stops the sampler."""
        self._watchers.discard(watcher)
        if not self._watchers:
            self._stop()

    async def newer(self, seen: int) -> tuple[int, Sample] | None:
        """Return the number of a sample after number `seen`, and the sample."""
        while not self._closed:
            if self._number != seen and self._content is not None:
                return self._number, self._content
            await self._news.wait()
        return None

    async def aclose(self) -> None:
        """Stop, and let all watchers go; may be called twice."""
        self._closed = True
        self._stop()
        self._wake()
        while self._ending:
            await asyncio.wait(self._ending)

    def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _run(self) -> None:
        failing = False
        while True:
            try:
                content = await self._sample()
            except Exception:  # noqa: BLE001 - the next sample may succeed
                self._builder.discard()
                if not failing:
                    app_log.exception("the live view could not be sampled")
                failing = True
            else:
                failing = False
                self._number += 1
                self._content = content
                self._wake()
            await self._pause(INTERVAL)

    async def _sample(self) -> Sample:
        source, builder = self._source, self._builder
        pids = {_SERVER: os.getpid(), **source.pids()}
        usages = await asyncio.to_thread(self._meter.measure, pids, {_SERVER})
        table = source.table
        found: dict[str, tuple[float, int, int]] = {}
        owners, users, reasons = source.owners(), source.users(), source.reasons()
        for kernel_id, name, state in source.kernels():
            await asyncio.sleep(0)
            kernel: dict[str, Any] = {"id": kernel_id, "name": name, "state": state}
            hub = table.get(kernel_id) if table is not None else None
            figures = self._read(kernel_id, hub) if hub is not None else None
            if figures is not None:
                count = (self._clock.monotonic(), figures.pop("frames"), figures.pop("bytes"))
                found[kernel_id] = count
                kernel |= figures | _rates(count, self._before.get(kernel_id))
            kernel |= _usage(usages.get(kernel_id))
            if kernel_id in reasons:
                kernel["reason"] = reasons[kernel_id]
            if kernel_id in owners:
                kernel["replica"] = owners[kernel_id]
            user = users.get(kernel_id, "")
            if user:
                kernel["user"] = user
            builder.add(kernel, user)
        self._before = found
        server = {
            "now": self._clock.wall(),
            "version": __version__,
            **source.facts(),
            **_usage(usages.get(_SERVER)),
            "journals": table.journal_statistics() if table is not None else {},
        }
        return builder.finish(server)

    def _read(self, kernel_id: str, hub: Hub) -> dict[str, Any] | None:
        """Return the figures of a kernel; None if reading them fails, which others survive."""
        try:
            figures = read_hub(hub)
        except Exception:  # noqa: BLE001 - the other kernels have figures
            if kernel_id not in self._unreadable:
                app_log.exception("the live view has no figures of kernel %s", kernel_id)
            self._unreadable.add(kernel_id)
            return None
        self._unreadable.discard(kernel_id)
        return figures


def _rates(
    count: tuple[float, int, int], before: tuple[float, int, int] | None
) -> dict[str, float]:
    passed, *counts = (new - old for new, old in zip(count, before or count, strict=True))
    if passed <= 0:
        return {"messages_per_second": 0.0, "bytes_per_second": 0.0}
    messages, nbytes = (max(0, each) / passed for each in counts)
    return {"messages_per_second": round(messages, 1), "bytes_per_second": round(nbytes)}


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    cpu = None if usage.cpu is None else round(usage.cpu, 4)
    return {"cpu": cpu, "rss": usage.memory, "processes": usage.processes}
