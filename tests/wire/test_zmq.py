import json

import pytest
from jupyter_client.session import Session

from kbridge.errors import InvalidSignature, KernelMessageError
from kbridge.wire import zmq
from kbridge.wire.message import Buffer, Channel, Message
from kbridge.wire.signing import Signer
from tests.wire.cases import MESSAGES, plain

KEY = b"0b5a3e3c-2b53-4d6b-9d3e-6a1f9c2d7e10"
SIGNER = Signer(KEY)
CASES = pytest.mark.parametrize("msg", MESSAGES.values(), ids=MESSAGES)
SIGNERS = pytest.mark.parametrize("key", [KEY, b""], ids=["signed", "unsigned"])
FRAMES: list[Buffer] = zmq.serialize(MESSAGES["one buffer"], SIGNER, [b"ident"])


@CASES
@SIGNERS
def test_parsing_a_serialized_message_returns_the_message(msg: Message, key: bytes) -> None:
    signer = Signer(key)
    frames = zmq.serialize(msg, signer, [b"one", b"two"])
    assert zmq.parse(msg.channel, frames, signer) == msg
    idents, signature, rest = zmq.split(frames)
    assert (idents, signature) == ([b"one", b"two"], signer.sign(msg[1:5]))
    assert rest == [*msg[1:5], *msg.buffers]


@CASES
@SIGNERS
def test_session_reads_a_serialized_message(msg: Message, key: bytes) -> None:
    session = Session(key=key)
    idents, frames = session.feed_identities(zmq.serialize(msg, Signer(key), [b"ident"]))
    read = session.deserialize(frames)
    assert idents == [b"ident"]
    assert read["msg_id"] == msg.msg_id
    assert json.dumps(read["content"]) == json.dumps(json.loads(msg.content))
    assert [bytes(b) for b in read["buffers"]] == list(plain(msg).buffers)


@SIGNERS
def test_a_message_serialized_by_session_is_parsed(key: bytes) -> None:
    session = Session(key=key)
    sent = session.msg("display_data", {"text": "žluť 🎉"}, metadata={"a": 1})
    frames = [*session.serialize(sent, ident=b"topic"), b"buffer"]
    msg = zmq.parse(Channel.IOPUB, frames, Signer(key))
    assert (msg.msg_type, msg.msg_id) == ("display_data", sent["header"]["msg_id"])
    assert json.loads(msg.content) == sent["content"]
    assert json.loads(msg.metadata) == sent["metadata"]
    assert msg.buffers == (b"buffer",)


@pytest.mark.parametrize("container", [list, tuple])
def test_memory_views_are_parsed(container: type) -> None:
    views = container(memoryview(frame) for frame in FRAMES)
    msg = zmq.parse(Channel.SHELL, views, SIGNER)
    assert plain(msg) == MESSAGES["one buffer"]
    assert {type(part) for part in msg[1:5]} == {bytes}
    assert msg.buffers[0] is views[-1]


def test_buffers_are_not_signed() -> None:
    msg = zmq.parse(Channel.SHELL, [*FRAMES[:-1], b"other"], SIGNER)
    assert msg.buffers == (b"other",)


def test_a_delimiter_among_the_buffers_is_a_buffer() -> None:
    msg = zmq.parse(Channel.SHELL, [*FRAMES, zmq.DELIMITER], SIGNER)
    assert msg.buffers == (*MESSAGES["one buffer"].buffers, zmq.DELIMITER)


@pytest.mark.parametrize("index", range(2, 7))
def test_a_forged_message_is_refused(index: int) -> None:
    frames = [bytes(f) for f in FRAMES]
    frames[index] = frames[index][:-1] + b" "
    with pytest.raises(InvalidSignature) as caught:
        zmq.parse(Channel.IOPUB, frames, SIGNER)
    assert "iopub" in caught.value.reason
    assert SIGNER.sign(frames[3:7]).decode() not in caught.value.reason


def test_an_unsigned_message_is_refused() -> None:
    with pytest.raises(InvalidSignature):
        zmq.parse(Channel.SHELL, zmq.serialize(MESSAGES["bare"], Signer(b"")), SIGNER)


@pytest.mark.parametrize("end", range(7))
@pytest.mark.parametrize("signer", [SIGNER, Signer(b"")])
def test_a_message_with_too_few_parts_is_refused(end: int, signer: Signer) -> None:
    reason = "too few parts" if end > 1 else "without <IDS"
    with pytest.raises(KernelMessageError, match=reason) as caught:
        zmq.parse(Channel.SHELL, FRAMES[:end], signer)
    assert type(caught.value) is KernelMessageError
    with pytest.raises(KernelMessageError, match=reason):
        zmq.split(FRAMES[:end])
