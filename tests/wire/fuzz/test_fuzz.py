"""Any bytes raise only the documented errors.

The suite runs two hundred examples per target. ``KBRIDGE_FUZZ_SECONDS=600`` spends that
many seconds on each target instead, with other examples each time.
"""

import json
import os
import struct
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st
from jupyter_client.session import Session

from kbridge.errors import FrameError, KernelMessageError
from kbridge.wire import legacy, v1, zmq
from kbridge.wire.fields import MAX_PARSED
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.texts import read_texts
from kbridge.wire.zmtp.commands import ready
from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.greeting import GREETING
from kbridge.wire.zmtp.peer import Limits, Peer, SocketType
from tests.support.twins import functions, used
from tests.wire.cases import HEADER, LEGACY_FAULTS, MESSAGES, V1_FAULTS, plain, raw

SECONDS = float(os.environ.get("KBRIDGE_FUZZ_SECONDS", "0"))
ROUND = settings(
    max_examples=500 if SECONDS else 200,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# Values that confuse parsers, as text and as bytes.
TOKENS = [
    *'{}[]",:\\ \n\0/0-.',
    *["null", "true", "NaN", "1e999", "1" * 5000, "\\ud800", "\\u0000", "\ufeff", "🎉", "\x7f"],
    *['"msg_id": "a"', '"msg_type": "b"', '"header": {', '"channel": "shell"', '"content": '],
    '{"a":' * 300,
    "[" * 2000,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)
HEADERS = st.builds(
    lambda extra, msg_id, msg_type: {**extra, "msg_id": msg_id, "msg_type": msg_type},
    OBJECTS,
    st.text(min_size=1),
    st.text(min_size=1),
)
# Session treats a header without a version as protocol 4 and translates it. Its adapter uses the
# type as the name of a method, and raises for a type such as "version".
CURRENT = HEADERS.map(lambda header: {**header, "version": "5.4"})
BUFFERS = st.binary(max_size=40)
VALID = st.builds(
    Message,
    st.sampled_from(Channel),
    HEADERS.map(raw),
    (st.just({}) | HEADERS).map(raw),
    OBJECTS.map(raw),
    OBJECTS.map(raw),
    st.lists(BUFFERS | BUFFERS.map(memoryview), max_size=4).map(tuple),
)
TEXTS = st.lists(st.sampled_from(TOKENS) | st.text(max_size=5), max_size=12).map("".join)
# Parts of a message, each with any value.
PARTS = st.tuples(
    st.sampled_from([*map(str, Channel), "x", ""]).map(str.encode) | BUFFERS,
    (HEADERS | JSON).map(json.dumps).map(str.encode) | BUFFERS,
    *[(OBJECTS | JSON).map(json.dumps).map(str.encode) | BUFFERS] * 3,
)
BYTE = st.integers(0, 255)
NUMBERS = st.integers(0, 400) | st.sampled_from([2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])


def v1_anything(parts: tuple[bytes, ...], words: list[int], tail: bytes) -> bytes:
    """Frames with a valid table, whose first words are replaced."""
    table = [6, 56]
    for part in parts:
        table.append(table[-1] + len(part))
    table[: len(words)] = words
    return struct.pack(f"<{len(table)}Q", *table) + b"".join(parts) + tail


def legacy_anything(text: bytes, words: list[int], tail: bytes) -> bytes:
    table = [2, 12, 12 + len(text)]
    table[: len(words)] = [w & 0xFFFFFFFF for w in words]
    return struct.pack(f"!{len(table)}I", *table) + text + tail


@st.composite
def spoilt(draw: st.DrawFn, encode: Callable[[Message], str | bytes]) -> str | bytes:
    """Valid frames with removed, duplicated or replaced pieces."""
    data = encode(draw(VALID | st.sampled_from(list(MESSAGES.values()))))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 16)))
        if isinstance(data, str):
            data = data[:start] + draw(st.sampled_from([*TOKENS, data[:9]])) + data[end:]
        else:
            data = data[:start] + draw(BUFFERS | st.just(data[:9])) + data[end:]
    return data


