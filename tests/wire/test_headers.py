"""The type and the id of a header, compared with those that parsing finds."""

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import FrameError
from kbridge.wire.fields import check_header
from kbridge.wire.headers import SHAPE, is_usual, type_and_key, type_place
from kbridge.wire.message import message_key, scan

COMPACT, SPACED = (",", ":"), (", ", ": ")
# The members in the order of ipykernel, xeus, IRkernel, IJulia and evcxr.
ORDERS = [
    (("msg_id", "msg_type", "username", "session", "date", "version"), SPACED),
    (("date", "msg_id", "msg_type", "session", "username", "version"), COMPACT),
    (("msg_id", "username", "session", "msg_type", "version"), COMPACT),
    (("msg_id", "username", "session", "date", "msg_type", "version"), COMPACT),
    (("date", "msg_id", "msg_type", "session", "username", "version"), SPACED),
]


def expected(header: bytes) -> tuple[str, int]:
    return scan(header, "msg_type"), message_key(header)


def header(order: tuple[str, ...], separators: tuple[str, str], **members: str) -> bytes:
    known = {
        "msg_id": str(uuid.uuid4()),
        "msg_type": "stream",
        "username": "ana_bell",
        "session": "0b5a3e3c-2b53-4d6b-9d3e-6a1f9c2d7e10",
        "date": "2025-03-01T12:00:00.000001Z",
        "version": "5.4",
    } | members
    return json.dumps({name: known[name] for name in order}, separators=separators).encode()


@pytest.mark.parametrize(("order", "separators"), ORDERS)
def test_type_and_id_are_found_in_any_order(order, separators) -> None:
    for msg_type in ("stream", "status", "stream", "display_data", "error", "of_its_own"):
        for msg_id in ("", "a", *(str(uuid.uuid4()) for _ in range(3))):
            raw = header(order, separators, msg_type=msg_type, msg_id=msg_id)
            assert type_and_key(raw) == expected(raw)
            assert type_and_key(raw)[0] == msg_type


@pytest.mark.parametrize(("order", "separators"), ORDERS)
def test_the_place_of_the_type_is_known_after_two_headers_of_a_shape(order, separators) -> None:
    for _ in range(2):
        raw = header(order, separators, username=f"learns {order[0]}{separators}")
        type_and_key(raw)
    raw = header(order, separators, username=f"learns {order[0]}{separators}")
    place = type_place(raw, raw.translate(SHAPE))
    assert place is not None
    key, start, end = place
    assert raw[key:].startswith(b'"msg_type":')
    assert raw[start:end] == b"stream"


# Headers of which several have the same shape, but other keys, other types, or none.
ALIKE = [
    b'{"msg_id": "a", "msg_type": "stream", "session": "s"}',
    b'{"msg_id": "a", "msg_type": "status", "session": "s"}',
    b'{"abc_de": "a", "msg_type": "stream", "session": "s"}',
    b'{"msg_id": "a", "abc_defg": "stream", "session": "s"}',
    b'{"abc_de": "a", "abc_defg": "stream", "session": "s"}',
    b'{"msg_id": "a", "msg_type": "stream", "msg_type": "status"}',
    b'{"msg_id": "a", "msg_type": "stream", "msg_typo": "status"}',
    b'{"msg_id": "a", "msg_typo": "stream", "msg_type": "status"}',
    b'{"msg_id": "a", "msg_id": "b", "msg_type": "status"}',
    b'{"msg_type": "stream", "msg_id": "a", "msg_type" : "status"}',
    b'{"abc_de": "a", "msg_id": "b", "msg_type": "status"}',
    b'{"msg_id": "a", "msg_type": "stream", "x": {"msg_type": "status"}}',
    b'{"msg_id": "a", "msg_type": "stream", "x": "\\""}',
    b'{"msg_id": "a\\"b", "msg_type": "stream"}',
    b'{"msg_id": "a", "msg_type": "stream", "msg\\u005ftype": "status"}',
    b'{"msg_id": "a", "msg_type": "stream", "x": null}',
    b'{"msg_id": "a", "msg_type": "stream", "x": NULL}',
    b'{"msg_id": "a", "msg_type": "stream", "username": ":x"}',
    b'{"msg_id": "a", "msg_type": "stream", "username": "msg_type"}',
    b'{"msg_id" : "a", "msg_type" : "stream"}',
    b'{"msg_id":  "a", "msg_type":\n"stream"}',
    b'{"msg_id": "", "msg_type": ""}',
    b'{"msg_id": "\xc3\xa9", "msg_type": "\xc3\xa9"}',
    b'{"msg_id": "\xff", "msg_type": "stream"}',
    b'{"msg_id": "a\nb", "msg_type": "stream"}',
    b'{"msg_id": 5, "msg_type": "stream"}',
    b'{"msg_id": "5", "msg_type": 5}',
    b'{"msg_type":"stream","msg_id":"a"}',
    b'{"msg_id": "a", "msg_type": "stre',
    b'{"msg_id": "a',
    b'"msg_type": "stream", "msg_id": "a"',
    b'["msg_id", "msg_type"]',
    b"[]",
    b"{}",
    b"",
]


