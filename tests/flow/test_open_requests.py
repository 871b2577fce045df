"""Requests that have not ended, as the next bridge reads them."""

import json
from typing import Any

import pytest

from kbridge.flow.open_requests import OpenRequest
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

HEADER = b'{"msg_id": "ask", "msg_type": "execute_request", "session": "\xff"}'


def said(msg_type: str, **content: Any) -> Message:
    return build(Channel.IOPUB, msg_type, content, session="k", date="now", parent_header=HEADER)


def stored(request: OpenRequest) -> OpenRequest:
    """Return the request as the next bridge reads it."""
    entry = json.loads(json.dumps(request.entry()))
    return OpenRequest.from_entry(request.msg_id, entry)


def test_a_request_has_what_the_kernel_said_about_it() -> None:
    request = OpenRequest("ask", 7, HEADER)
    assert stored(request) == request
    assert not request.begun
    assert request.observe(said("status", execution_state="busy"), "status")
    assert request.observe(said("execute_input", code="1/0", execution_count=3), "execute_input")
    error = {"ename": "E", "evalue": "v", "traceback": ["line"]}
    assert request.observe(said("error", **error), "error")
    assert (request.begun, request.count, request.error) == (True, 3, error)
    assert not request.ended
    assert request.observe(said("status", execution_state="idle"), "status")
    assert request.ended
    assert stored(request) == request


def test_a_message_that_says_nothing_new_is_not_written_again() -> None:
    request = OpenRequest("ask", 7, HEADER, count=3)
    assert not request.observe(said("execute_result", execution_count=3), "execute_result")
    assert not request.observe(said("execute_result", execution_count="4"), "execute_result")
    assert not request.observe(said("status", execution_state="starting"), "status")
    assert request.count == 3


def test_a_long_traceback_is_left_out() -> None:
    request = OpenRequest("ask", 7, HEADER)
    request.observe(said("error", ename="E", evalue="v", traceback=["x" * (1 << 20)]), "error")
    assert request.error == {"ename": "E", "evalue": "v", "traceback": []}


@pytest.mark.parametrize(
    ("field", "value"),
    [("client", "x"), ("header", 1), ("count", []), ("error", 1), ("client", None)],
)
def test_an_entry_that_no_bridge_wrote_is_refused(field: str, value: Any) -> None:
    entry = OpenRequest("ask", 7, HEADER).entry()
    with pytest.raises((TypeError, ValueError, AttributeError)):
        OpenRequest.from_entry("ask", {**entry, field: value})
