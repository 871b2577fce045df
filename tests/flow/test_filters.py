"""Allowed message types and hidden tracebacks."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.flow.filters import AllowedTypes, HideTracebacks
from kbridge.flow.policy import DROP, PASS
from kbridge.wire.message import Channel, Message

TEXT = "Not shown."
HIDDEN = {"ename": "ExecutionError", "evalue": "Execution error", "traceback": [TEXT]}
SECRET = "s3cret-path"
FAILURE = {"ename": SECRET, "evalue": SECRET, "traceback": [SECRET, SECRET]}


def message(msg_type: str, content: Any, channel: Channel = Channel.IOPUB) -> Message:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    header = json.dumps({"msg_type": msg_type}).encode()
    return Message(channel, header, b'{"p": 1}', b'{"m": 2}', raw, (b"buffer",))


def hide(msg: Message) -> Message:
    """Return the message that the client receives."""
    verdict = HideTracebacks(TEXT)(msg, msg.msg_type, 0.0)
    if verdict is PASS:
        return msg
    (replaced,) = verdict
    return replaced


@pytest.mark.parametrize(
    ("allowed", "msg_type", "verdict"),
    [
        ([], "anything", PASS),
        (["execute_request"], "execute_request", PASS),
        (["execute_request"], "kernel_info_request", DROP),
        ({"a", "b"}, "b", PASS),
        (("a",), "", DROP),
    ],
)
def test_only_allowed_types_pass(allowed: Any, msg_type: str, verdict: Any) -> None:
    policy = AllowedTypes(allowed)
    assert policy(message(msg_type, {}, Channel.SHELL), msg_type, 0.0) == verdict


@pytest.mark.parametrize(
    ("msg_type", "content", "expected"),
    [
        ("error", FAILURE, HIDDEN),
        ("error", {**FAILURE, "more": 1}, {**HIDDEN, "more": 1}),
        ("error", {}, HIDDEN),
        ("pyerr", FAILURE, HIDDEN),
        ("execute_reply", {"status": "error", **FAILURE}, {"status": "error", **HIDDEN}),
        (
            "execute_reply",
            {"status": "error", **FAILURE, "execution_count": 3, "payload": []},
            {"status": "error", **HIDDEN, "execution_count": 3, "payload": []},
        ),
        ("inspect_reply", {"status": "error", **FAILURE}, {"status": "error", **HIDDEN}),
        ("history_reply", {"traceback": [SECRET]}, HIDDEN),
        (
            "execute_reply",
            {"status": "ok", "user_expressions": {"a": {"status": "error", **FAILURE}, "b": 1}},
            {"status": "ok", "user_expressions": {"a": {"status": "error", **HIDDEN}, "b": 1}},
        ),
    ],
)
@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL, Channel.IOPUB])
def test_tracebacks_are_hidden(
    msg_type: str, content: Any, expected: Any, channel: Channel
) -> None:
    msg = message(msg_type, content, channel)
    got = hide(msg)
    assert json.loads(got.content) == expected
    assert got._replace(content=msg.content) == msg


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("stream", {"name": "stderr", "text": "an error with a traceback"}),
        ("display_data", {"status": "error", "traceback": []}),
        ("execute_reply", {"status": "ok", "execution_count": 1}),
        ("execute_reply", {"status": "aborted"}),
        ("execute_reply", {"status": "ok", "payload": ["error"], "user_expressions": {}}),
        ("execute_reply", {"status": "ok", "user_expressions": "error"}),
        ("execute_reply", {"status": "ok", "user_expressions": {"e": {"status": "ok"}}}),
        ("inspect_reply", {"status": "ok", "data": {"text/plain": "the error class\u00e9"}}),
        ("execute_reply", b"not JSON, and nothing in it that a client could show"),
        ("status", {"execution_state": "error"}),
    ],
)
def test_messages_without_an_error_are_unchanged(msg_type: str, content: Any) -> None:
    msg = message(msg_type, content)
    assert hide(msg) == msg


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("error", b"s3cret-path"),
        ("error", b'["s3cret-path"]'),
        ("error", b'{"ename": "s3cret-path'),
        ("error", b'{"evalue": "s3cret-path \xff"}'),
        ("execute_reply", b'{"status": "error", "evalue": "s3cret-path"'),
        (
            "execute_reply",
            b'{"status": "error", "n": ' + b"9" * 5000 + b', "evalue": "s3cret-path"}',
        ),
        ("execute_reply", b'{"traceback": ' + b"[" * 200_000),
    ],
)
def test_an_error_that_cannot_be_parsed_is_replaced(msg_type: str, content: bytes) -> None:
    assert json.loads(hide(message(msg_type, content)).content) == {"status": "error", **HIDDEN}


@pytest.mark.parametrize(
    "content",
    [
        rb'{"\u0073tatus": "\u0065rr\u006fr", "evalue": "s3cret-path"}',
        rb'{"status": "ok", "status": "\u0065rror", "evalue": "s3cret-path"}',
        rb'{"status": "ok", "tr\u0061ceback": ["s3cret-path"]}',
    ],
)
def test_an_escaped_error_is_hidden_too(content: bytes) -> None:
    assert SECRET.encode() not in hide(message("execute_reply", content)).content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(more=st.dictionaries(st.text(), JSON, max_size=4), ascii_only=st.booleans())
def test_other_members_of_an_error_are_unchanged(more: dict[str, Any], ascii_only: bool) -> None:
    content = {**more, **FAILURE, "status": "error"}
    content.pop("user_expressions", None)
    raw = json.dumps(content, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return
    got = json.loads(hide(message("execute_reply", raw)).content)
    assert got == {**content, **HIDDEN}
