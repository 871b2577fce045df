import asyncio
import logging

from kbridge.errors import Busy, KernelStartError
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.restarter import RestartDecision, Restarter, RestartPolicy
from tests.support.waiting import TIMEOUT

LOG = logging.getLogger()


class Process:
    """A process that has ended, and that cannot be restarted."""

    kernel_id = "k"
    closing = False
    in_queue = ""  # why a job ended in the queue
    restarts = True

    def __init__(self, lease: Lease | None = None) -> None:
        self.manager = self  # which waits for the end
        self.lease = lease or Lease()
        self.new_ports: list[bool] = []
        self.announced = asyncio.Event()
        self.dead = asyncio.Event()
        self.reason = ""

    async def leave_queue(self) -> bool:
        if self.in_queue:
            raise KernelStartError(self.in_queue)
        return False

    async def may_restart(self) -> bool:
        return self.restarts

    async def exit_description(self) -> str:
        return "it ended"

    async def wait_exit(self, interval: float) -> None:
        await asyncio.sleep(0)

    async def restart_after_exit(self, *, new_ports: bool) -> None:
        self.new_ports.append(new_ports)
        raise KernelStartError("no such program")

    async def announce_exit(self) -> None:
        self.announced.set()

    def mark_dead(self, reason: str) -> None:
        self.reason = reason
        self.dead.set()


class RunningProcess(Process):
    async def wait_exit(self, interval: float) -> None:
        await asyncio.Event().wait()


def test_a_kernel_that_never_ran_stably_gets_new_ports_until_the_limit():
    policy = RestartPolicy(limit=2, stable_time=10, started=0)
    for now in (1, 2):
        assert policy.exited(now) is RestartDecision.NEW_PORTS
        policy.restarted(now)
    assert policy.exited(3) is RestartDecision.GIVE_UP


def test_a_stable_kernel_keeps_its_ports_and_the_count_starts_from_zero():
    policy = RestartPolicy(limit=1, stable_time=10, started=0)
    for now in (10, 20, 31):
        assert policy.exited(now) is RestartDecision.RESTART
        policy.restarted(now)
    assert policy.exited(40) is RestartDecision.GIVE_UP


def test_limit_zero_never_restarts():
    policy = RestartPolicy(limit=0, stable_time=10, started=0)
    assert policy.exited(100) is RestartDecision.GIVE_UP


async def test_failed_restarts_count_toward_the_limit(caplog):
    process = Process()
    policy = RestartPolicy(limit=3, stable_time=1000, started=asyncio.get_running_loop().time())
    restarter = Restarter(process, policy, interval=1.0, log=LOG)
    async with asyncio.timeout(TIMEOUT):
        await process.dead.wait()
    await restarter.aclose()
    assert process.new_ports == [True] * 3
    assert not process.announced.is_set()
    assert caplog.text.count("no such program") == 3


async def test_a_job_that_ended_in_the_queue_is_dead_with_its_reason():
    process = Process()
    process.in_queue = "job 1 was cancelled"
    policy = RestartPolicy(limit=3, stable_time=10, started=0)
    restarter = Restarter(process, policy, interval=1.0, log=LOG)
    async with asyncio.timeout(TIMEOUT):
        await process.dead.wait()
    await restarter.aclose()
    assert process.reason == "job 1 was cancelled"
    assert not process.new_ports


async def test_an_end_that_was_meant_is_final():
    process = Process()
    process.restarts = False
    policy = RestartPolicy(limit=3, stable_time=10, started=0)
    restarter = Restarter(process, policy, interval=1.0, log=LOG)
    async with asyncio.timeout(TIMEOUT):
        await process.dead.wait()
    await restarter.aclose()
    assert process.reason == "it ended"
    assert not process.new_ports


async def test_aclose_stops_the_watch():
    process = RunningProcess()
    policy = RestartPolicy(limit=3, stable_time=10, started=0)
    restarter = Restarter(process, policy, interval=1.0, log=LOG)
    await asyncio.sleep(0)
    await restarter.aclose()
    await restarter.aclose()
    assert not process.new_ports
    assert not process.dead.is_set()


async def test_without_a_lease_it_announces_the_end_and_restarts_later():
    process = Process(Lease(0.03, lambda: 0.0))
    policy = RestartPolicy(limit=1, stable_time=1000, started=asyncio.get_running_loop().time())
    restarter = Restarter(process, policy, interval=1.0, log=LOG)
    async with asyncio.timeout(TIMEOUT):
        await process.announced.wait()
        await asyncio.sleep(0)
        assert not process.new_ports
        assert not process.dead.is_set()
        process.lease.renewed(0.0)
        await process.dead.wait()
    await restarter.aclose()
    assert process.new_ports == [True]


async def test_an_attempt_that_the_lease_forbids_is_not_counted():
    process = Process()
    attempts = []

    async def restart_after_exit(*, new_ports: bool) -> None:
        attempts.append(new_ports)
        raise Busy("no lease") if len(attempts) < 3 else KernelStartError("no such program")

    process.restart_after_exit = restart_after_exit  # type: ignore[method-assign]
    policy = RestartPolicy(limit=1, stable_time=1000, started=asyncio.get_running_loop().time())
    restarter = Restarter(process, policy, interval=0.001, log=LOG)
    async with asyncio.timeout(TIMEOUT):
        await process.dead.wait()
    await restarter.aclose()
    assert attempts == [True] * 3


async def test_a_renewal_that_comes_soon_prevents_the_announcement():
    process = Process(Lease(TIMEOUT, lambda: 0.0))
    policy = RestartPolicy(limit=1, stable_time=1000, started=asyncio.get_running_loop().time())
    restarter = Restarter(process, policy, interval=1.0, log=LOG)
    await asyncio.sleep(0)
    process.lease.renewed(0.0)
    async with asyncio.timeout(TIMEOUT):
        await process.dead.wait()
    await restarter.aclose()
    assert process.new_ports == [True]
    assert not process.announced.is_set()
