"""Kernels of protocol 4: jupyter_client's own adapter, given dicts, is the oracle."""

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.adapter import adapt

from kbridge.errors import FrameError, InvalidMessage, KernelMessageError
from kbridge.hub.kernel.adapter import Adapter, adapter_for, kernel_protocol
from kbridge.wire.message import Channel, Message

PARTS = ("header", "parent_header", "metadata", "content")
HEADER = {
    "msg_id": "id-ü",
    "session": "s",
    "username": "ana",
    "date": "2030-01-01T00:00:00.000001Z",
    "version": "5.3",
}
REQUESTS: dict[str, dict[str, Any]] = {
    "kernel_info_request": {},
    "execute_request": {"code": "print('naïve')", "silent": False, "user_expressions": {}},
    "complete_request": {"code": "a\nimport o", "cursor_pos": 10},
    "inspect_request": {"code": "os.path.join(", "cursor_pos": 13, "detail_level": 0},
    "history_request": {"hist_access_type": "tail", "n": 10},
    "input_reply": {"value": "ja"},
    "comm_msg": {"comm_id": "c", "data": {"ö": [1, None]}},
    "shutdown_request": {"restart": True},
}
# Messages of a kernel of protocol 4.
REPLIES: dict[str, dict[str, Any]] = {
    "kernel_info_reply": {
        "protocol_version": [4, 1],
        "language": "python",
        "language_version": [2, 7, 6],
        "ipython_version": [2, 1, 0, ""],
    },
    "execute_reply": {
        "status": "ok",
        "execution_count": 3,
        "user_variables": {"a": {"status": "ok"}},
        "payload": [{"source": "page", "text": "help"}],
    },
    "complete_reply": {"matches": ["import", "impossible"], "matched_text": "imp"},
    "object_info_reply": {"found": True, "definition": "def f()", "docstring": "does"},
    "pyout": {"execution_count": 3, "data": {"text/plain": "1"}, "metadata": {}},
    "pyin": {"code": "1", "execution_count": 3},
    "pyerr": {"ename": "E", "evalue": "ä", "traceback": []},
    "stream": {"name": "stdout", "data": "älter"},
    "display_data": {"source": "x", "data": {"application/json": "[1]"}, "metadata": {}},
    "input_request": {"prompt": "?"},
    "status": {"execution_state": "busy"},
}


def whole(msg_type: str, content: dict[str, Any], *, version: bool) -> dict[str, Any]:
    header = {**HEADER, "msg_type": msg_type}
    parent = {**HEADER, "msg_type": "execute_request"}
    if not version:
        del header["version"], parent["version"]
    return {
        "header": header,
        "parent_header": parent,
        "metadata": {"m": "é"},
        "content": copy.deepcopy(content),
        "msg_type": msg_type,
        "msg_id": header["msg_id"],
    }


def raw(msg: dict[str, Any], buffers: tuple[bytes, ...] = ()) -> Message:
    return Message(Channel.SHELL, *(json.dumps(msg[p]).encode() for p in PARTS), buffers)


def parts(msg: Message) -> dict[str, Any]:
    return {p: json.loads(getattr(msg, p)) for p in PARTS}


def fits(error: FrameError) -> bool:
    """Return True if the reason fits into a close frame (RFC 6455, section 5.5)."""
    return len(error.reason.encode()) <= 123


def put_or_refused(msg: Message) -> None:
    refused: FrameError | None = None
    try:
        assert isinstance(Adapter(4).to_kernel(msg), Message)
    except FrameError as error:
        refused = error
    assert refused is None or fits(refused)


@pytest.mark.parametrize("msg_type", REQUESTS)
def test_what_clients_ask_is_put_as_jupyter_client_puts_it(msg_type) -> None:
    asked = whole(msg_type, REQUESTS[msg_type], version=True)
    expected = adapt(copy.deepcopy(asked), 4)
    buffers = (b"\x00", b"")
    put = Adapter(4).to_kernel(raw(asked, buffers))
    assert parts(put) == {p: expected[p] for p in PARTS}
    assert put.channel is Channel.SHELL
    assert put.buffers == buffers
    assert put.msg_id == asked["msg_id"]


@pytest.mark.parametrize("msg_type", REPLIES)
def test_what_kernels_say_is_put_as_jupyter_client_puts_it(msg_type) -> None:
    said = whole(msg_type, REPLIES[msg_type], version=False)
    expected = adapt(copy.deepcopy(said), 5)
    put = Adapter(4).from_kernel(raw(said, (b"buffer",)))
    assert parts(put) == {p: expected[p] for p in PARTS}
    assert put.msg_type == expected["msg_type"]
    assert put.buffers == (b"buffer",)


