"""The v1 dialect, beyond the table of cases: missing parts and unusual buffers."""

import array
import ctypes
import struct
import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import FrameError, IgnoredMessage
from kbridge.wire import v1
from kbridge.wire.frames import BINARY, each
from kbridge.wire.frames import frame as websocket_frame
from kbridge.wire.message import Channel, Message
from kbridge.wire.speedups import Functions
from tests.support.twins import functions
from tests.wire.cases import FIVE, MESSAGES, H, five, plain, v1_frame


@pytest.mark.parametrize("absent", [b"null", b"", b" null "])
def test_missing_parts_become_empty_objects(absent: bytes) -> None:
    msg = v1.decode(five(b"shell", H, absent, absent, absent))
    assert msg[2:5] == (b"{}", b"{}", b"{}")


def test_the_bytes_of_each_part_are_unchanged() -> None:
    header = b' {\n"msg_type":"a" ,"msg_id" : "b","x_new": [1,{"y":1.50}], "subshell_id":null}\t'
    content = b'{"a":1e2,"a":NaN,\r\n "b":"\\u00e9\\ud800"}'
    msg = v1.decode(v1_frame(b"control", header, b"{ }", b"{}", content))
    assert msg == (Channel.CONTROL, header, b"{ }", b"{}", content, ())
    assert type(msg.channel) is Channel


def test_a_nested_msg_id_is_not_the_message_id() -> None:
    header = b'{"msg_id": "a", "msg_type": "b", "trace": {"msg_id": "c", "n\\u00e4": 1}}'
    assert v1.decode(five(header=header)).msg_id == "a"


def test_a_header_of_any_depth_is_accepted_or_refused() -> None:
    taken = [False, False]
    # The limit of Python 3.11 in small steps; newer versions have another limit for C code.
    depths = [*range(1, sys.getrecursionlimit() + 50, 3), 5_000, 15_000, 30_000]
    for depth in depths:
        # An escape requires the complete parser.
        nested = b'{"\\u0061":' + b"[" * depth + b"1" + b"]" * depth + b"}"
        header = b'{"msg_id": "a", "msg_type": "b", "x": ' + nested + b"}"
        try:
            v1.decode(five(header=header))
        except IgnoredMessage:
            taken[False] = True
        else:
            taken[True] = True
    assert taken == [True, True]


@pytest.mark.parametrize("content", [b"{}", b"x" * 300, b"x" * 70_000])
@pytest.mark.parametrize("buffers", [(), (b"",), (b"a", b"b" * 70_000)])
def test_a_frame_shows_whether_its_message_has_buffers(
    content: bytes, buffers: tuple[bytes, ...]
) -> None:
    msg = Message(Channel.IOPUB, b"{}", b"{}", b"{}", content, buffers)
    assert v1.has_buffers(v1.encode_frame(msg)) == bool(buffers)


class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int8), ("b", ctypes.c_double))


