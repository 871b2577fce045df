"""The checks behind `/readyz`."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kbridge.errors import Busy
from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import RegistryWriter
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


class OneSpec:
    """A manager of kernelspecs that has one."""

    def __init__(self, *names: str) -> None:
        self.names = names

    async def get_all_specs(self) -> dict[str, Any]:
        return {name: {} for name in self.names}


class Kernels:
    """A manager without kernels, which may start some."""

    def __init__(self, specs: tuple[str, ...], writer: Any = None) -> None:
        self.specs = OneSpec(*specs)
        self.writer = writer or RegistryWriter()

    def check_start(self) -> None:
        pass

    def __len__(self) -> int:
        return 0


def make(
    directories: Directories, clock: Clock | None = None, *, specs: tuple[str, ...] = ("python3",)
) -> Readiness:
    kernels: Any = Kernels(specs)
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
    clock, probes = Clock(), []

    def probe(_: Directories) -> dict[str, str]:
        probes.append(1)
        return {"registry": OK, "disk": OK}

    monkeypatch.setattr(readiness_module, "_probe", probe)
    ready = make(Directories(tmp_path), clock)
    await asyncio.gather(*(ready.check() for _ in range(100)))
    clock.now += 0.9
    await ready.check()
    assert len(probes) == 1
    clock.now += 0.1
    await ready.check()
    assert len(probes) == 2


async def test_a_disk_that_does_not_answer_holds_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, probes, go_on = Clock(), [], threading.Event()

    def probe(_: Directories) -> dict[str, str]:
        probes.append(1)
        go_on.wait()
        return {"registry": OK, "disk": OK}

    monkeypatch.setattr(readiness_module, "_probe", probe)
    monkeypatch.setattr(readiness_module, "_TIMEOUT", 0.01)
    ready = make(Directories(tmp_path), clock)
    try:
        for _ in range(3):
            found = await ready.check()
            assert "has not answered" in found["disk"]
            clock.now += 1.0
        assert len(probes) == 1
    finally:
        go_on.set()
    while await ready.check() != ALL_OK:  # once the thread has ended
        clock.now += 1.0


async def test_without_a_kernelspec_no_kernel_can_be_started(tmp_path: Path) -> None:
    found = await make(Directories(tmp_path), specs=()).check()
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
    kernels: Any = Kernels(("x",), writer)
    ready = Readiness(kernels, HubTable(link=MemoryKernel), Directories(tmp_path), LOG)
    assert (await ready.check())["registry"] == "the registry of kernels cannot be written"
