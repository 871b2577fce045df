"""Runs of stream messages, in both implementations."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import InvalidSignature, KernelMessageError
from kbridge.wire.message import Channel, Message, RawMessage, message_key, scan
from kbridge.wire.signing import Signer
from kbridge.wire.speedups import Functions
from kbridge.wire.texts import read_message, read_texts
from kbridge.wire.zmq import DELIMITER, serialize
from tests.support.twins import functions
from tests.wire.cases import HEADER, message

SIGNER = Signer(b"a key that is no secret")
LARGE = 64 << 10


def text(number: int, parent: object = HEADER, **more: object) -> Message:
    header = {"msg_id": f"{HEADER['session']}_{number}", "msg_type": "stream", **more}
    return message("iopub", parent=parent, content={"text": f"{number}\n"}, **header)


def framed(*messages: Message, signer: Signer = SIGNER) -> list[RawMessage]:
    return [serialize(msg, signer, [b"kernel.1.stream"]) for msg in messages]


def keyed(msg: Message) -> tuple[Message, str, int]:
    return msg, scan(msg.header, "msg_type"), message_key(msg.header)


TEXTS = [text(number) for number in range(5)]
KEYS = [message_key(msg.header) for msg in TEXTS]
STATUS = message("iopub", parent=HEADER, msg_type="status", content={"execution_state": "idle"})
OTHER = text(9, parent={"msg_id": "another"})
FORGED = framed(TEXTS[0], signer=Signer(b"another key"))


@pytest.mark.parametrize("signer", [SIGNER, Signer(b"")], ids=["signed", "unsigned"])
def test_the_texts_of_a_run_are_read_to_the_end_of_the_batch(
    twin: Functions, signer: Signer
) -> None:
    batch = framed(*TEXTS, signer=signer)
    texts, keys, after = twin.read_texts(batch, 0, signer)
    assert (texts, keys, after) == (TEXTS, KEYS, None)
    assert {type(msg) for msg in texts} == {Message}
    assert all(msg.channel is Channel.IOPUB for msg in texts)
    for start in range(6):
        assert twin.read_texts(batch, start, signer) == (TEXTS[start:], KEYS[start:], None)


@pytest.mark.parametrize("other", [STATUS, OTHER], ids=["status", "another parent"])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_the_message_that_ends_a_run_is_returned(
    twin: Functions, other: Message, before: int
) -> None:
    batch = framed(*TEXTS[:before], other, *TEXTS)
    texts, keys, after = twin.read_texts(batch, 0, SIGNER)
    if other is OTHER and not before:  # the first of its run
        assert (texts, keys, after) == ([OTHER], [keyed(OTHER)[2]], keyed(TEXTS[0]))
    else:
        assert (texts, keys, after) == (TEXTS[:before], KEYS[:before], keyed(other))


BAD = {
    "a forged message": FORGED[0],
    "no delimiter": [b"a", b"b"],
    "no frames": [],
    "too few parts": framed(TEXTS[0])[0][:-1],
    "a signature of another length": [*framed(TEXTS[0])[0][:2], b"", *TEXTS[0][1:5]],
    "a changed content": [*framed(TEXTS[0])[0][:-1], b"{}"],
    "delimiters only": [DELIMITER] * 7,
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_message_ends_a_run_and_is_an_error_at_its_begin(
    twin: Functions, name: str
) -> None:
    batch = [*framed(*TEXTS[:2]), BAD[name], *framed(*TEXTS[2:])]
    assert twin.read_texts(batch, 0, SIGNER) == (TEXTS[:2], KEYS[:2], None)
    with pytest.raises(KernelMessageError):
        twin.read_texts(batch, 2, SIGNER)
    assert twin.read_texts(batch, 3, SIGNER) == (TEXTS[2:], KEYS[2:], None)


def test_a_forged_message_is_named(twin: Functions) -> None:
    with pytest.raises(InvalidSignature, match="iopub"):
        twin.read_texts(FORGED, 0, SIGNER)


# Valid texts of which an implementation may return as few as one per call.
UNUSUAL = {
    "buffers": TEXTS[0]._replace(buffers=(b"buffer",)),
    "a large content": TEXTS[0]._replace(content=b"x" * (LARGE + 1)),
    "the largest usual content": TEXTS[0]._replace(content=b"x" * LARGE),
    "a header with an escape": text(1, username='an "a"'),
    "a wide header": text(1, username="žofie"),
    "a header with a number": text(1, version=5),
    "a nested header": text(1, extra={"msg_type": "status"}),
    "no id": TEXTS[0]._replace(header=b'{"msg_type": "stream"}'),
    "an id twice": TEXTS[0]._replace(
        header=b'{"msg_id": "a", "msg_type": "stream", "msg_id": "b"}'
    ),
    "a type twice": TEXTS[0]._replace(
        header=b'{"msg_type": "status", "msg_id": "a", "msg_type": "stream"}'
    ),
    "an empty parent": TEXTS[0]._replace(parent_header=b"{}"),
    "spaces": TEXTS[0]._replace(header=b'{ "msg_id" : "a" , "msg_type" :"stream" } '),
    "a header without spaces": TEXTS[0]._replace(
        header=json.dumps(json.loads(TEXTS[0].header), separators=(",", ":")).encode()
    ),
    "an id that is a number": TEXTS[0]._replace(header=b'{"msg_id": 7, "msg_type": "stream"}'),
    "a long header": text(1, username="x" * 2000),
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("views", [False, True], ids=["bytes", "memoryviews"])
def test_all_texts_are_read_however_unusual_they_are(
    twin: Functions, name: str, views: bool
) -> None:
    said = [TEXTS[0], UNUSUAL[name], UNUSUAL[name], *TEXTS[1:]]
    batch = framed(*said)
    if views:
        batch[1] = [memoryview(frame) for frame in batch[1]]
    read: list[tuple[Message, str, int]] = []
    while len(read) < len(batch):
        texts, keys, after = twin.read_texts(batch, len(read), SIGNER)
        assert texts or after
        assert len({msg.parent_header for msg in texts}) <= 1
        read += [(msg, "stream", key) for msg, key in zip(texts, keys, strict=True)]
        read += [after] if after else []
    assert read == [keyed(msg) for msg in said]


@pytest.mark.parametrize("name", ["sha1", "sha3_256", "blake2s", "md5"])
def test_texts_with_any_hash_are_read(twin: Functions, name: str) -> None:
    assert name in hashlib.algorithms_available
    signer = Signer(b"k" * 200, f"hmac-{name}")
    assert twin.read_texts(framed(*TEXTS, signer=signer), 0, signer) == (TEXTS, KEYS, None)
    with pytest.raises(InvalidSignature):
        twin.read_texts(framed(*TEXTS), 0, signer)


def test_messages_without_a_topic_are_read(twin: Functions) -> None:
    batch = [serialize(msg, SIGNER) for msg in TEXTS]
    assert twin.read_texts(batch, 0, SIGNER) == (TEXTS, KEYS, None)
    batch = [serialize(msg, SIGNER, [b"one", b"two"]) for msg in TEXTS]
    assert twin.read_texts(batch, 0, SIGNER) == (TEXTS, KEYS, None)


def test_the_first_delimiter_counts(twin: Functions) -> None:
    """Of seven frames that begin with two delimiters, the second one is the signature."""
    frames = [DELIMITER, *framed(TEXTS[0], signer=Signer(b""))[0][1:]]
    texts, _, after = twin.read_texts([frames], 0, Signer(b""))
    assert (texts, after is None) == ([], False)
    msg = after[0]
    assert msg.header == b""
    assert msg.buffers == (TEXTS[0].content,)


@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize("name", UNUSUAL)
def test_single_messages_are_read_with_type_and_key(
    twin: Functions, channel: Channel, name: str
) -> None:
    for msg in (UNUSUAL[name], STATUS, message(msg_type="a_new_type_ž", msg_id="ž")):
        expected = keyed(msg._replace(channel=channel))
        for signer in (SIGNER, Signer(b"")):
            for idents in ([], [b"one"], [b"one", b"two"]):
                read = twin.read_message(channel, serialize(msg, signer, idents), signer)
                assert read == expected
                assert type(read[0]) is Message
                assert type(read[1]) is str


@pytest.mark.parametrize("name", BAD)
def test_a_single_message_that_is_not_valid_is_an_error(twin: Functions, name: str) -> None:
    with pytest.raises(KernelMessageError):
        twin.read_message(Channel.SHELL, BAD[name], SIGNER)


# -- any bytes: what one implementation does, the other one does, too --------------------------

MEMBERS = st.sampled_from(
    [
        *(b'"msg_type": "stream"', b'"msg_type":"stream"', b'"msg_type": "status"'),
        *(b'"msg_id": "a"', b'"msg_id":"b_1"', b'"msg_id": ""', b'"msg_id" : "c"', b'"msg_id": 1'),
        *(b'"username": "msg_type"', b'"x": "\xc5\xbe"', b'"x": "\xff"', b'"x": "\\u0041"'),
        *(b'"x": "{"', b'"x": {"msg_id": "d"}', b'"x": "\x01"', b'"x": "\x7f"', b'"": ""', b'"x"'),
    ]
)
HEADERS = st.one_of(
    st.builds(
        lambda members, between, end: b"{" + between.join(members) + end,
        st.lists(MEMBERS, max_size=5),
        st.sampled_from([b", ", b",", b" , ", b""]),
        st.sampled_from([b"}", b"} ", b"", b"}}"]),
    ),
    st.binary(max_size=40),
)
PARTS = st.tuples(
    HEADERS, st.sampled_from([b"{}", b'{"msg_id": "p"}']), st.just(b"{}"), st.binary(max_size=9)
)


@st.composite
def batches(draw: st.DrawFn) -> list[RawMessage]:
    batch: list[RawMessage] = []
    for parts in draw(st.lists(PARTS, max_size=6)):
        signature = SIGNER.sign(parts)
        buffers = draw(st.lists(st.just(b"buffer"), max_size=1))
        frames: RawMessage = [*draw(st.sampled_from([[], [b"t"], [DELIMITER]])), DELIMITER]
        frames += [draw(st.sampled_from([signature] * 5 + [b"", b"x"])), *parts, *buffers]
        if draw(st.integers(0, 9)) == 0:
            frames = [memoryview(frame) for frame in frames]
        if draw(st.integers(0, 9)) == 0:
            del frames[draw(st.integers(0, len(frames) - 1))]
        batch.append(frames)
    return batch


def outcome(read, batch: list[RawMessage], signer: Signer) -> tuple[list[object], list[str]]:
    """Return all messages with their types and keys, and the errors."""
    found, faults, at = [], [], 0
    while at < len(batch):
        try:
            texts, keys, after = read(batch, at, signer)
        except KernelMessageError as error:
            faults.append(f"{at}: {type(error)} {error}")
            at += 1
            continue
        assert len({msg.parent_header for msg in texts}) <= 1
        found += [(msg, "stream", key) for msg, key in zip(texts, keys, strict=True)]
        found += [after] if after else []
        at += len(texts) + (after is not None)
    return found, faults


@given(batches(), st.booleans())
def test_both_implementations_read_the_same_in_any_frames(
    batch: list[RawMessage], signed: bool
) -> None:
    signer = SIGNER if signed else Signer(b"")
    assert outcome(functions("C").read_texts, batch, signer) == outcome(read_texts, batch, signer)
    for frames in batch:
        assert single(functions("C").read_message, frames, signer) == single(
            read_message, frames, signer
        )


def single(read, frames: RawMessage, signer: Signer) -> object:
    try:
        return read(Channel.CONTROL, frames, signer)
    except KernelMessageError as error:
        return type(error), str(error)
