"""Kernels whose process cannot be watched: events when they stop and start answering."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kbridge.kernels.attached.manager import AttachedKernelManager
from tests.kernels.conftest import FakeHub
from tests.support.heartbeat_kernel import HeartbeatKernel

LOUD = 20
# As in tests/link/test_heartbeat.py: long enough for a loaded machine.
BEATS = {"heartbeat_interval": 0.005, "heartbeat_misses": 40}
PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4}


def attached(heart: HeartbeatKernel | int | None) -> AttachedKernelManager:
    port = heart.port if isinstance(heart, HeartbeatKernel) else heart
    info = {**PORTS, "hb_port": port, "ip": "127.0.0.1", "key": "k"}
    return AttachedKernelManager("k", "theirs", info, source="a file")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LOUD):
        while not condition():  # noqa: ASYNC110 - beats set no event
            await asyncio.sleep(BEATS["heartbeat_interval"])


async def beats(heart: HeartbeatKernel, count: int = 5) -> None:
    enough = heart.asked + count
    await until(lambda: heart.asked >= enough)


def heartbeat_of(manager):
    return manager.index.find("k")._heartbeat.heartbeat


async def silence(manager) -> None:
    """Until as many beats have been missed as make others lost."""
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
    """A manager with an attached kernel that beats, and the kernel's hub."""

    async def serve(**traits: Any):
        manager = make_manager(**{**BEATS, **traits})
        manager.attach(attached(heart))
        hub = hubs.get("k")
        hub.activity.execution_state = "idle"
        await beats(heart)
        return manager, hub

    return serve


def state(manager) -> str:
    return manager.model("k")["execution_state"]


def told(hub: FakeHub) -> list[str]:
    return [event for event in hub.events if event.startswith("announce")]


@pytest.mark.parametrize("shown", ["unknown", "dead"])
async def test_a_kernel_that_stops_answering_is_told_of_once_and_so_is_its_return(
    served, heart, caplog, shown
):
    manager, hub = await served(heartbeat_status=shown)
    heart.stop()
    await hub.seen(f"announce {shown}")
    assert state(manager) == shown
    heart.go_on()
    await hub.seen("announce idle")
    await beats(heart, 50)
    assert state(manager) == "idle"
    assert told(hub) == [f"announce {shown}", "announce idle"]
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 2
    assert f"shown as {shown}" in warnings[0]


async def test_one_that_is_back_is_told_of_once_requests_reach_it(served, heart):
    manager, hub = await served()
    heart.stop()
    await hub.seen("announce unknown")
    hub.answered.clear()  # its other sockets were lost, too
    heart.go_on()
    await beats(heart)
    assert told(hub) == ["announce unknown"]
    assert state(manager) == "unknown"
    hub.answered.set()
    hub.activity.execution_state = "busy"
    await hub.seen("announce busy")
    assert state(manager) == "busy"


async def test_it_goes_on_being_served_while_it_is_lost(served, heart, hubs):
    manager, hub = await served()
    heart.stop()
    await hub.seen("announce unknown")
    await manager.interrupt_kernel("k")
    assert hub.requests
    assert not hubs.closed
    assert "dead" not in hub.events


async def test_a_file_that_names_a_dead_port_does_not_flap(make_manager, hubs, heart):
    port = heart.port
    await heart.end()
    manager = make_manager(**BEATS)
    manager.attach(attached(port))
    hub = hubs.get("k")
    hub.activity.execution_state = "idle"
    await silence(manager)
    assert told(hub) == []
    assert state(manager) == "idle"


async def test_a_file_without_an_hb_port_is_served(make_manager, hubs):
    manager = make_manager(**BEATS)
    manager.attach(attached(None))
    hubs.get("k").activity.execution_state = "idle"
    heartbeat = heartbeat_of(manager)
    timer = heartbeat._timer
    await until(lambda: heartbeat._timer is not timer)
    assert heartbeat.monitor.waiting == 0
    assert state(manager) == "idle"


async def test_one_that_has_a_single_thread_is_not_lost_while_it_works(served, heart):
    manager, hub = await served()
    hub.activity.execution_state, hub.activity.at_work = "busy", "a cell"
    heart.stop()
    await silence(manager)
    assert told(hub) == []
    hub.activity.execution_state, hub.activity.at_work = "idle", ""
    await hub.seen("announce unknown")


@pytest.mark.parametrize("phase", ["starting", "restarting", "dead"])
async def test_what_does_not_answer_yet_or_no_more_is_not_asked(served, heart, phase):
    manager, hub = await served()
    hub.activity.execution_state = phase
    heart.stop()
    heartbeat = heartbeat_of(manager)
    await until(lambda: not heartbeat.monitor.known)
    assert told(hub) == []
    assert state(manager) == phase


async def test_no_pings_where_they_are_switched_off(make_manager, heart):
    manager = make_manager(heartbeat_interval=0)
    manager.attach(attached(heart))
    assert manager.index.find("k")._heartbeat is None


async def test_a_kernel_that_was_let_go_of_is_not_asked(served, heart):
    manager, _ = await served()
    watch = manager.index.find("k")._heartbeat
    await manager.shutdown_kernel("k")
    assert watch.closed


async def test_one_whose_hub_has_gone_is_not_asked(served, hubs):
    manager, _ = await served()
    await hubs.close("k")
    await until(lambda: manager.index.find("k")._heartbeat.closed)


async def test_a_process_of_this_machine_needs_no_heartbeat(make_manager, spec):
    manager = make_manager(start_grace=0.01, **BEATS)
    manager.hubs.ready = False
    kernel_id = await manager.start_kernel(spec("ours"))
    assert manager.index.find(kernel_id)._heartbeat is None
    await manager.shutdown_kernel(kernel_id, now=True)


async def test_the_kernel_of_a_provisioner_that_runs_it_elsewhere_is_asked(
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
    hub = hubs.get(kernel_id)
    await hub.seen("announce unknown")
    assert manager.model(kernel_id)["execution_state"] == "unknown"
    await manager.restart_kernel(kernel_id)
    heart.go_on()
    await beats(heart)
    assert manager.model(kernel_id)["execution_state"] == "idle"
