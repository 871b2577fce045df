"""The checks behind `/readyz`."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kbridge.errors import Busy
from kbridge.hub.table import HubTable
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.specs import Specs
from kbridge.link.memory import MemoryKernel
from kbridge.server import readiness as readiness_module
from kbridge.server.readiness import OK, Directories, Readiness

LOG = logging.getLogger("kbridge.test.readiness")
# ruff: noqa: ASYNC240 - files of a test are near
ALL_OK = {"kernels": OK, "registry": OK, "disk": OK}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SpecManager:
    """A manager of kernelspecs of another package: it blocks its thread while `go_on` is clear."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.looks = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def get_all_specs(self) -> dict[str, Any]:
        self.looks += 1
        self.go_on.wait()
        return {name: {} for name in self.names}

    def get_kernel_spec(self, name: str) -> str:
        return name


class Kernels:
    """A manager without kernels, which may start some."""

    def __init__(self, manager: Any, writer: Any = None) -> None:
        self.specs = Specs(manager)
        self.writer = writer or RegistryWriter()

    def check_start(self) -> None:
        pass

    def __len__(self) -> int:
        return 0


def make(directories: Directories, clock: Clock | None = None, *, manager: Any = None) -> Readiness:
    kernels: Any = Kernels(manager or SpecManager("python3"))
    return Readiness(kernels, HubTable(link=MemoryKernel), directories, LOG, clock or Clock())


async def test_all_is_well(tmp_path: Path) -> None:
    ready = make(Directories(tmp_path, tmp_path, tmp_path))
    assert await ready.check() == ALL_OK
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    await ready.aclose()


async def test_a_directory_that_cannot_be_written_is_named_without_its_path(
    tmp_path: Path, caplog: Any
) -> None:
    gone = tmp_path / "a-secret-name"
    clock = Clock()
    ready = make(Directories(tmp_path, gone, gone), clock)
    caplog.set_level(logging.INFO)
    found = await ready.check()
    assert found["kernels"] == OK
    assert found["registry"].startswith("the directory of the registry cannot be written: ")
    assert found["disk"].startswith("the directory of the journals cannot be written: ")
    assert "a-secret-name" not in str(found)
    clock.now += 1.0
    await ready.check()
    assert caplog.text.count("not ready") == 1, "logged when the answer changes"
    gone.mkdir()
    clock.now += 1.0
    assert await ready.check() == ALL_OK
    assert "ready again" in caplog.text


async def test_requests_of_one_second_share_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = Clock(), []

    def write(directory: Path, name: str) -> str:
        written.append(directory)
        return OK

    monkeypatch.setattr(readiness_module, "_write", write)
    ready = make(Directories(tmp_path), clock)
    await asyncio.gather(*(ready.check() for _ in range(100)))
    clock.now += 0.9
    await ready.check()
    assert len(written) == 1
    clock.now += 0.1
    await ready.check()
    assert len(written) == 2


async def test_a_disk_that_does_not_answer_holds_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written, go_on = Clock(), [], threading.Event()
    hung = tmp_path / "hung"

    def write(directory: Path, name: str) -> str:
        if directory == hung:
            written.append(directory)
            go_on.wait()
        return OK

    monkeypatch.setattr(readiness_module, "_write", write)
    monkeypatch.setattr(readiness_module, "_TIMEOUT", 0.01)
    ready = make(Directories(tmp_path, tmp_path, hung), clock)
    silent = "the directory of the journals has not answered for "
    try:
        found = await ready.check()
        # On a busy machine, healthy disks may not answer in time, and threads begin late.
        while not (found["registry"] == OK and found["disk"].startswith(silent) and written):
            clock.now += 1.0
            found = await ready.check()
        for _ in range(3):
            clock.now += 1.0
            assert "has not answered for " in (await ready.check())["disk"]
        assert len(written) == 1
    finally:
        go_on.set()
    while await ready.check() != ALL_OK:  # once the thread has ended
        clock.now += 1.0


async def test_kernelspecs_that_hang_delay_neither_the_answer_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness_module, "_TIMEOUT", 0.01)
    clock, manager = Clock(), SpecManager("python3")
    manager.go_on.clear()
    ready = make(Directories(tmp_path), clock, manager=manager)
    try:
        checks = 0
        while checks < 3 or not manager.looks:  # its thread may begin late
            checks += 1
            clock.now += 1.0
            found = await ready.check()
            assert found["kernels"].startswith("the kernelspecs have not been read for ")
        assert manager.looks == 1, "no second thread waits for them"
        clock.now += 1.0
        monkeypatch.setattr(readiness_module, "_TIMEOUT", 600.0)
        asked = asyncio.create_task(ready.check())
        await asyncio.sleep(0)
        await ready.aclose()
        assert await asked == await ready.check() == {"kernels": "the server is shutting down"}
        await ready.aclose()
    finally:
        manager.go_on.set()


