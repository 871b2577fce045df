"""The four functions of seed 003, with those of Jupyter Server as the oracle."""

import copy
import json
import struct
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection import base as oracle

from kbridge.connection import messages
from kbridge.errors import FrameError, MalformedFrame
from kbridge.wire import v1

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
OBJECT = st.dictionaries(st.text(max_size=6), JSON, max_size=4)
BUFFERS = st.lists(st.binary(max_size=20), max_size=4)
MESSAGES = st.fixed_dictionaries(
    {
        "header": OBJECT,
        "parent_header": OBJECT,
        "metadata": OBJECT,
        "content": OBJECT,
        "buffers": BUFFERS,
        "channel": st.sampled_from(["shell", "iopub"]),
    }
)
PARTS = ("header", "parent_header", "metadata", "content")


def message(*buffers: Any, **content: Any) -> dict[str, Any]:
    header = {"msg_id": "ü", "date": datetime(2030, 1, 1, 12, tzinfo=UTC)}
    return {
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": content,
        "buffers": list(buffers),
    }


@given(MESSAGES)
def test_binary_messages_are_those_of_jupyter_server(msg) -> None:
    before = copy.deepcopy(msg)
    blob = messages.serialize_binary_message(msg)
    assert msg == before, "the argument was changed"
    assert blob == oracle.serialize_binary_message(msg)
    assert messages.deserialize_binary_message(blob) == oracle.deserialize_binary_message(blob)


def test_dates_are_written_as_text_and_read_as_dates() -> None:
    msg = message(b"", b"\x00\xff", text="naïve 🎉")
    read = messages.deserialize_binary_message(messages.serialize_binary_message(msg))
    assert read == msg


def test_views_count_in_bytes_and_need_not_be_of_bytes() -> None:
    wide = memoryview(b"x" * 32).cast("d")
    read = messages.deserialize_binary_message(
        messages.serialize_binary_message(message(wide, memoryview(b"end")))
    )
    assert read["buffers"] == [b"x" * 32, b"end"]
    channel, parts = messages.deserialize_msg_from_ws_v1(
        messages.serialize_msg_to_ws_v1([b"{}", b"{}", b"{}", b"{}", wide, b"end"], "iopub")
    )
    assert (channel, parts[4:]) == ("iopub", [b"x" * 32, b"end"])


def test_a_view_of_a_binary_message_is_read() -> None:
    blob = messages.serialize_binary_message(message(b"abc"))
    assert messages.deserialize_binary_message(memoryview(blob))["buffers"] == [b"abc"]


@given(MESSAGES, st.sampled_from(["shell", "iopub", "stdin", "control", "ü"]))
def test_v1_frames_are_those_of_jupyter_server(msg, channel) -> None:
    pack = Session().pack
    parts = [pack(msg[p]) for p in PARTS] + msg["buffers"]
    frame = messages.serialize_msg_to_ws_v1(parts, channel)
    assert frame == oracle.serialize_msg_to_ws_v1(parts, channel)
    assert messages.deserialize_msg_from_ws_v1(frame) == (channel, parts)
    assert oracle.deserialize_msg_from_ws_v1(frame) == (channel, parts)
    bare = {**msg, "buffers": []}
    assert messages.serialize_msg_to_ws_v1(bare, channel, pack) == oracle.serialize_msg_to_ws_v1(
        bare, channel, pack
    )


def test_a_dict_keeps_its_buffers_and_needs_no_pack() -> None:
    """Jupyter Server drops the buffers of a dict, and fails without `pack`."""
    msg = message(b"\x00", b"", text="ü")
    channel, parts = messages.deserialize_msg_from_ws_v1(
        messages.serialize_msg_to_ws_v1(msg, "iopub")
    )
    assert channel == "iopub"
    assert json.loads(parts[3]) == {"text": "ü"}
    assert parts[4:] == [b"\x00", b""]
    del msg["buffers"]
    assert (
        len(messages.deserialize_msg_from_ws_v1(messages.serialize_msg_to_ws_v1(msg, "x"))[1]) == 4
    )