def test_the_names_of_protocol_4_become_those_of_5() -> None:
    names = {
        name: Adapter(4).from_kernel(raw(whole(name, REPLIES[name], version=False))).msg_type
        for name in ("pyout", "pyin", "pyerr", "object_info_reply")
    }
    assert names == {
        "pyout": "execute_result",
        "pyin": "execute_input",
        "pyerr": "error",
        "object_info_reply": "inspect_reply",
    }


def test_a_kernel_that_claims_5_in_its_headers_is_still_what_its_info_says() -> None:
    said = whole("stream", REPLIES["stream"], version=True)
    put = Adapter(4).from_kernel(raw(said))
    assert json.loads(put.content) == {"name": "stdout", "text": "älter"}


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("complete_request", {}),
        ("complete_request", {"code": 5, "cursor_pos": 1}),
        ("complete_request", {"code": "x", "cursor_pos": None}),
        ("inspect_request", {"code": "x"}),
        ("__call__", {}),
        ("__eq__", {}),
        ("__class__", {}),
        ("version", {}),
        ("complete_request", {"cursor_pos": "ü" * 5000, "code": "x"}),
    ],
)
def test_what_cannot_be_translated_is_the_clients_fault_in_few_words(msg_type, content) -> None:
    with pytest.raises(InvalidMessage, match="protocol 4") as caught:
        Adapter(4).to_kernel(raw(whole(msg_type, content, version=True)))
    assert fits(caught.value), "does not fit a close frame"


def test_a_type_that_no_protocol_has_passes_as_it_is() -> None:
    asked = whole("x" * 5000 + "ü", {"a": 1}, version=True)
    assert Adapter(4).to_kernel(raw(asked)).msg_type == asked["msg_type"]


@pytest.mark.parametrize("version", ["", "abc", "5", 5, None, [5, 3], "9" * 5000])
def test_a_clients_version_is_taken_or_refused_but_never_raises_anything_else(version) -> None:
    asked = whole("kernel_info_request", {}, version=True)
    asked["header"]["version"] = version
    put_or_refused(raw(asked))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [b"[]", b"", b"\xff", b"{", b"1"])
def test_parts_that_are_no_objects_are_refused_by_whose_fault_it_is(part, value) -> None:
    msg = raw(whole("stream", REPLIES["stream"], version=True))._replace(**{part: value})
    with pytest.raises(InvalidMessage, match=part):
        Adapter(4).to_kernel(msg)
    with pytest.raises(KernelMessageError, match=part):
        Adapter(4).from_kernel(msg)


@given(
    st.one_of(st.sampled_from([*REQUESTS, *REPLIES]), st.text(max_size=12)),
    st.dictionaries(
        st.sampled_from(["code", "cursor_pos", "data", "text", "matches", "status", "found"]),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.text(max_size=5)),
            lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(max_size=5), inner)),
            max_leaves=4,
        ),
    ),
)
def test_nothing_but_the_documented_errors_comes_out(msg_type, content) -> None:
    msg = raw(whole(msg_type, content, version=True))
    put_or_refused(msg)
    with suppress(KernelMessageError):
        assert isinstance(Adapter(4).from_kernel(msg), Message)


def info(content: bytes) -> Message:
    return Message(Channel.SHELL, b"{}", b"{}", b"{}", content)


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (b'{"protocol_version": "5.3"}', "5.3"),
        (b'{"protocol_version": [4, 1]}', "4.1"),
        (b'{"protocol_version": null}', ""),
        (b'{"protocol_version": 5}', ""),
        (b"{}", ""),
    ],
)
def test_the_version_comes_from_kernel_info(content, version) -> None:
    assert kernel_protocol(info(content)) == version


@pytest.mark.parametrize("content", [b"[]", b"", b"{", b"\xff", b"null"])
def test_kernel_info_that_is_none_is_the_kernels_fault(content) -> None:
    with pytest.raises(KernelMessageError, match="kernel_info_reply"):
        kernel_protocol(info(content))


@pytest.mark.parametrize("version", ["5.3", "5", "6.0", "", "five", "²", "-4", "None", "4" * 5000])
def test_what_is_current_or_unknown_needs_no_adapter(version) -> None:
    assert adapter_for(version) is None


@pytest.mark.parametrize("version", ["4", "4.1", "4.0.2"])
def test_protocol_4_does(version) -> None:
    adapter = adapter_for(version)
    assert adapter is not None
    assert adapter.major == 4
