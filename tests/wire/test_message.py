import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import InvalidMessage
from kbridge.wire.message import field, id_keys, json_object, message_key, scan, scan_in_python
from kbridge.wire.speedups import Functions
from tests.support.twins import functions
from tests.wire.cases import HEADER, MESSAGES, message, raw


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"msg_id": "a"}', "a"),
        (b'{"msg_id":"a"}', "a"),
        (b'{ "msg_id" :\n"a" }', "a"),
        (b'{"x": {"msg_id": "no"}, "msg_id": "a"}', "a"),
        (b'{"x": {"msg_id": "no"}}', ""),
        (b'{"msg_id": "no", "msg_id": "a"}', "a"),
        (b'{"msg_id": "no", "msg_id" : "a"}', "a"),
        (b'{"x": "\\"msg_id\\": \\"no", "msg_id": "a"}', "a"),
        (b'{"msg\\u005fid": "a"}', "a"),
        (b'{"x": "msg_id", "msg_id": "a"}', "a"),
        (b'{"msg_id": "\xc3\xa9"}', "é"),
        (b'{"msg_id": "\xff"}', ""),
        (b'{"msg_id": 1}', "1"),
        (b'{"msg_id": 1.50}', "1.5"),
        (b'{"msg_id": true}', "true"),
        (b'{"msg_id": {"b": 1, "a": []}}', '{"a": [], "b": 1}'),
        (b'{"msg_id": null}', ""),
        (b"{}", ""),
        (b"", ""),
        (b"null", ""),
        (b"[1, 2]", ""),
        (b"not JSON", ""),
        (b'[{"msg_id": "a"}]', ""),
        (b'\\"msg_id": "a"', ""),
        (b"[" * 100_000, ""),
        ('{"msg_id" : "a"}'.encode("utf-16"), ""),
    ],
)
def test_scan_finds_the_member_of_the_outer_object(
    twin: Functions, text: bytes, found: str
) -> None:
    assert twin.scan(text, "msg_id") == found


LARGEST = 64 << 10  # bytes; larger headers are not parsed


def test_scan_parses_a_header_of_the_maximum_size_and_no_larger_one() -> None:
    text = b'{"x": {}, "msg_id": "a"}'
    assert scan(text.ljust(LARGEST), "msg_id") == "a"
    assert scan(text.ljust(LARGEST + 1), "msg_id") == ""


VALUES = st.text() | st.sampled_from(['"msg_id": "', "msg_id", "\\", "{", '"']) | st.none()


@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(["msg_id", "msg_type", "x", '"msg_id": "']),
            VALUES | st.dictionaries(st.just("msg_id"), VALUES) | st.lists(VALUES, max_size=2),
        ),
        max_size=5,
    ),
    compact=st.booleans(),
    ascii_only=st.booleans(),
)
def test_scan_agrees_with_the_json_parser(pairs: list, compact: bool, ascii_only: bool) -> None:
    comma, colon = (",", ":") if compact else (", ", ": ")
    members = comma.join(
        f"{json.dumps(k)}{colon}{json.dumps(v, ensure_ascii=ascii_only)}" for k, v in pairs
    )
    text = "{" + members + "}"
    value = json.loads(text).get("msg_id", "")
    if not isinstance(value, str):
        value = "" if value is None else json.dumps(value, sort_keys=True)
    assert scan(text.encode(), "msg_id") == value
    assert functions("C").scan(text.encode(), "msg_id") == value


@given(
    st.lists(
        st.sampled_from(
            [
                *('"msg_id"', '"msg_id": "', '"msg_id":"', '"cellId": "', '"', "msg_id", ":", " "),
                *("{", "}", "\\", "a", "é", ",", '": "', '"msg_id":", "', '"msg_id"msg_id"'),
            ]
        ),
        max_size=12,
    ),
    st.sampled_from(["msg_id", "cellId"]),
    st.integers(0, 3),
)
def test_both_implementations_find_the_same_in_any_text(
    pieces: list[str], name: str, cut: int
) -> None:
    text = "".join(pieces).encode()
    text = text[: len(text) - cut]
    assert functions("C").scan(text, name) == scan_in_python(text, name)


@pytest.mark.parametrize("size", [100, 900, 1500])
def test_the_headers_that_are_kept_are_bounded(size: int) -> None:
    def look_up(number: int) -> None:
        header = b'{"msg_id": "%d", "msg_type": "%b"}' % (number, b"t" * size)
        assert field(header, "msg_id") == f"{number}"
        assert field(header, "msg_type") == "t" * size

    look_up(0)
    tracemalloc.start()
    try:
        for number in range(3000):
            look_up(number)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


def test_id_type_and_parent_id_of_a_message() -> None:
    msg = message(parent={**HEADER, "msg_id": "p"})
    assert (msg.msg_id, msg.msg_type) == (HEADER["msg_id"], HEADER["msg_type"])
    assert msg.parent_id == msg.parent_id == "p"
    assert MESSAGES["bare"].parent_id == ""


def test_the_id_of_a_long_parent_header_is_read() -> None:
    assert message(parent={"pad": "x" * 5000, "msg_id": "p"}).parent_id == "p"


def test_nbytes_counts_parts_and_buffers() -> None:
    msg = message(buffers=(b"abc", memoryview(b"defg")))
    assert msg.nbytes == len(msg.header) + 6 + 7


def test_json_object_parses_bytes_and_views() -> None:
    assert json_object(raw({"é": 1}), "content") == {"é": 1}
    assert json_object(memoryview(b"{}"), "content") == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"\xff", "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
    ],
)
def test_json_object_names_the_fault(text: bytes, fault: str) -> None:
    with pytest.raises(InvalidMessage, match=f"content is {fault}"):
        json_object(text, "content")


IDS = st.one_of(
    st.text(max_size=12), st.text('"\\\\/ä\U0001f600', max_size=6), st.sampled_from(["", "a", '"'])
)


@given(IDS, IDS, st.booleans(), st.sampled_from([None, (",", ":")]), st.booleans())
def test_the_keys_of_an_id_include_that_of_each_message_with_the_id(
    msg_id, other, ascii_only, separators, first
) -> None:
    fields = {"msg_id": msg_id, "msg_type": "stream"}
    if not first:
        fields = dict(reversed(fields.items()))
    header = json.dumps(fields, ensure_ascii=ascii_only, separators=separators).encode()
    assert message_key(header) in id_keys(msg_id)
    # Where JSON writers escape, the text of one id may be the escaped text of another one.
    if not {'"', "\\"} & {*msg_id, *other} and msg_id != other:
        assert not id_keys(msg_id) & id_keys(other)


def test_keys_are_the_same_in_every_process() -> None:
    """Journals on disk are searched after a restart."""
    assert message_key(b'{"msg_id": "a"}') == 0xE8B7BE43
    assert id_keys("a") == {0xE8B7BE43}


@pytest.mark.parametrize("size", [1, 900, 1024, 5000])
def test_fields_are_the_same_however_often_they_are_read(size: int) -> None:
    msg = message(msg_id="x" * size, msg_type="stream", parent={"msg_id": "y" * size})
    for _ in range(3):
        assert (msg.msg_id, msg.msg_type, msg.parent_id) == ("x" * size, "stream", "y" * size)
        assert field(msg.header, "session") == HEADER["session"]
        assert field(b"{}", "session") == ""