def refused_or_whole(decode: Callable, encode: Callable, data: str | bytes) -> None:
    refusal = None
    try:
        msg = decode(data)
    except FrameError as error:
        refusal = error
    if refusal:
        assert 0 < len(refusal.reason.encode()) <= 120
        return
    header = json.loads(msg.header)
    if isinstance(header["msg_id"], str):
        assert header["msg_id"] == msg.msg_id
    assert header["msg_type"] == msg.msg_type != ""
    for part in msg[1:5]:
        if len(part) <= MAX_PARSED:  # the kernel validates larger ones
            json.loads(part)
    assert plain(decode(encode(msg))) == plain(msg)


@ROUND
@given(
    st.binary()
    | st.text()
    | spoilt(v1.encode)
    | st.builds(v1_anything, PARTS, st.lists(NUMBERS, max_size=7), BUFFERS)
)
def v1_decode(data: str | bytes) -> None:
    refused_or_whole(v1.decode, v1.encode, data)


@ROUND
@given(
    st.binary()
    | TEXTS
    | TEXTS.map(lambda text: '{"header": ' + json.dumps(HEADER) + text + "}")
    | st.dictionaries(st.sampled_from(["header", "channel", "content", "buffers"]), JSON).map(
        json.dumps
    )
    | spoilt(legacy.encode)
    | st.builds(
        legacy_anything,
        TEXTS.map(lambda text: text.encode(errors="surrogatepass")),
        st.lists(NUMBERS, max_size=3),
        BUFFERS,
    )
)
def legacy_decode(data: str | bytes) -> None:
    refused_or_whole(legacy.decode, legacy.encode, data)


@ROUND
@given(VALID)
def there_and_back(msg: Message) -> None:
    assert plain(v1.decode(v1.encode(msg))) == plain(msg)
    assert plain(legacy.decode(legacy.encode(msg))) == plain(msg)
    assert type(legacy.encode(msg)) is (bytes if msg.buffers else str)


@ROUND
@given(
    st.lists(BUFFERS | st.just(zmq.DELIMITER) | BUFFERS.map(memoryview), max_size=9),
    st.booleans(),
)
@example([zmq.DELIMITER] * 6, True)
@example([zmq.DELIMITER] * 3 + [b""] * 3 + [zmq.DELIMITER], False)
def zmq_parse(frames: list[bytes | memoryview], signed: bool) -> None:
    """Frames that any peer may send to a SUB or DEALER."""
    key = b"key" if signed else b""
    session = Session(key=key)
    session.unpack = lambda part: {"msg_id": "", "msg_type": "", "version": "5.4", "raw": part}
    refused = False
    try:
        msg = zmq.parse(Channel.IOPUB, frames, Signer(key))
    except KernelMessageError:
        refused = True
    try:
        _, fed = session.feed_identities([bytes(f) for f in frames])
        read = session.deserialize(fed)
    except (ValueError, TypeError, IndexError):
        assert refused
    else:
        assert not refused
        assert msg.content == read["content"]["raw"]


@ROUND
@given(
    st.lists(
        st.lists(BUFFERS | st.just(zmq.DELIMITER) | BUFFERS.map(memoryview), max_size=9)
        | VALID.map(lambda msg: zmq.serialize(msg, Signer(b""), [b"topic"])),
        max_size=4,
    )
)
def texts(batch: list[list[bytes | memoryview]]) -> None:
    """Frames that any peer may send to a SUB, in both implementations of the hot path."""
    results = []
    for read in (read_texts, functions("C").read_texts):
        read_messages, at = [], 0
        while at < len(batch):
            try:
                run, keys, after = read(batch, at, Signer(b""))
            except KernelMessageError:
                at += 1
                continue
            read_messages += [(msg, "stream", key) for msg, key in zip(run, keys, strict=True)]
            read_messages += [after] if after else []
            at += len(run) + (after is not None)
        results.append(read_messages)
    assert results[0] == results[1]


