from __future__ import annotations

import asyncio

from kbridge.metrics.loop_lag import LoopLag
from tests.support.waiting import TIMEOUT


async def test_the_lateness_of_the_timer_is_observed() -> None:
    """The clock jumps by 0.5 s and 0.2 s: the timer was 0.2 s late."""
    times = iter([100.0, 100.7, 100.7])
    observed = asyncio.Event()

    def clock() -> float:
        now = next(times, 100.7)
        if now > 100.0:
            observed.set()
        return now

    lag = LoopLag(clock)
    lag.start()
    lag.start()
    async with asyncio.timeout(TIMEOUT):
        await observed.wait()
    lag.stop()
    lag.stop()
    assert sum(lag.histogram.counts) == 1
    assert 0.19 < lag.histogram.total < 0.21
