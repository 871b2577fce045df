"""State and activity of a kernel, as Jupyter Server's REST API and culler read them."""

from datetime import UTC, datetime

import pytest

from kbridge.wire.message import Channel
from tests.hub.rig import texts
from tests.jupyter.rig import LONG_AGO, until

OLD, NEW = (1, 2, 3, 4), (11, 12, 13, 14)


async def test_the_hub_takes_over_once_the_kernel_is_proven(make_watched) -> None:
    rig = make_watched()
    rig.say(rig.stream("early"))
    assert rig.kernels_.unwatched == []
    assert rig.manager.execution_state == "starting"
    rig.prove()
    assert rig.kernels_.unwatched == ["a-kernel"]
    assert rig.manager.execution_state == "idle"
    rig.say(rig.stream("more"))
    assert rig.kernels_.unwatched == ["a-kernel"], "once"


async def test_a_busy_kernel_is_left_to_the_manager_until_it_is_idle(make_watched) -> None:
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


async def test_a_kernel_that_dies_busy_is_not_busy_for_ever(make_watched) -> None:
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


async def test_a_restart_that_waits_for_its_answer_is_let_finish(make_watched) -> None:
    rig = make_watched()
    rig.manager._pending_restart_cleanup = lambda: pytest.fail("its answer was thrown away")
    rig.prove()
    rig.say(rig.stream("more"))
    assert rig.kernels_.unwatched == []
    rig.manager._pending_restart_cleanup = None
    rig.say(rig.stream("and more"))
    assert rig.kernels_.unwatched == ["a-kernel"]


async def test_a_manager_that_watches_again_is_relieved_again(rig) -> None:
    rig.manager._activity_stream = "another socket of the manager's"
    rig.say(rig.stream("more"))
    assert rig.kernels_.unwatched == ["a-kernel", "a-kernel"]


async def test_to_take_over_an_idle_kernel_is_no_activity(make_watched) -> None:
    rig = make_watched()
    rig.manager.execution_state = "idle"
    rig.prove()
    rig.attach()
    assert rig.kernels_.unwatched == ["a-kernel"]
    assert rig.manager.last_activity == rig.kernels_.last_kernel_activity == LONG_AGO


async def test_state_and_activity_are_the_hubs_from_then_on(rig) -> None:
    _, attached = rig.attach()
    rig.clock.now += 100
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    for state in ("busy", "idle"):
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": state}, asked.header))
        assert rig.manager.execution_state == state
    now = datetime.fromtimestamp(rig.clock.wall(), UTC)
    assert rig.manager.last_activity == rig.kernels_.last_kernel_activity == now


async def test_a_change_of_state_is_told_at_once_and_a_flood_now_and_then(rig) -> None:
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


async def test_output_counts_though_the_state_is_what_it_was(rig) -> None:
    rig.clock.now += 100
    rig.say(rig.stream("a thread's"))
    assert rig.manager.last_activity == datetime.fromtimestamp(rig.clock.wall(), UTC)


async def test_a_control_request_in_between_leaves_a_kernel_busy(rig) -> None:
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


async def test_a_manager_without_a_watcher_of_its_own_is_told_as_well(make_watched) -> None:
    rig = make_watched()
    del rig.manager._activity_stream
    rig.prove()
    assert rig.kernels_.unwatched == []
    assert rig.manager.execution_state == "idle"


async def test_a_kernel_that_the_manager_let_go_is_heard_without_a_fault(make_watched) -> None:
    rig = make_watched()
    del rig.kernels_["a-kernel"]
    rig.prove()
    client, _ = rig.attach()
    rig.say(rig.stream("still here"))
    assert texts(client) == ["still here"]