def test_the_legacy_dialect_reads_these_messages() -> None:
    msg = message(b"buffer")
    msg["header"] = {"msg_id": "a", "msg_type": "comm_msg"}
    read = v1.decode(messages.serialize_msg_to_ws_v1(msg, "shell"))
    assert read.msg_type == "comm_msg"
    assert read.buffers == (b"buffer",)


def words(word: str, *numbers: int) -> bytes:
    return struct.pack(f"{word[0]}{len(numbers)}{word[1]}", *numbers)


DEEP = 950 if sys.version_info < (3, 12) else 200_000
MALFORMED_BINARY = {
    "empty": b"",
    "short": b"\x00\x00",
    "no parts": words("!I", 0),
    "ten million parts": words("!I", 10_000_000, 8),
    "as many as can be said": words("!I", 0xFFFFFFFF, 8) + b"{}",
    "an offset before the parts": words("!I", 1, 4) + b"{}",
    "an offset past the end": words("!I", 1, 800) + b"{}",
    "falling": words("!I", 2, 14, 12) + b"{}",
    "not JSON": words("!I", 1, 8) + b"{",
    "not UTF-8": words("!I", 1, 8) + b'"\xff"',
    "UTF-16": words("!I", 1, 8) + '{"header":{}}'.encode("utf-16-le"),
    "no object": words("!I", 1, 8) + b"[]",
    "too deep": words("!I", 1, 8) + b"[" * 200_000,
    # Python 3.12 and newer parse JSON that is deeper than the recursion limit.
    "a header too deep": words("!I", 1, 8) + b'{"header": ' + DEEP * b"[" + DEEP * b"]" + b"}",
    "a date that is none": words("!I", 1, 8) + b'{"header": {"date": "2030-13-45T99:99:99Z"}}',
}
MALFORMED_V1 = {
    "empty": b"",
    "short": b"\x00" * 7,
    "no offsets": words("<Q", 0),
    "one offset": words("<Q", 1, 16),
    "ten million offsets": words("<Q", 10_000_000, 16),
    "as many as can be said": words("<Q", (1 << 64) - 1, 16),
    "an offset into the table": words("<Q", 2, 8, 24) + b"shell",
    "an offset past the end": words("<Q", 2, 24, 1 << 40) + b"shell",
    "falling": words("<Q", 3, 34, 33, 35) + b"shell",
    "channel not UTF-8": words("<Q", 2, 24, 25) + b"\xff",
}


@pytest.mark.parametrize("name", MALFORMED_BINARY)
def test_malformed_binary_messages_are_refused_by_name(name) -> None:
    with pytest.raises(MalformedFrame):
        messages.deserialize_binary_message(MALFORMED_BINARY[name])


@pytest.mark.parametrize("name", MALFORMED_V1)
def test_malformed_v1_frames_are_refused_by_name(name) -> None:
    with pytest.raises(MalformedFrame):
        messages.deserialize_msg_from_ws_v1(MALFORMED_V1[name])


@given(MESSAGES, st.data())
def test_bytes_flipped_or_cut_are_read_or_refused_and_nothing_else(msg, data) -> None:
    for blob, read in (
        (messages.serialize_binary_message(msg), messages.deserialize_binary_message),
        (messages.serialize_msg_to_ws_v1(msg, "shell"), messages.deserialize_msg_from_ws_v1),
    ):
        harmed = bytearray(blob[: data.draw(st.integers(0, len(blob)))])
        for at in data.draw(st.lists(st.integers(0, max(0, len(harmed) - 1)), max_size=3)):
            if harmed:
                harmed[at] ^= 1 << data.draw(st.integers(0, 7))
        refused = None
        try:
            read(bytes(harmed))
        except FrameError as error:
            refused = error
        assert refused is None or refused.close_code in (1003, 1007, 1008)
