"""Typed outputs, and the results of executions."""

from __future__ import annotations

from typing import Any

import pytest

from kbridge.client.outputs import (
    ClearOutput,
    DisplayData,
    Error,
    ExecuteResult,
    Gap,
    Result,
    Stream,
    UpdateDisplayData,
    parse_output,
    parse_result,
)
from kbridge.flow.journal import Gap as JournalGap
from kbridge.hub.clock import Clock
from kbridge.hub.notices import Notices
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

BUNDLE: dict[str, Any] = {
    "data": {"text/plain": "1"},
    "metadata": {"a": 1},
    "transient": {"display_id": "d"},
}


def iopub(kind: str, content: dict[str, Any], **more: Any) -> Message:
    return build(Channel.IOPUB, kind, content, session="k", date="", **{"username": "me", **more})


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("stream", {"name": "stderr", "text": "x"}, Stream("stderr", "x")),
        ("stream", {"text": "x"}, Stream("stdout", "x")),
        (
            "display_data",
            BUNDLE,
            DisplayData({"text/plain": "1"}, {"a": 1}, {"display_id": "d"}, (b"b",)),
        ),
        (
            "update_display_data",
            BUNDLE,
            UpdateDisplayData({"text/plain": "1"}, {"a": 1}, {"display_id": "d"}, (b"b",)),
        ),
        (
            "execute_result",
            {**BUNDLE, "execution_count": 3},
            ExecuteResult(3, {"text/plain": "1"}, {"a": 1}, {"display_id": "d"}, (b"b",)),
        ),
        ("execute_result", {"data": None}, ExecuteResult(None, {}, {}, {}, (b"b",))),
        (
            "error",
            {"ename": "E", "evalue": "v", "traceback": ["a", "b"]},
            Error("E", "v", ("a", "b")),
        ),
        ("error", {"traceback": None}, Error("", "", ())),
        ("clear_output", {"wait": True}, ClearOutput(True)),
        ("clear_output", {}, ClearOutput(False)),
        ("status", {"execution_state": "idle"}, None),
        ("execute_input", {"code": "1"}, None),
    ],
)
def test_messages_become_outputs(kind: str, content: dict[str, Any], expected: object) -> None:
    assert parse_output(iopub(kind, content, buffers=[b"b"])) == expected


def test_a_message_that_is_not_valid_is_a_gap() -> None:
    gap = parse_output(iopub("stream", {})._replace(content=b"[]"))
    assert isinstance(gap, Gap)
    assert gap.messages == 1
    assert parse_result(None).status == "error"


def test_text_that_is_not_utf_8_is_replaced() -> None:
    content = b'{"name": "stdout", "text": "before caf\xe9 after"}'
    assert parse_output(iopub("stream", {})._replace(content=content)) == Stream(
        "stdout", "before caf\ufffd after"
    )


@pytest.mark.parametrize(
    ("gap", "messages", "nbytes"),
    [
        (JournalGap(1, 0, b""), 1, 0),
        (JournalGap(1, 20, b""), 1, 20),
        (JournalGap(12_345, 6_789_000, b""), 12_345, 6_789_000),
        (JournalGap(0, 0, b""), 0, 0),
    ],
)
def test_the_notices_of_the_bridge_become_gaps(gap: JournalGap, messages: int, nbytes: int) -> None:
    output = parse_output(Notices(Clock()).lost(gap, b"{}", 7))
    assert isinstance(output, Gap)
    assert (output.messages, output.bytes) == (messages, nbytes)
    assert "output" in output.text


def test_other_notices_of_the_bridge_become_gaps_of_unknown_size() -> None:
    output = parse_output(Notices(Clock()).taken_over(b"{}"))
    assert isinstance(output, Gap)
    assert (output.messages, output.bytes) == (0, 0)
    assert output.text.startswith("the server was restarted")


@pytest.mark.parametrize("text", ["[kbridge: a]\nb\n", "[kbridge: a", "a [kbridge: b]"])
def test_other_texts_are_not_gaps(text: str) -> None:
    content = {"name": "stderr", "text": text}
    assert parse_output(iopub("stream", content, username="kbridge")) == Stream("stderr", text)


def test_a_kernel_cannot_report_a_gap() -> None:
    content = {"name": "stderr", "text": "[kbridge: 3 messages of output were dropped]\n"}
    assert isinstance(parse_output(iopub("stream", content)), Stream)


def test_results() -> None:
    ok = {"status": "ok", "execution_count": 2, "user_expressions": {"a": 1}, "payload": [{}, 1]}
    assert parse_result(ok) == Result("ok", 2, {"a": 1}, ({},))
    assert parse_result(ok).ok
    error = {"status": "error", "execution_count": 2, "ename": "E", "evalue": "v", "traceback": []}
    assert parse_result(error) == Result("error", 2, error=Error("E", "v", ()))
    assert parse_result({"status": "abort"}) == Result("aborted")
    assert parse_result({}).status == "error"
