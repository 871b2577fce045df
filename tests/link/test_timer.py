"""A periodic timer with a manual clock."""

from __future__ import annotations

import asyncio

import pytest

from kbridge.link import timer as timer_module
from kbridge.link.timer import PeriodicTimer
from tests.support.waiting import TIMEOUT


class Calls:
    """Count calls, and wait for them."""

    def __init__(self, fails: bool = False) -> None:
        self.count = 0
        self.fails = fails
        self._changed = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._changed.set()
        if self.fails:
            raise RuntimeError("boom")

    async def until(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT):
            while self.count < count:
                self._changed.clear()
                await self._changed.wait()


async def test_a_timer_calls_repeatedly_until_it_is_stopped() -> None:
    calls = Calls()
    timer = PeriodicTimer(calls, 0.001)
    timer.start()
    timer.start()
    await calls.until(3)
    timer.stop()
    timer.stop()
    seen = calls.count
    later = Calls()
    other = PeriodicTimer(later, 0.001)
    other.start()
    await later.until(5)
    other.stop()
    assert calls.count == seen


async def test_a_timer_can_be_restarted_and_stopped_by_its_callback() -> None:
    done = asyncio.Event()

    def once() -> None:
        timer.stop()
        done.set()

    timer = PeriodicTimer(once, 0.001)
    for _ in range(2):
        timer.start()
        async with asyncio.timeout(TIMEOUT):
            await done.wait()
        done.clear()


async def test_an_error_of_the_callback_is_logged_and_the_timer_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = Calls(fails=True)
    timer = PeriodicTimer(calls, 0.001)
    timer.start()
    await calls.until(2)
    timer.stop()
    assert "RuntimeError: boom" in caplog.text


async def test_the_interval_varies_by_the_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    delays: list[float] = []

    def call_later(delay: float, callback: object) -> asyncio.Handle:
        delays.append(delay)
        return loop.call_soon(lambda: None)

    monkeypatch.setattr(loop, "call_later", call_later)
    for value in (0.0, 0.5, 1.0):
        monkeypatch.setattr(timer_module.random, "random", lambda value=value: value)
        PeriodicTimer(lambda: None, 30.0, jitter=0.1).start()
    assert delays == [28.5, 30.0, 31.5]
