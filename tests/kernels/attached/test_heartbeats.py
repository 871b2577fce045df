"""Kernels whose process cannot be watched: events when they stop and start answering."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kbridge.kernels.attached.manager import AttachedKernelManager
from tests.support.heartbeat_kernel import HeartbeatKernel
from tests.support.waiting import TIMEOUT

# As in tests/link/test_heartbeat.py: long enough for a loaded machine.
BEATS = {"heartbeat_interval": 0.005, "heartbeat_misses": 40}
PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4}


def attached(heart: HeartbeatKernel | int | None) -> AttachedKernelManager:
    port = heart.port if isinstance(heart, HeartbeatKernel) else heart
    info = {**PORTS, "hb_port": port, "ip": "127.0.0.1", "key": "k"}
    return AttachedKernelManager("k", "theirs", info, source="a file")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - beats set no event
            await asyncio.sleep(BEATS["heartbeat_interval"])


async def beats(heart: HeartbeatKernel, count: int = 5) -> None:
    enough = heart.asked + count
    await until(lambda: heart.asked >= enough)


def heartbeat_of(manager):
    return manager.index.find("k").heartbeat.heartbeat


async def silence(manager) -> None:
    """Wait until so many beats are missing that other kernels would be lost."""
    heartbeat = heartbeat_of(manager)
    await until(lambda: heartbeat.monitor.waiting > BEATS["heartbeat_misses"] / 2)
    await until(lambda: heartbeat.monitor.waiting < BEATS["heartbeat_misses"] / 2)


@pytest.fixture
async def heart() -> AsyncIterator[HeartbeatKernel]:
    made = HeartbeatKernel()
    yield made
    await made.end()


@pytest.fixture
async def served(make_manager, hubs, heart):
    """A manager with an attached kernel that answers pings, and the kernel."""

    async def serve(**traits: Any):
        manager = make_manager(**{**BEATS, **traits})
        manager.attach(attached(heart))
        assert await hubs["k"].wait_ready(TIMEOUT)
        kernel = hubs.kernel("k")
        kernel.connect_client()
        await beats(heart)
        return manager, kernel

    return serve


def state(manager) -> str:
    return manager.model("k")["execution_state"]


@pytest.mark.parametrize("shown", ["unknown", "dead"])
async def test_clients_are_told_once_that_a_kernel_is_lost_and_once_that_it_is_back(
    served, heart, caplog, shown
):
    manager, kernel = await served(heartbeat_status=shown)
    heart.stop()
    await kernel.told(shown)
    assert state(manager) == shown
    heart.go_on()
    await kernel.told("idle")
    await beats(heart, 50)
    assert state(manager) == "idle"
    assert kernel.statuses == [shown, "idle"]
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 2
    assert f"shown as {shown}" in warnings[0]


async def test_the_return_of_a_kernel_is_announced_once_requests_reach_it(served, heart):
    manager, kernel = await served()
    heart.stop()
    await kernel.told("unknown")
    kernel.process.lose_connection()
    heart.go_on()
    await beats(heart)
    assert kernel.statuses[-1] == "unknown"
    assert state(manager) == "unknown"
    kernel.process.answer()
    await until(lambda: kernel.statuses[-1] == "idle")
    assert state(manager) == "idle"


async def test_a_lost_kernel_is_still_served(served, heart, hubs):
    manager, kernel = await served()
    heart.stop()
    await kernel.told("unknown")
    await manager.interrupt_kernel("k")
    assert kernel.requests
    assert not hubs.closed
    assert "dead" not in kernel.statuses


async def test_a_kernel_that_never_answered_pings_is_not_lost(make_manager, hubs, heart):
    port = heart.port
    await heart.end()
    manager = make_manager(**BEATS)
    manager.attach(attached(port))
    assert await hubs["k"].wait_ready(TIMEOUT)
    hubs.kernel("k").connect_client()
    await silence(manager)
    assert hubs.kernel("k").statuses == []
    assert state(manager) == "idle"


async def test_a_kernel_without_a_heartbeat_port_is_served(make_manager, hubs):
    manager = make_manager(**BEATS)
    manager.attach(attached(None))
    assert await hubs["k"].wait_ready(TIMEOUT)
    heartbeat = heartbeat_of(manager)
    timer = heartbeat._timer
    await until(lambda: heartbeat._timer is not timer)
    assert heartbeat.monitor.waiting == 0
    assert state(manager) == "idle"


async def test_a_kernel_with_one_thread_is_not_lost_while_it_is_busy(served, heart):
    manager, kernel = await served()
    kernel.process.publish("busy")
    heart.stop()
    await silence(manager)
    assert kernel.statuses == ["busy"]
    kernel.process.publish("idle")
    await kernel.told("unknown")


@pytest.mark.parametrize("ends", ["restarting", "dead"])
async def test_a_kernel_between_two_processes_or_without_one_is_not_pinged(served, heart, ends):
    manager, kernel = await served()
    if ends == "dead":
        kernel.hub.dead()
    else:
        await kernel.hub.restarting()
    heart.stop()
    heartbeat = heartbeat_of(manager)
    await until(lambda: not heartbeat.monitor.known)
    assert kernel.statuses == [ends]


async def test_heartbeat_interval_zero_turns_pings_off(make_manager, heart):
    manager = make_manager(heartbeat_interval=0)
    manager.attach(attached(heart))
    assert manager.index.find("k").heartbeat is None


async def test_a_detached_kernel_is_not_pinged(served, heart):
    manager, _ = await served()
    watch = manager.index.find("k").heartbeat
    await manager.shutdown_kernel("k")
    assert watch.closed


async def test_a_kernel_without_a_hub_is_not_pinged(served, hubs):
    manager, _ = await served()
    await hubs.close("k")
    await until(lambda: manager.index.find("k").heartbeat.closed)


async def test_a_process_on_this_machine_is_not_pinged(make_manager, spec):
    manager = make_manager(start_grace=0.01, **BEATS)
    manager.hubs.answering = False
    kernel_id = await manager.start_kernel(spec("ours"))
    assert manager.index.find(kernel_id).heartbeat is None
    await manager.shutdown_kernel(kernel_id, now=True)


async def test_a_kernel_that_a_provisioner_runs_elsewhere_is_pinged(
    make_manager, fake, fleet, hubs, heart
):
    manager = make_manager(**BEATS)
    name = fake(
        metadata={
            "kernel_provisioner": {
                "provisioner_name": "fake",
                "config": {"shell_port": heart.port - 3},
            }
        }
    )
    kernel_id = await manager.start_kernel(name)
    await beats(heart)
    heart.stop()
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    await kernel.told("unknown")
    assert manager.model(kernel_id)["execution_state"] == "unknown"
    await manager.restart_kernel(kernel_id)
    heart.go_on()
    await beats(heart)
    assert manager.model(kernel_id)["execution_state"] == "idle"
