"""execution_state and last_activity, replayed from sequences of messages."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.flow.activity import CONTROL, QUIET, Activity, shell_of, state_of
from kbridge.wire.message import Channel, Message

START = 1000.0


def message(
    msg_type: str, parent: str = "", parent_type: str = "execute_request", content: object = None
) -> Message:
    parent, _, subshell = parent.partition("@")
    parent_header = {"msg_id": parent, "msg_type": parent_type} if parent else {}
    if subshell:
        parent_header["subshell_id"] = subshell
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
    """Replay `state:parent` words, one per second; a parent in SHORT has that type.

    `a@x` is a request in the subshell x.
    """
    activity = Activity(START, limit)
    now = START
    for word in events.split():
        now += 1
        verb, _, parent = word.partition(":")
        if verb in ("busy", "idle", "starting"):
            msg = status(verb, parent, SHORT.get(parent, "execute_request"))
            activity.observe(msg, "status", now)
        elif verb in ("touch", "alive", "restarted", "dead", "free"):
            getattr(activity, verb)(now)
        elif verb in ("presume_busy", "doubt"):
            getattr(activity, verb)()
        elif verb == "reply":
            msg_type = SHORT.get(parent, "execute_request").replace("_request", "_reply")
            activity.replied(message(msg_type, parent), msg_type, now)
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
        # Requests that no user made.
        ("alive busy:info", "idle"),
        ("alive busy:comms", "idle"),
        ("busy:a busy:info idle:info", "busy"),
        # Requests on control in parallel with shell.
        ("busy:a busy:interrupt idle:interrupt", "busy"),
        ("busy:a busy:debug idle:debug", "busy"),
        ("busy:a busy:usage idle:usage", "busy"),
        ("alive busy:debug", "idle"),
        ("busy:a idle:interrupt idle:a", "idle"),
        # Subshells: each parent is independent.
        ("busy:a busy:b@x idle:a", "busy"),
        ("busy:a busy:b@x idle:b@x", "busy"),
        ("busy:a busy:b@x idle:b@x idle:a", "idle"),
        ("busy:a@x busy:b@y idle:a@x", "busy"),
        ("busy:a idle:b", "busy"),
        # A missing idle, or one with another parent: the reply ends the request,
        ("busy:a reply:a", "idle"),
        ("busy:a idle:b reply:a", "idle"),
        ("busy:a@x reply:a@x", "idle"),
        ("busy:a reply:b", "busy"),
        ("busy:a busy:b@x reply:a", "busy"),
        # ... even if the reply arrives before the busy,
        ("alive reply:a busy:a", "idle"),
        ("reply:a busy:a idle:a busy:a", "busy"),
        ("reply:a restarted busy:a", "busy"),
        # ... or the start of a later request on the same shell,
        ("busy:a busy:b idle:a", "busy"),
        ("busy:a busy:b idle:b", "idle"),
        ("busy:a busy:comms", "idle"),
        ("busy:a@x busy:b idle:b", "busy"),
        ("busy:a@x busy:b@x idle:b@x", "idle"),
        # ... but not a request that may be on control.
        ("busy:a busy:info", "busy"),
        ("busy:a reply:info", "busy"),
        ("busy:a busy:interrupt reply:interrupt", "busy"),
        # Otherwise a probe of the shell ends it.
        ("busy:a doubt free", "idle"),
        ("busy:a free", "busy"),
        ("busy:a doubt idle:a busy:b free", "busy"),
        ("busy:a@x doubt free", "busy"),
        # A kernel that ran before the bridge connected.
        ("presume_busy", "busy"),
        ("presume_busy free", "idle"),
        ("presume_busy busy:interrupt idle:interrupt", "busy"),
        ("presume_busy busy:a idle:a", "idle"),
        ("presume_busy busy:a", "busy"),
        ("presume_busy restarted", "restarting"),
        # Orphaned idles.
        ("alive idle:gone", "idle"),
        ("busy:a idle:gone idle:a idle:a", "idle"),
        # Without a parent, the status applies to the whole kernel.
        ("busy", "busy"),
        ("busy idle", "idle"),
        ("busy:a busy:b idle", "idle"),
        # Restart and death.
        ("busy:a restarted", "restarting"),
        ("busy:a restarted busy:info", "restarting"),
        ("busy:a restarted idle:info", "idle"),
        ("busy:a restarted alive", "idle"),
        ("busy:a restarted busy:b", "busy"),
        # The last messages of the old process do not prove the new one.
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
def test_execution_state_after_a_sequence_of_messages(events: str, state: str) -> None:
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
        # Output of a thread, under the current parent.
        ("busy:info idle:info stream:info", 3),
        ("touch", 1),
        ("touch alive", 1),
        ("touch restarted", 2),
        ("touch dead", 2),
    ],
)
def test_last_activity_after_a_sequence_of_messages(events: str, at: int) -> None:
    assert play(events).last_activity == START + at


@pytest.mark.parametrize("request_type", sorted(QUIET))
def test_quiet_requests_do_not_count_as_activity(request_type: str) -> None:
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


def test_more_request_types_can_be_declared_quiet() -> None:
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
def test_declared_quiet_types_do_not_replace_the_default_ones(request_type: str) -> None:
    activity = Activity(START, quiet=("my_request",))
    activity.touch(START + 1, request_type)
    assert activity.last_activity == START
    assert play("busy:a").last_activity == START + 1, "other kernels must not change"


def test_a_quiet_request_proves_that_the_kernel_is_up() -> None:
    activity = Activity(START, quiet=("my_request",))
    activity.observe(status("idle", "m", "my_request"), "status", START)
    assert activity.execution_state == "idle"


def test_at_work_is_the_oldest_unfinished_request() -> None:
    activity = Activity(0.0)
    assert activity.at_work == ""
    for msg in (status("busy", "one"), status("busy", "two@x")):
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
        ("busy:a busy:b@x idle:b@x", "idle", "busy"),
        ("busy:a busy:b@x idle:b@x busy:c@x", "busy", "busy"),
        ("busy:a busy:b@x idle:b@x idle:a", "idle", "idle"),
        ("busy:a busy:b@x idle:b@x busy:interrupt idle:interrupt", "idle", "busy"),
        ("busy:a idle:a restarted", "restarting", "restarting"),
        ("busy:a restarted starting busy:info idle:info", "idle", "idle"),
        ("busy:a dead", "dead", "dead"),
    ],
)
def test_latest_state_is_the_value_that_jupyter_server_shows(
    events: str, latest: str, whole: str
) -> None:
    activity = play(events)
    assert (activity.latest_state, activity.execution_state) == (latest, whole)


@pytest.mark.parametrize("more", [1000, 100_000])
def test_only_64_kib_of_a_header_or_a_status_are_parsed(more: int) -> None:
    found = state_of(json.dumps({"more": "x" * more, "execution_state": "idle"}).encode())
    shell = shell_of(json.dumps({"more": "x" * more, "subshell_id": "s"}).encode())
    assert (found, shell) == (("idle", "s") if more == 1000 else ("", ""))


def test_busy_requests_are_bounded_and_the_oldest_are_dropped_first() -> None:
    activity = play(" ".join(f"busy:{n}@{n}" for n in range(100)), limit=10)
    for n in range(90, 100):
        assert activity.execution_state == "busy"
        activity.observe(status("idle", str(n)), "status", START)
    assert activity.execution_state == "idle"


def test_answered_requests_are_bounded_and_long_ids_are_not_stored() -> None:
    sizes = {
        count: len(pickle.dumps(play(" ".join(f"reply:{n}" for n in range(100, count)), limit=10)))
        for count in (500, 900)
    }
    assert sizes[500] == sizes[900]
    activity = play("reply:100", limit=10)
    size = len(pickle.dumps(activity))
    activity.replied(message("execute_reply", "x" * 1000), "execute_reply", START)
    assert len(pickle.dumps(activity)) < size + 50


def test_a_request_answered_before_its_busy_ends_the_previous_request() -> None:
    assert play("busy:1 reply:2 busy:2").execution_state == "idle"


def test_a_busy_shell_is_probed_once() -> None:
    activity = play("alive")
    assert not activity.doubt(), "it is idle"
    activity = play("busy:a")
    assert activity.doubt()
    assert not activity.doubt(), "the answer is still to come"
    activity.free(START + 500)
    assert activity.execution_state == "idle"
    assert activity.last_activity == START + 1, "the request ended at an unknown time"


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
def test_state_of_reads_the_execution_state(content: bytes, state: str) -> None:
    assert state_of(content) == state


@pytest.mark.parametrize(
    "content", [{}, {"execution_state": "terminating"}, [], {"execution_state": 3}]
)
def test_a_status_without_a_known_state_changes_nothing(content: object) -> None:
    activity = play("busy:a")
    activity.observe(message("status", "a", content=content), "status", START + 9)
    assert (activity.execution_state, activity.last_activity) == ("busy", START + 1)


PARENTS = st.sampled_from(["a", "b", "c@x", "d@x", "e@y", "info", "interrupt", "debug"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["busy", "idle", "reply"]), PARENTS), max_size=40))
def test_a_kernel_is_busy_while_any_user_request_runs(events: list[tuple[str, str]]) -> None:
    activity = play("alive " + " ".join(f"{verb}:{parent}" for verb, parent in events))
    busy: dict[str, str] = {}
    answered: set[str] = set()
    for verb, parent in events:
        shell = parent.partition("@")[2]
        if parent in SHORT:
            continue
        if verb == "busy":
            busy[shell] = parent
            if parent in answered:
                del busy[shell]
            continue
        if busy.get(shell) == parent:
            del busy[shell]
        (answered.add if verb == "reply" else answered.discard)(parent)
    assert activity.execution_state == ("busy" if busy else "idle")