@pytest.mark.parametrize("first", ALIKE)
def test_headers_of_one_shape_do_not_confuse_each_other(first: bytes) -> None:
    for raw in (first, first, first, *ALIKE, first, *reversed(ALIKE)):
        assert type_and_key(raw) == expected(raw)
        assert not is_usual(raw) or is_valid(raw)


def is_valid(raw: bytes) -> bool:
    try:
        check_header(raw.decode())
    except (FrameError, UnicodeDecodeError):
        return False
    return True


# A colon at the beginning of a string looks like the end of a key, and may hide that another key
# has a space before its colon.
@pytest.mark.parametrize("last", ['"q":":c"', '":q":"c"'])
@pytest.mark.parametrize(("twice", "other"), [("msg_type", "xyz_tuvw"), ("msg_id", "xyz_tu")])
def test_a_field_that_is_there_twice_is_not_usual(twice: str, other: str, last: str) -> None:
    text = '{"msg_type":"status","msg_id":"a1","%s" : "error",' + last + "}"
    raw, harmless = (text % twice).encode(), (text % other).encode()
    assert harmless.translate(SHAPE) == raw.translate(SHAPE)
    for _ in range(2):
        assert type_and_key(harmless) == expected(harmless)
    assert not is_usual(raw)
    assert type_and_key(raw) == expected(raw)
    with pytest.raises(FrameError):
        check_header(raw.decode())


@pytest.mark.parametrize(("order", "separators"), ORDERS)
def test_a_usual_header_is_known_to_be_valid_after_two_of_its_shape(order, separators) -> None:
    name = f"is valid {order[0]}{separators}"
    seen = [is_usual(header(order, separators, username=name)) for _ in range(4)]
    assert seen == [False, True, True, True]
    assert not is_usual(header(order, separators, username=name, msg_type=""))


TEXT = st.text(st.sampled_from('a1_:"\\{é msgidtype'), max_size=8)
NAMES = st.sampled_from(["msg_id", "msg_type", "abc_de", "abc_defg", "username"]) | TEXT
VALUES = TEXT | st.sampled_from(["stream", "status", "error"]) | st.none() | st.integers(0, 9)


@given(st.dictionaries(NAMES, VALUES), st.sampled_from([SPACED, COMPACT]), st.booleans(), st.data())
def test_any_header_gives_what_parsing_gives(members, separators, ascii_only, data) -> None:
    raw = json.dumps(members, separators=separators, ensure_ascii=ascii_only).encode()
    for _ in range(3):
        assert type_and_key(raw) == expected(raw)
        assert not is_usual(raw) or is_valid(raw)
    # Another header, of the same shape.
    letters = [i for i, byte in enumerate(raw) if chr(byte).isalnum() and byte < 128]
    if letters:
        at = data.draw(st.sampled_from(letters))
        alike = raw[:at] + data.draw(st.sampled_from([b"a", b"7", b"s"])) + raw[at + 1 :]
        assert alike.translate(SHAPE) == raw.translate(SHAPE)
        assert type_and_key(alike) == expected(alike)
        assert not is_usual(alike) or is_valid(alike)


def test_long_headers_and_many_shapes_are_read_as_well() -> None:
    for i in range(600):
        raw = header(*ORDERS[0], username="-" * i)
        assert type_and_key(raw) == type_and_key(raw) == type_and_key(raw) == expected(raw)
    raw = header(*ORDERS[0], username="-" * 5000)
    assert type_and_key(raw) == type_and_key(raw) == type_and_key(raw) == expected(raw)
    assert type_place(raw, raw.translate(SHAPE)) is None
