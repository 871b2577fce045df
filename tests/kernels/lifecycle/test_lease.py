"""The lease of a replica, on a clock of the test."""

from __future__ import annotations

import asyncio

import pytest

from kbridge.errors import Busy
from kbridge.kernels.lifecycle.lease import Lease, elapsed
from tests.support.waiting import TIMEOUT


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_server_without_a_cluster_holds_it_forever(clock):
    lease = Lease(clock=clock)
    clock.now = 1e12
    assert lease.held
    lease.check()


def test_it_is_held_for_less_than_its_duration_from_the_moment_it_was_asked_for(clock):
    lease = Lease(10.0, clock)
    assert not lease.held
    sent = lease.now()
    clock.now += 4.0  # the answer takes long
    lease.renewed(sent)
    assert lease.held
    clock.now = 108.99
    assert lease.held
    clock.now = 109.0
    assert not lease.held
    with pytest.raises(Busy, match="lost its lease"):
        lease.check()


def test_an_answer_that_is_too_late_gives_nothing(clock):
    lease = Lease(10.0, clock)
    sent = lease.now()
    clock.now += 30.0
    lease.renewed(sent)
    assert not lease.held


def test_an_old_answer_does_not_shorten_it(clock):
    lease = Lease(10.0, clock)
    lease.renewed(105.0)
    lease.renewed(100.0)
    clock.now = 113.0
    assert lease.held


def test_it_is_renewed_three_times_in_its_duration(clock):
    assert Lease(6.0, clock).interval == 2.0


def test_it_can_be_given_up(clock):
    lease = Lease(10.0, clock)
    lease.renewed(100.0)
    lease.end()
    assert not lease.held


async def test_those_that_wait_go_on_once_it_is_held(clock):
    lease = Lease(10.0, clock)
    waiting = [asyncio.create_task(lease.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    lease.renewed(0.0)  # over before it came
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    lease.renewed(clock.now)
    await asyncio.wait_for(asyncio.gather(*waiting), TIMEOUT)
    await asyncio.wait_for(lease.wait(), TIMEOUT)


async def test_a_request_waits_for_the_next_renewal_and_no_longer(clock):
    lease = Lease(0.03, clock)
    request = asyncio.create_task(lease.ensure())
    await asyncio.sleep(0)
    lease.renewed(clock.now)
    await asyncio.wait_for(request, TIMEOUT)
    lease.end()
    with pytest.raises(Busy, match="lost its lease"):
        await asyncio.wait_for(lease.ensure(), TIMEOUT)
    await Lease(clock=clock).ensure()


def test_the_clock_of_a_process_goes_forward():
    first = elapsed()
    assert elapsed() >= first
