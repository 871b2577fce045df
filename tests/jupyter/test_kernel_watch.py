"""A hub is kept in step with a kernel of Jupyter Server, through reported and unreported events."""

import asyncio
import gc
from typing import Any

import pytest

from kbridge.hub.kernel import process_link as line_module
from kbridge.wire.message import Channel
from tests.hub.rig import texts
from tests.jupyter.rig import FakeKernel, statuses, until

OLD, NEW = (1, 2, 3, 4), (11, 12, 13, 14)


# -- reported restarts -----------------------------------------------------------------


async def test_a_reported_restart_is_announced_once_and_requests_wait(rig) -> None:
    (one, attached), (other, _) = rig.attach("one"), rig.attach("other")
    old = rig.kernel
    rig.end_process()
    rig.manager.fire("restart")
    await until(lambda: old.closed)
    early = rig.request(code="early")
    rig.hub.submit(attached, early)
    assert rig.sent() == []
    rig.process = "the-second"
    rig.prove()
    late = rig.request(code="late")
    rig.hub.submit(attached, late)
    await rig.settle()
    assert rig.sent() == [early, late]
    assert statuses(one) == statuses(other) == ["restarting"]
    assert rig.listening_at() == OLD


async def test_the_last_output_of_a_dying_kernel_comes_before_the_status(rig) -> None:
    client, _ = rig.attach()
    rig.manager.fire("restart")
    rig.say(rig.stream("last words"))
    rig.end_process()
    await until(lambda: statuses(client))
    said = bytes(client.written)
    assert said.index(b"last words") < said.index(b"restarting")


async def test_requests_to_a_dead_process_are_not_sent_to_the_next(rig) -> None:
    _, attached = rig.attach()
    rig.kernel.full = True
    rig.hub.submit(attached, rig.request(code="for the old one"))
    rig.end_process()
    rig.manager.fire("restart")
    await until(lambda: len(rig.kernels) == 2)
    rig.prove()
    assert rig.sent() == []


async def test_new_ports_after_a_crash_keep_waiting_requests(rig) -> None:
    """The restarter calls back, then requests other ports, which are set one by one."""
    client, attached = rig.attach()
    rig.end_process()
    rig.manager.fire("restart")
    await until(lambda: statuses(client))
    early = rig.request(code="early")
    rig.hub.submit(attached, early)
    rig.manager.move(0, 0, 0, 0)
    await rig.settle()
    assert rig.listening_at() == OLD
    rig.manager.move(*NEW)
    await until(lambda: rig.listening_at() == NEW)
    rig.prove()
    await rig.settle()
    assert rig.sent() == [early]
    assert statuses(client) == ["restarting"]
    rig.say(rig.stream("the same websocket"))
    assert texts(client) == ["the same websocket"]


async def test_new_ports_are_used_while_the_hub_waits_for_the_old_ones(rig, monkeypatch) -> None:
    monkeypatch.setattr(line_module, "_FLUSH_TIMEOUT", 3600.0)
    client, _ = rig.attach()
    old = rig.kernel
    rig.manager.fire("restart")
    await rig.settle()
    rig.manager.move(0, 0, 0, 0)
    await rig.settle()
    rig.manager.move(*NEW)
    await rig.settle()
    assert not old.closed, "the old process has not disconnected"
    old.disconnect()
    await until(lambda: rig.listening_at() == NEW)
    assert len(rig.kernels) == 2, "linked anew once"
    assert statuses(client) == ["restarting"]


@pytest.mark.parametrize("new", [OLD, NEW])
async def test_ports_that_are_zero_during_a_disconnect_are_ignored(rig, monkeypatch, new) -> None:
    """Random ports may be equal to the old ones."""
    monkeypatch.setattr(line_module, "_FLUSH_TIMEOUT", 3600.0)
    client, _ = rig.attach()
    old = rig.kernel
    rig.manager.fire("restart")
    rig.manager.move(0, 0, 0, 0)
    await rig.settle()
    old.disconnect()
    await until(lambda: statuses(client))
    assert old.closed
    rig.manager.move(*new)
    await until(lambda: not rig.kernel.closed)
    assert rig.listening_at() == new
    rig.prove()
    await rig.settle()
    assert statuses(client) == ["restarting"]


async def test_ports_that_change_without_a_callback_are_noticed(rig) -> None:
    """km.restart_kernel(newports=True): no callback is called."""
    client, attached = rig.attach()
    rig.end_process()
    early = rig.request(code="early")
    rig.hub.submit(attached, early)
    rig.manager.move(0, 0, 0, 0)
    rig.manager.move(*NEW)
    await until(lambda: rig.listening_at() == NEW)
    rig.process = "the-second"
    rig.prove()
    await rig.settle()
    assert rig.sent() == [early]
    assert statuses(client) == ["starting"]
    assert len(rig.kernels) == 2, "four ports, one relink"
    assert rig.kernels_.ports_asked == ["a-kernel"], "otherwise they would always count as changed"


async def test_setting_the_same_ports_changes_nothing(rig) -> None:
    rig.manager.move(0, 0, 0, 0)
    rig.manager.move(*OLD)
    await rig.settle()
    assert len(rig.kernels) == 1
    assert rig.hub.ready


async def test_a_second_crash_before_the_restart_is_finished(rig) -> None:
    client, attached = rig.attach()
    for ports in ((21, 22, 23, 24), (31, 32, 33, 34)):
        rig.end_process()
        rig.manager.fire("restart")
        rig.manager.move(0, 0, 0, 0)
        rig.manager.move(*ports)
        await until(lambda at=ports: rig.listening_at() == at)
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.prove()
    await rig.settle()
    assert rig.sent() == [asked]
    assert set(statuses(client)) == {"restarting"}


