"""execution_state and last_activity, replayed from sequences of messages."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.flow.activity import CONTROL, QUIET, Activity, state_of
from kbridge.wire.message import Channel, Message

START = 1000.0


def message(
    msg_type: str, parent: str = "", parent_type: str = "execute_request", content: object = None
) -> Message:
    parent_header = {"msg_id": parent, "msg_type": parent_type} if parent else {}
    return Message(
        Channel.IOPUB,
        json.dumps({"msg_id": "m", "msg_type": msg_type}).encode(),
        json.dumps(parent_header).encode(),
        b"{}",
        json.dumps(content if content is not None else {}).encode(),
    )


def status(state: str, parent: str = "", parent_type: str = "execute_request") -> Message:
    return message("status", parent, parent_type, {"execution_state": state})


SHORT = {
    "info": "kernel_info_request",
    "comms": "comm_info_request",
    "interrupt": "interrupt_request",
    "shutdown": "shutdown_request",
    "debug": "debug_request",
    "usage": "usage_request",
}


def play(events: str, limit: int = 1000) -> Activity:
    """Replay `state:parent` words, a second apart; a parent named in SHORT has that type."""
    activity = Activity(START, limit)
    now = START
    for word in events.split():
        now += 1
        verb, _, parent = word.partition(":")
        if verb in ("busy", "idle", "starting"):
            msg = status(verb, parent, SHORT.get(parent, "execute_request"))
            activity.observe(msg, "status", now)
        elif verb in ("touch", "alive", "restarted", "dead"):
            getattr(activity, verb)(now)
        else:
            activity.observe(message(verb, parent, SHORT.get(parent, "execute_request")), verb, now)
    return activity


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ("", "starting"),
        ("starting", "starting"),
        ("starting busy:info", "starting"),
        ("starting busy:info idle:info", "idle"),
        ("idle:info", "idle"),
        ("idle:nobody", "idle"),
        ("alive", "idle"),
        ("busy:a", "busy"),
        ("busy:a idle:a", "idle"),
        ("busy:a busy:a idle:a", "idle"),
        ("stream:a", "starting"),
        # Requests that nobody made by hand.
        ("alive busy:info", "idle"),
        ("alive busy:comms", "idle"),
        ("busy:a busy:info idle:info", "busy"),
        # Control beside shell.
        ("busy:a busy:interrupt idle:interrupt", "busy"),
        ("busy:a busy:debug idle:debug", "busy"),
        ("busy:a busy:usage idle:usage", "busy"),
        ("alive busy:debug", "idle"),
        ("busy:a idle:interrupt idle:a", "idle"),
        # Subshells: each parent for itself.
        ("busy:a busy:b idle:a", "busy"),
        ("busy:a busy:b idle:b idle:a", "idle"),
        ("busy:a idle:b", "busy"),
        # Orphaned idles.
        ("alive idle:gone", "idle"),
        ("busy:a idle:gone idle:a idle:a", "idle"),
        # Without a parent it is the whole kernel.
        ("busy", "busy"),
        ("busy idle", "idle"),
        ("busy:a busy:b idle", "idle"),
        # Restart and death.
        ("busy:a restarted", "restarting"),
        ("busy:a restarted busy:info", "restarting"),
        ("busy:a restarted idle:info", "idle"),
        ("busy:a restarted alive", "idle"),
        ("busy:a restarted busy:b", "busy"),
        # The old kernel's last words are no proof of the new one.
        ("restarted busy:shutdown idle:shutdown", "restarting"),
        ("busy:a dead", "dead"),
        ("busy:a dead idle:a", "dead"),
        ("dead busy:b", "dead"),
        ("dead alive", "dead"),
        ("dead restarted idle:info", "idle"),
        # A new process that announces itself.
        ("busy:a starting", "idle"),
        ("busy:a starting idle:a", "idle"),
        # ... after the proof that it is up.
        ("restarted alive starting", "idle"),
        ("restarted starting alive", "idle"),
    ],
)
def test_execution_state(events: str, state: str) -> None:
    assert play(events).execution_state == state


@pytest.mark.parametrize(
    ("events", "at"),
    [
        ("", 0),
        ("starting", 0),
        ("alive", 0),
        ("alive busy:info idle:info", 0),
        ("busy:comms idle:comms", 0),
        ("busy:debug debug_event:debug idle:debug", 0),
        ("busy:usage idle:usage", 0),
        ("iopub_welcome", 0),
        ("kernel_info_reply:info", 0),
        ("comm_info_reply:comms interrupt_reply:interrupt shutdown_reply:shutdown", 0),
        ("busy:a", 1),
        ("busy:a idle:a", 2),
        ("busy:a idle:a busy:info idle:info", 2),
        ("stream:a", 1),
        ("stream:a stream:a stream:a", 3),
        ("execute_reply:a", 1),
        ("input_request:a", 1),
        ("comm_msg", 1),
        # A thread's output, under whatever parent is current.
        ("busy:info idle:info stream:info", 3),
        ("touch", 1),
        ("touch alive", 1),
        ("touch restarted", 2),
        ("touch dead", 2),
    ],
)
def test_last_activity(events: str, at: int) -> None:
    assert play(events).last_activity == START + at


@pytest.mark.parametrize("request_type", sorted(QUIET))
def test_quiet_requests_do_not_touch(request_type: str) -> None:
    activity = Activity(START)
    activity.touch(START + 5, request_type)
    assert activity.last_activity == START
    activity.touch(START + 5, "execute_request")
    assert activity.last_activity == START + 5


@pytest.mark.parametrize("request_type", sorted(CONTROL))
def test_control_requests_leave_shell_busy(request_type: str) -> None:
    activity = play("busy:a")
    for state in ("busy", "idle"):
        activity.observe(status(state, "c", request_type), "status", START + 9)
        assert activity.execution_state == "busy"
    assert activity.last_activity == START + 1


def test_more_requests_may_be_counted_among_the_quiet_ones() -> None:
    activity = Activity(START, quiet=("my_request", "kernel_info_request"))
    activity.alive(START)
    activity.touch(START + 1, "my_request")
    for state in ("busy", "idle"):
        activity.observe(status(state, "m", "my_request"), "status", START + 2)
        assert (activity.execution_state, activity.last_activity) == ("idle", START)
    activity.observe(status("busy", "a"), "status", START + 3)
    activity.observe(status("idle", "m", "my_request"), "status", START + 4)
    assert (activity.execution_state, activity.last_activity) == ("busy", START + 3)


@pytest.mark.parametrize("request_type", sorted(QUIET))
def test_those_that_are_known_stay_quiet_beside_them(request_type: str) -> None:
    activity = Activity(START, quiet=("my_request",))
    activity.touch(START + 1, request_type)
    assert activity.last_activity == START
    assert play("busy:a").last_activity == START + 1, "and other kernels' are as before"


def test_a_quiet_request_proves_that_the_kernel_is_up() -> None:
    activity = Activity(START, quiet=("my_request",))
    activity.observe(status("idle", "m", "my_request"), "status", START)
    assert activity.execution_state == "idle"


def test_what_it_is_at_is_what_it_began_first_and_has_not_ended() -> None:
    activity = Activity(0.0)
    assert activity.at_work == ""
    for msg in (status("busy", "one"), status("busy", "two")):
        activity.observe(msg, "status", 1.0)
    assert activity.at_work == "one"
    activity.observe(status("idle", "one"), "status", 2.0)
    assert activity.at_work == "two"
    activity.dead(3.0)
    assert activity.at_work == ""


@pytest.mark.parametrize(
    ("events", "latest", "whole"),
    [
        ("starting", "starting", "starting"),
        ("busy:a", "busy", "busy"),
        ("busy:a busy:b idle:b", "idle", "busy"),
        ("busy:a busy:b idle:b busy:c", "busy", "busy"),
        ("busy:a busy:b idle:b idle:a", "idle", "idle"),
        ("busy:a busy:b idle:b busy:interrupt idle:interrupt", "idle", "busy"),
        ("busy:a idle:a restarted", "restarting", "restarting"),
        ("busy:a restarted starting busy:info idle:info", "idle", "idle"),
        ("busy:a dead", "dead", "dead"),
    ],
)
def test_the_latest_status_is_what_jupyter_server_shows(
    events: str, latest: str, whole: str
) -> None:
    activity = play(events)
    assert (activity.latest_state, activity.execution_state) == (latest, whole)


def test_busy_parents_are_bounded_and_the_oldest_go_first() -> None:
    activity = play(" ".join(f"busy:{n}" for n in range(100)), limit=10)
    assert activity.statistics() == {
        "execution_state": "busy",
        "last_activity": START + 100,
        "busy_requests": 10,
    }
    for n in range(90, 100):
        assert activity.execution_state == "busy"
        activity.observe(status("idle", str(n)), "status", START)
    assert activity.execution_state == "idle"


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b'{"execution_state": "busy"}', "busy"),
        (b'{"execution_state":"idle"}', "idle"),
        (b'{ "execution_state" : "starting" }', "starting"),
        (b'{"execution_state": "idle", "more": {"execution_state": "busy"}}', "idle"),
        (rb'{"execution_state": "id\u006ce"}', "idle"),
        (b'{"execution_state": "terminating"}', "terminating"),
        (b"{}", ""),
        (b"", ""),
        (b"[]", ""),
        (b'{"execution_state": 1}', ""),
        (b'{"execution_state": "idle"', ""),
        (b'{"execution_state": "\xff"}', ""),
        (b"[" * 200_000, ""),
    ],
)
def test_state_of(content: bytes, state: str) -> None:
    assert state_of(content) == state


@pytest.mark.parametrize(
    "content", [{}, {"execution_state": "terminating"}, [], {"execution_state": 3}]
)
def test_a_status_that_says_nothing_changes_nothing(content: object) -> None:
    activity = play("busy:a")
    activity.observe(message("status", "a", content=content), "status", START + 9)
    assert (activity.execution_state, activity.last_activity) == ("busy", START + 1)


PARENTS = st.sampled_from(["a", "b", "c", "info", "interrupt", "debug"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["busy", "idle"]), PARENTS), max_size=40))
def test_it_is_busy_as_long_as_any_user_request_is(events: list[tuple[str, str]]) -> None:
    activity = play("alive " + " ".join(f"{state}:{parent}" for state, parent in events))
    last = {parent: state for state, parent in events if parent not in SHORT}
    assert activity.execution_state == ("busy" if "busy" in last.values() else "idle")
