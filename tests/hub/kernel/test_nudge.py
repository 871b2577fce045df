"""The driver of the probes, with a manual clock; only its timers use the loop."""

import asyncio
import logging

import pytest

from kbridge.errors import HubClosed
from kbridge.hub.context import HubContext
from kbridge.hub.kernel.nudge import Nudge
from kbridge.hub.notices import Notices
from kbridge.hub.rejected import REJECTED, DroppedMessages
from kbridge.hub.settings import HubSettings
from tests.hub.rig import StoppedClock


class Side:
    """A nudge, and its owner (`NudgeEvents`)."""

    def __init__(self, timeout: float = 60.0) -> None:
        self.clock = StoppedClock()
        self.probes = 0
        self.renewals = 0
        self.proofs: list[bool] = []
        self.probed = asyncio.Event()
        log = logging.getLogger("kbridge.hub")
        self.nudge = Nudge(
            HubContext(
                "a-kernel",
                HubSettings(kernel_info_timeout=timeout),
                self.clock,
                log,
                Notices(self.clock),
                DroppedMessages(REJECTED, "a-kernel", self.clock, log),
            ),
            self,
        )

    def send_probes(self) -> None:
        self.probes += 1
        self.probed.set()

    def renew_sockets(self) -> None:
        self.renewals += 1

    def on_kernel_ready(self, *, proven: bool) -> None:
        self.proofs.append(proven)

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
    assert (side.nudge.ready, side.nudge.proven, len(side.proofs)) == (True, True, 1)
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
    assert (side.nudge.ready, len(side.proofs)) == (True, 1)
    side.nudge.stdin(up=False)
    assert not side.nudge.ready
    side.nudge.stdin(up=True)
    assert (side.nudge.ready, len(side.proofs)) == (True, 2)


async def test_it_asks_again_by_itself(side) -> None:
    side.nudge.begin()
    side.probed.clear()
    side.clock.now += 10  # the next probe is due for any timer
    async with asyncio.timeout(20):
        await side.probed.wait()
    assert side.probes == 2


async def test_a_connection_that_is_lost_is_proven_anew_and_told_anew(side) -> None:
    side.nudge.begin()
    side.prove()
    side.nudge.disconnected()
    assert not side.nudge.ready
    side.prove()
    assert not side.nudge.ready, "messages of the old process do not prove the new one"
    side.nudge.connected()
    side.prove()
    assert (side.nudge.ready, len(side.proofs)) == (True, 2)


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
    assert impatient.proofs == [False]


async def test_a_slow_kernel_is_not_given_up_on_for_ever(side) -> None:
    side.nudge.begin()
    side.clock.now += 61
    side.nudge.replied()
    assert (side.nudge.timed_out, side.proofs) == (True, [False])
    side.nudge.heard()
    assert (side.nudge.timed_out, side.proofs) == (False, [False, True])
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
