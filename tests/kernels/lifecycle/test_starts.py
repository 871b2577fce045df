"""Many kernels that are started at once: a few at a time, and off the event loop."""

import asyncio
import io
import threading

import pytest
from jupyter_client.provisioning import local_provisioner

from kbridge.errors import Busy, InvalidRequest, KernelStartError
from kbridge.kernels import shutdown
from kbridge.kernels.lifecycle.start_limits import StartLimits
from tests.kernels.conftest import FakeProvisioner
from tests.support.waiting import TIMEOUT


async def until(condition):
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - fakes set no event
            await asyncio.sleep(0.01)


def a_start_waits(manager) -> bool:
    """Return True if a start waits for its turn."""
    return bool(manager._limits._slots._waiters)


@pytest.fixture
def counted(monkeypatch):
    """The fake kernels need a slot, as kernels of jupyter_client's own provisioner do."""
    monkeypatch.setattr(StartLimits, "slot", lambda limits, *, local: limits._slots)


async def test_starts_on_other_machines_need_no_slot(make_manager, fake, spec, fleet, hubs):
    manager = make_manager(max_concurrent_starts=1)
    hubs.answering = False
    away = [asyncio.create_task(manager.start_kernel(fake(name))) for name in ("a", "b")]
    await until(lambda: len(hubs.opened) == 2)
    here = [asyncio.create_task(manager.start_kernel(spec(name))) for name in ("c", "d")]
    await until(lambda: len(hubs.opened) == 3 and a_start_waits(manager))
    hubs.opened[2].process.answer()
    await until(lambda: len(hubs.opened) == 4)
    for kernel in hubs.opened:
        kernel.process.answer()
    assert len(set(await asyncio.gather(*away, *here))) == 4


@pytest.mark.usefixtures("counted")
async def test_max_concurrent_starts_limits_starts(make_manager, fake, fleet, hubs):
    manager = make_manager(max_concurrent_starts=2)
    hubs.answering = False
    name = fake()
    starts = [asyncio.create_task(manager.start_kernel(name)) for _ in range(5)]
    await until(lambda: len(hubs.opened) == 2)
    for done in range(1, 6):
        assert len(fleet) == min(done + 1, 5)
        hubs.opened[done - 1].process.answer()
        await until(lambda: sum(start.done() for start in starts) == done)  # noqa: B023
        await until(lambda: len(hubs.opened) == min(done + 2, 5))  # noqa: B023
    assert len({await start for start in starts}) == 5


@pytest.mark.usefixtures("counted")
async def test_max_concurrent_starts_limits_restarts(make_manager, fake, fleet, hubs):
    manager = make_manager(max_concurrent_starts=1)
    name = fake()
    kernel_id = await manager.start_kernel(name)
    hubs.answering = False
    start = asyncio.create_task(manager.start_kernel(name))
    await until(lambda: len(fleet) == 2 and len(hubs.opened) == 2)
    restart = asyncio.create_task(manager.restart_kernel(kernel_id))
    await until(lambda: a_start_waits(manager))
    assert fleet[0].launches == 1
    hubs.answering = True
    hubs.opened[1].process.answer()
    await asyncio.gather(start, restart)
    assert fleet[0].launches == 2


@pytest.mark.usefixtures("counted")
async def test_a_restart_that_is_cancelled_before_its_turn_ends_nothing(
    make_manager, fake, fleet, hubs
):
    manager = make_manager(max_concurrent_starts=1)
    name = fake()
    kernel_id = await manager.start_kernel(name)
    hubs.answering = False
    start = asyncio.create_task(manager.start_kernel(name))
    await until(lambda: len(hubs.opened) == 2)
    restart = asyncio.create_task(manager.restart_kernel(kernel_id))
    await until(lambda: a_start_waits(manager))
    restart.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restart
    kernel = manager.index.find(kernel_id)
    assert (kernel.failed, fleet[0].launches, fleet[0].code) == (False, 1, None)
    restart = asyncio.create_task(manager.restart_kernel(kernel_id))
    await until(lambda: a_start_waits(manager))
    end = asyncio.create_task(manager.shutdown_kernel(kernel_id))
    await until(lambda: kernel.process.closing)
    hubs.opened[1].process.answer()
    with pytest.raises(Busy, match="is being shut down"):
        await restart
    await asyncio.gather(start, end)
    assert fleet[0].launches == 1


@pytest.mark.usefixtures("counted")
async def test_a_start_that_waits_is_refused_at_shutdown(make_manager, fake, fleet, hubs):
    manager = make_manager(max_concurrent_starts=1)
    hubs.answering = False
    name = fake()
    starts = [asyncio.create_task(manager.start_kernel(name)) for _ in range(3)]
    await until(lambda: len(hubs.opened) == 1)
    await manager.shutdown_all()
    ends = await asyncio.gather(*starts, return_exceptions=True)
    assert len(fleet) == 1
    assert [type(end) for end in ends[1:]] == [Busy, Busy]


