"""The nudge's driver, on a clock that stands still; only its timers are the loop's."""

import asyncio

import pytest

from kbridge.errors import HubClosed
from kbridge.flow.readiness import Decision
from kbridge.hub.kernel.nudge import Nudge
from tests.hub.rig import StoppedClock


class Side:
    def __init__(self, timeout: float = 60.0) -> None:
        self.clock = StoppedClock()
        self.probes = 0
        self.decisions: list[Decision] = []
        self.probed = asyncio.Event()
        self.nudge = Nudge(self.clock, timeout, self._probe, self.decisions.append)

    def _probe(self) -> None:
        self.probes += 1
        self.probed.set()

    def prove(self) -> None:
        self.nudge.stdin(up=True)
        self.nudge.replied()
        self.nudge.heard()


@pytest.fixture
async def side():
    made = Side()
    yield made
    made.nudge.close()


@pytest.fixture
async def impatient():
    made = Side(timeout=0.0)
    yield made
    made.nudge.close()


async def test_nothing_is_asked_before_it_begins(side) -> None:
    assert (side.probes, side.nudge.ready, side.nudge.proven) == (0, False, False)
    side.nudge.begin()
    assert side.probes == 1


async def test_a_reply_and_a_word_on_iopub_are_told_once_and_end_the_probes(side) -> None:
    side.nudge.begin()
    side.nudge.replied()
    assert not side.nudge.ready
    side.nudge.heard()
    side.prove()
    assert (side.nudge.ready, side.nudge.proven, len(side.decisions)) == (True, True, 1)
    assert side.probes == 1


async def test_a_welcome_is_enough(side) -> None:
    side.nudge.begin()
    side.nudge.stdin(up=True)
    side.nudge.heard(welcome=True)
    assert side.nudge.proven


async def test_a_kernel_whose_stdin_is_not_connected_is_not_ready(side) -> None:
    side.nudge.begin()
    side.nudge.heard(welcome=True)
    assert not side.nudge.ready
    side.nudge.stdin(up=True)
    assert (side.nudge.ready, len(side.decisions)) == (True, 1)
    side.nudge.stdin(up=False)
    assert not side.nudge.ready
    side.nudge.stdin(up=True)
    assert (side.nudge.ready, len(side.decisions)) == (True, 2)


async def test_it_asks_again_by_itself(side) -> None:
    side.nudge.begin()
    side.probed.clear()
    side.clock.now += 10  # so that whatever the timer, the next probe is due
    async with asyncio.timeout(20):
        await side.probed.wait()
    assert side.probes == 2


async def test_a_connection_that_is_lost_is_proven_anew_and_told_anew(side) -> None:
    side.nudge.begin()
    side.prove()
    side.nudge.disconnected()
    assert not side.nudge.ready
    side.prove()
    assert not side.nudge.ready, "the old side's words prove nothing of the new one"
    side.nudge.connected()
    side.prove()
    assert (side.nudge.ready, len(side.decisions)) == (True, 2)


async def test_a_kernel_that_is_not_linked_is_not_ready(side) -> None:
    side.nudge.begin()
    side.prove()
    side.nudge.stop()
    assert not side.nudge.ready


async def test_time_runs_out(impatient) -> None:
    nudge = impatient.nudge
    nudge.begin()
    assert (nudge.ready, nudge.timed_out, nudge.proven) == (True, True, False)
    assert await nudge.wait(None) is False
    assert [d.timed_out for d in impatient.decisions] == [True]


async def test_a_slow_kernel_is_not_given_up_on_for_ever(side) -> None:
    side.nudge.begin()
    side.clock.now += 61
    side.nudge.replied()
    assert (side.nudge.timed_out, [d.timed_out for d in side.decisions]) == (True, [True])
    side.nudge.heard()
    assert (side.nudge.timed_out, [d.timed_out for d in side.decisions]) == (False, [True, False])
    assert await side.nudge.wait(None) is True


async def test_whoever_waits_is_told(side) -> None:
    side.nudge.begin()
    waits = [asyncio.ensure_future(side.nudge.wait(None)) for _ in range(2)]
    await asyncio.sleep(0)
    side.prove()
    assert await asyncio.gather(*waits) == [True, True]
    assert await side.nudge.wait(None) is True


async def test_whoever_waits_too_long_is_told_no(side) -> None:
    side.nudge.begin()
    assert await side.nudge.wait(0) is False


async def test_close_tells_whoever_waits_and_whoever_comes_later(side) -> None:
    side.nudge.begin()
    waits = asyncio.ensure_future(side.nudge.wait(None))
    await asyncio.sleep(0)
    side.nudge.close()
    side.nudge.close()
    for waiting in (waits, side.nudge.wait(None)):
        with pytest.raises(HubClosed):
            async with asyncio.timeout(20):
                await waiting
