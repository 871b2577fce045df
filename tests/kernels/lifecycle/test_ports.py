"""Ports that are free when they are chosen, and taken when they are bound."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.provisioning import local_provisioner

from kbridge.connect import LocalPortCache
from kbridge.errors import KernelStartError
from kbridge.kernels import kernel as kernel_module
from kbridge.kernels.kernel import BridgeKernel
from tests.support.waiting import TIMEOUT

# Bind the ports as a kernel does, answer kernel_info, and print ipykernel's error if binding fails.
STUB = str(Path(__file__).parents[1] / "stub_kernel.py")
GRABBER = """
import random, socket, sys
low, high = map(int, open("/proc/sys/net/ipv4/ip_local_port_range").read().split())
held = []
print("grabbing", flush=True)
while True:
    sock = socket.socket()
    try:
        sock.bind(("127.0.0.2", random.randint(low, high)))
        sock.listen()
    except OSError:
        sock.close()
        continue
    held.append(sock)
    if len(held) > 600:
        held.pop(random.randrange(len(held))).close()
"""


@pytest.fixture
def grabber(monkeypatch):
    """Another process, which takes free ports all the time.

    It uses a separate address, so that it does not affect kernels of parallel tests.
    """
    for module in (local_provisioner, kernel_module):
        monkeypatch.setattr(module, "is_local_ip", lambda ip: ip == "127.0.0.2")
    process = subprocess.Popen([sys.executable, "-c", GRABBER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def stub(spec) -> str:
    name = spec("stub", argv=[sys.executable, STUB, "{connection_file}"])
    assert isinstance(name, str)
    return name


def take_a_port(monkeypatch: pytest.MonkeyPatch, times: int) -> list[socket.socket]:
    """Let another process bind one of a kernel's ports right before the kernel does."""
    taken: list[socket.socket] = []
    launch = BridgeKernel._async_launch_kernel

    async def launch_late(self: BridgeKernel, cmd: list[str], **kw: object) -> None:
        if len(taken) < times:
            taken.append(socket.create_server(("127.0.0.1", self.control_port)))
        await launch(self, cmd, **kw)

    monkeypatch.setattr(BridgeKernel, "_async_launch_kernel", launch_late)
    return taken


@pytest.mark.kernel
async def test_a_start_on_a_taken_port_uses_other_ports_and_logs_it(
    make_manager, hubs, spec, monkeypatch, caplog
):
    taken = take_a_port(monkeypatch, 2)
    manager = make_manager()
    with caplog.at_level(logging.WARNING):
        kernel_id = await manager.start_kernel(stub(spec))
    ports = manager.get_kernel(kernel_id).ports
    assert not {s.getsockname()[1] for s in taken} & set(ports)
    assert len(set(ports)) == 5
    assert caplog.text.count("Another process took a port of kernel") == 2
    assert manager.model(kernel_id)["execution_state"] == "idle"
    for sock in taken:
        sock.close()


@pytest.mark.kernel
async def test_port_attempts_limits_the_starts_on_other_ports(
    make_manager, hubs, spec, monkeypatch, caplog
):
    taken = take_a_port(monkeypatch, 99)
    manager = make_manager(port_attempts=2)
    with pytest.raises(KernelStartError, match="Address already in use"):
        await manager.start_kernel(stub(spec))
    assert len(taken) == 2
    assert not manager.models()
    for sock in taken:
        sock.close()


async def test_each_port_belongs_to_one_kernel_until_its_end(make_manager, hubs, fake, monkeypatch):
    cache = LocalPortCache()
    monkeypatch.setattr(LocalPortCache, "instance", lambda: cache)
    manager = make_manager()
    ids = [await manager.start_kernel(fake(f"fake{i}")) for i in range(2)]
    assert len(cache.promised()) == 10
    for kernel_id in ids:
        await manager.shutdown_kernel(kernel_id)
    # The fake provisioner has chosen other ports in the meantime, as one for remote kernels does.
    assert cache.promised() == set()


async def test_the_provisioner_chooses_the_ports_on_another_machine(make_manager, hubs, fake):
    manager = make_manager(kernel_ip="10.9.8.7", restart_limit=0)
    kernel = manager.get_kernel(await manager.start_kernel(fake()))
    await kernel.stop(now=True, restart=True)
    await kernel.start_again(newports=True)
    assert kernel.shell_port == 5000


@pytest.mark.kernel
async def test_a_restart_on_a_taken_port_uses_other_ports(
    make_manager, hubs, spec, monkeypatch, caplog
):
    manager = make_manager()
    kernel_id = await manager.start_kernel(stub(spec))
    before = manager.get_kernel(kernel_id).ports
    taken = take_a_port(monkeypatch, 1)
    await manager.restart_kernel(kernel_id)
    assert caplog.text.count("Another process took a port of kernel") == 1
    assert not set(manager.get_kernel(kernel_id).ports) & set(before)
    assert await hubs[kernel_id].wait_ready(TIMEOUT)
    taken[0].close()


@pytest.mark.kernel
async def test_an_automatic_restart_on_a_taken_port_uses_other_ports(
    make_manager, hubs, spec, monkeypatch, caplog
):
    manager = make_manager(stable_start_time=0.0)  # stable from the start, so the ports are kept
    kernel_id = await manager.start_kernel(stub(spec))
    kernel = manager.get_kernel(kernel_id)
    before = kernel.ports
    taken = take_a_port(monkeypatch, 1)
    await kernel.kill()
    async with asyncio.timeout(TIMEOUT):
        while set(kernel.ports) & set(before):  # noqa: ASYNC110 - processes set no event
            await asyncio.sleep(0.02)
    assert await hubs[kernel_id].wait_ready(TIMEOUT)
    assert caplog.text.count("restarting") >= 2
    taken[0].close()


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc for the range of ports")
async def test_two_hundred_kernels_start_while_another_process_takes_ports(
    make_manager, hubs, spec, grabber
):
    manager = make_manager(port_attempts=10, watch_interval=5.0, kernel_ip="127.0.0.2")
    name = stub(spec)
    ids = await asyncio.gather(*(manager.start_kernel(name) for _ in range(200)))
    assert len(set(ids)) == 200
    ready = await asyncio.gather(*(hubs[kernel_id].wait_ready(TIMEOUT) for kernel_id in ids))
    assert all(ready)
    ports = [port for kernel_id in ids for port in manager.get_kernel(kernel_id).ports]
    assert len(set(ports)) == 1000
    assert grabber.poll() is None
    await manager.shutdown_all(now=True)
