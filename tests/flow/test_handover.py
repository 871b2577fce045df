"""Entries of executions, as replicas exchange them."""

import json
from typing import Any

import pytest

from kbridge.flow.execution import Execution
from kbridge.flow.handover import Changes, Handover, Question, make_entry, read_entry
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

HEADER = b'{"msg_id": "r", "msg_type": "execute_request", "session": "\xed\xa0\x80"}'


def question() -> Message:
    content = {"prompt": "\N{SNOWMAN}\0", "password": False}
    return build(Channel.STDIN, "input_request", content, session="k", date="", msg_id="q")


def execution(**fields: Any) -> Execution:
    given: dict[str, Any] = {"submitted": 5.0, "cell": "c", "code_bytes": 3, "state": "running"}
    given |= {"started": 6.0, "count": 4, "first": 7, "last": 9, "ended_seq": 10, **fields}
    return Execution("r", 12, HEADER, **given)


def through_the_database(entry: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(entry)
    assert text.isascii()
    assert "\0" not in text
    back: dict[str, Any] = json.loads(text)
    return back


def test_an_entry_keeps_all_but_places() -> None:
    error = {"ename": "E", "evalue": "v", "traceback": []}
    entry = make_entry(
        execution(error=error),
        session="s",
        owed=True,
        kept=(HEADER, error),
        reply=("a", "b"),
        inputs=[Question(question(), "b")],
    )
    found = read_entry("r", through_the_database(entry))
    expected = Execution(
        *("r", 0, HEADER),
        submitted=5.0,
        cell="c",
        code_bytes=3,
        state="running",
        started=6.0,
        count=4,
        error=error,
    )
    assert found.execution == expected
    assert (found.session, found.owed, found.reply) == ("s", True, ("a", "b"))
    assert found.inputs == (Question(question(), "b"),)


def test_what_is_needed_for_a_reply_goes_with_the_reply() -> None:
    entry = make_entry(execution(), session="s", owed=False, kept=(HEADER, {"ename": "E"}))
    assert "header" not in json.dumps(entry)
    found = read_entry("r", through_the_database(entry)).execution
    assert (found.header, found.error) == (b"", None)


@pytest.mark.parametrize(
    "damage",
    [
        {"session": 1},
        {"execution": None},
        {"execution": {"state": "odd"}},
        {"execution": {"submitted": "x"}},
        {"inputs": [["only one"]]},
        {"reply": ["one"]},
        {"inputs": 5},
    ],
)
def test_a_damaged_entry_costs_that_request_only(damage: dict[str, Any]) -> None:
    good = make_entry(execution(), session="s", owed=True, kept=(HEADER, None))
    handover = Handover(executions={"r": {**good, **damage}, "other": good})
    assert [each.execution.msg_id for each in handover.requests()] == ["other"]


def test_requests_are_in_the_order_of_their_sending() -> None:
    entries = {
        name: make_entry(execution(submitted=at), session="", owed=True, kept=(HEADER, None))
        for name, at in (("late", 9.0), ("early", 1.0))
    }
    found = Handover(executions=entries).requests()
    assert [each.execution.msg_id for each in found] == ["early", "late"]


def test_changes_are_true_if_there_are_some() -> None:
    assert not Changes({}, {})
    assert Changes({"s": "m"}, {})
    assert Changes({}, {"r": None})
