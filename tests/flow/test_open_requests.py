"""Requests that have not ended, as the next bridge reads them."""

import json
from typing import Any

import pytest

from kbridge.flow.open_requests import OpenRequest, count_of, error_of
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

HEADER = b'{"msg_id": "ask", "msg_type": "execute_request", "session": "\xff"}'


def said(msg_type: str, **content: Any) -> Message:
    return build(Channel.IOPUB, msg_type, content, session="k", date="now", parent_header=HEADER)


def stored(request: OpenRequest) -> OpenRequest:
    """Return the request as the next bridge reads it."""
    entry = json.loads(json.dumps(request.entry()))
    return OpenRequest.from_entry(request.msg_id, entry, 100)


def test_a_request_has_what_the_kernel_said_about_it() -> None:
    request = OpenRequest("ask", 7, HEADER)
    assert stored(request) == request
    assert not request.begun
    assert request.observe(said("status", execution_state="busy"), "status", 1)
    assert request.observe(said("execute_input", code="1/0", execution_count=3), "execute_input", 2)
    error = {"ename": "E", "evalue": "v", "traceback": ["line"]}
    assert request.observe(said("error", **error), "error", 3)
    assert (request.begun, request.count, request.error) == (True, 3, error)
    assert request.ended is None
    assert request.observe(said("status", execution_state="idle"), "status", 4)
    assert request.ended == 4
    assert stored(request) == request


def test_a_message_that_says_nothing_new_is_not_written_again() -> None:
    request = OpenRequest("ask", 7, HEADER, count=3)
    assert not request.observe(said("execute_result", execution_count=3), "execute_result", 1)
    assert not request.observe(said("execute_result", execution_count="4"), "execute_result", 2)
    assert not request.observe(said("status", execution_state="starting"), "status", 3)
    assert request.count == 3


def test_a_long_traceback_is_left_out() -> None:
    request = OpenRequest("ask", 7, HEADER)
    request.observe(said("error", ename="E", evalue="v", traceback=["x" * (1 << 20)]), "error", 1)
    assert request.error == {"ename": "E", "evalue": "v", "traceback": []}


@pytest.mark.parametrize("compact", [False, True])
def test_no_text_of_an_error_makes_the_log_grow(compact: bool) -> None:
    separators = (",", ":") if compact else None
    trap = 'no, "evalue": "this"'
    long = {"traceback": [trap], "ename": trap, "evalue": "v" * (1 << 20)}
    content = json.dumps(long, separators=separators).encode()
    assert error_of(content) == {"ename": trap, "evalue": "", "traceback": []}
    long = {"evalue": "\u00e9\n" * 100, "ename": "E" * 5000, "traceback": ["x" * (1 << 20)]}
    content = json.dumps(long, separators=separators).encode()
    assert error_of(content) == {"ename": "", "evalue": "\u00e9\n" * 100, "traceback": []}


def test_the_count_of_a_large_content_is_found_without_parsing_it() -> None:
    code = 'x = {"execution_count": 3}\n' * 10_000
    for content in (
        {"code": code, "execution_count": 7},
        {"execution_count": 7, "code": code},
    ):
        for separators in ((",", ":"), (", ", ": ")):
            text = json.dumps(content, separators=separators).encode()
            assert count_of(text, "execute_input") == 7
    data = {"application/json": {"execution_count": 3}, "text/plain": code}
    result = json.dumps({"data": data, "execution_count": 7}).encode()
    assert count_of(result, "execute_result") is None, "the count of execute_input is kept"
    assert count_of(b'{"code": "%b"}' % (b"x" * (1 << 20)), "execute_input") is None


@pytest.mark.parametrize(
    ("end", "replied", "ended"), [(9, None, None), (10, 10, None), (12, 10, 12)]
)
def test_a_reply_or_status_that_was_not_written_is_missing(
    end: int, replied: int | None, ended: int | None
) -> None:
    entry = OpenRequest("ask", 7, HEADER, replied=10, ended=12).entry()
    request = OpenRequest.from_entry("ask", entry, end)
    assert (request.replied, request.ended) == (replied, ended)
    assert request.over == (end == 12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client", "x"),
        ("header", 1),
        ("count", []),
        ("error", 1),
        ("client", None),
        ("replied", "x"),
    ],
)
def test_an_entry_that_no_bridge_wrote_is_refused(field: str, value: Any) -> None:
    entry = OpenRequest("ask", 7, HEADER).entry()
    with pytest.raises((TypeError, ValueError, AttributeError)):
        OpenRequest.from_entry("ask", {**entry, field: value}, 100)
