"""State and activity of a kernel, as Jupyter Server's REST API and culler read them."""

from datetime import UTC, datetime

import pytest

from kbridge.wire.message import Channel
from tests.hub.rig import texts
from tests.jupyter.rig import LONG_AGO, until

OLD, NEW = (1, 2, 3, 4), (11, 12, 13, 14)


async def test_the_hub_writes_the_activity_once_the_kernel_is_ready(make_watched) -> None:
    rig = make_watched()
    rig.say(rig.stream("early"))
    assert rig.kernels_.unwatched == []
    assert rig.manager.execution_state == "starting"
    rig.prove()
    assert rig.kernels_.unwatched == ["a-kernel"]
    assert rig.manager.execution_state == "idle"
    rig.say(rig.stream("more"))
    assert rig.kernels_.unwatched == ["a-kernel"], "once"


async def test_the_manager_watches_a_busy_kernel_until_it_is_idle(make_watched) -> None:
    rig = make_watched()
    rig.manager.execution_state = "busy"
    rig.prove()
    rig.say(rig.stream("of a cell that was begun before"))
    assert rig.kernels_.unwatched == []
    assert rig.manager.execution_state == "busy"
    assert rig.manager.last_activity == LONG_AGO, "one writer at a time"
    rig.manager.execution_state = "idle"  # the manager's own watcher says so
    rig.say(rig.stream("another"))
    assert rig.kernels_.unwatched == ["a-kernel"]


async def test_a_kernel_that_dies_while_busy_becomes_idle(make_watched) -> None:
    rig = make_watched()
    rig.manager.execution_state = "busy"
    rig.prove()
    rig.end_process()
    rig.manager.fire("restart")
    await until(lambda: len(rig.kernels) == 2)
    rig.process = "the-second"
    rig.prove()
    assert rig.kernels_.unwatched == ["a-kernel"]
    assert rig.manager.execution_state == "idle"


async def test_a_pending_restart_is_finished_before_the_takeover(make_watched) -> None:
    rig = make_watched()
    rig.manager._pending_restart_cleanup = lambda: pytest.fail("its answer was thrown away")
    rig.prove()
    rig.say(rig.stream("more"))
    assert rig.kernels_.unwatched == []
    rig.manager._pending_restart_cleanup = None
    rig.say(rig.stream("and more"))
    assert rig.kernels_.unwatched == ["a-kernel"]


async def test_a_new_watcher_of_the_manager_is_stopped_again(rig) -> None:
    rig.manager._activity_stream = "another socket of the manager's"
    rig.say(rig.stream("more"))
    assert rig.kernels_.unwatched == ["a-kernel", "a-kernel"]


async def test_taking_over_an_idle_kernel_does_not_count_as_activity(make_watched) -> None:
    rig = make_watched()
    rig.manager.execution_state = "idle"
    rig.prove()
    rig.attach()
    assert rig.kernels_.unwatched == ["a-kernel"]
    assert rig.manager.last_activity == rig.kernels_.last_kernel_activity == LONG_AGO


async def test_after_the_takeover_the_hub_writes_state_and_activity(rig) -> None:
    _, attached = rig.attach()
    rig.clock.now += 100
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    for state in ("busy", "idle"):
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": state}, asked.header))
        assert rig.manager.execution_state == state
    now = datetime.fromtimestamp(rig.clock.wall(), UTC)
    assert rig.manager.last_activity == rig.kernels_.last_kernel_activity == now


async def test_a_new_state_is_written_at_once_and_a_flood_is_throttled(rig) -> None:
    first = rig.clock.wall()
    told: list[float] = []
    rig.manager.observe(lambda change: told.append(change["new"].timestamp()), "last_activity")
    asked = rig.request(code="1")
    busy = {"execution_state": "busy"}
    rig.clock.now += 1 / 64
    rig.say(rig.message(Channel.IOPUB, "status", busy, asked.header))
    for i in range(64):
        rig.clock.now += 1 / 64
        rig.say(rig.stream(str(i)))
    assert told[0] == pytest.approx(first + 1 / 64, abs=0.001)
    assert 4 <= len(told) <= 12
    assert rig.clock.wall() - told[-1] < 0.125


async def test_output_counts_as_activity_without_a_change_of_state(rig) -> None:
    rig.clock.now += 100
    rig.say(rig.stream("a thread's"))
    assert rig.manager.last_activity == datetime.fromtimestamp(rig.clock.wall(), UTC)


async def test_a_control_request_does_not_end_the_busy_state(rig) -> None:
    _, attached = rig.attach()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, asked.header))
    control = rig.message(Channel.CONTROL, "debug_request", {})
    for state in ("busy", "idle"):
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": state}, control.header))
        assert rig.manager.execution_state == "busy"
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, asked.header))
    assert rig.manager.execution_state == "idle"


async def test_a_manager_without_a_watcher_gets_the_values_too(make_watched) -> None:
    rig = make_watched()
    del rig.manager._activity_stream
    rig.prove()
    assert rig.kernels_.unwatched == []
    assert rig.manager.execution_state == "idle"


async def test_messages_of_a_kernel_that_the_manager_removed_raise_no_error(make_watched) -> None:
    rig = make_watched()
    del rig.kernels_["a-kernel"]
    rig.prove()
    client, _ = rig.attach()
    rig.say(rig.stream("still here"))
    assert texts(client) == ["still here"]
