"""Lost replies that are built from iopub messages: which, when, and never two for one request."""

import json
import pickle

import pytest

from kbridge.flow.execution import Execution
from kbridge.flow.lost_replies import GRACE, SILENCE, BuiltReply, LostReplies
from kbridge.flow.routing import Routing
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

JUPYTERLAB = {"subshell_id": None}  # in each of its headers


def request(name: str, msg_type: str = "execute_request", **header: str | None) -> bytes:
    whole = {**JUPYTERLAB, "msg_id": name, "msg_type": msg_type, "session": "s", **header}
    return json.dumps(whole).encode()


def iopub(parent: bytes, msg_type: str, **content: object) -> Message:
    return build(
        Channel.IOPUB, msg_type, content, session="kernel", date="now", parent_header=parent
    )


STEPS = {
    "busy": ("status", {"execution_state": "busy"}),
    "idle": ("status", {"execution_state": "idle"}),
    "input": ("execute_input", {"code": "1", "execution_count": 7}),
    "result": ("execute_result", {"data": {}, "metadata": {}, "execution_count": 8}),
    "print": ("stream", {"name": "stdout", "text": "x"}),
    "error": ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
    "garbled": ("error", {"ename": "E", "evalue": "v", "traceback": ["t"], "more": 1}),
}
ERROR = {"ename": "E", "evalue": "v", "traceback": ["t"]}


class Side:
    def __init__(self, *, adopted: bool = True, known: tuple[str, ...] = ()) -> None:
        self.now = 100.0
        routing = Routing()
        for name in known:
            routing.note(name, 1)
        self.due: list[BuiltReply] = []
        self.owed = LostReplies(adopted=adopted, routing=routing)

    def play(self, parent: bytes, *steps: str) -> None:
        for step in steps:
            msg_type, content = STEPS[step]
            self.owed.observe(iopub(parent, msg_type, **content), msg_type, self.now)

    def later(self, seconds: float = GRACE) -> list[dict]:
        self.now += seconds
        self.due = self.owed.due(self.now)
        return [due.content for due in self.due]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("busy input idle", {"status": "ok", "execution_count": 7}),
        ("print idle", {"status": "ok", "execution_count": None}),
        ("idle", {"status": "ok", "execution_count": None}),
        ("print result idle", {"status": "ok", "execution_count": 8}),
        ("input error idle", {"status": "error", "execution_count": 7, **ERROR}),
        ("garbled idle", {"status": "error", "execution_count": None, **ERROR}),
    ],
)
def test_a_built_reply_has_the_outcome_seen_on_iopub(steps: str, expected: dict) -> None:
    side = Side()
    side.play(request("old"), *steps.split())
    assert side.later(GRACE / 2) == [], "the real reply may be in transit"
    assert side.owed.next_at() == 100.0 + GRACE
    [content] = side.later()
    assert content.items() >= expected.items()
    assert side.due[0].idle
    assert side.later() == []


@pytest.mark.parametrize("early", [True, False])
def test_no_request_gets_two_replies(early: bool) -> None:
    side = Side()
    if early:
        assert side.owed.replied("old", side.now), "before its idle, as most kernels do"
    side.play(request("old"), "print")
    assert side.owed.replied("old", side.now)
    side.play(request("other"), "print", "idle")
    assert side.owed.replied("other", side.now), "after its idle"
    assert side.later() == []
    side.play(request("lost"), "idle")
    assert len(side.later()) == 1
    assert not side.owed.replied("lost", side.now), "too late: a reply was built"
    side.play(request("lost"), "idle")
    assert side.later() == []


def test_no_reply_is_built_for_requests_of_the_current_connection() -> None:
    side = Side(known=("mine",))
    side.owed.sent("mine", request("mine"))
    side.play(request("mine"), "busy", "input", "idle")
    assert side.later() == []
    side.play(request("complete", "complete_request"), "busy", "idle")
    side.play(b"{}", "idle")
    assert side.later() == []


def test_without_an_earlier_bridge_replies_are_built_after_a_lost_connection() -> None:
    side = Side(adopted=False, known=("mine", "next"))
    assert not side.owed.active
    side.owed.sent("mine", request("mine"))
    side.owed.connection_lost()
    assert side.owed.active
    side.owed.sent("next", request("next"))
    side.play(request("mine"), "input", "error", "idle")
    side.play(request("next"), "input", "idle")
    side.play(request("somebody's"), "input", "idle")
    assert side.later() == [
        {"status": "error", **ERROR, "execution_count": 7, "user_expressions": {}}
    ]
    assert not side.owed.active


