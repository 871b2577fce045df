"""The v1 dialect, beyond the table of cases: missing parts and unusual buffers."""

import array
import ctypes
import sys

import pytest

from kbridge.errors import IgnoredMessage
from kbridge.wire import v1
from kbridge.wire.frames import BINARY, each
from kbridge.wire.frames import frame as websocket_frame
from kbridge.wire.message import Channel, Message
from kbridge.wire.speedups import Functions
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


def test_a_buffer_keeps_its_frame_alive() -> None:
    (view,) = v1.decode(v1_frame(*FIVE, b"payload")).buffers
    assert bytes(view) == b"payload"
