import asyncio
import logging

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle.restarter import Attempts, Restarter, Verdict

LOG = logging.getLogger()


def test_a_kernel_that_never_ran_stably_gets_new_ports_until_the_limit():
    attempts = Attempts(limit=2, stable_time=10, started=0)
    for now in (1, 2):
        assert attempts.died(now) is Verdict.RESTART_ELSEWHERE
        attempts.restarted(now)
    assert attempts.died(3) is Verdict.GIVE_UP


def test_a_stable_kernel_keeps_its_ports_and_counts_anew():
    attempts = Attempts(limit=1, stable_time=10, started=0)
    for now in (10, 20, 31):
        assert attempts.died(now) is Verdict.RESTART
        attempts.restarted(now)
    assert attempts.died(40) is Verdict.GIVE_UP


def test_limit_zero_never_restarts():
    assert Attempts(limit=0, stable_time=10, started=0).died(100) is Verdict.GIVE_UP


async def test_a_restart_that_fails_counts_and_the_limit_ends_it(caplog):
    gave_up = asyncio.Event()
    ports = []

    async def died():
        await asyncio.sleep(0)

    async def restart(newports):
        ports.append(newports)
        raise KernelStartError("no such program")

    restarter = Restarter(died=died, restart=restart, give_up=gave_up.set, limit=3, log=LOG)
    async with asyncio.timeout(20):
        await gave_up.wait()
    await restarter.aclose()
    assert ports == [True] * 3
    assert caplog.text.count("no such program") == 3


async def test_closing_ends_the_watch():
    async def died():
        await asyncio.Event().wait()

    async def restart(newports):
        raise AssertionError

    restarter = Restarter(died=died, restart=restart, give_up=lambda: None, log=LOG)
    await restarter.aclose()
    await restarter.aclose()
