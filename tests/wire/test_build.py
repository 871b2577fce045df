import json

import pytest
from jupyter_client.session import Session

from kbridge.wire import v1, zmq
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from tests.wire.cases import H

DATE = "2025-03-01T12:00:00.000001Z"


def status(**more) -> Message:
    return build(
        Channel.IOPUB, "status", {"execution_state": "restarting"}, session="s", date=DATE, **more
    )


def test_header_and_default_parts() -> None:
    msg = status(msg_id="m")
    assert json.loads(msg.header) == {
        "msg_id": "m",
        "msg_type": "status",
        "username": "kbridge",
        "session": "s",
        "date": DATE,
        "version": "5.4",
    }
    assert msg[2:] == (b"{}", b"{}", b'{"execution_state": "restarting"}', ())
    assert msg.channel is Channel.IOPUB


def test_each_message_has_a_new_id() -> None:
    assert status().msg_id != status().msg_id


def test_all_parameters_are_in_the_message() -> None:
    msg = status(parent_header=H, username="u", metadata={"é": 1}, buffers=[b"x"])
    assert msg.parent_header == H
    assert json.loads(msg.header)["username"] == "u"
    assert json.loads(msg.metadata) == {"é": 1}
    assert msg.buffers == (b"x",)
    assert v1.decode(v1.encode(msg))[:5] == msg[:5]


def test_session_of_jupyter_client_reads_the_message() -> None:
    session = Session(key=b"k")
    msg = status(msg_id="m", parent_header=H)
    read = session.deserialize(session.feed_identities(zmq.serialize(msg, Signer(b"k")))[1])
    assert read["content"] == {"execution_state": "restarting"}
    assert (read["msg_id"], read["msg_type"]) == ("m", "status")
    assert read["header"]["date"].year == 2025


def test_a_lone_surrogate_is_escaped() -> None:
    msg = build(Channel.IOPUB, "stream", {"text": "\ud800é"}, session="s", date=DATE)
    assert json.loads(msg.content) == {"text": "\ud800é"}
    assert v1.decode(v1.encode(msg)) == msg


def test_content_that_is_not_json_raises_a_builtin_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        build(Channel.IOPUB, "x", {"a": float("nan")}, session="s", date=DATE)
    with pytest.raises(TypeError):
        build(Channel.IOPUB, "x", {"a": object()}, session="s", date=DATE)
