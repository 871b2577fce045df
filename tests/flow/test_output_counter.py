"""The output of each execution is counted, for runs of messages with the same parent at once."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.execution import Execution
from kbridge.flow.executions import Executions
from kbridge.flow.output_counter import OutputCounter
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

TEXT = {"name": "stdout", "text": "one\ntwo\n"}


def request(msg_id: str = "ask") -> Message:
    header = {"msg_id": msg_id, "msg_type": "execute_request", "session": "a-page"}
    return Message(Channel.SHELL, json.dumps(header).encode(), b"{}", b"{}", b'{"code": "1"}')


class Side:
    """A counter, and a journal that is only a number."""

    def __init__(self, *msg_ids: str, seq: int = 0) -> None:
        self.executions = Executions()
        self.counter = OutputCounter(self.executions)
        self.seq = seq
        for msg_id in msg_ids:
            self.submit(msg_id)

    def submit(self, msg_id: str) -> None:
        self.executions.submit(request(msg_id), 1, 1.0)
        self.counter.look_again()

    def append(self, msg_id: str, msg_type: str = "stream", content: Any = TEXT) -> int:
        """Append a message; return the size of its content."""
        msg = build(
            *(Channel.IOPUB, msg_type, content),
            session="kernel",
            date="now",
            parent_header=request(msg_id).header if msg_id else b"{}",
        )
        if msg.parent_header != self.counter.parent:
            self.counter.turn(msg, self.seq)
        if msg_type == "stream":
            self.counter.add_text(msg.content)
        else:
            self.counter.add(msg.content, msg_type)
        self.seq += 1
        return len(msg.content)

    def __getitem__(self, msg_id: str) -> Execution:
        self.counter.count(self.seq)
        execution = self.executions.get(msg_id)
        assert execution is not None
        return execution


def test_messages_lines_bytes_and_places_are_counted() -> None:
    side = Side("ask", "other", seq=40)
    size = side.append("ask", "status", {"execution_state": "busy"})
    size += side.append("ask") + side.append("ask")
    side.append("other")
    size += side.append("ask", "display_data", {"data": {"text/plain": "a\nb"}})
    execution = side["ask"]
    assert (execution.first, execution.last, execution.messages) == (40, 44, 4)
    assert (execution.lines, execution.nbytes) == (4, size), "a display has no lines"
    assert (side["other"].first, side["other"].last, side["other"].messages) == (43, 43, 1)


def test_texts_added_together_are_those_added_one_by_one() -> None:
    one, other = Side("ask"), Side("ask")
    for side in (one, other):
        side.append("ask")
    contents = [b'{"text": "a\\nb"}', b'{"text": "\\n\\n"}', b"{}"]
    for content in contents:
        one.counter.add_text(content)
    other.counter.add_texts(contents)
    one.seq = other.seq = 4
    assert (one["ask"].lines, one["ask"].nbytes) == (other["ask"].lines, other["ask"].nbytes)
    assert (
        one["ask"].lines == other["ask"].lines == side["ask"].lines == TEXT["text"].count("\n") + 3
    )


@pytest.mark.parametrize(
    ("msg_type", "transient", "displays"),
    [
        ("display_data", {"display_id": "plot"}, True),
        ("display_data", {}, False),
        # This changes a display of an earlier message, wherever that was shown.
        ("update_display_data", {"display_id": "plot"}, False),
    ],
)
def test_a_display_with_an_id_is_noted(
    msg_type: str, transient: dict[str, str], displays: bool
) -> None:
    side = Side("ask", "other")
    side.append("ask", msg_type, {"data": {}, "metadata": {}, "transient": transient})
    side.append("other")
    assert side["ask"].displays == displays
    assert not side["other"].displays
    side.append("ask")
    assert side["ask"].displays == displays, "it stays"


@given(st.lists(st.sampled_from(["a", "b", "unknown", "", "look"])), st.booleans())
def test_the_figures_do_not_depend_on_when_they_are_counted(steps: list[str], often: bool) -> None:
    side = Side("a", "b")
    messages: Counter[str] = Counter()
    last: dict[str, int] = {}
    for step in steps:
        if step == "look":
            side.counter.look_again()
            continue
        last[step] = side.seq
        messages[step] += 1
        side.append(step)
        if often:
            side.counter.count(side.seq)
    for msg_id in ("a", "b"):
        execution = side[msg_id]
        assert execution.messages == messages[msg_id]
        assert execution.lines == 2 * messages[msg_id]
        assert execution.last == last.get(msg_id)


def test_output_before_its_request_is_not_counted() -> None:
    side = Side()
    side.append("ask")
    side.submit("ask")
    side.append("ask")
    assert (side["ask"].messages, side["ask"].first) == (1, 1)


def test_a_request_that_uses_an_id_again_starts_from_zero() -> None:
    side = Side("ask")
    side.append("ask")
    side.submit("ask")
    assert side["ask"].messages == 0
    side.append("ask")
    assert (side["ask"].messages, side["ask"].first) == (1, 1)


def test_lines_of_large_texts_are_estimated() -> None:
    side = Side("ask")
    for _ in range(3):
        side.append("ask", content={"name": "stdout", "text": ("x" * 99 + "\n") * 10_000})
    assert 29_000 < side["ask"].lines < 31_000
