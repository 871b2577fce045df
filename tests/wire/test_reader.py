"""Frames of clients: complete, in pieces, and invalid."""

import os
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.util import _websocket_mask

from kbridge.errors import FrameError, FrameTooBig, ProtocolViolation
from kbridge.wire import reader as module
from kbridge.wire.frames import BINARY, CLOSE, PING, PONG, TEXT
from kbridge.wire.reader import PARTIAL, Event, FrameReader, parse_close, unmask

CONTINUATION = 0


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, mask: bytes = b"abcd") -> bytes:
    size = len(payload)
    first = opcode | (0x80 if final else 0)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + mask + _websocket_mask(mask, payload)


def read(data: bytes, step: int = 0, max_size: int = 1 << 20) -> list[Event]:
    reader = FrameReader(max_size)
    events = []
    step = step or max(len(data), 1)
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        while (event := reader.next()) is not None:
            if event is not PARTIAL:
                events.append(event)
    return events


def as_text(data: bytes) -> str | bytes:
    """Return text as the reader does: empty bytes if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return b""


GOOD = {
    "empty": (frame(BINARY), [(BINARY, b"")]),
    "text": (frame(TEXT, "ü".encode()), [(TEXT, "ü")]),
    "125": (frame(BINARY, b"x" * 125), [(BINARY, b"x" * 125)]),
    "126": (frame(BINARY, b"x" * 126), [(BINARY, b"x" * 126)]),
    "65535": (frame(BINARY, b"x" * 65535), [(BINARY, b"x" * 65535)]),
    "65536": (frame(BINARY, b"x" * 65536), [(BINARY, b"x" * 65536)]),
    "two": (frame(TEXT, b"1") + frame(TEXT, b"2"), [(TEXT, "1"), (TEXT, "2")]),
    "fragments": (
        frame(TEXT, b"a", final=False)
        + frame(CONTINUATION, b"b", final=False)
        + frame(CONTINUATION, b"c"),
        [(TEXT, "abc")],
    ),
    "ping between fragments": (
        frame(BINARY, b"a", final=False) + frame(PING, b"!") + frame(CONTINUATION, b"b"),
        [(PING, b"!"), (BINARY, b"ab")],
    ),
    "control": (
        frame(PING, b"p") + frame(PONG) + frame(CLOSE, b"\x03\xe8bye"),
        [(PING, b"p"), (PONG, b""), (CLOSE, b"\x03\xe8bye")],
    ),
}

BAD = {
    "reserved bit": b"\xc2" + frame(BINARY)[1:],
    "unknown opcode": frame(0x3),
    "unknown control opcode": frame(0xB),
    "not masked": b"\x82\x01x",
    "ping in fragments": frame(PING, b"", final=False),
    "long ping": frame(PING, b"x" * 126),
    "a fragment of nothing": frame(CONTINUATION, b"x"),
    "a message within another": frame(TEXT, b"a", final=False) + frame(TEXT, b"b"),
}


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", GOOD)
def test_messages_are_complete_however_the_bytes_are_divided(name: str, step: int) -> None:
    data, events = GOOD[name]
    assert read(data, step) == events


@pytest.mark.parametrize("name", BAD)
def test_a_violation_of_rfc_6455_is_refused_at_its_first_byte(name: str) -> None:
    for step in (0, 1):
        with pytest.raises(ProtocolViolation) as caught:
            read(BAD[name], step)
        assert caught.value.close_code == 1002
        assert len(caught.value.reason.encode()) <= 123


def test_messages_before_a_fault_are_returned_first() -> None:
    reader = FrameReader(100)
    reader.feed(frame(TEXT, b"good") + BAD["not masked"])
    assert reader.next() == (TEXT, "good")
    with pytest.raises(ProtocolViolation):
        reader.next()
    with pytest.raises(ProtocolViolation):
        reader.next()


@pytest.mark.parametrize(
    "data",
    [
        frame(BINARY, b"x" * 101),
        frame(BINARY, b"x" * 60, final=False) + frame(CONTINUATION, b"x" * 41),
        struct.pack("!BBQ", 0x82, 0x80 | 127, 1 << 62),
    ],
    ids=["one frame", "fragments", "a claim"],
)
def test_a_message_above_the_limit_is_refused_before_memory_is_allocated(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooBig):
            read(data, max_size=100)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_message_of_exactly_the_limit_passes() -> None:
    assert read(frame(BINARY, b"x" * 100), max_size=100) == [(BINARY, b"x" * 100)]


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmask_agrees_with_tornado(data: bytes, mask: bytes) -> None:
    assert unmask(mask, data) == _websocket_mask(mask, data)


@given(
    messages=st.lists(st.tuples(st.sampled_from([TEXT, BINARY, PING]), st.binary(max_size=125))),
    step=st.integers(1, 40),
)
def test_any_messages_in_any_pieces_are_read(messages: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(frame(op, payload, mask=os.urandom(4)) for op, payload in messages)
    assert read(data, step) == [(op, as_text(p) if op == TEXT else p) for op, p in messages]


@given(st.binary(max_size=200), st.integers(1, 50))
def test_random_bytes_raise_only_documented_errors(noise: bytes, step: int) -> None:
    code = None
    try:
        read(noise, step, max_size=1000)
    except FrameError as error:
        code = error.close_code
    assert code in {None, 1002, 1009}


def test_each_call_returns_one_frame_so_that_its_caller_can_stop() -> None:
    reader = FrameReader(100)
    reader.feed(frame(TEXT, b"a", final=False) + frame(CONTINUATION, final=False) * 1000)
    assert [reader.next() for _ in range(1001)] == [PARTIAL] * 1001
    assert reader.next() is None
    reader.feed(frame(CONTINUATION, b"b"))
    assert reader.next() == (TEXT, "ab")


@given(
    text=st.text(max_size=60),
    cuts=st.sets(st.integers(0, 240)),
    block=st.integers(1, 20),
    step=st.integers(1, 40),
    broken=st.booleans(),
)
def test_text_is_decoded_in_pieces_wherever_it_is_divided(text, cuts, block, step, broken) -> None:
    data = text.encode() + (b"\xff" if broken else b"") + b"end"
    at = sorted(cut for cut in cuts if cut < len(data))
    pieces = [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True)]
    sent = b"".join(
        frame(CONTINUATION if i else TEXT, piece, final=i == len(pieces) - 1, mask=os.urandom(4))
        for i, piece in enumerate(pieces)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        assert read(sent + frame(PING), step) == [(TEXT, as_text(data)), (PING, b"")]


def test_a_large_message_is_read_in_pieces() -> None:
    """Processing the last bytes of a message takes no longer than copying the message."""
    size = 8 << 20
    data = frame(TEXT, "ü".encode() * (size // 2))
    reader = FrameReader(size)
    unmasked = 0

    def count(mask: bytes, part: bytes) -> bytes:
        nonlocal unmasked
        unmasked = max(unmasked, len(part))
        return _websocket_mask(mask, part)

    reader._unmask = count
    events = []
    for at in range(0, len(data), 1 << 16):
        reader.feed(data[at : at + (1 << 16)])
        while (event := reader.next()) is not None:
            events.append(event)
    assert events == [(TEXT, "ü" * (size // 2))]
    assert unmasked <= 1 << 16


CLOSES = {
    b"": (None, None),
    b"\x03\xe8": (1000, None),
    b"\x03\xe8\xc3\xbc": (1000, "ü"),
    b"\x03\xebbye": (1003, "bye"),
    b"\x03\xef": (1007, None),
    b"\x03\xf6": (1014, None),
    b"\x03\xf8": (1016, None),
    b"\x13\x87": (4999, None),
    b"\x13\x87" + b"x" * 123: (4999, "x" * 123),
}


@pytest.mark.parametrize("data", CLOSES)
def test_code_and_reason_of_a_close_frame_are_parsed(data: bytes) -> None:
    assert parse_close(data) == CLOSES[data]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 5000, 0xE803, 0xFFFF])
def test_a_close_code_that_may_not_be_sent_is_refused(code: int) -> None:
    with pytest.raises(ProtocolViolation, match="without a code"):
        parse_close(struct.pack("!H", code) + b"reason")


@pytest.mark.parametrize("data", [b"\x03", b"\x13"])
def test_a_close_code_of_one_byte_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="without a code"):
        parse_close(data)


@pytest.mark.parametrize("reason", [b"\xff", b"ok\xc3", b"\xed\xa0\x80"])
def test_a_close_reason_that_is_not_utf8_is_refused(reason: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="not UTF-8"):
        parse_close(b"\x03\xe8" + reason)


def test_bytes_behind_the_last_event_are_unread() -> None:
    reader = FrameReader(100)
    two = frame(TEXT, b"one") + frame(TEXT, b"two")
    found = []
    for data in (two, two[:-1], two[-1:], frame(TEXT, b"a", final=False)):
        found += [reader.unread for _ in reader.read(data)]
    assert found == [True, False, True, False, False]
    assert list(reader.read(frame(CONTINUATION, b"b"))) == [(TEXT, "ab")]


def test_read_returns_the_events_of_some_bytes_and_keeps_the_rest() -> None:
    reader = FrameReader(100)
    data = frame(TEXT, b"one") + frame(PING, b"two") + frame(BINARY, b"three")
    assert list(reader.read(data[:-1])) == [(TEXT, "one"), (PING, b"two")]
    assert list(reader.read(data[-1:])) == [(BINARY, b"three")]
