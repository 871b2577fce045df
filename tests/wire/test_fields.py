"""The checks of a client's message that both dialects share."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import FrameError, IgnoredMessage, InvalidMessage, MalformedFrame
from kbridge.wire import fields
from kbridge.wire.fields import MAX_PARSED
from kbridge.wire.message import Channel

GOOD = '{"msg_id": "a", "msg_type": "b"}'
DEEP = "[" * 100_000


@pytest.mark.parametrize("name", [str(each) for each in Channel])
def test_each_channel_is_found_by_its_name(name: str) -> None:
    found = fields.channel(name)
    assert found == name
    assert type(found) is Channel


@pytest.mark.parametrize("name", ["", "Shell", "shell ", "x" * 10_000, "\ud800", "é" * 100])
def test_an_unknown_channel_is_ignored_and_named_briefly(name: str) -> None:
    with pytest.raises(IgnoredMessage, match="unknown channel '") as caught:
        fields.channel(name)
    assert caught.value.reason.isascii()
    assert len(caught.value.reason) <= 76


def test_utf8_decodes_bytes_and_views() -> None:
    assert fields.utf8("é".encode(), "part") == "é"
    assert fields.utf8(memoryview(b"a"), "part") == "a"
    with pytest.raises(MalformedFrame, match=r"^part is not valid UTF-8$"):
        fields.utf8(b"\xff", "part")


def test_encodable_refuses_lone_surrogates() -> None:
    assert fields.encodable("é", "part") == "é".encode()
    with pytest.raises(MalformedFrame, match=r"^part contains a lone surrogate$"):
        fields.encodable("\ud800", "part")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "part is not valid JSON"),
        ("", "part is not valid JSON"),
        ("9" * 5000, "part is not valid JSON"),
        (DEEP, "part is nested too deeply"),
    ],
)
def test_parse_names_the_fault(text: str, reason: str) -> None:
    with pytest.raises(MalformedFrame) as caught:
        fields.parse(text, "part")
    assert caught.value.reason == reason


def test_parse_accepts_what_python_accepts() -> None:
    assert fields.parse('{"a": [Infinity, null]}', "part") == {"a": [float("inf"), None]}


@pytest.mark.parametrize("raw", [b"", b"{}", b"null", b" null\n"])
def test_missing_parts_are_empty_objects(raw: bytes) -> None:
    assert fields.json_or_empty(raw, "part") == b"{}"


@pytest.mark.parametrize("raw", [b'{"a": 1}', b"[]", b"0", b"false", b'""', b" {}"])
def test_the_bytes_of_other_parts_are_unchanged(raw: bytes) -> None:
    assert fields.json_or_empty(raw, "part") is raw


def test_a_part_that_is_not_json_is_ignored() -> None:
    with pytest.raises(IgnoredMessage, match=r"^part is not valid JSON$"):
        fields.json_or_empty(b"{", "part")
    with pytest.raises(MalformedFrame, match="UTF-8"):
        fields.json_or_empty(b"\xff", "part")


def test_a_part_above_the_limit_is_not_parsed() -> None:
    invalid = b"[".ljust(MAX_PARSED)
    with pytest.raises(IgnoredMessage):
        fields.json_or_empty(invalid, "part")
    assert fields.json_or_empty(invalid + b" ", "part") == invalid + b" "


def test_the_size_of_a_part_is_limited() -> None:
    fields.check_size("x" * MAX_PARSED, "part")
    fields.check_size(b"x" * MAX_PARSED, "part")
    with pytest.raises(InvalidMessage, match=r"^part has more than 65,536 bytes$"):
        fields.check_size("x" * (MAX_PARSED + 1), "part")


@pytest.mark.parametrize(
    "header",
    [
        GOOD,
        '{"msg_id": 1, "msg_type": "b"}',
        '{"msg_id": null, "msg_type": "b"}',
        '{"msg_id": "é", "msg_type": "ü"}',
        '{"msg_id": "a", "msg_type": "b", "x": {"msg_id": 1, "msg_type": 2}}',
        r'{"msg\u005fid": "a", "msg_type": "b"}',
        '{"msg_id": "a", "msg_type": "b", "x": 1, "x": 2}',
        '{"msg_id": "\\"msg_id\\"", "msg_type": "msg_type"}',
        GOOD.ljust(MAX_PARSED),
    ],
)
def test_valid_headers_are_accepted(header: str) -> None:
    fields.check_header(header)


@pytest.mark.parametrize(
    ("header", "error", "reason"),
    [
        ("[]", IgnoredMessage, "header is not a JSON object"),
        ("{", IgnoredMessage, "header is not valid JSON"),
        (DEEP[:30_000], IgnoredMessage, "header is nested too deeply"),
        ('{"msg_id": "a"}', IgnoredMessage, "header lacks msg_type"),
        ('{"msg_id": "a", "msg_type": null}', IgnoredMessage, "header lacks msg_type"),
        ('{"msg_id": "a", "msg_type": ""}', IgnoredMessage, "empty or non-string msg_type"),
        ('{"msg_id": "a", "msg_type": 1}', IgnoredMessage, "empty or non-string msg_type"),
        ('{"msg_type": "b"}', IgnoredMessage, "header lacks msg_id"),
        (r'{"msg_id": "\ud800", "msg_type": "b"}', IgnoredMessage, "msg_id of the header"),
        (r'{"msg_id": "a", "msg_type": "\ud800"}', IgnoredMessage, "msg_type of the header"),
        ('{"msg_id": "a", "msg_id": "c", "msg_type": "b"}', InvalidMessage, "msg_id twice"),
        ('{"msg_id": "a", "msg_type": "b", "msg_type": "c"}', InvalidMessage, "msg_type twice"),
        (r'{"msg_id": "a", "msg\u005fid": "c", "msg_type": "b"}', InvalidMessage, "msg_id twice"),
        (GOOD.ljust(MAX_PARSED + 1), InvalidMessage, "header has more than 65,536 bytes"),
    ],
)
def test_the_fault_of_a_header_is_named(header: str, error: type[FrameError], reason: str) -> None:
    with pytest.raises(error) as caught:
        fields.check_header(header)
    assert type(caught.value) is error
    assert reason in caught.value.reason


@given(st.text() | st.dictionaries(st.sampled_from(["msg_id", "msg_type", "x"]), st.text()))
def test_a_header_is_accepted_or_has_a_short_reason(header: str | dict[str, str]) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    reason = ""
    try:
        fields.check_header(text)
    except FrameError as error:
        reason = error.reason
    assert len(reason.encode()) <= 123
    if not reason:
        found = json.loads(text)
        assert found["msg_type"]
        assert "msg_id" in found