async def test_a_manager_that_ignores_the_cancellation_does_not_delay_the_end(
    tmp_path: Path,
) -> None:
    released, asked = asyncio.Event(), asyncio.Event()

    class Remote:
        async def get_all_specs(self) -> dict[str, Any]:
            asked.set()
            while not released.is_set():
                with suppress(asyncio.CancelledError):
                    await released.wait()
            return {}

    ready = make(Directories(tmp_path), manager=Remote())
    checking = asyncio.create_task(ready.check())
    await asked.wait()
    await ready.aclose()
    assert "kernels" in await checking
    released.set()


def test_the_process_ends_although_disks_and_kernelspecs_hang(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


HANGING = """
import asyncio, sys, threading
from pathlib import Path
from tests.server import test_readiness as test
from kbridge.server import readiness

def hang(*_):
    threading.Event().wait()

async def main():
    readiness._TIMEOUT = 0.01
    readiness._write = hang
    manager = test.SpecManager()
    manager.go_on.clear()
    kernels = test.Kernels(manager)
    ready = readiness.Readiness(kernels, test.HubTable(), readiness.Directories(Path()), test.LOG)
    found = await ready.check()
    assert "not" in found["kernels"] and "not" in found["disk"], found
    listing = asyncio.ensure_future(kernels.specs.get_all_specs())  # a client lists kernelspecs
    await asyncio.sleep(0)
    await ready.aclose()
    listing.cancel()

asyncio.run(main())
print("ended")
"""


async def test_clients_cannot_keep_a_manager_of_kernelspecs_busy(tmp_path: Path) -> None:
    clock, manager = Clock(), SpecManager("python3")
    ready = make(Directories(tmp_path), clock, manager=manager)
    for _ in range(30):
        assert await ready.check() == ALL_OK
        clock.now += 1.0
    assert manager.looks == 1
    manager.names = ()
    assert (await ready.check())["kernels"] == "no kernelspec is installed"
    assert manager.looks == 2


async def test_a_slow_look_at_kernelspecs_leaves_a_server_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, manager = Clock(), SpecManager("python3")
    ready = make(Directories(tmp_path), clock, manager=manager)
    assert await ready.check() == ALL_OK
    manager.go_on.clear()
    try:
        monkeypatch.setattr(readiness_module, "_TIMEOUT", 0.01)
        clock.now += 59.0
        assert (await ready.check())["kernels"] == OK
        clock.now += 1.0
        assert "have not been read" in (await ready.check())["kernels"]
    finally:
        manager.go_on.set()
    while (await ready.check())["kernels"] != OK:
        clock.now += 1.0


async def test_starts_do_not_wait_for_a_look_at_kernelspecs(tmp_path: Path) -> None:
    manager = SpecManager("python3")
    manager.go_on.clear()
    specs = Specs(manager)
    looking = asyncio.create_task(specs.any_installed())
    try:
        assert await specs.get_kernel_spec("python3") == "python3"
        assert not looking.done()
    finally:
        manager.go_on.set()
    assert await looking
    specs.close()


async def test_without_a_kernelspec_no_kernel_can_be_started(tmp_path: Path) -> None:
    found = await make(Directories(tmp_path), manager=SpecManager()).check()
    assert found["kernels"] == "no kernelspec is installed"


async def test_a_server_that_shuts_down_is_not_ready(tmp_path: Path) -> None:
    hubs = HubTable(link=MemoryKernel)
    kernels = BridgeKernelManager(hubs=hubs, writer=RegistryWriter())
    kernels.check_start()
    ready = Readiness(kernels, hubs, Directories(tmp_path), LOG)
    await kernels.shutdown_all()
    assert (await ready.check())["kernels"] == "The server is shutting down"
    with pytest.raises(Busy):
        kernels.check_start()


async def test_a_registry_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    assert RegistryWriter(registry).directory == tmp_path
    assert RegistryWriter().directory is None
    writer: Any = SimpleNamespace(enabled=True, failing=True)
    kernels: Any = Kernels(SpecManager("x"), writer)
    ready = Readiness(kernels, HubTable(link=MemoryKernel), Directories(tmp_path), LOG)
    assert (await ready.check())["registry"] == "the registry of kernels cannot be written"


async def test_a_replica_without_lease_or_database_is_not_ready(tmp_path: Path) -> None:
    kernels: Any = Kernels(SpecManager("x"), RegistryWriter())
    clock = Clock()
    ready = Readiness(kernels, HubTable(link=MemoryKernel), Directories(tmp_path), LOG, clock)
    lease = Lease(10.0, clock)
    lease.renewed(clock.now)
    cluster: Any = SimpleNamespace(me=SimpleNamespace(draining=False), lease=lease, problem="")
    ready.membership = cluster
    assert await ready.check() == {**ALL_OK, "cluster": OK}
    cluster.problem = "postgresql://db.example cannot be read"
    clock.now += 2
    assert (await ready.check())["cluster"] == "the database of the cluster cannot be reached"
    clock.now += 8
    assert "the lease of this replica is over" in (await ready.check())["cluster"]
    lease.renewed(clock.now)
    cluster.problem, cluster.me.draining = "", True
    clock.now += 2
    assert (await ready.check())["cluster"] == "this replica is about to end"
    await ready.aclose()