@pytest.mark.parametrize(
    "header", [request("old"), b'{"msg_id":"old","msg_type":"execute_request"}']
)
def test_a_request_without_idle_ends_when_the_shell_is_calm(header: bytes) -> None:
    """Some kernels omit the idle, and some connections lose it."""
    side = Side()
    side.play(header, "print", "error")
    assert side.later(1000) == []
    side.owed.shell_answered(side.now)
    assert side.later(1000) == [], "another earlier request may be next"
    side.owed.shell_answered(side.now)
    assert side.owed.calm
    assert side.owed.active
    [content] = side.later()
    assert content["status"] == "error"
    assert not side.due[0].idle, "the idle is missing too"
    assert not side.owed.active


def test_requests_queued_in_the_kernel_get_replies() -> None:
    """A ROUTER reads its peers in turn: the current one, and the dead one with waiting requests."""
    side = Side()
    for name in ("first", "second", "third"):
        side.owed.shell_answered(side.now)
        side.play(request(name), "busy", "input", "idle")
        assert [content["status"] for content in side.later()] == ["ok"]
    assert side.owed.active
    side.owed.shell_answered(side.now)
    side.owed.shell_answered(side.now)
    side.later()
    assert not side.owed.active


def test_a_cell_that_prints_while_its_shell_answers_has_not_ended() -> None:
    side = Side()
    for _ in range(2):
        side.owed.shell_answered(side.now)
    side.now += GRACE / 2
    side.play(request("old"), "print")
    assert side.later() == []
    assert side.owed.active
    side.play(request("old"), "idle")
    assert [content["status"] for content in side.later()] == ["ok"]


def test_a_request_without_iopub_messages_gets_status_aborted() -> None:
    side = Side(adopted=False)
    side.owed.sent("mine", request("mine"))
    side.owed.connection_lost()
    for _ in range(2):
        side.owed.shell_answered(side.now)
    assert side.later() == [{"status": "aborted", "execution_count": None}]


def test_an_answer_of_the_main_shell_does_not_end_a_subshell_request() -> None:
    side = Side(adopted=False)
    side.owed.sent("mine", request("mine", subshell_id="sub"))
    side.owed.connection_lost()
    for _ in range(2):
        side.owed.shell_answered(side.now)
    assert side.later() == []
    side.play(request("mine", subshell_id="sub"), "input", "idle")
    assert [content["status"] for content in side.later()] == ["ok"]


def test_stored_requests_are_bounded() -> None:
    sizes = set()
    for count in (2000, 4000):
        side = Side()
        for number in range(1000, 1000 + count):
            side.play(request(f"old {number}"), "print")
            side.owed.sent(f"new {number}", b"{}")
        sizes.add(len(pickle.dumps(side.owed)))
    assert len(sizes) == 1
    side.owed.connection_lost()
    for _ in range(2):
        side.owed.shell_answered(side.now)
    assert len(side.later()) == 1000
    side.owed.clear()
    assert not side.owed.active


@pytest.mark.parametrize("idle", [True, False])
def test_a_lost_idle_is_built_although_the_reply_arrived(idle: bool) -> None:
    side = Side(adopted=False)
    side.owed.sent("mine", request("mine"))
    side.owed.connection_lost(iopub=True)
    assert side.owed.replied("mine", side.now)
    if idle:
        side.play(request("mine"), "idle")
    assert side.later(1000) == [], "the shell may not have answered because it is still busy"
    for _ in range(2):
        side.owed.shell_answered(side.now)
    assert side.later() == ([] if idle else [None])
    assert [due.idle for due in side.due] == ([] if idle else [False])
    assert not side.owed.active


def test_the_request_that_ran_when_iopub_was_lost_is_named_once() -> None:
    side = Side(adopted=False)
    for name in ("first", "second", "third"):
        side.owed.sent(name, request(name))
    side.owed.replied("first", side.now)
    side.owed.connection_lost()
    assert side.owed.cut() is None, "only iopub has output"
    side.owed.connection_lost(iopub=True)
    assert side.owed.cut() == request("second")
    assert side.owed.cut() is None


def test_a_reply_before_its_idle_is_not_built_again() -> None:
    side = Side()
    side.play(request("old"), "busy", "input")
    assert side.owed.replied("old", side.now)
    side.play(request("old"), "idle")
    assert side.later() == []


def test_no_idle_is_built_if_iopub_stayed_connected() -> None:
    side = Side(adopted=False)
    side.owed.sent("mine", request("mine"))
    side.owed.connection_lost()
    assert side.owed.replied("mine", side.now)
    assert not side.owed.active