# -- restarts that nobody tells -------------------------------------------------------------


async def test_an_unreported_restart_is_noticed_and_loses_no_request(rig) -> None:
    client, attached = rig.attach()
    rig.end_process()
    early = [rig.request(code=str(i)) for i in range(8)]
    for request in early:
        rig.hub.submit(attached, request)
    assert rig.sent() == []
    rig.process = "the-second"
    rig.prove()
    await rig.settle()
    assert rig.sent() == early
    assert statuses(client) == ["starting"]
    assert len(rig.kernels) == 1, "the same sockets have come back"
    assert rig.manager.execution_state == "idle"


async def test_a_welcome_can_arrive_before_the_reply_of_the_new_process(rig) -> None:
    client, _ = rig.attach()
    rig.end_process()
    rig.process = "the-second"
    rig.kernel.connect()
    rig.say(rig.message(Channel.IOPUB, "iopub_welcome", {"subscription": ""}))
    assert rig.hub.ready
    rig.prove()
    await rig.settle()
    assert statuses(client) == ["starting"]
    assert rig.manager.execution_state == "idle"


async def test_a_lost_connection_is_not_a_restart(rig) -> None:
    client, attached = rig.attach()
    rig.end_process()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.prove()
    await rig.settle()
    assert rig.sent() == [asked]
    assert statuses(client) == []


# -- the end --------------------------------------------------------------------------------


async def test_a_kernel_that_is_not_restarted_is_dead_and_its_hub_closes(rig) -> None:
    client, _ = rig.attach()
    rig.end_process()
    del rig.kernels_["a-kernel"]  # this callback is called first
    rig.manager.fire("dead")
    assert statuses(client) == ["dead"]
    assert rig.manager.execution_state == "dead"
    await until(lambda: rig.went)
    assert rig.went == [rig.watch]


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_a_death_during_a_restart_is_final(rig, caplog, turns) -> None:
    client, _ = rig.attach()
    rig.manager.fire("restart")
    for _ in range(turns):
        await asyncio.sleep(0)
    rig.manager.fire("dead")
    await until(lambda: not rig.watch._restarting)
    await rig.settle()
    assert statuses(client) == ["dead"]
    assert rig.kernel.closed
    assert rig.manager.execution_state == "dead"
    assert caplog.records == []


async def test_a_kernel_that_left_the_manager_has_no_hub(rig) -> None:
    rig.end_process()
    del rig.kernels_["a-kernel"]
    await until(lambda: rig.went)
    assert rig.went == [rig.watch]


async def test_a_kernel_that_is_missing_for_a_moment_keeps_its_hub(rig) -> None:
    rig.kernels_.absences = 1
    rig.end_process()
    seen = rig.kernels_.asked
    await until(lambda: rig.kernels_.asked > seen + 3)
    assert rig.went == []
    rig.prove()
    await until(lambda: not rig.watch._checking)
    assert not rig.hub.closed
    rig.kernels_.absences = 2
    rig.end_process()
    await until(lambda: rig.went)


async def test_a_kernel_that_answers_keeps_its_hub_after_leaving_the_manager(
    rig,
) -> None:
    del rig.kernels_["a-kernel"]
    assert not rig.watch.gone
    rig.end_process()
    assert rig.watch.gone


async def test_a_new_kernel_under_the_same_id_ends_the_watch(rig) -> None:
    rig.kernels_["a-kernel"] = FakeKernel()
    assert rig.watch.gone
    rig.end_process()
    await until(lambda: rig.went)


async def test_a_watch_that_starts_while_its_kernel_ends_stops(make_watched) -> None:
    """Its websocket waited for a `ready` that was the end of the kernel."""
    rig = make_watched()
    del rig.kernels_["a-kernel"]
    await until(lambda: rig.went)


async def test_a_kernel_that_never_comes_back_does_not_stop_the_loop(rig) -> None:
    """After kernel_info_timeout the hub counts as ready, so `wait_ready` returns at once."""
    rig.end_process()
    await rig.settle()
    rig.clock.now += 61
    rig.fire_nudge_timer()
    assert rig.hub.timed_out
    await rig.settle()
    assert rig.went == []
    del rig.kernels_["a-kernel"]
    rig.watch._check_presence()
    await until(lambda: rig.went)


async def test_a_closed_watch_leaves_nothing_behind(rig) -> None:
    before = asyncio.all_tasks()
    rig.manager.fire("restart")
    rig.end_process()
    rig.watch._check_presence()
    await asyncio.sleep(0)
    rig.watch.close()
    rig.watch.close()
    await rig.settle()
    assert rig.manager.listeners() == 0
    assert asyncio.all_tasks() == before
    rig.manager.execution_state = "of another one"
    rig.manager.move(*NEW)
    rig.manager.fire("restart")
    rig.kernel.drain()
    rig.kernel.disconnect()
    await rig.settle()
    assert rig.manager.execution_state == "of another one"
    assert not rig.watch._tasks


async def test_ports_that_changed_just_before_closing_are_ignored(rig) -> None:
    rig.manager.move(*NEW)
    rig.watch.close()
    await rig.settle()
    assert not rig.watch._tasks
    assert len(rig.kernels) == 1


async def test_errors_in_the_background_are_logged(rig, caplog) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no such kernel")

    rig.manager.get_connection_info = fail
    rig.end_process()
    rig.manager.fire("restart")
    await until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "a-kernel" in record.getMessage()
    assert "no such kernel" in caplog.text
    await rig.settle()
    gc.collect()  # an exception that is never retrieved causes a warning, which is an error here
