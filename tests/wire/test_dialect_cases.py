"""Both dialects against one table: round trips, truncated and corrupted frames, and errors."""

import json
import random
import struct
import tracemalloc
from dataclasses import replace
from functools import cache

import pytest
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

from kbridge.errors import FrameError, InvalidMessage
from kbridge.wire import legacy, v1
from kbridge.wire.dialects import LEGACY, V1, Dialect
from kbridge.wire.message import Channel, Message
from kbridge.wire.speedups import Functions
from tests.support.twins import functions
from tests.wire.cases import (
    FIVE,
    LEGACY_FAULTS,
    MESSAGES,
    V1_FAULTS,
    Fault,
    H,
    legacy_frame,
    plain,
    put,
    v1_frame,
)

CASES = pytest.mark.parametrize("msg", MESSAGES.values(), ids=MESSAGES)


def decode_compiled(data: str | bytes) -> Message:
    return compiled().decode(data)


@cache
def compiled() -> Functions:
    return functions("C")


V1_COMPILED = replace(V1, decode=decode_compiled)
DIALECTS = pytest.mark.parametrize(
    "dialect", [V1, V1_COMPILED, LEGACY], ids=["v1", "v1 in C", "legacy"]
)
ENCODE = {V1.name: v1.encode, LEGACY.name: legacy.encode}


def as_jupyter_server_has_it(msg: Message) -> dict[str, object]:
    return {
        "header": json.loads(msg.header),
        "msg_id": json.loads(msg.header)["msg_id"],
        "msg_type": json.loads(msg.header)["msg_type"],
        "parent_header": json.loads(msg.parent_header),
        "metadata": json.loads(msg.metadata),
        "content": json.loads(msg.content),
        "buffers": [bytes(b) for b in msg.buffers],
        "channel": str(msg.channel),
    }


def same(ours: object, theirs: object) -> bool:
    return json.dumps(ours) == json.dumps(theirs)  # NaN equals NaN, and the order counts


def only_documented(dialect: Dialect, data: str | bytes) -> None:
    """Any frame is either refused as documented, or a message that survives a round trip."""
    refusal = None
    try:
        msg = dialect.decode(data)
    except FrameError as error:
        refusal = error
    if refusal:
        assert len(refusal.reason.encode()) <= 123
        assert refusal.close_code in {1003, 1007, 1008}
    else:
        assert plain(dialect.decode(ENCODE[dialect.name](msg))) == plain(msg)


@CASES
@DIALECTS
def test_decoding_an_encoded_message_returns_the_message(dialect: Dialect, msg: Message) -> None:
    assert plain(dialect.decode(ENCODE[dialect.name](msg))) == plain(msg)


@CASES
@DIALECTS
def test_a_truncated_frame_raises_only_documented_errors(dialect: Dialect, msg: Message) -> None:
    data = ENCODE[dialect.name](msg)
    for end in range(len(data)):
        if dialect is LEGACY and msg.buffers and end >= len(data) - len(msg.buffers[-1]):
            continue  # the last buffer ends with the frame, so a truncated one cannot be detected
        with pytest.raises(FrameError) as caught:
            dialect.decode(data[:end])
        assert len(caught.value.reason.encode()) <= 123


@CASES
@DIALECTS
def test_a_corrupted_frame_raises_only_documented_errors(dialect: Dialect, msg: Message) -> None:
    chance = random.Random(20)
    _, data = dialect.payload(msg)
    text = isinstance(ENCODE[dialect.name](msg), str)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        if not text:
            only_documented(dialect, bytes(flipped))
            continue
        # Text that is not UTF-8 does not get here: the reader closes with 1007.
        only_documented(dialect, flipped.decode(errors="replace"))


@CASES
def test_v1_writes_what_jupyter_server_writes(msg: Message) -> None:
    theirs = serialize_msg_to_ws_v1([*msg[1:5], *map(bytes, msg.buffers)], str(msg.channel))
    assert v1.encode(msg) == theirs
    assert plain(v1.decode(theirs)) == plain(msg)


@CASES
def test_jupyter_server_reads_what_v1_writes(msg: Message) -> None:
    channel, parts = deserialize_msg_from_ws_v1(v1.encode(msg))
    assert channel == msg.channel
    assert parts == [*msg[1:5], *map(bytes, msg.buffers)]


@CASES
def test_legacy_writes_what_jupyter_server_writes(msg: Message) -> None:
    ours, theirs = legacy.encode(msg), as_jupyter_server_has_it(msg)
    if not msg.buffers:
        assert isinstance(ours, str)
        assert same(json.loads(ours), theirs)
        return
    assert isinstance(ours, bytes)
    buffers = theirs.pop("buffers")
    count = struct.unpack_from("!I", ours)[0]
    offsets = struct.unpack_from(f"!{count}I", ours, 4)
    assert same(json.loads(ours[offsets[0] : offsets[1]]), theirs)
    read = deserialize_binary_message(ours)
    assert read["buffers"] == buffers
    assert same(read["content"], theirs["content"])


@CASES
def test_legacy_reads_what_jupyter_server_writes(msg: Message) -> None:
    theirs = as_jupyter_server_has_it(msg)
    data = serialize_binary_message(theirs) if msg.buffers else json.dumps(theirs)
    read = legacy.decode(data)
    assert same(as_jupyter_server_has_it(plain(read))["content"], theirs["content"])
    assert json.loads(read.header) == theirs["header"]
    assert json.loads(read.parent_header) == theirs["parent_header"]
    assert json.loads(read.metadata) == theirs["metadata"]
    assert read.channel == msg.channel
    assert plain(read).buffers == plain(msg).buffers