@pytest.mark.usefixtures("counted")
async def test_a_cancelled_start_returns_its_slot(make_manager, fake, hubs):
    manager = make_manager(max_concurrent_starts=1)
    hubs.answering = False
    name = fake()
    first, second = [asyncio.create_task(manager.start_kernel(name)) for _ in range(2)]
    await until(lambda: len(hubs.opened) == 1)
    hubs.answering = True
    first.cancel()
    assert await asyncio.wait_for(second, TIMEOUT)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_processes_are_started_in_threads(make_manager, spec, monkeypatch):
    threads = []
    real = local_provisioner.launch_kernel

    def launch(*args, **kwargs):
        threads.append(threading.current_thread())
        return real(*args, **kwargs)

    monkeypatch.setattr(local_provisioner, "launch_kernel", launch)
    manager = make_manager()
    kernel_id = await manager.start_kernel(spec("s"))
    await manager.restart_kernel(kernel_id)
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_launch_that_hangs_does_not_delay_leave_all(
    make_manager, fake, monkeypatch, caplog
):
    monkeypatch.setattr(shutdown, "_SHUTDOWN_TIMEOUT", 0.05)
    begun = asyncio.Event()

    async def launch(*_args, **_kwargs):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeProvisioner, "launch_kernel", launch)
    manager = make_manager()
    start = asyncio.create_task(manager.start_kernel(fake()))
    async with asyncio.timeout(TIMEOUT):
        await begun.wait()
        await manager.leave_all()
    assert "1 kernel(s) are still starting" in caplog.text
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start


async def test_while_starts_are_held_only_earlier_requests_start_kernels(
    make_manager, fake, fleet, hubs
):
    manager = make_manager()
    name = fake()
    hubs.answering = False
    first = asyncio.create_task(manager.start_kernel(name))
    go_on = asyncio.Event()

    async def create_session():
        with manager.starting():
            await go_on.wait()
            return await manager.start_kernel(name)

    second = asyncio.create_task(create_session())
    await until(lambda: hubs.opened and manager.count_starting() == 2)
    with manager.hold_starts():
        waiting = asyncio.create_task(manager.wait_for_starts())
        for _ in range(3):
            with pytest.raises(Busy, match="about to be restarted"):
                await manager.start_kernel(name)
        hubs.answering = True
        hubs.opened[0].process.answer()
        kernel_id = await first
        assert await manager.start_kernel(name, kernel_id=kernel_id) == kernel_id
        assert not waiting.done()
        with manager.starting():  # a request that starts no kernel
            go_on.set()
            await second
            await waiting
        with pytest.raises(Busy, match="about to be restarted"):
            await manager.restart_kernel(kernel_id)
        assert manager.count_starting() == 0
    await manager.restart_kernel(kernel_id)
    await manager.start_kernel(name)
    assert len(fleet) == 3


async def test_a_kernel_that_is_shut_down_is_not_starting(make_manager, fake, hubs):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    kernel = manager.index.find(kernel_id)
    async with kernel.process.lock:  # as during a restart
        assert manager.count_starting() == 1
        ending = asyncio.create_task(manager.shutdown_kernel(kernel_id))
        await until(lambda: kernel.process.closing)
        assert manager.count_starting() == 0
        await manager.wait_for_starts()
    await ending


async def test_the_error_of_a_start_names_the_provisioner(make_manager, fake, monkeypatch):
    async def launch(*_args, **_kwargs):
        raise RuntimeError("the cluster is closed")

    monkeypatch.setattr(FakeProvisioner, "launch_kernel", launch)
    with pytest.raises(
        KernelStartError, match=r"could not be started by its provisioner fake: the cluster is"
    ):
        await make_manager().start_kernel(fake())


async def test_a_provisioner_of_kbridge_may_refuse_a_request(make_manager, fake, monkeypatch):
    async def launch(*_args, **_kwargs):
        raise InvalidRequest("cpus is 8; at most 4 is allowed")

    monkeypatch.setattr(FakeProvisioner, "pre_launch", launch)
    with pytest.raises(InvalidRequest, match=r"^cpus is 8; at most 4 is allowed$"):
        await make_manager().start_kernel(fake())


@pytest.mark.parametrize("own_log", [False, True])
async def test_a_provisioner_with_its_own_log_file(make_manager, fake, monkeypatch, own_log):
    """It passes the file to Popen beside the arguments that it was given."""
    given = {}
    launch = FakeProvisioner.launch_kernel

    async def launch_noting(self, cmd, **kwargs):
        given.update(kwargs)
        return await launch(self, cmd, **{"stdout": io.BytesIO(), **kwargs})

    if own_log:
        monkeypatch.setattr(FakeProvisioner, "kernel_log", None, raising=False)
    monkeypatch.setattr(FakeProvisioner, "launch_kernel", launch_noting)
    await make_manager().start_kernel(fake())
    assert {"stdout", "stderr"} & given.keys() == (set() if own_log else {"stdout", "stderr"})