@ROUND
@given(
    VALID,
    CURRENT.map(raw),
    st.sampled_from(["hmac-sha256", "hmac-blake2s", "hmac-sha3_384"]),
    st.binary(),
)
def signed_for_session(msg: Message, header: bytes, scheme: str, key: bytes) -> None:
    msg = msg._replace(header=header)
    session, signer = Session(key=key, signature_scheme=scheme), Signer(key, scheme)
    frames = zmq.serialize(msg, signer, [b"ident"])
    idents, fed = session.feed_identities(frames)
    assert idents == [b"ident"]
    assert fed[0] == session.sign(fed[1:5])
    assert session.deserialize(fed)["msg_id"] == msg.msg_id
    assert plain(zmq.parse(msg.channel, frames, signer)) == plain(msg)


LARGE = b"large"  # stands for a message with a part of so many bytes
ZMTP_BATCH = 2000
ZMTP_LIMITS = Limits(part=100_000, message=150_000, parts=20)
ROUTER = ready(SocketType.DEALER).replace(b"\6DEALER", b"\6ROUTER")
ZMTP_FRAMES = st.one_of(
    st.just(ROUTER),
    st.lists(BUFFERS, max_size=5).map(encode),
    st.builds(
        lambda name, data: bytes((4, 1 + len(name) + len(data), len(name))) + name + data,
        st.sampled_from([b"READY", b"PING", b"PONG", b"ERROR", b""]),
        BUFFERS,
    ),
    st.builds(lambda flags, size: bytes((flags,)) + struct.pack("!Q", size), BYTE, NUMBERS),
    BUFFERS,
)


@ROUND
@given(
    st.sampled_from([b"", GREETING, GREETING + ROUTER]),
    st.lists(
        st.tuples(ZMTP_FRAMES, st.sampled_from([1, 1, 1, 300]))
        | st.tuples(st.just(LARGE), st.integers(60_000, 110_000)),
        max_size=8,
    ),
    st.lists(st.integers(0, 200) | st.integers(0, 200_000), max_size=8),
)
def zmtp_peer(greeting: bytes, frames: list[tuple[bytes, int]], cuts: list[int]) -> None:
    """Bytes of any program at the port of a kernel: any division gives the same result."""
    data = greeting
    for frame, count in frames:
        data += encode([b"", bytes(count)]) if frame is LARGE else frame * count
    results = []
    for places in ([], sorted(cut for cut in cuts if cut < len(data))):
        peer = Peer(SocketType.DEALER, b"me", ZMTP_LIMITS)
        messages = []
        for start, end in pairwise([0, *places, len(data)]):
            for batch in peer.feed_all(data[start:end]):
                assert len(batch) <= ZMTP_BATCH
                messages += batch
        if peer.fault is not None:
            assert peer.fault.reason.isprintable()
            assert peer.feed(data) == []
        results.append((messages, peer.established, type(peer.fault)))
        assert len(peer.output) <= 24
    assert results[0] == results[1]
    for message in results[0][0]:
        assert sum(map(len, message)) <= ZMTP_LIMITS.message
        assert len(message) <= ZMTP_LIMITS.parts


def zmtp_peer_compiled() -> None:
    with used("C"):
        zmtp_peer()


for _data, _, _ in V1_FAULTS.values():
    v1_decode = example(_data)(v1_decode)
for _data, _, _ in LEGACY_FAULTS.values():
    legacy_decode = example(_data)(legacy_decode)

TARGETS = [
    *(v1_decode, legacy_decode, there_and_back),
    *(zmq_parse, texts, signed_for_session, zmtp_peer, zmtp_peer_compiled),
]


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_random_input_raises_only_documented_errors(target: Callable[[], None]) -> None:
    if not SECONDS:
        target()
        return
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        seed(time.time_ns())(target)()