@pytest.mark.parametrize(
    ("dialect", "fault"),
    [(V1, f) for f in V1_FAULTS.values()]
    + [(V1_COMPILED, f) for f in V1_FAULTS.values()]
    + [(LEGACY, f) for f in LEGACY_FAULTS.values()],
    ids=[f"v1: {n}" for n in V1_FAULTS]
    + [f"v1 in C: {n}" for n in V1_FAULTS]
    + [f"legacy: {n}" for n in LEGACY_FAULTS],
)
def test_each_fault_has_its_error_and_reason(dialect: Dialect, fault: Fault) -> None:
    data, error, reason = fault
    with pytest.raises(FrameError) as caught:
        dialect.decode(data)
    assert type(caught.value) is error
    assert reason in caught.value.reason
    assert len(caught.value.reason.encode()) <= 120


HOSTILE = {
    "v1, ten million offsets": (V1, struct.pack("<Q", 10_000_000) + bytes(64)),
    "v1, 2**63 offsets": (V1, struct.pack("<Q", 2**63) + bytes(64)),
    "v1, an end far away": (V1, v1_frame(*FIVE, words=put(6, 2**60))),
    "v1, all offsets far away": (V1, struct.pack("<7Q", 6, 56, *[2**60] * 5)),
    "legacy, ten million offsets": (LEGACY, struct.pack("!I", 10_000_000) + bytes(64)),
    "legacy, 2**31 offsets": (LEGACY, struct.pack("!I", 2**31) + bytes(64)),
    "legacy, an end far away": (LEGACY, legacy_frame(b"{}", b"", words=put(2, 2**31))),
}


@pytest.mark.parametrize(("dialect", "data"), HOSTILE.values(), ids=HOSTILE)
def test_no_memory_is_allocated_for_the_numbers_in_a_frame(dialect: Dialect, data: bytes) -> None:
    def refuse() -> None:
        with pytest.raises(FrameError):
            dialect.decode(data)

    refuse()  # fill caches before the measurement
    tracemalloc.start()
    try:
        refuse()
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [100, 9_000])
@DIALECTS
def test_memory_for_empty_buffers_is_proportional_to_the_frame(
    dialect: Dialect, count: int
) -> None:
    parts = [b""] * count
    data = (
        v1_frame(*FIVE, *parts)
        if dialect is not LEGACY
        else legacy_frame(b'{"header": ' + H + b"}", *parts)
    )
    dialect.decode(data)
    tracemalloc.start()
    try:
        assert len(dialect.decode(data).buffers) == count
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + 64 * 1024
    finally:
        tracemalloc.stop()


@DIALECTS
def test_more_buffers_than_a_message_may_have_are_refused_before_they_are_read(dialect) -> None:
    parts = [b""] * 1_000_000
    frame = (
        v1_frame(*FIVE, *parts)
        if dialect is not LEGACY
        else legacy_frame(b'{"header": ' + H + b"}", *parts)
    )
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage, match="at most 10,000") as caught:
            dialect.decode(frame)
        assert caught.value.close_code == 1008
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_message_of_a_kernel_may_have_more_buffers() -> None:
    msg = v1.split(v1_frame(*FIVE, *[b""] * 20_000))
    assert len(msg.buffers) == 20_000


@pytest.mark.parametrize("size", [1 << 10, 1 << 17, 3 << 20])
@pytest.mark.parametrize("text", ["x", "ü", "\N{GRINNING FACE}", '\\"'])
@pytest.mark.parametrize("buffers", [(), (b"one", b"")])
def test_large_legacy_frames_are_decoded_as_small_ones(size, text, buffers) -> None:
    content = json.dumps({"code": text * (size // len(text.encode()))}, ensure_ascii=False)
    body = f'{{"channel": "control", "content": {content}, "header": {H.decode()}}}'
    frame = legacy_frame(body.encode(), *buffers) if buffers else body
    msg = legacy.decode(frame)
    assert msg == Message(Channel.CONTROL, H, b"{}", b"{}", content.encode(), msg.buffers)
    assert list(map(bytes, msg.buffers)) == list(buffers)


@pytest.mark.parametrize("dialect", [V1, LEGACY], ids=lambda d: d.name)
def test_no_large_part_is_parsed(dialect, monkeypatch) -> None:
    """The parser cannot be interrupted."""
    sizes: list[int] = []
    decode = json.JSONDecoder.raw_decode  # `json.loads` calls it, too

    def measured(decoder, text, *at, **how):
        sizes.append(len(text))
        return decode(decoder, text, *at, **how)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", measured)
    large = b'{"a": [' + b"1, " * 100_000 + b"1]}"
    if dialect is V1:
        data: str | bytes = v1_frame(b"shell", H, b'{"a": 1}', large, large)
    else:
        data = (
            f'{{"header": {H.decode()}, "metadata": {large.decode()}, "content": {large.decode()}}}'
        )
    msg = dialect.decode(data)
    assert (msg.metadata, msg.content) == (large, large)
    assert max(sizes) <= 1 << 16


@DIALECTS
def test_buffers_are_not_copied(dialect: Dialect) -> None:
    big = bytes(4_000_000)
    data = ENCODE[dialect.name](MESSAGES["bare"]._replace(buffers=(big, big)))
    dialect.decode(data)
    tracemalloc.start()
    try:
        msg = dialect.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
    assert [type(b) for b in msg.buffers] == [memoryview, memoryview]
    assert all(b.obj is data for b in msg.buffers if isinstance(b, memoryview))
