"""A server with kernels in memory, and a clock and pauses that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from kbridge.hub.hub import Hub
from kbridge.hub.table import HubTable
from kbridge.page.sampler import Sampler, Source
from tests.hub.rig import INFO, KEY, StoppedClock
from tests.support.execution_script import ExecutionScript
from tests.support.memory import MemoryKernels


class MemorySource(Source):
    """A server with one kernel in memory, and a second one that starts."""

    def __init__(self, clock: StoppedClock) -> None:
        self.links = MemoryKernels()
        self.hubs = HubTable(link=self.links, clock=clock)
        self.hub: Hub = self.hubs.open("a-kernel", INFO)
        self.script = ExecutionScript(self.hub, self.links.latest, KEY)
        self.more: dict[str, Any] = {"started": 5.0}
        self.fails = False
        self.why: dict[str, str] = {}

    @property
    def table(self) -> HubTable:
        return self.hubs

    def kernels(self) -> list[tuple[str, str, str]]:
        if self.fails:
            raise RuntimeError("on purpose")
        state = self.hub.activity.execution_state
        return [("a-kernel", "python3", state), ("another", "ir", "starting")]

    def pids(self) -> Mapping[str, int]:
        return {}

    def reasons(self) -> Mapping[str, str]:
        return self.why

    def facts(self) -> Mapping[str, Any]:
        return self.more


class Site:
    """A sampler whose next sample is made when a test says so."""

    def __init__(self) -> None:
        self.clock = StoppedClock()
        self.source = MemorySource(self.clock)
        self._turns = asyncio.Semaphore(0)
        self.pauses: list[float] = []
        self.sampler = Sampler(self.source, self.clock, self._pause)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self._turns.acquire()

    def go_on(self, seconds: float = 1.0) -> None:
        """Let the next sample be made, some seconds later."""
        self.clock.now += seconds
        self._turns.release()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    await made.sampler.aclose()
    await made.source.hubs.aclose()