VIEWS = {
    "doubles": memoryview(array.array("d", [1.5, 2.5])),
    "structures": memoryview((Pair * 3)()),
    "a matrix": memoryview(bytes(range(12))).cast("B", (3, 4)),
    "no rows": memoryview(bytes(12)).cast("B", (3, 4))[0:0],
    "every other byte": memoryview(b"abcdef")[::2],
    "backwards": memoryview(b"abc")[::-1],
    "writable": memoryview(bytearray(b"abc")),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_of_any_shape_are_encoded_as_their_bytes(view: memoryview) -> None:
    msg = MESSAGES["bare"]._replace(buffers=(b"before", view, b"after"))
    assert msg.nbytes == sum(map(len, msg[1:5])) + 11 + view.nbytes
    assert plain(v1.decode(v1.encode(msg))).buffers == (b"before", view.tobytes(), b"after")


LENGTHS = [0, 1, 20, 60, 100, 254, 255, 256, 60_000, 65_000, 65_535, 65_536, 70_000]


@pytest.mark.parametrize("length", LENGTHS)
def test_messages_are_encoded_together_as_they_are_one_by_one(twin: Functions, length: int) -> None:
    short = Message(Channel.IOPUB, b"", b"", b"", b"x" * length)
    long = MESSAGES["stream"]._replace(content=b"x" * length)
    messages = [*MESSAGES.values(), short, long, short._replace(buffers=(b"buffer",))]
    frames = twin.encode_texts(messages)
    assert frames == [v1.encode_frame(msg) for msg in messages]
    for msg, frame in zip(messages, frames, strict=True):
        ((opcode, payload),) = each(frame)
        assert opcode == BINARY
        assert plain(v1.split(payload)) == plain(msg)


@pytest.mark.parametrize("size", [125, 126, 127, 65_534, 65_535, 65_536])
def test_frames_are_encoded_at_the_borders_of_their_lengths(size: int) -> None:
    for channel in Channel:
        empty = Message(channel, b"", b"", b"", b"")
        content = b"x" * (size - len(v1.encode(empty)))
        frame = v1.encode_frame(empty._replace(content=content))
        assert frame == websocket_frame(frame[-size:], BINARY)
        assert v1.split(frame[-size:]) == empty._replace(content=content)


@pytest.mark.parametrize("size", [0, 56, 125, 126, 127, 65_534, 65_535, 65_536])
@pytest.mark.parametrize("channel", Channel)
def test_both_implementations_encode_the_same(channel: Channel, size: int) -> None:
    encode_frame = functions("C").encode_frame
    empty = Message(channel, b"", b"", b"", b"")
    msg = empty._replace(content=b"x" * max(0, size - len(v1.encode(empty))))
    assert encode_frame(msg) == v1.encode_frame(msg)
    msg = msg._replace(buffers=(b"buffer",))
    assert encode_frame(msg) == v1.encode_frame(msg)
    for wrong in (("heartbeat", *msg[1:]), (*msg[:5], (None,))):
        with pytest.raises((KeyError, TypeError)):
            encode_frame(Message(*wrong))


Outcome: TypeAlias = Message | tuple[type[FrameError], str]


def outcome(decode: Callable[[str | bytes], Message], data: str | bytes) -> Outcome:
    try:
        return plain(decode(data))
    except FrameError as error:
        return type(error), error.reason


# Parts that are JSON, some of them unusual, and parts that are not JSON.
TEXTS = [
    *(
        b"",
        b"{}",
        b" {}",
        b"{} ",
        b"{\n}",
        b"{}}",
        b"{",
        b"}",
        b"[]",
        b"null",
        b'"a"',
        b"7",
        b"{,}",
    ),
    *(b'{"a"}', b'{"a":}', b'{"a" 1}', b'{"a":1,}', b'{"a":1 "b":2}', b"{a:1}", b'{"a":1}x'),
    *(b'{"a":[]}', b'{"a":[1,]}', b'{"a":[,1]}', b'{"a":[1 2]}', b'{"a":[1,[2,{}]]}', b'{"a":[1}'),
    *(b'{"a" : 1 , "b"\t:\r\n[ ] }', b'{"a":\x0b1}', b'{"a":1,"a":2}', b'{"":""}', b'{"a":{]}'),
    *(
        b'{"a":"\\u00e9\\ud800"}',
        b'{"a":"\\u00e"}',
        b'{"a":"\\u00eg"}',
        b'{"a":"\\x"}',
        b'{"a":"\\',
    ),
    *(b'{"a":"\\"}', b'{"a":"\\""}', b'{"a":"\\\x00"}', b'{"a":"\x00"}', b'{"a":"\n"}'),
    *(
        b'{"a":"\x7f\xc3\xa9"}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"\xff":1}',
        b'{"a":\xff}',
    ),
    *(b'{"a":%b}' % word for word in (b"true", b"nul", b"nulls", b"True", b"false", b"truefalse")),
    *(b'{"a":%b}' % word for word in (b"NaN", b"Infinity", b"-Infinity", b"-NaN", b"-", b"+1")),
    *(b'{"a":%b}' % word for word in (b"0", b"-0", b"01", b"1.", b".5", b"1.5e+9", b"1e", b"1e-")),
    *(b'{"a":%b}' % word for word in (b"1E5", b"1e999", b"0x1", b"1_0", b"\xd9\xa1", b"1.5.5")),
    *(b'{"a":%b}' % (b"9" * size) for size in (299, 300, 301, 640, 5000)),
    *(b'{"a":0.%b}' % (b"9" * size) for size in (297, 298, 299, 5000)),
    *(b'{"a":%b}' % (b"[" * depth + b"]" * depth) for depth in (30, 31, 32, 33, 100, 30_000)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (31, 32, 33, 34)),
    *(b'{"a":"%b"}' % (b"x" * (size - 8)) for size in (65_535, 65_536, 65_537)),
    b"\xef\xbb\xbf{}",
]
HEADERS = [
    H,
    *(b'{"msg_id":"a","msg_type":"b"}', b'{"msg_type": "b", "msg_id": ""}'),
    *(b'{"msg_id":"a","msg_type":""}', b'{"msg_id":"a"}', b'{"msg_type":"a"}', b'{"msg_id":"a",}'),
    *(
        b'{"msg_id":"a","msg_id":"b","msg_type":"c"}',
        b'{"msg_type":"a","msg_type":"b","msg_id":""}',
    ),
    *(
        b'{"msg_id":1,"msg_type":"a"}',
        b'{"msg_id":"a","msg_type":1}',
        b'{"msg_id":null,"msg_type":"a"}',
    ),
    *(b'{"msg_id":"\xc3\xa9","msg_type":"a"}', b'{"msg_id":"\xff","msg_type":"a"}'),
    *(b'{"msg_id":"\\ud800","msg_type":"a"}', b'{"msg\\u005fid":"a","msg_type":"a"}'),
    *(b'{"x":"msg_id","msg_id":"a","msg_type":"b"}', b'{"msg_id" :"a","msg_type":"b"}'),
    b'{"msg_id":"a","msg_type":"b","x":"%b"}' % (b"x" * 1000),
    b'{"msg_id":"a","msg_type":"b","x":"%b"}' % (b"x" * 70_000),
]


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_both_implementations_accept_and_refuse_the_same_parts(place: int) -> None:
    decode = functions("C").decode
    usual = [b"shell", H, b"{}", b"{}", b"{}"]
    for text in [*TEXTS, *HEADERS]:
        data = v1_frame(*usual[:place], text, *usual[place + 1 :])
        assert outcome(decode, data) == outcome(v1.decode, data), text[:60]


@pytest.mark.parametrize("word", range(7))
def test_both_implementations_accept_and_refuse_the_same_offsets(word: int) -> None:
    decode = functions("C").decode
    frame = v1_frame(*FIVE) + b"more"
    borders = struct.unpack_from("<7Q", frame)
    values = {border + more for border in (*borders, 0, len(frame), 1 << 63) for more in (-1, 0, 1)}
    for value in {value % (1 << 64) for value in values}:
        data = frame[: 8 * word] + struct.pack("<Q", value) + frame[8 * word + 8 :]
        assert outcome(decode, data) == outcome(v1.decode, data), value


PIECES = st.sampled_from(
    [
        *'{}[]",:\\ \n\0/0-.',
        "null",
        "true",
        "1e5",
        "a",
        "é",
        '"a"',
        '"a":',
        '{"a":1}',
        "\\u00e9",
        "[1]",
    ]
)
PARTS = st.one_of(
    st.sampled_from([*TEXTS, *HEADERS]),
    st.lists(PIECES, max_size=9).map(lambda pieces: "".join(pieces).encode()),
    st.lists(PIECES, max_size=9).map(lambda pieces: f'{{"a":{"".join(pieces)}}}'.encode()),
    st.binary(max_size=9),
)


@given(
    st.sampled_from([b"shell", b"shell", b"iopub", b"x", b""]),
    st.sampled_from([H, H, H, *HEADERS]) | PARTS,
    st.tuples(PARTS, PARTS, PARTS),
    st.lists(st.binary(max_size=3), max_size=1),
)
def test_both_implementations_decode_the_same_in_any_frame(
    channel: bytes, header: bytes, parts: tuple[bytes, ...], buffers: list[bytes]
) -> None:
    data = v1_frame(channel, header, *parts, *buffers)
    assert outcome(functions("C").decode, data) == outcome(v1.decode, data)


def test_a_buffer_keeps_its_frame_alive() -> None:
    (view,) = v1.decode(v1_frame(*FIVE, b"payload")).buffers
    assert bytes(view) == b"payload"
