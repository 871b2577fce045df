"""Input requests: each is answered once."""

import pytest

from kbridge.flow import input_requests as module
from kbridge.flow.input_requests import InputRequests
from kbridge.flow.journal import EVERYONE
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

ALICE, BOB = 1, 2


def request(msg_id: str) -> Message:
    return build(Channel.SHELL, "execute_request", {}, session="c", date="now", msg_id=msg_id)


def question(msg_id: str, of: str = "a-cell") -> Message:
    return build(
        Channel.STDIN,
        "input_request",
        {"prompt": "?", "password": False},
        session="k",
        date="now",
        msg_id=msg_id,
        parent_header=request(of).header,
    )


def answer(asked: Message | None = None) -> Message:
    parent = asked.header if asked else b"{}"
    return build(
        Channel.STDIN,
        "input_reply",
        {"value": "42"},
        session="c",
        date="now",
        parent_header=parent,
    )


@pytest.fixture
def inputs() -> InputRequests:
    return InputRequests()


def test_an_input_request_is_open_until_it_is_answered(inputs) -> None:
    asked = question("q")
    assert not inputs.open
    inputs.asked(asked, ALICE, 7)
    (open_one,) = inputs.open.values()
    assert (open_one.msg, open_one.client, open_one.seq) == (asked, ALICE, 7)
    assert inputs.open
    assert inputs.answer(answer(asked))
    assert not inputs.open
    assert not inputs.open


def test_a_second_answer_is_dropped(inputs) -> None:
    asked = question("q")
    inputs.asked(asked, ALICE, 0)
    assert [inputs.answer(answer(asked)) for _ in range(3)] == [True, False, False]


def test_a_late_answer_does_not_answer_the_next_request(inputs) -> None:
    first, second = question("q1"), question("q2")
    inputs.asked(first, ALICE, 0)
    assert inputs.answer(answer(first))
    inputs.asked(second, ALICE, 1)
    assert not inputs.answer(answer(first)), "a late answer would count for the second request"
    assert inputs.answer(answer(second))


def test_an_answer_without_a_parent_is_for_the_oldest_request(inputs) -> None:
    first, second = question("q1", "cell-1"), question("q2", "cell-2")
    inputs.asked(first, ALICE, 0)
    inputs.asked(second, BOB, 1)
    assert inputs.answer(answer())
    assert [q.msg for q in inputs.open.values()] == [second]
    assert inputs.answer(answer())
    assert not inputs.answer(answer()), "no input request is open"


def test_an_answer_to_an_unknown_request_passes(inputs) -> None:
    assert inputs.answer(answer(question("older")))
    assert inputs.answer(answer())


def test_an_answer_to_an_unknown_request_closes_no_other(inputs) -> None:
    inputs.asked(question("q"), ALICE, 0)
    assert inputs.answer(answer(question("older")))
    assert len(inputs.open) == 1


def test_the_end_of_an_execution_closes_its_input_requests_only(inputs) -> None:
    one, two, other = question("q1"), question("q2"), question("q3", "another-cell")
    for seq, asked in enumerate((one, two, other)):
        inputs.asked(asked, ALICE, seq)
    inputs.done("a-cell")
    assert [q.msg for q in inputs.open.values()] == [other]
    inputs.done("nothing-like-it")
    inputs.done("")
    assert len(inputs.open) == 1
    assert inputs.answer(answer(other))


def test_an_answer_after_the_end_of_the_execution_is_dropped(inputs) -> None:
    """The kernel would take it as the answer to its next input request."""
    asked = question("q")
    inputs.asked(asked, ALICE, 0)
    inputs.done("a-cell")
    assert not inputs.answer(answer(asked))


def test_a_new_process_has_no_open_input_requests(inputs) -> None:
    open_one, answered = question("q1"), question("q2")
    inputs.asked(answered, ALICE, 0)
    inputs.answer(answer(answered))
    inputs.asked(open_one, EVERYONE, 1)
    inputs.clear()
    assert not inputs.open
    assert not inputs.open
    again = question("q3")
    inputs.asked(again, ALICE, 2)
    assert inputs.answer(answer())
    assert not inputs.open


def test_client_and_position_of_an_input_request_can_change(inputs) -> None:
    inputs.asked(question("q"), ALICE, 0)
    (open_one,) = inputs.open.values()
    open_one.client, open_one.seq = BOB, 9
    assert [(q.client, q.seq) for q in inputs.open.values()] == [(BOB, 9)]


def test_the_number_of_stored_input_requests_is_bounded(inputs, monkeypatch) -> None:
    monkeypatch.setattr(module, "_LIMIT", 5)
    asked = [question(f"q{i}") for i in range(20)]
    for seq, one in enumerate(asked):
        inputs.asked(one, ALICE, seq)
    assert [q.seq for q in inputs.open.values()] == [15, 16, 17, 18, 19]
    for one in asked[15:]:
        assert inputs.answer(answer(one))
    for i in range(20, 40):
        one = question(f"q{i}")
        inputs.asked(one, ALICE, i)
        inputs.answer(answer(one))
    assert len(inputs._answered) == 5
    assert not inputs.answer(answer(one))