@pytest.mark.parametrize("subshell", [{}, {"subshell_id": "sub"}])
@pytest.mark.parametrize("replied", [True, False])
def test_output_after_the_answers_of_the_shell_does_not_prolong_the_wait_forever(
    replied: bool, subshell: dict[str, str]
) -> None:
    side = Side(adopted=False)
    side.owed.sent("mine", request("mine", **subshell))
    side.owed.connection_lost(iopub=True)
    for _ in range(2):
        side.owed.shell_answered(side.now)
    side.now += GRACE / 2
    side.play(request("mine"), "print")
    if replied:
        assert side.owed.replied("mine", side.now)
    contents = []
    while (at := side.owed.next_at()) is not None:
        assert at > side.now
        contents += side.later(at - side.now)
    assert contents == ([None] if replied else [])


def test_an_idle_is_built_after_a_reply_that_arrives_when_the_shell_is_calm() -> None:
    side = Side(adopted=False)
    side.owed.sent("mine", request("mine", subshell_id="sub"))
    side.owed.connection_lost(iopub=True)
    for _ in range(2):
        side.owed.shell_answered(side.now)
    assert side.later(1000) == []
    assert side.owed.replied("mine", side.now)
    assert side.owed.next_at() == side.now + GRACE
    assert side.later() == [None]


def earlier(name: str, **known: object) -> Execution:
    return Execution(name, 1, request(name), **known)  # type: ignore[arg-type]


def calm(side: Side) -> list[dict]:
    """Let the shell answer twice; return the replies that are built then."""
    side.owed.shell_answered(side.now)
    side.owed.shell_answered(side.now)
    return side.later()


@pytest.mark.parametrize(
    ("known", "steps", "expected"),
    [
        ({"started": 1.0, "count": 3}, "idle", {"status": "ok", "execution_count": 3}),
        ({"started": 1.0, "count": 3}, "error idle", {"status": "error", "execution_count": 3}),
        ({"started": 1.0, "error": ERROR}, "idle", {"status": "error", **ERROR}),
        ({}, "busy input idle", {"status": "ok", "execution_count": 7}),
    ],
)
def test_a_reply_says_also_what_an_earlier_bridge_heard(
    known: dict, steps: str, expected: dict
) -> None:
    side = Side(known=("old",))
    side.owed.restore(earlier("old", **known), side.now)
    side.play(request("old"), *steps.split())
    [content] = side.later()
    assert content.items() >= expected.items()
    [due] = side.due
    assert due.idle
    assert not due.unheard


def test_a_request_that_ended_while_no_bridge_ran_ends_when_the_shell_is_calm() -> None:
    side = Side(known=("ran", "waited"))
    side.owed.restore(earlier("ran", started=1.0, count=3), side.now)
    side.owed.restore(earlier("waited"), side.now)
    assert side.later() == [], "it may still be running"
    ran, waited = calm(side)
    assert (ran["status"], ran["execution_count"]) == ("ok", 3)
    assert waited["status"] == "aborted"
    assert [(due.unheard, due.idle) for due in side.due] == [(True, False)] * 2
    assert not side.owed.replied("ran", side.now), "too late: a reply was built"


def test_a_request_of_which_only_the_reply_or_the_idle_was_lost() -> None:
    side = Side(known=("no reply", "no idle"))
    side.owed.restore(earlier("no reply", started=1.0, count=3, ended_seq=9), side.now)
    side.owed.restore(earlier("no idle", started=1.0, count=4, replied=9), side.now)
    [content] = side.later()
    assert (content["status"], content["execution_count"]) == ("ok", 3)
    assert not side.due[0].unheard, "all its output was heard"
    [nothing] = calm(side)
    assert nothing is None
    assert side.due == [BuiltReply(request("no idle"), None, idle=False)]


def test_the_real_reply_to_a_request_of_an_earlier_bridge_is_passed_on() -> None:
    side = Side(known=("old",))
    side.owed.restore(earlier("old", started=1.0), side.now)
    side.play(request("old"), "print")
    assert side.owed.replied("old", side.now)
    side.play(request("old"), "idle")
    assert side.later() == []
    assert calm(side) == []


def test_a_request_of_an_earlier_bridge_to_a_silent_subshell_ends_some_time() -> None:
    header = request("old", subshell_id="gone")
    side = Side(known=("old",))
    side.owed.restore(Execution("old", 1, header, started=1.0, count=3), side.now)
    assert calm(side) == []
    side.now += SILENCE - 2 * GRACE
    side.play(header, "print")  # it still runs
    assert side.later(SILENCE - 1) == []
    assert side.owed.next_at() == side.now + 1
    [content] = side.later(1)
    assert (content["status"], content["execution_count"]) == ("ok", 3)
    assert side.later() == []
    assert not side.owed.active


def test_a_request_of_this_bridge_to_a_subshell_may_be_silent_for_ever() -> None:
    side = Side(adopted=False)
    side.owed.sent("mine", request("mine", subshell_id="busy"))
    side.owed.connection_lost()
    assert calm(side) == []
    assert side.owed.next_at() is None
    assert side.later(100 * SILENCE) == []
