"""The death of a kernel of Jupyter Server is reported before its restarter polls."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from kbridge.hub.settings import HubSettings
from tests.jupyter.inside import Inside, environment, running
from tests.jupyter.rig import WatchRig, until
from tests.jupyter.test_manager import restart, states, status
from tests.support.client import attach
from tests.support.require import require
from tests.support.waiting import TIMEOUT

NEVER = 3600
on_linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells at once")


# -- which restarters are asked -------------------------------------------------------------


class Restarter:
    """A restarter with the parts that a watch uses."""

    def __init__(self) -> None:
        self.looks = 0
        self.done = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._pcallback: object = "it looks every now and then"

    async def poll(self) -> None:
        self.looks += 1
        await self.go_on.wait()
        self.done += 1


@pytest.fixture
def new_process() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


@pytest.fixture
def process(new_process) -> subprocess.Popen[bytes]:
    return new_process()


@pytest.fixture
async def rig(process) -> AsyncIterator[WatchRig]:
    made = WatchRig(HubSettings(limit_rate=False))
    kernel: Any = made.manager
    kernel._restarter = Restarter()
    kernel.shutting_down = False
    kernel.ready = asyncio.get_running_loop().create_future()
    kernel.ready.set_result(None)
    kernel.provisioner = SimpleNamespace(process=process)
    made.prove()
    await made.settle()
    yield made
    made.watch.close()
    await made.hub.aclose()


async def ended(rig: WatchRig) -> None:
    """Wait until the watch has seen the end of the process."""
    task = rig.watch.process.waiting
    assert task is not None
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(task, return_exceptions=True)
    await rig.settle()


@on_linux
async def test_the_restarter_polls_once_when_the_process_ends(rig, process) -> None:
    process.kill()
    await ended(rig)
    assert rig.manager._restarter.looks == 1


@on_linux
async def test_each_new_process_is_watched(rig, process, new_process) -> None:
    other = rig.manager.provisioner.process = new_process()
    rig.say(rig.stream("the first word of the next"))
    process.kill()
    process.wait()
    await rig.settle()
    assert rig.manager._restarter.looks == 0
    other.kill()
    await ended(rig)
    assert rig.manager._restarter.looks == 1


@on_linux
@pytest.mark.parametrize("why", ["it is shut down", "it is started", "stopped", "no restarter"])
async def test_the_restarter_does_not_poll_during_other_operations(rig, process, why) -> None:
    kernel, restarter = rig.manager, rig.manager._restarter
    if why == "it is shut down":
        kernel.shutting_down = True
    elif why == "it is started":
        kernel.ready = asyncio.get_running_loop().create_future()
    elif why == "stopped":
        restarter._pcallback = None
    else:
        kernel._restarter = None
    process.kill()
    await ended(rig)
    assert restarter.looks == 0


@on_linux
async def test_a_synchronous_restarter_is_supported(rig, process) -> None:
    looks: list[str] = []
    rig.manager._restarter = SimpleNamespace(poll=lambda: looks.append("look"))
    process.kill()
    await ended(rig)
    assert looks == ["look"]


@on_linux
async def test_a_running_restart_is_finished(rig, process) -> None:
    restarter = rig.manager._restarter
    restarter.go_on.clear()
    process.kill()
    await ended(rig)
    rig.watch.close()
    await rig.settle()
    restarter.go_on.set()
    await until(lambda: restarter.done == 1)
    assert rig.watch.close() == set(), "and it was closed"


@on_linux
async def test_an_error_of_the_restarter_is_logged(rig, process, caplog) -> None:
    async def fail() -> None:
        raise RuntimeError("no such program")

    rig.manager._restarter.poll = fail
    process.kill()
    with caplog.at_level(logging.ERROR):
        await ended(rig)
    assert "no such program" in caplog.text


async def test_an_unknown_process_is_not_watched(rig) -> None:
    rig.manager.provisioner.process = SimpleNamespace(pid=1)
    rig.say(rig.stream("a word"))
    assert rig.watch.process.waiting is None


@on_linux
async def test_a_stopped_watch_leaves_nothing_behind(rig) -> None:
    def held() -> int:
        """Count the descriptors of processes; other threads may open and close files."""
        count = 0
        for file in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                count += "pidfd" in str(file.readlink())
        return count

    before = held()
    rig.watch.close()
    await rig.settle()
    assert held() == before - 1


# -- with a real server ---------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inside(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Inside]:
    """A server whose restarters never poll."""
    require("ipykernel")
    home: Path = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, home)
        (own := home / "own").mkdir()
        async with running(own, {"KernelRestarter": {"time_to_dead": NEVER}}) as server:
            yield server


@on_linux
@pytest.mark.kernel
@pytest.mark.asyncio(loop_scope="module")
async def test_a_killed_kernel_is_restarted_without_polling(inside) -> None:
    kernel_id = await inside.new_kernel()
    async with attach(inside, kernel_id) as client:
        await client.execute("1")
        for times in (1, 2):
            pid = inside.pid(kernel_id)
            os.kill(pid, signal.SIGKILL)
            await client.until(status("restarting"))
            assert (await client.execute(f"print({times})")).text() == f"{times}\n"
            assert inside.pid(kernel_id) != pid
            assert states(client, "restarting", "dead") == ["restarting"] * times
    assert (await inside.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204


@on_linux
@pytest.mark.kernel
@pytest.mark.asyncio(loop_scope="module")
async def test_a_requested_restart_or_shutdown_is_not_a_death(inside) -> None:
    kernel_id = await inside.new_kernel()
    async with attach(inside, kernel_id) as client:
        for times in (1, 2, 3):
            await restart(inside, kernel_id, "REST")
            pid = inside.pid(kernel_id)
            assert (await client.execute(f"print({times})")).text() == f"{times}\n"
            assert inside.pid(kernel_id) == pid, "the kernel was started twice"
        assert "restarting" not in states(client, "restarting")
    assert (await inside.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
    assert (await inside.call("GET", f"/api/kernels/{kernel_id}")).status == 404
